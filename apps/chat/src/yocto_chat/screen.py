"""Screen: the one place of the chat that prints, and that makes text safe to print.

Replies are written as they come, with lines broken between words; rich lays out tables. Whatever
came from a model, a file or a user is handed over as it is, and made safe here and only here.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from yocto_cli.screen.terminal import (
    VisibleStream,
    can_show,
    is_terminal,
    no_colour,
    one_line,
    visible,
)

if TYPE_CHECKING:
    from yocto_model import Token

#: Text, and its style: parameters of Select Graphic Rendition (ECMA-48, 8.3.117) or "" for plain.
Piece = tuple[str, str]

# Bold, dim and reverse are not colours: they stay where NO_COLOR is set.
BOLD, DIM, REVERSE = "1", "2", "7"
_WIDTH_ELSEWHERE = 80
_NEVER_WRAPPED = 1 << 30
_TAB_CELLS = 8
#: A column narrower than this reads badly: the texts are stacked instead.
_NARROWEST_COLUMN = 22
#: How much of a reply is repeated, dimmed, where it is continued.
_REPEATED_CHARACTERS = 40


class Shade(NamedTuple):
    """How tokens of at least this probability look, with colours and without."""

    least: float
    name: str
    colour: str
    plain: str


# Colours of the reader's own palette, calm where the model was sure. The two unlikeliest shades are
# underlined as well: nobody has to tell colours apart to see them.
SHADES = (
    Shade(0.8, "80 % or more", "32", ""),
    Shade(0.5, "50 %", "36", ""),
    Shade(0.2, "20 %", "33", ""),
    Shade(0.05, "5 %", "4;35", "4"),
    Shade(0.0, "less", "4;31", "1;4"),
)


def shade_of(logprob: float) -> Shade:
    """The shade of a natural log-probability; NaN has the hottest."""
    probability = math.exp(min(logprob, 0.0))
    return next((shade for shade in SHADES if probability >= shade.least), SHADES[-1])


class Screen:
    """Writes to one stream."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.ansi = is_terminal(out) and os.environ.get("TERM") != "dumb"  # obeys escape sequences
        self.colour = self.ansi and not no_colour()
        self.unicode = can_show(out, "·─│█¶")  # beyond ASCII
        self.dot = " · " if self.unicode else " - "

    @property
    def width(self) -> int:
        """Cells per line, now: a window may have been resized."""
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self._out.fileno()).columns or _WIDTH_ELSEWHERE
        return _WIDTH_ELSEWHERE

    def line(self, text: str = "", *, dim: bool = False) -> None:
        """Write text, broken between words where it is wider than the window, and end the line."""
        self.styled([(text, DIM if dim else "")])

    def notice(self, text: str) -> None:
        """Something that happened and would otherwise go unnoticed."""
        self.remark(f"- {text} -")

    def remark(self, text: str) -> None:
        self.line(one_line(text), dim=True)

    def problem(self, text: str) -> None:
        """Something that did not work, and what to do."""
        self.line(f"! {one_line(text)}")

    def summary(self, *parts: str) -> None:
        """Short facts on one dim line."""
        self.remark(self.dot.join(parts))

    def styled(self, pieces: Iterable[Piece]) -> None:
        """A paragraph of texts, each with its style."""
        writer = Writer(self)
        for text, style in pieces:
            writer.put(text, style)
        writer.end(blank=True)

    def rows(self, rows: Iterable[Sequence[str]]) -> None:
        """A table without lines; the first column stays whole where there is room."""
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=self.width >= 50)
        for row in rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        self._draw(table)

    def columns(self, texts: Sequence[tuple[str, str]]) -> None:
        """Pairs of title and text in columns, or one below the other."""
        if self.width // len(texts) < _NARROWEST_COLUMN:
            for number, (title, text) in enumerate(texts):
                self.styled([("\n" * bool(number) + title + "\n", BOLD), (text, "")])
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for title, _ in texts:
            table.add_column(Text(visible(title)), ratio=1)
        table.add_row(*(Text(visible(text)) for _, text in texts))
        self._draw(table)

    def tint(self, shade: Shade) -> str:
        return shade.colour if self.colour else shade.plain

    def legend(self) -> None:
        self.styled(
            piece for shade in SHADES for piece in ((shade.name, self.tint(shade)), ("  ", ""))
        )

    def write(self, safe: str) -> None:
        """Write text that is safe already, escape sequences of ours included."""
        self._out.write(safe)
        self._out.flush()

    @property
    def line_cells(self) -> int:
        """How wide text may be before it is broken; a file takes lines of any length."""
        # A terminal delays the line break in its last column, which would upset our count of cells.
        return max(1, self.width - 1) if is_terminal(self._out) else _NEVER_WRAPPED

    def _draw(self, table: Table) -> None:
        console = Console(
            file=self._out,
            width=self.width,
            force_terminal=self.ansi,
            no_color=not self.colour,
            safe_box=not self.unicode,
        )
        console.print(table)
        self._out.flush()


