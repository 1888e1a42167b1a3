"""What is typed: a prompt with history, completion and several lines, or plain `input()`.

Either way `read` gives one message or command. It raises KeyboardInterrupt for Ctrl-C on an empty
line, and EOFError for Ctrl-D or when the terminal has gone.

Messages are private: the file of the history is bounded and readable by its owner alone, and
--no_history keeps none at all. A history that cannot be used is reported once, and the chat goes on
without it.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, get_app, run_in_terminal
from prompt_toolkit.application.current import set_app
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
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import Dimension
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style
from yocto_cli.command import UsageError
from yocto_cli.screen.terminal import counted, no_colour, one_line, visible
from yocto_data.prep.files import open_regular, replace_file

from yocto_chat.app import MAX_MESSAGE_CHARACTERS
from yocto_chat.screen import Screen

_MENU_LINES = 5
_MOST_ROWS = 10  # of a message: a longer one scrolls while it is typed, and is folded when sent
_ROWS_AT_BEGIN, _ROWS_AT_END = 3, 2  # that are left of it
_PROMPT = "> "
_QUOTES = '"""'
_MAX_HISTORY_BYTES = 1 << 20
_KEPT_HISTORY_BYTES = 1 << 19


class PromptReader:
    """A prompt of prompt_toolkit.

    Args:
        screen: for what is to be said about a message.
        toolbar: what is said below a message while it is typed.
        history: what was typed before.
    """

    def __init__(self, screen: Screen, toolbar: Callable[[str], str], history: History) -> None:
        self._screen, self._toolbar_of = screen, toolbar
        self._n_cut = 0  # characters cut from what was pasted
        self._completer = CommandCompleter()
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,  # Enter sends nevertheless: see `_keys`
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
        )
        without_cpr_warning(self._session.app)
        self._session.layout.current_window.height = lambda: (
            Dimension() if get_app().is_done else Dimension(min=_MENU_LINES, max=_MOST_ROWS)
        )

    def read(self, draft: str, begun: Callable[[], None]) -> str:
        """What is typed; calls `begun` as soon as it can be."""
        app = self._session.app
        app.erase_when_done = False
        text = message_of(self._session.prompt(default=visible(draft), pre_run=begun))
        if app.erase_when_done:
            self._screen.line("\n".join(folded(_PROMPT + text, self._screen.width)))
        if self._n_cut:
            dropped = counted(self._n_cut, "character")
            self._screen.notice(f"too much was pasted; its end is cut ({dropped})")
            self._n_cut = 0
        return text

    def above(self, work: Callable[[], object]) -> None:
        """Do something above what is being typed, from any thread; its error ends `read`."""

        def done() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - it is raised by `read`
                app.exit(exception=error)

        def soon() -> None:
            with set_app(app):
                run_in_terminal(done)

        app = self._session.app
        with suppress(RuntimeError):  # nothing is being typed any more
            if app.loop is not None:
                app.loop.call_soon_threadsafe(soon)

    def _toolbar(self) -> str:
        text = self._toolbar_of(message_of(get_app().current_buffer.text))
        return one_line(text)[: max(0, self._screen.width - 1)]

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
                rows = folded(buffer.text, self._screen.width)
                event.app.erase_when_done = rows != buffer.text.split("\n")
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
            self._n_cut += max(0, len(text) - room)
            event.current_buffer.insert_text(visible(text[:room]))

        return keys

    def _complete(self, buffer: Buffer) -> None:
        """Insert what is certain, and offer the rest.

        prompt_toolkit's own Tab is lost while the completions of the last letter are still being
        looked for, that is, when somebody types quickly.
        """
        event = CompleteEvent(completion_requested=True)
        found = list(self._completer.get_completions(buffer.document, event))
        if len(found) == 1:
            buffer.cancel_completion()
            buffer.apply_completion(found[0])
        elif buffer.complete_state:
            buffer.complete_next()
        elif found:
            buffer.insert_text(get_common_complete_suffix(buffer.document, found))
            buffer.start_completion()


def without_cpr_warning(app: Application[Any]) -> None:
    """Let it be silent on a terminal that does not say where its cursor is; all else works."""
    app.renderer.cpr_not_supported_callback = None


