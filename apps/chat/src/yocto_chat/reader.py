"""What is typed: a prompt with history, completion and several lines, or plain `input()`."""

from collections.abc import Iterable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    get_common_complete_suffix,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from yocto_cli.arguments import UsageError
from yocto_cli.screen.terminal import no_colour, one_line, visible

from yocto_chat.chat import MAX_MESSAGE_CHARACTERS, Chat
from yocto_chat.commands import COMMANDS, find
from yocto_chat.typing_rules import goes_on, message_of, next_line

_MENU_LINES = 5
_PROMPT = "> "


class Reader(Protocol):
    """Gets one message or command at a time from the user."""

    def read(self) -> str:
        """What was typed.

        Raises:
            KeyboardInterrupt: Ctrl-C, and there was nothing to clear.
            EOFError: Ctrl-D, or the terminal has gone.
        """
        ...


class PromptReader:
    """A prompt of prompt_toolkit.

    Args:
        chat: for the toolbar, and for drafts to edit.
        history: what was typed before.
        terminal_input: instead of the process's own, in tests.
        terminal_output: the same.
    """

    def __init__(
        self,
        chat: Chat,
        history: History,
        *,
        terminal_input: Input | None = None,
        terminal_output: Output | None = None,
    ) -> None:
        self._chat = chat
        self._pasted_too_much = 0
        self._completer = CommandCompleter()
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,  # Enter sends all the same: see `_keys`
            prompt_continuation=" " * len(_PROMPT),
            history=history,
            completer=self._completer,
            complete_while_typing=True,
            reserve_space_for_menu=_MENU_LINES,
            key_bindings=self._keys(),
            enable_open_in_editor=True,
            enable_suspend=True,
            bottom_toolbar=self._toolbar,
            style=Style.from_dict({"bottom-toolbar": "noreverse dim"}),
            color_depth=ColorDepth.DEPTH_1_BIT if no_colour() else None,
            input=terminal_input,
            output=terminal_output,
        )

    def read(self) -> str:
        """What was typed; see `Reader`."""
        draft, self._chat.draft = self._chat.draft, ""
        text = message_of(self._session.prompt(default=draft))
        if self._pasted_too_much:
            self._chat.screen.notice(
                f"too much was pasted; its last {self._pasted_too_much:,} characters are cut"
            )
            self._pasted_too_much = 0
        return text

    def _complete(self, buffer: Buffer) -> None:
        """Insert what is certain, and offer the rest.

        prompt_toolkit's own Tab is lost while the completions of the last letter are still being
        looked for, that is, when somebody types quickly.
        """
        found = list(
            self._completer.get_completions(
                buffer.document, CompleteEvent(completion_requested=True)
            )
        )
        if len(found) == 1:
            buffer.cancel_completion()
            buffer.apply_completion(found[0])
        elif buffer.complete_state:
            buffer.complete_next()
        elif found:
            buffer.insert_text(get_common_complete_suffix(buffer.document, found))
            buffer.start_completion()

    def _toolbar(self) -> str:
        chat = self._chat
        facts = [f"ctx {chat.context_tokens}/{chat.window}", chat.model.name, "/help"]
        return one_line(chat.screen.dot.join(facts))[: max(0, chat.screen.width - 1)]

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        typed = Condition(lambda: get_app().current_buffer.text != "")

        @keys.add(Keys.Enter, filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.complete_state and buffer.complete_state.current_completion:
                buffer.complete_state = None  # it is in the text already
            elif buffer.document.is_cursor_at_the_end and goes_on(buffer.text):
                buffer.document = Document(next_line(buffer.text))
            else:
                buffer.validate_and_handle()

        @keys.add(Keys.Tab, filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            self._complete(event.current_buffer)

        @keys.add(Keys.Escape, Keys.Enter, filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add(Keys.ControlC, filter=typed & ~is_searching)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.reset()

        @keys.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            room = max(0, MAX_MESSAGE_CHARACTERS - len(event.current_buffer.text))
            self._pasted_too_much += max(0, len(text) - room)
            event.current_buffer.insert_text(visible(text[:room]))

        return keys


class PlainReader:
    """`input()`, for terminals that cannot move their cursor."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def read(self) -> str:
        """What was typed; see `Reader`."""
        if self._chat.draft:
            self._chat.screen.notice(f"the message was: {one_line(self._chat.draft)}")
            self._chat.draft = ""
        try:
            text = input(_PROMPT)
            while goes_on(text):
                text = next_line(text) + input(" " * len(_PROMPT))
        except (KeyboardInterrupt, EOFError):
            self._chat.screen.line()  # the cursor stands behind what was typed
            raise
        return message_of(text)


class CommandCompleter(Completer):
    """Completes the names of commands, and what follows them."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What `/re` may become: see `Completer`."""
        text = document.text_before_cursor
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            for command in COMMANDS:
                if any(n.startswith(name) for n in (command.name, *command.aliases)):
                    yield Completion(
                        f"/{command.name}",
                        start_position=-len(text),
                        display=command.synopsis,
                        display_meta=command.help,
                    )
            return
        try:
            command = find(name)
        except UsageError:
            return
        words = [c.name for c in COMMANDS] if command.name == "help" else command.words
        for word in words:
            if " " not in rest and word.startswith(rest):
                yield Completion(word, start_position=-len(rest))
        if command.takes_path:
            yield from self._paths.get_completions(Document(rest), complete_event)
