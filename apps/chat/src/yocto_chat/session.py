"""A session: in a terminal, line after line until the user leaves; in a pipe, one message.

A terminal's prompt takes keys while torch is imported and the model is opened by another thread.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from yocto_cli.command import UsageError, WorkFailedError
from yocto_cli.models import located
from yocto_cli.sample import piped_text
from yocto_cli.screen.terminal import is_terminal
from yocto_model import ModelError
from yocto_tokenizers import TokenizerError
from yocto_train import CheckpointError, FoundModel, Run, find_model
from yocto_train.runs.checkpoint import TEMPLATE

from yocto_chat.app import ChatArguments
from yocto_chat.screen import Screen

if TYPE_CHECKING:
    from yocto_model import Token

    from yocto_chat.chat import Chat
    from yocto_chat.generation import ChatModel

#: Below this many weights a model has learned how people talk, not what is true.
_SMALL_PARAMETERS = 500_000_000


def run(arguments: ChatArguments) -> None:
    """Talk, or answer what is piped in."""
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    screen = Screen(sys.stdout if interactive else sys.stderr)
    message = "" if interactive else piped_text(screen.notice)
    if not interactive and not message.strip():
        raise UsageError("stdin is empty; pipe a message into it, or run it in a terminal")
    if problems := arguments.sampling.problems():
        raise UsageError("; ".join(problems))
    template = None
    if (path := arguments.conversation.template) is not None:
        from yocto_cli.asking import read_template  # noqa: PLC0415 - brings NumPy in

        template = read_template(Path(path).expanduser())
    found = suited(located(arguments.model.ckpt, arguments.model), arguments.model.ckpt)

    def opened() -> "ChatModel":
        from yocto_chat.generation import open_model  # noqa: PLC0415 - brings torch in

        return open_model(arguments.model, found, template=template)

    def begun(model: "ChatModel") -> "Chat":
        chat = chat_with(model, arguments, screen)
        introduce(chat)
        return chat

    if not interactive:
        answer(chat_with(opened(), arguments, screen), message)
        return
    talk = Talk(screen, opened, begun, name=found.name)
    talk.converse(talk.reader(keep_history=arguments.conversation.history))
    if not talk.is_open:
        sys.stdout.flush()
        os._exit(0)  # Python's own way out would wait for what is imported


def suited(found: FoundModel, ckpt: str | None) -> FoundModel:
    """Of a run that learned prose the step with the lowest loss, unless a step is named.

    On held-out conversations the loss rises while the answers get better: of chats it is the last.
    """
    # What is wrong with newer steps is said with the one that was found.
    if found.checkpoint is None or found.checkpoint.skipped or (found.path / TEMPLATE).exists():
        return found
    run = Run(found.checkpoint.run)
    if ckpt is not None and Path(ckpt).resolve() != run.path.resolve():
        return found
    with suppress(CheckpointError):  # then the newest will do
        if best := run.pointed("best"):
            return find_model(best)
    return found


def chat_with(model: "ChatModel", arguments: ChatArguments, screen: Screen) -> "Chat":
    """A chat as the flags want it; says what is to be known about the model."""
    from yocto_chat.chat import Chat  # noqa: PLC0415 - slower than the prompt

    for remark in model.remarks:
        screen.notice(remark)
    talk = arguments.conversation
    if (asked := talk.max_ctx_tokens) > model.block_size:
        screen.notice(f"--max_ctx_tokens {asked}: the model sees at most {model.block_size}")
    return Chat(
        model, arguments.sampling, screen=screen, max_ctx_tokens=asked, system=talk.system_prompt
    )


# --- in a terminal -------------------------------------------------------------------------------


class Talk:
    """A conversation in a terminal, which begins before its model is open.

    Args:
        screen: where it is shown.
        open_model: opens the model; another thread calls it once the prompt is there.
        begin: makes a chat with the model.
        name: of the model, for as long as nothing else is known of it.
    """

    def __init__(
        self,
        screen: Screen,
        open_model: "Callable[[], ChatModel]",
        begin: "Callable[[ChatModel], Chat]",
        *,
        name: str,
    ) -> None:
        self._screen, self._open, self._begin, self._name = screen, open_model, begin, name
        self._opening: Future[ChatModel] | None = None
        self._chat: Chat | None = None

    @property
    def is_open(self) -> bool:
        """Whether the model has been opened, or cannot be."""
        return self._opening is not None and self._opening.done()

    def _opened(self) -> "Future[ChatModel]":
        """The model, which a thread opens from the first call on."""
        self._opening = self._opening or ThreadPoolExecutor(1).submit(self._open)
        return self._opening

    def chat(self) -> "Chat":
        """The chat, once the model is open; waits for that."""
        if self._chat is None:
            model = self._opened().result()
            from yocto_chat.alternatives import choose  # noqa: PLC0415 - slower than the prompt

            self._chat = self._begin(model)
            if self._screen.ansi:
                self._chat.choose = partial(
                    choose, tokenizer=model.tokenizer, unicode=self._screen.unicode
                )
        return self._chat

    def converse(self, read: Callable[[], str]) -> None:
        """Read, do, and read again, until the user leaves; see reader.py for what `read` raises.

        Other errors are those of opening the model.
        """
        while self._chat is None or not self._chat.finished:
            self._screen.line()
            try:
                line = read()
                if self._chat is None and not self.is_open:
                    self._screen.notice(f"opening {self._name}")
                chat = self.chat()
            except KeyboardInterrupt:
                self._screen.notice("Ctrl-D or /exit leaves")
                continue
            except EOFError:
                return
            from yocto_chat.commands import act  # noqa: PLC0415 - slower than the prompt

            try:
                act(chat, line)
            except KeyboardInterrupt:
                self._screen.notice("stopped")
            except UsageError as error:
                self._screen.problem(str(error))
            except (ModelError, TokenizerError) as error:
                self._screen.problem(f"that did not work: {error}")

    def reader(self, *, keep_history: bool) -> Callable[[], str]:
        """The function that reads a line from this terminal."""
        from yocto_chat import reader  # noqa: PLC0415 - a pipe needs no prompt_toolkit

        path = reader.history_path() if keep_history else None
        history = reader.open_history(path, warn=self._screen.notice)
        prompt = reader.PromptReader(self._screen, self._toolbar, history)
        read = prompt.read if self._screen.ansi else partial(reader.read_plainly, self._screen)

        def begun() -> None:
            if self._chat is None:  # at once, if the model is open
                self._opened().add_done_callback(lambda _: prompt.above(self.chat))

        def next_line() -> str:
            draft = ""
            if self._chat is not None:
                draft, self._chat.draft = self._chat.draft, ""
            return read(draft, begun)

        return next_line

    def _toolbar(self, message: str) -> str:
        """What stands below a message that is being typed."""
        if self._chat is None:
            return self._screen.dot.join((f"opening {self._name}", "type ahead"))
        return self._screen.dot.join(self._chat.status_of(message))


def introduce(chat: "Chat") -> None:
    """The first lines of a conversation: who is speaking, and what to expect."""
    model = chat.model
    chat.screen.remark(model.line)
    is_small = model.n_parameters < _SMALL_PARAMETERS
    small, made_up = ("small ", ", and makes things up") if is_small else ("", "")
    remarks = [f"A {small}plain-text model: it continues a dialogue{made_up}."]
    if chat.layout.end_id is not None:
        remarks = [f"A {small}chat model: it answers as its text taught it{made_up}."]
    if (said := chat.layout.default_system) and not chat.conversation.system:
        remarks.append(f"Its template adds a system text, unless you give one: {said}")
    for remark in (*remarks, "/help lists the commands, Ctrl-D leaves."):
        chat.screen.remark(remark)


# --- in a pipe: all of stdin is one message, and stdout gets the reply and nothing else ----------


def answer(chat: "Chat", message: str) -> None:
    """Write the reply to one message on stdout, exactly, and everything else on the screen."""
    chat.ask(message)
    reply = chat.fresh_reply(chat.settings, chat.next_seed())
    margin = ""  # white space at the end is not a part of a finished reply

    def write(token: "Token") -> None:
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
