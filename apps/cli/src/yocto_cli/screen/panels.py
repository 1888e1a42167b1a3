"""The two panels of the training screen: the curve beside the loss ladder, and the sample.

A line is a list of (text, style) pairs; styles are rich's. Nothing is said by colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.cells import cell_len, chop_cells, set_cell_size

from yocto_cli.screen.chart import Chart
from yocto_cli.screen.curve import Plot
from yocto_cli.screen.ladder import Baseline

Line = list[tuple[str, str]]

_AXIS_CELLS = 7
_LADDER_CELLS = 34
_LEAST_CURVE_CELLS = 16
MOST_SAMPLE_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The characters that frames are made of; all of them one cell wide."""

    full: str
    half: str
    empty: str
    dot: str
    tick: str
    axis: str
    mark: str
    horizontal: str
    vertical: str
    corners: tuple[str, str, str, str]
    unknown: str
    braille: bool


UNICODE = Glyphs(
    full="━", half="╸", empty="─", dot="·", tick="┤", axis="│", mark="●", horizontal="─",
    vertical="│", corners=("┌", "┐", "└", "┘"), unknown="…", braille=True,
)  # fmt: skip
ASCII = Glyphs(
    full="#", half="#", empty="-", dot="|", tick="+", axis="|", mark="o", horizontal="-",
    vertical="|", corners=("+", "+", "+", "+"), unknown="...", braille=False,
)  # fmt: skip


# --- the curve and the ladder --------------------------------------------------------------------


@lru_cache(maxsize=4)  # most frames change in nothing but the step
def chart_lines(
    chart: Chart, here: tuple[str, float] | None, width: int, lines: int, glyphs: Glyphs
) -> tuple[Line, ...]:
    """`lines` lines, none wider than `width`; the ladder is left out where there is no room.

    `here` is where the model stands on the ladder, and the name of that.
    """
    ladder: list[Line] = []
    if chart.baselines and width >= _AXIS_CELLS + _LEAST_CURVE_CELLS + _LADDER_CELLS:
        ladder = ladder_lines(chart.baselines, here)
        if len(ladder) + 2 <= lines and chart.evaluations:
            ladder += [[], [(f"    {glyphs.mark}", "magenta"), ("  validation", "dim")]]
    plot_width = width - _AXIS_CELLS - (_LADDER_CELLS if ladder else 1)
    if plot_width < 1:
        return ()
    low, high = bounds([y for _, y in (*chart.losses, *chart.evaluations)])
    plot = Plot(
        width=plot_width, height=lines, left=0, right=max(chart.max_iters, 1), low=low, high=high,
        braille=glyphs.braille,
    )  # fmt: skip
    marks = {plot.cell(x, y) for x, y in chart.evaluations if math.isfinite(y)}
    result = []
    for number, text in enumerate(plot.curve(chart.losses)):
        label = {0: f"{high:.1f}", lines - 1: f"{low:.1f}"}.get(number, "")
        tick = glyphs.tick if label else glyphs.axis
        line: Line = [(f" {label:>4} {tick}", "dim"), *_marked(text, number, marks, glyphs)]
        if number < len(ladder):
            line += [("  ", ""), *ladder[number]]
        result.append(fitting(line, width))
    return tuple(result)


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The tenths around these values; room for something where there is nothing to show."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low = math.floor(10 * min(finite)) / 10
    high = math.ceil(10 * max(finite)) / 10
    return low, max(high, low + 0.1)


def _marked(text: str, number: int, marks: set[tuple[int, int]], glyphs: Glyphs) -> Line:
    line: Line = []
    start = 0
    for column in sorted(column for column, row in marks if row == number):
        line += [(text[start:column], "cyan"), (glyphs.mark, "magenta")]
        start = column + 1
    return [*line, (text[start:], "cyan")]


def ladder_lines(baselines: Sequence[Baseline], here: tuple[str, float] | None) -> list[Line]:
    """The baselines from the highest loss to the lowest, with the model between them."""
    rows = [(baseline.loss, baseline.name, False) for baseline in baselines]
    if here is not None and math.isfinite(here[1]):
        rows.append((here[1], here[0], True))
    lines: list[Line] = []
    for loss, name, is_model in sorted(rows, key=lambda row: -row[0]):
        if is_model:
            lines.append([(f"{loss:5.2f}  {name}", "bold")])
        else:
            passed = here is not None and here[1] < loss
            style = "green" if passed else ""
            lines.append([(f"{loss:5.2f}  {name:<18}", ""), (" passed" if passed else "", style)])
    return lines


# --- the sample ----------------------------------------------------------------------------------


def framed(
    title: str, body: Sequence[str], width: int, lines: int, *, glyphs: Glyphs, style: str = ""
) -> list[Line]:
    """Text in a box of `lines` lines and `width` cells, from the second column on."""
    title = cut(title, width - 8)
    rule = glyphs.horizontal * (width - 6 - cell_len(title))
    left, right, bottom_left, bottom_right = glyphs.corners
    top: Line = [(f" {left}{glyphs.horizontal} ", "dim"), (title, ""), (f" {rule}{right}", "dim")]
    rows = [*body, *[""] * lines][: lines - 2]
    side = f" {glyphs.vertical}"
    return [
        top,
        *(
            [(f"{side} ", "dim"), (set_cell_size(row, width - 5), style), (side, "dim")]
            for row in rows
        ),
        [(f" {bottom_left}{glyphs.horizontal * (width - 3)}{bottom_right}", "dim")],
    ]


@lru_cache(maxsize=4)
def wrapped(text: str, width: int, lines: int) -> tuple[str, ...]:
    """The first lines of a text, broken between words where one is too long for `width` cells."""
    rows: list[str] = []
    for line in text.expandtabs(4).split("\n"):
        rest = line
        while cell_len(rest) > width and len(rows) < lines:
            piece = chop_cells(rest, width)[0]
            blank = piece.rfind(" ") if rest[len(piece) :][:1] != " " else len(piece)
            cut = blank if blank > width // 2 else len(piece)
            rows.append(rest[:cut])
            rest = rest[cut:].removeprefix(" ")
        rows.append(rest)
        if len(rows) >= lines:
            break
    return tuple(rows[:lines])


# --- cells ---------------------------------------------------------------------------------------


def cut(text: str, width: int) -> str:
    """The beginning of a text that fits `width` cells."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width, 0)).rstrip()


def fitting(line: Line, width: int) -> Line:
    """The line without what does not fit `width` cells."""
    kept: Line = []
    left = width
    for text, style in line:
        shown = cut(text, left)
        if shown:
            kept.append((shown, style))
        left -= cell_len(shown)
    return kept
