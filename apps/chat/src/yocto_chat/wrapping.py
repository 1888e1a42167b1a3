"""Breaking lines between words while the words are still being written.

A reply appears character by character. When a word turns out not to fit, the part of it that stands
there is erased and written again on the next line.
"""

from collections.abc import Sequence

from rich.cells import cell_len

_TAB_CELLS = 8


class WordWrap:
    """Text in, the same text with line breaks out.

    Args:
        movable: whether the terminal can move its cursor; without that, nothing is rewritten, and
            only words longer than a line are broken, as any terminal does.

    Attributes:
        column: cells used on the current line.
    """

    def __init__(self, *, movable: bool) -> None:
        self.column = 0
        self._movable = movable
        self._word: list[tuple[str, str]] = []  # character and its style, of the word at the end
        self._rewritable = True  # every character of it takes one cell

    def push(self, text: str, *, width: int, style: str = "") -> str:
        """What to write for `text`.

        Args:
            text: safe for a terminal already.
            width: cells per line, now.
            style: an escape sequence that is in force for `text`; "" for none.
        """
        if not self._movable:
            self._follow(text)
            return text
        # In its last column a terminal waits with the line break, and counting cells goes wrong.
        limit = max(1, width - 1)
        out = [style]
        for character in text:
            out.extend(self._place(character, limit, style))
        if style:
            out.append(_RESET)
        return "".join(out)

    def _follow(self, text: str) -> None:
        last_line = text.rpartition("\n")
        self.column = cell_len(last_line[2]) + (0 if last_line[1] else self.column)

    def _place(self, character: str, limit: int, style: str) -> Sequence[str]:
        if character == "\n":
            self._break_line()
            return ("\n",)
        if character == "\t":
            character = " " * (_TAB_CELLS - self.column % _TAB_CELLS)
        if character.isspace():
            self._word, self._rewritable = [], True
            if self.column + len(character) > limit:
                self.column = 0
                return ("\n",)
            self.column += len(character)
            return (character,)
        return self._place_in_word(character, limit, style)

    def _place_in_word(self, character: str, limit: int, style: str) -> Sequence[str]:
        cells = cell_len(character)
        out: list[str] = []
        if self.column + cells > limit:
            out = self._moved_word(style) if self._can_move(limit) else self._broken_word()
        self._word.append((character, style))
        self._rewritable &= cells == 1
        self.column += cells
        return [*out, character]

    def _can_move(self, limit: int) -> bool:
        return self._rewritable and 0 < len(self._word) < min(self.column, limit)

    def _moved_word(self, style: str) -> list[str]:
        """Erase the word and write it at the beginning of a new line."""
        count = len(self._word)
        out = [f"\x1b[{count}D\x1b[K\n"]
        current = style
        for character, its_style in self._word:
            if its_style != current:
                out.append(_RESET + its_style)
                current = its_style
            out.append(character)
        if current != style:
            out.append(_RESET + style)
        self.column = count
        return out

    def _broken_word(self) -> list[str]:
        if self.column == 0:
            return []  # wider than the whole line: let it be
        self._break_line()
        return ["\n"]

    def _break_line(self) -> None:
        self.column, self._word, self._rewritable = 0, [], True


_RESET = "\x1b[0m"