class Writer:
    """Writes text piece by piece, breaking lines between words; `tinted` by likelihood.

    A word is held back until the space after it comes; only then is it known on which line it goes.
    A character of two cells does not wait: scripts that have them put no spaces between words.
    """

    def __init__(self, screen: Screen, *, tinted: bool = False) -> None:
        self._screen, self._tinted = screen, tinted
        self._visible = VisibleStream()
        self._cells = screen.line_cells  # of a line
        self._column = 0  # cells used on the current line
        self._word: list[Piece] = []
        self._word_cells = 0

    def put(self, text: str, style: str = "") -> None:
        """Write text as soon as its words are whole."""
        style = style if self._screen.ansi else ""
        self._cells = self._screen.line_cells
        safe = self._visible.push(text)
        self._write([piece for character in safe for piece in self._placed(character, style)])

    def token(self, token: "Token") -> None:
        if self._tinted and token.logprob is not None:
            self.put(token.text, self._screen.tint(shade_of(token.logprob)))
        else:
            self.put(token.text)

    def recall(self, text: str) -> None:
        """Repeat the end of a text that is to be continued, dimmed."""
        text = text.rpartition("\n")[2]
        if len(text) > _REPEATED_CHARACTERS:
            text = "..." + text[-_REPEATED_CHARACTERS:].partition(" ")[2]
        self.put(text, DIM)

    def mark(self, text: str) -> None:
        self._write(self._released())
        self.put(f" {text}" if self._column else text, DIM)

    def end(self, *, blank: bool = False) -> None:
        """End the last line; an empty one only if `blank`."""
        self._write(self._released())
        if self._column or blank:
            self._screen.write("\n")
            self._column = 0

    def _placed(self, character: str, style: str) -> list[Piece]:
        """What to write now that this character has come."""
        if character.isspace():
            return [*self._released(), *self._space(character, style)]
        cells = cell_len(character)
        out: list[Piece] = []
        if cells > 1 or self._word_cells + cells > self._cells:
            out = self._released()
        self._word.append((character, style))
        self._word_cells += cells
        return out + self._released() if cells > 1 else out

    def _space(self, character: str, style: str) -> list[Piece]:
        if character == "\n":
            self._column = 0
            return [("\n", "")]
        tab = _TAB_CELLS - self._column % _TAB_CELLS
        self._column += tab if character == "\t" else cell_len(character)
        if self._column <= self._cells:
            return [(character, style)]
        self._column = self._cells  # the line is full: the next word begins another
        return []

    def _released(self) -> list[Piece]:
        """The word that was held back."""
        out, self._word = self._word, []
        self._column += self._word_cells
        if self._column > self._cells and self._column > self._word_cells:
            out.insert(0, ("\n", ""))
            self._column = self._word_cells
        self._word_cells = 0
        return out

    def _write(self, pieces: list[Piece]) -> None:
        """Write the pieces, with escape sequences around those that have a style."""
        runs = [
            (style, "".join(text for text, _ in run))
            for style, run in groupby(pieces, lambda p: p[1])
        ]
        self._screen.write(
            "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for style, text in runs)
        )
