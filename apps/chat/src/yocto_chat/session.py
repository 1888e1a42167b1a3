"""A session: in a terminal, line after line until the user leaves; in a pipe, one message."""

import os
import sys
from collections.abc import Callable
from functools import partial

from yocto_cli.command import UsageError, WorkFailedError
from yocto_cli.screen.terminal import is_terminal
from yocto_model import ModelError, Token
from yocto_tokenizers import TokenizerError

from yocto_chat.app import ChatArguments
from yocto_chat.chat import Chat
from yocto_chat.commands import act
from yocto_chat.generation import open_model
from yocto_chat.screen import Screen

_MAX_STDIN_BYTES = 1 << 20
#: Below this many weights a model has learned how people talk, not what is true.
_SMALL_PARAMETERS = 500_000_000


def run(arguments: ChatArguments) -> None:
    """Talk, or answer what is piped in."""
    talk, sampling = arguments.conversation, arguments.sampling
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    screen = Screen(sys.stdout if interactive else sys.stderr)
    message = "" if interactive else read_message(screen)
    if problems := sampling.problems():
        raise UsageError("; ".join(problems))
    opened = open_model(arguments.model, template=talk.template)
    for remark in opened.remarks:
        screen.notice(remark)
    if (asked := talk.max_ctx_tokens) > opened.block_size:
        screen.notice(f"--max_ctx_tokens {asked}: the model sees at most {opened.block_size}")
    chat = Chat(opened, sampling, screen=screen, max_ctx_tokens=asked, system=talk.system_prompt)
    if interactive:
        read = reader_for(chat, keep_history=talk.history)
        introduce(chat)
        converse(chat, read)
    else:
        answer(chat, message)


# --- in a terminal -------------------------------------------------------------------------------


def reader_for(chat: Chat, *, keep_history: bool) -> Callable[[], str]:
    """The function that reads a line from this terminal; /alts is enabled if it can be shown."""
    from yocto_chat import reader  # noqa: PLC0415 - a pipe needs no prompt_toolkit
    from yocto_chat.alternatives import choose  # noqa: PLC0415 - the same

    if os.environ.get("TERM") == "dumb":
        return partial(reader.read_plainly, chat)
    chat.choose = partial(choose, tokenizer=chat.model.tokenizer, unicode=chat.screen.unicode)
    path = reader.history_path() if keep_history else None
    return reader.PromptReader(chat, reader.open_history(path, warn=chat.screen.notice)).read


def introduce(chat: Chat) -> None:
    """The first lines of a conversation: who is speaking, and what to expect."""
    model = chat.model
    parts = [
        model.name,
        "" if model.step is None else f"step {model.step}",
        f"{model.n_parameters / 1e6:.2f}M parameters",
        "" if model.val_loss is None else f"val {model.val_loss:.3f}",
        f"window {chat.window}" + f" of {model.block_size}" * (chat.window < model.block_size),
        "" if model.weights == "float32" else f"{model.weights} weights",
    ]
    chat.screen.summary(*filter(None, parts))
    is_small = model.n_parameters < _SMALL_PARAMETERS
    small, made_up = ("small ", ", and makes things up") if is_small else ("", "")
    remarks = [f"A {small}plain-text model: it continues a dialogue{made_up}."]
    if chat.layout.end_id is not None:
        remarks = [f"A {small}chat model: it answers as its text taught it{made_up}."]
    if (said := chat.layout.default_system) and not chat.conversation.system:
        remarks.append(f"Its template adds a system text, unless you give one: {said}")
    if model.best_step is not None and model.best_step != model.step:
        best = f"--ckpt {model.run}/best"
        remarks.append(f"Its loss was lowest at step {model.best_step}: {best}")
    for remark in (*remarks, "/help lists the commands, Ctrl-D leaves."):
        chat.screen.remark(remark)


def converse(chat: Chat, read: Callable[[], str]) -> None:
    """Read, do, and read again, until the user leaves; see reader.py for what `read` raises."""
    while not chat.finished:
        chat.screen.line()
        try:
            line = read()
        except KeyboardInterrupt:
            chat.screen.notice("Ctrl-D or /exit leaves")
            continue
        except EOFError:
            return
        try:
            act(chat, line)
        except KeyboardInterrupt:
            chat.screen.notice("stopped")
        except UsageError as error:
            chat.screen.problem(str(error))
        except (ModelError, TokenizerError) as error:
            chat.screen.problem(f"that did not work: {error}")


# --- in a pipe: all of stdin is one message, and stdout gets the reply and nothing else ----------


def read_message(screen: Screen) -> str:
    """All of stdin; a `UsageError` unless it is a text."""
    content = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1) if sys.stdin else b""
    if len(content) > _MAX_STDIN_BYTES:
        raise UsageError("stdin holds more than 1 MiB; a message is a short text")
    if b"\0" in content:
        raise UsageError("stdin is binary, not text; pipe a message into it")
    text = content.decode("utf-8-sig", "replace")
    if not text.strip():
        raise UsageError("stdin is empty; pipe a message into it, or run it in a terminal")
    if text.count("\ufffd") != content.count("\ufffd".encode()):
        screen.notice("bytes that are not UTF-8 were replaced by U+FFFD")
    return text.replace("\r\n", "\n").removesuffix("\n")


def answer(chat: Chat, message: str) -> None:
    """Write the reply to one message on stdout, exactly, and everything else on the screen."""
    chat.ask(message)
    reply = chat.fresh_reply(chat.settings, chat.next_seed())
    margin = ""  # white space at the end is not a part of a finished reply

    def write(token: Token) -> None:
        nonlocal margin
        text = margin + token.text
        margin = text[len(text.rstrip()) :]
        sys.stdout.write(text.rstrip())
        sys.stdout.flush()

    try:
        reply.run(write)
    except ModelError as error:
        raise WorkFailedError(f"the model could not answer: {error}") from error
    sys.stdout.write("\n" if reply.finish == "stop" else f"{margin}\n")
    sys.stdout.flush()
    chat.screen.summary(*chat.summary_of(reply))
