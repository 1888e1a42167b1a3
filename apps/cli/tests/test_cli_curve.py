"""The curve: hand-worked pictures, and that no point is lost."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli.screen.curve import Plot


def plot(width: int, height: int, *, braille: bool = True) -> Plot:
    return Plot(width=width, height=height, left=0, right=10, low=0, high=1, braille=braille)


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """The dots of braille, column and row, decoded independently of how they are made."""
    order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]
    return {
        (2 * x + dx, 4 * y + dy)
        for y, line in enumerate(lines)
        for x, character in enumerate(line)
        if character != " "
        for bit, (dx, dy) in enumerate(order)
        if (ord(character) - 0x2800) >> bit & 1
    }


def test_a_straight_line_by_hand() -> None:
    """From the top left to the bottom right, through 4 columns of 4 dots: the diagonal."""
    lines = plot(2, 1).curve([(0, 1.0), (9.9, 0.0)])
    assert {(0, 0), (1, 1), (2, 2), (3, 3)} == dots(lines)
    assert ["\u2811\u2884"] == lines
    assert ["* ", " *"] == plot(2, 2, braille=False).curve([(0, 1.0), (9.9, 0.0)])


def test_a_steep_curve_has_no_gap() -> None:
    """The column to the right of a drop is filled from the next dot on."""
    lines = plot(1, 2).curve([(0, 1.0), (5, 0.0)])
    assert {(0, 0), *((1, row) for row in range(1, 8))} == dots(lines)


def test_points_in_one_column_are_averaged() -> None:
    """Two values in a column show their mean; what is not finite counts for nothing."""
    points = [(1.0, 0.0), (2.0, 1.0), (3.0, math.nan), (3.0, math.inf)]
    assert plot(1, 3, braille=False).curve(points) == [" ", "*", " "]


def test_nothing_is_drawn_before_the_first_point_or_after_the_last() -> None:
    """A run that is half done has half a curve."""
    assert ["  ** "] == plot(5, 1, braille=False).curve([(4.1, 0.5), (7.9, 0.5)])
    assert ["     "] == plot(5, 1, braille=False).curve([])


@pytest.mark.property
@given(
    st.lists(st.tuples(st.floats(-5, 15), st.floats(-1, 2)), max_size=30),
    st.integers(1, 12),
    st.integers(1, 6),
    st.booleans(),
)
@example([(0.0, 0.0), (10.0, 1.0)], 3, 2, True)
def test_the_size_holds_and_each_lone_point_shows(
    points: list[tuple[float, float]], width: int, height: int, braille: bool
) -> None:
    """Always `height` lines of `width` characters; a point alone is where `cell` says."""
    shown = plot(width, height, braille=braille)
    lines = shown.curve(points)
    assert height == len(lines)
    assert {width} == {len(line) for line in lines}
    for x, y in points[:1]:
        alone = shown.curve([(x, y)])
        column = next(i for i in range(width) if any(line[i] != " " for line in alone))
        assert shown.cell(x, y)[0] == column


@pytest.mark.property
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
@example([0.0, 1.0, 0.0])
def test_a_curve_is_connected(values: list[float]) -> None:
    """Neighbouring columns touch: no dot is further than one row from the column before."""
    points = [(10 * i / len(values), value) for i, value in enumerate(values)]
    found = dots(plot(8, 3).curve(points))
    rows = {x: {row for column, row in found if column == x} for x in range(16)}
    columns = [x for x in range(16) if rows[x]]
    assert columns == list(range(columns[0], columns[-1] + 1))
    for x in columns[1:]:
        assert min(abs(a - b) for a in rows[x] for b in rows[x - 1]) <= 1
        assert rows[x] == set(range(min(rows[x]), max(rows[x]) + 1))
