"""Breaking lines between words while the words are still being written."""

from itertools import groupby

from rich.cells import cell_len

_TAB_CELLS = 8

#: Text, and its style: parameters of Select Graphic Rendition (ECMA-48, 8.3.117) or "" for plain.
Piece = tuple[str, str]


class WordWrap:
    """Text in, the same text with line breaks between words out.

    A word is held back until the space after it comes; only then is it known on which line it goes.
    A character of two cells does not wait: scripts that have them put no spaces between words.
    """

    def __init__(self) -> None:
        self.column = 0  # cells used on the current line
        self._word: list[Piece] = []
        self._word_cells = 0

    def push(self, text: str, *, cells: int, style: str = "") -> str:
        """What to write now that `text`, which is safe already, has come; a line has `cells`."""
        return _rendered([piece for c in text for piece in self._placed(c, cells, style)])

    def flush(self, *, cells: int) -> str:
        """The word that was held back."""
        return _rendered(self._released(cells))

    def _placed(self, character: str, cells: int, style: str) -> list[Piece]:
        if character.isspace():
            return [*self._released(cells), *self._space(character, cells, style)]
        its_cells = cell_len(character)
        out: list[Piece] = []
        if its_cells > 1 or self._word_cells + its_cells > cells:
            out = self._released(cells)
        self._word.append((character, style))
        self._word_cells += its_cells
        return out + self._released(cells) if its_cells > 1 else out

    def _space(self, character: str, cells: int, style: str) -> list[Piece]:
        if character == "\n":
            self.column = 0
            return [("\n", "")]
        tab = _TAB_CELLS - self.column % _TAB_CELLS
        self.column += tab if character == "\t" else cell_len(character)
        if self.column <= cells:
            return [(character, style)]
        self.column = cells  # the line is full: the next word begins another
        return []

    def _released(self, cells: int) -> list[Piece]:
        out, self._word = self._word, []
        self.column += self._word_cells
        if self.column > cells and self.column > self._word_cells:
            out.insert(0, ("\n", ""))
            self.column = self._word_cells
        self._word_cells = 0
        return out


def _rendered(pieces: list[Piece]) -> str:
    """The pieces with escape sequences around those that have a style."""
    runs = [
        (style, "".join(text for text, _ in run)) for style, run in groupby(pieces, lambda p: p[1])
    ]
    return "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for style, text in runs)