def read_plainly(screen: Screen, draft: str, begun: Callable[[], None]) -> str:
    """What was typed, by `input()`: for terminals that cannot move their cursor."""
    begun()
    if draft:
        screen.notice(f"the message was: {draft}")
    try:
        text = input(_PROMPT)
        while goes_on(text):
            text = next_line(text) + input(" " * len(_PROMPT))
    except (KeyboardInterrupt, EOFError):
        screen.line()  # the cursor is behind what was typed
        raise
    return message_of(text)


def folded(text: str, width: int) -> list[str]:
    """The lines of a text; of one that takes many rows, only those at its beginning and end."""
    lines = text.split("\n")
    rows = [line[i : i + width] for line in lines for i in range(0, max(len(line), 1), width)]
    if len(rows) <= _MOST_ROWS:
        return lines
    hidden = f"... {len(rows) - _ROWS_AT_BEGIN - _ROWS_AT_END} more lines ..."
    return [*rows[:_ROWS_AT_BEGIN], hidden, *rows[-_ROWS_AT_END:]]


class CommandCompleter(Completer):
    """Completes the names of commands, and what follows them."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What `/re` may become: see `Completer`."""
        from yocto_chat.commands import COMMANDS, find  # noqa: PLC0415 - slower than the prompt

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
        values = [c.name for c in COMMANDS] if command.name == "help" else command.completions
        for value in values:
            if value.startswith(rest):
                yield Completion(value, start_position=-len(rest))
        if command.takes_path:
            yield from self._paths.get_completions(Document(rest), complete_event)


def goes_on(text: str) -> bool:
    r"""Whether Enter at the end of `text` begins a new line instead of sending it.

    It does after a `\\` at the end, and inside three quotes.
    """
    if text.startswith(_QUOTES):
        return not (len(text.rstrip()) >= 2 * len(_QUOTES) and text.rstrip().endswith(_QUOTES))
    return text.endswith("\\")


def next_line(text: str) -> str:
    """`text` with its line ended, for the next one to follow."""
    return (text if text.startswith(_QUOTES) else text.removesuffix("\\")) + "\n"


def message_of(text: str) -> str:
    """The message that was typed: without its quotes, and with U+FFFD for half a character."""
    if text.startswith(_QUOTES) and not goes_on(text):
        text = text.rstrip()[len(_QUOTES) : -len(_QUOTES)].strip("\n")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --- what was typed before -----------------------------------------------------------------------


class PrivateHistory(FileHistory):
    """A FileHistory that survives a full disk and whatever others wrote into its file."""

    def __init__(self, path: Path, *, warn: Callable[[str], None]) -> None:
        super().__init__(path)
        self._warn: Callable[[str], None] | None = warn

    def load_history_strings(self) -> Iterable[str]:
        """The entries, newest first, safe to show."""
        return [visible(entry) for entry in super().load_history_strings()]

    def store_string(self, string: str) -> None:
        """Append an entry."""
        try:
            super().store_string(string.encode("utf-8", "replace").decode())
        except OSError as error:
            if self._warn:
                self._warn(f"history is not kept: {error.strerror}")
                self._warn = None


def history_path() -> Path:
    """Where the history is: `$XDG_STATE_HOME/yocto/history`, by default in `~/.local/state`."""
    # A relative path there is to be ignored, says the XDG Base Directory Specification.
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    base = base if base.is_absolute() else Path("~/.local/state").expanduser()
    return base / "yocto" / "history"


def open_history(path: Path | None, *, warn: Callable[[str], None]) -> History:
    """The history at `path`, or if that cannot be used, one that ends with the process."""
    if path is None:
        return InMemoryHistory()
    try:
        _prepare(path)
    except OSError as error:
        warn(f"history is not kept: {path}: {error.strerror or error}")
        return InMemoryHistory()
    return PrivateHistory(path, warn=warn)


def _prepare(path: Path) -> None:
    """Make the file, or make the existing one private and short."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    umask = os.umask(0o077)  # nothing that is made here is ever readable by others
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, flags))
        path.chmod(0o600)
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size <= _MAX_HISTORY_BYTES:
                return
            file.seek(-_KEPT_HISTORY_BYTES, os.SEEK_END)
            tail = file.read()
        # An entry begins with a line "# time", after an empty one; what precedes the first is cut.
        replace_file(path, tail[max(0, tail.find(b"\n# ")) :])
    finally:
        os.umask(umask)
