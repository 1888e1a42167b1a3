"""A curve made of characters: no plotting library, no terminal, only strings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A braille cell is two dots wide and four high; the bits of U+2800 by column, from the top.
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A field of characters, and the part of the plane that it shows.

    Attributes:
        width: characters.
        height: lines.
        left: x at the left edge.
        right: x at the right edge, above `left`.
        low: y at the bottom.
        high: y at the top, above `low`.
        braille: eight dots to a character; else one star, which ASCII has.
    """

    width: int
    height: int
    left: float
    right: float
    low: float
    high: float
    braille: bool = True

    def curve(self, points: Iterable[Point]) -> list[str]:
        """The points joined by a line, as `height` strings of `width` characters.

        Points that share a column of dots are averaged, and columns between two points are filled
        by a straight line. What is not finite is left out; what lies outside is put on the edge.

        Args:
            points: in any order.
        """
        across, down = (2, 4) if self.braille else (1, 1)
        columns, rows = self.width * across, self.height * down
        cells = [[0] * self.width for _ in range(self.height)]
        previous: int | None = None
        for column, value in enumerate(_filled(self._means(points, columns))):
            if value is None:
                continue
            row = self._row(value, rows)
            # The gap to the column before is closed, so that a steep curve is one line.
            start = row if previous is None else previous + (row > previous) - (row < previous)
            for dot in range(min(start, row), max(start, row) + 1):
                bit = _BRAILLE[column % 2][dot % 4] if self.braille else 1
                cells[dot // down][column // across] |= bit
            previous = row
        return ["".join(map(self._character, line)) for line in cells]

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """The column and the line of the character that shows a point."""
        return self._column(x, self.width), self._row(y, self.height)

    def _character(self, bits: int) -> str:
        if not bits:
            return " "
        return chr(_BLANK + bits) if self.braille else "*"

    def _means(self, points: Iterable[Point], columns: int) -> list[float | None]:
        sums, counts = [0.0] * columns, [0] * columns
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                column = self._column(x, columns)
                sums[column] += y
                counts[column] += 1
        return [total / n if n else None for total, n in zip(sums, counts, strict=True)]

    def _column(self, x: float, columns: int) -> int:
        share = (x - self.left) / (self.right - self.left)
        return min(columns - 1, max(0, int(share * columns)))

    def _row(self, y: float, rows: int) -> int:
        share = (self.high - y) / (self.high - self.low)
        return min(rows - 1, max(0, round(share * (rows - 1))))


def _filled(values: Sequence[float | None]) -> list[float | None]:
    """Straight lines over the gaps between known values; nothing before the first, or after."""
    filled = list(values)
    before: int | None = None
    for column, value in enumerate(values):
        if value is None:
            continue
        if before is not None:
            start = values[before]
            assert start is not None  # noqa: S101 - `before` is where a value was
            for between in range(before + 1, column):
                share = (between - before) / (column - before)
                filled[between] = start + share * (value - start)
        before = column
    return filled
