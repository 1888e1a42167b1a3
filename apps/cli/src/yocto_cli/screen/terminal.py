"""What a terminal may be sent, and what it can show.

Text of models, files and users can hold anything: escape codes that clear the screen or overwrite
the clipboard, marks that pile up, controls that reverse the direction of a line. `visible` shows
such characters instead of obeying them.
"""

import contextlib
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

# Whatever a terminal might act on, or that hides or reverses text: C0 except tab and newline, DEL,
# C1, bidirectional controls, line and paragraph separators, the byte order mark, lone surrogates,
# tag characters. The joiner U+200D is not among them: emoji and several scripts need it.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
# Written languages put up to about five marks on a letter; a pile of hundreds covers other lines.
_MARKS_PER_CELL = 8
_SECONDS_BETWEEN_LINES = 5.0  # of progress, off a terminal


class VisibleStream:
    """`visible` for text that comes in pieces: marks are counted across the cuts."""

    def __init__(self) -> None:
        self._marks = 0

    def push(self, text: str) -> str:
        """The next piece, safe to print."""
        text = _CONTROLS.sub(_picture, text)
        if text.isascii():
            if text:
                self._marks = 0
            return text
        return "".join(filter(self._admits, text))

    def _admits(self, character: str) -> bool:
        category = unicodedata.category(character)
        if category in ("Mn", "Me"):
            self._marks += 1
            return self._marks <= _MARKS_PER_CELL
        if category != "Cf":  # a format character between marks does not begin a new cell
            self._marks = 0
        return True


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:04X}>"


def visible(text: str) -> str:
    """The text with everything a terminal would act upon made visible; newline and tab stay.

    C0 characters and DEL become control pictures (U+2400 onwards), other controls, lone surrogates,
    bidirectional controls and tag characters become `<009B>`; more than eight marks on one cell are
    dropped.
    """
    return VisibleStream().push(text)


def one_line(text: str) -> str:
    """`visible`, with newlines and tabs shown as well: what an error message may quote."""
    return visible(text).replace("\n", "\u240a").replace("\t", "\u2409")


def has_colour(stream: TextIO) -> bool:
    """Whether this stream is a terminal that wants colours: NO_COLOR is empty, TERM is not dumb."""
    return is_terminal(stream) and not no_colour()


def no_colour() -> bool:
    """Whether the user's environment asks for plain text."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is at the other end: not of a closed stream, nor where there is none."""
    return stream is not None and not stream.closed and stream.isatty()


def can_show(stream: TextIO, characters: str) -> bool:
    """Whether the stream's encoding has these characters, such as borders or braille dots."""
    try:
        characters.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def encodable(text: str, stream: TextIO | None) -> str:
    r"""The text with codes such as `\u2500` for characters that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # no stream: stdout was closed
    return text.encode(encoding, "backslashreplace").decode(encoding)


def dim(text: str, stream: TextIO) -> str:
    """The text in faint letters on a terminal with colours, else as it is."""
    return f"\x1b[2m{text}\x1b[22m" if has_colour(stream) else text


def counted(number: int, noun: str) -> str:
    """`1 turn`, `2 turns`, `1,000 turns`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`45s`, `1m54s`, `2h05m`, `3d04h`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def say(text: str) -> None:
    """Print for people, at once; `visible` escapes the text, and newlines stay.

    A console that is closed or full does not stop the work: from then on nothing is shown.
    """
    try:
        print(encodable(visible(text), sys.stdout), flush=True)
    except (OSError, ValueError):
        drop_stdout()


def show_marked(tokens: Iterable[tuple[str, int, bool]], *, with_ids: bool) -> None:
    """Print tokens (text, id, whether it is marked): marked ones tinted, or underlined with ~."""
    from rich.cells import cell_len  # noqa: PLC0415 - only where it is shown

    tints, end = has_colour(sys.stdout), "\u23ce\n" if can_show(sys.stdout, "\u23ce") else "\\n\n"
    line, under = "", ""
    for text, token_id, is_marked in tokens:
        if with_ids:  # in front of a line end
            text = text.removesuffix("\n") + f"[{token_id}]" + "\n" * text.endswith("\n")  # noqa: PLW2901
        for part in visible(text).replace("\t", "\u2409").replace("\n", end).splitlines(True):
            shown = part.rstrip("\n")
            line += f"\x1b[32m{shown}\x1b[39m" if tints and is_marked else shown
            under += ("~" if is_marked else " ") * cell_len(shown)
            if part != shown:
                _print_marked(line, "" if tints else under)
                line, under = "", ""
    _print_marked(line, "" if tints else under)
    print()


def _print_marked(line: str, under: str) -> None:
    for each in (line, under.rstrip()):
        if each:
            print(encodable(each, sys.stdout))


def drop_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit is quiet."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


class ProgressBar:
    """Shows on stderr how far a long job is while its block runs: a bar, or lines in a file."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if has_colour(sys.stderr):
            self._bar = _new_bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done; a total of 0 means that it is not known."""
        if self._bar is not None:
            tasks = {task.description: task.id for task in self._bar.tasks}
            task = tasks[what] if what in tasks else self._bar.add_task(what)
            self._bar.update(task, completed=done, total=total or None)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share = f" {done / total:.0%}" if total else ""
            print(f"{what}:{share} {done / 1e6:.1f} MB", file=sys.stderr, flush=True)


def _new_bar() -> "Progress":
    from rich import progress as rich  # noqa: PLC0415 - only where there is a terminal
    from rich.console import Console  # noqa: PLC0415 - the same

    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False), rich.BarColumn(),
        rich.DownloadColumn(), rich.TimeRemainingColumn(),
        console=Console(file=sys.stderr), refresh_per_second=4, transient=True,
    )  # fmt: skip
