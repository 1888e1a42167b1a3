"""yocto-chat: talk to a model.

The heavy imports wait until the flags have been read: --help and every typing error are quick.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yocto_cli.arguments import CommandArguments, UsageError, load, run_command
from yocto_cli.model_arguments import ModelArguments
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_cli.screen.terminal import is_terminal

if TYPE_CHECKING:
    from yocto_chat.chat import Chat
    from yocto_chat.chat_model import ChatModel
    from yocto_chat.reader import Reader
    from yocto_chat.screen import Screen

PROG = "yocto-chat"
DESCRIPTION = f"""\
Talks with a trained model. Without flags, with the newest one.

Examples:
  {PROG}
  {PROG} --ckpt checkpoints/philosophy-char --temperature 0.6
  echo "What is courage?" | {PROG} --seed 7"""


@dataclass(frozen=True, kw_only=True)
class ConversationArguments:
    """The conversation."""

    system_prompt: str = ""
    """A text that stays in front of the conversation."""
    max_ctx_tokens: int = 0
    """How much the model is to see at once, if less than it can; 0 is all that it can."""
    history: bool = True
    """Keep what is typed, for the Up key, in a file that only you can read."""


@dataclass(frozen=True, kw_only=True)
class ChatArguments(CommandArguments):
    """The flags of yocto-chat."""

    conversation: ConversationArguments = ConversationArguments()
    # A reply ends by itself or with the window; the limit is for those that would not. Cooler than
    # yocto-sample: what is to be answered sensibly needs fewer surprises than what is to be read.
    sampling: SamplingArguments = field(
        default_factory=lambda: SamplingArguments(max_new_tokens=400, temperature=0.6)
    )
    model: ModelArguments = field(default_factory=ModelArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-chat; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv)


def _main(argv: list[str]) -> int:
    arguments = load(ChatArguments, argv, prog=PROG, description=DESCRIPTION)
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if arguments.conversation.max_ctx_tokens < 0:
        raise UsageError("--max_ctx_tokens must be at least 0")
    if interactive:
        _talk(arguments)
    else:
        _answer_once(arguments)
    return 0


def _answer_once(arguments: ChatArguments) -> None:
    from yocto_chat import piped  # noqa: PLC0415 - brings torch in
    from yocto_chat.screen import Screen  # noqa: PLC0415 - the same

    message, damaged = piped.read_message()
    screen = Screen(sys.stderr)
    if damaged:
        screen.notice("what is not UTF-8 in the message was replaced by U+FFFD")
    piped.answer(_chat(arguments, screen), message)


def _talk(arguments: ChatArguments) -> None:
    from yocto_chat.opening import opening  # noqa: PLC0415 - brings torch in
    from yocto_chat.screen import Screen  # noqa: PLC0415 - the same

    screen = Screen(sys.stdout)
    chat = _chat(arguments, screen)
    reader = _reader(chat, keep_history=arguments.conversation.history)
    facts, remarks = opening(chat)
    screen.facts(*facts)
    for remark in remarks:
        screen.line(remark, dim=True)
    converse(chat, reader)


def _chat(arguments: ChatArguments, screen: "Screen") -> "Chat":
    from yocto_chat.chat import Chat  # noqa: PLC0415 - brings torch in

    if problems := arguments.sampling.problems():
        raise UsageError(problems)
    model = _model(arguments.model)
    wanted = arguments.conversation.max_ctx_tokens
    if wanted > model.block_size:
        screen.notice(f"--max_ctx_tokens {wanted}: the model sees {model.block_size} at most")
    return Chat(
        model,
        arguments.sampling,
        screen=screen,
        max_ctx_tokens=wanted,
        system=arguments.conversation.system_prompt,
    )


def _model(named: ModelArguments) -> "ChatModel":
    from yocto_chat.chat_model import open_model  # noqa: PLC0415 - brings torch in

    return open_model(named)


def _reader(chat: "Chat", *, keep_history: bool) -> "Reader":
    from functools import partial  # noqa: PLC0415 - with the imports that it is for

    from prompt_toolkit.history import History, InMemoryHistory  # noqa: PLC0415 - 0.2 s

    from yocto_chat.alternatives import choose  # noqa: PLC0415 - the same
    from yocto_chat.history import history_path, open_history  # noqa: PLC0415 - the same
    from yocto_chat.reader import PlainReader, PromptReader  # noqa: PLC0415 - the same

    if os.environ.get("TERM") == "dumb":
        return PlainReader(chat)
    chat.choose = partial(choose, tokenizer=chat.model.tokenizer, unicode=chat.screen.unicode)
    history: History = InMemoryHistory()
    if keep_history:
        history = open_history(history_path(), warn=chat.screen.notice)
    return PromptReader(chat, history)


def converse(chat: "Chat", reader: "Reader") -> None:
    """Read, do, and read again, until the user leaves."""
    from yocto_model import ModelError  # noqa: PLC0415 - the same
    from yocto_tokenizers import TokenizerError  # noqa: PLC0415 - the same

    from yocto_chat.commands import act  # noqa: PLC0415 - brings torch in

    while not chat.finished:
        chat.screen.line()
        try:
            line = reader.read()
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
