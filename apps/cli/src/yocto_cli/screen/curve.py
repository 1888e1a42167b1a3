"""The course of a run, from its events or from its files; and its losses as a picture.

The terminal's chart and that of report.html are drawn from the same `Chart` and `Scale`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

import numpy as np
from yocto_train import Event, Run

T = TypeVar("T")
Points = Sequence[tuple[int, float]]  # steps and losses

MARK = "●"
# A braille cell is two dots wide and four high; the bits of U+2800 by column, from the top.
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_TICK_STEPS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Above this number every other point is dropped: no curve is that wide, and runs may be endless.
_LIMIT_POINTS = 4096
_LIMIT_SAMPLES = 512


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that the model wrote after `step` steps."""

    step: int
    seed: int
    prompt: str
    text: str


@dataclass(kw_only=True)
class History:
    """The course of a run."""

    losses: list[tuple[int, float]] = field(default_factory=list)  # step and smoothed loss
    evaluations: dict[int, float] = field(default_factory=dict)  # validation loss by step
    samples: list[Sample] = field(default_factory=list)  # oldest first
    max_iters: int | None = None  # the step where it ends, if that is known
    n_parameters: int | None = None  # of the model, if that is known
    stopped: bool = False  # whether the run said so

    @classmethod
    def of(cls, run: Run) -> Self:
        """The history that a run's files hold; what cannot be read is left out."""
        found = cls()
        for file in ("metrics.jsonl", "samples.jsonl"):
            try:
                rows = run.rows(file)
            except OSError:
                continue
            for row in rows:
                found._add(row)
        return found

    def take(self, event: Event) -> None:
        """Add what an event says."""
        self._add({"event": type(event).__name__.lower(), **dataclasses.asdict(event)})

    def _add(self, row: Mapping[str, object]) -> None:
        """Add a row as metrics.jsonl and samples.jsonl hold it; values may be anything."""
        match row:
            case {"event": "started", "max_iters": int(max_iters), "n_parameters": int(n)}:
                self.max_iters, self.n_parameters, self.stopped = max_iters, n, False
            case {"event": "stopped"}:
                self.stopped = True
            case {"event": "stepdone", "step": int(step), "smoothed_loss": int() | float() as loss}:
                if math.isfinite(loss):
                    self.losses.append((step, loss))
            case {"event": "evaluated", "step": int(step), "loss": int() | float() as loss}:
                if math.isfinite(loss):
                    self.evaluations[step] = loss
            case {"event": "sampled", "step": int(step), "seed": int(seed), "prompt": str(prompt),
                  "text": str(text)}:  # fmt: skip
                self.samples.append(Sample(step=step, seed=seed, prompt=prompt, text=text))
        if len(self.losses) > _LIMIT_POINTS:
            self.losses = self.losses[1::2]
        if len(self.samples) > _LIMIT_SAMPLES:
            self.samples = self.samples[:1] + self.samples[2::2]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Where a step and a loss lie in a picture, from 0 to 1; what lies outside is on the edge."""

    low: float  # the loss at the bottom
    high: float  # the loss at the top, above `low`
    last: int  # the step at the right edge; the left edge is step 0

    def x(self, step: float) -> float:
        """From the left."""
        return min(max(step / self.last, 0.0), 1.0)

    def y(self, loss: float) -> float:
        """From the top."""
        return min(max((self.high - loss) / (self.high - self.low), 0.0), 1.0)

    def column(self, step: float, columns: int) -> int:
        """The index of the column, out of `columns`, that shows a step."""
        return min(columns - 1, int(self.x(step) * columns))

    def ticks(self) -> list[float]:
        """At most seven round losses on the scale."""
        step = next((s for s in _TICK_STEPS if (self.high - self.low) / s <= 6), _TICK_STEPS[-1])
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(number * step, 2) for number in range(first, last + 1)]


class Chart:
    """The losses of a run that ends at step `max_iters`; only finite ones can be drawn."""

    def __init__(self, history: History, *, max_iters: int) -> None:
        self.losses = _finite(history.losses)
        self.evaluations = _finite(sorted(history.evaluations.items()))
        self._last = max(max_iters, 1)

    def scale(self, *others: float) -> Scale:
        """From the tenth below the losses to the tenth above them and above the `others` drawn."""
        losses = [loss for _, loss in (*self.losses, *self.evaluations)] or [0.0, 1.0]
        low = math.floor(10 * min(losses)) / 10
        high = math.ceil(10 * max(*losses, *others, low)) / 10
        return Scale(low=low, high=max(high, low + 0.1), last=self._last)

    def lines(self, width: int, height: int, *, braille: bool = True) -> list[str]:
        """The curve and a mark for each evaluation, as `height` strings of `width` characters."""
        scale = self.scale()
        lines = curve(self.losses, scale, width, height, braille=braille)
        for step, loss in self.evaluations:
            row, column = round(scale.y(loss) * (height - 1)), scale.column(step, width)
            lines[row] = lines[row][:column] + MARK + lines[row][column + 1 :]
        return lines


def curve(
    points: Points, scale: Scale, width: int, height: int, *, braille: bool = True
) -> list[str]:
    """The points joined by a line, as `height` strings of `width` characters.

    Points that share a column of dots are averaged, and columns between two points are filled by a
    straight line. With `braille` a character has eight dots; without, it is a star, which is ASCII.
    """
    across, down = (2, 4) if braille else (1, 1)
    bits = [[0] * width for _ in range(height)]
    previous: int | None = None
    for column, loss in _columns(points, scale, width * across):
        row = round(scale.y(loss) * (height * down - 1))
        # The gap to the column before is closed, so that a steep curve is one line.
        start = row if previous is None else previous + (row > previous) - (row < previous)
        for dot in range(min(start, row), max(start, row) + 1):
            bits[dot // down][column // across] |= _BRAILLE[column % 2][dot % 4] if braille else 1
        previous = row
    if braille:
        return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in bits]
    return ["".join("*" if cell else " " for cell in line) for line in bits]


def _columns(points: Points, scale: Scale, columns: int) -> Iterable[tuple[int, float]]:
    """The loss in each column of dots, from the first point to the last."""
    where = [scale.column(step, columns) for step, _ in points]
    if not where:
        return ()
    sums, counts = np.bincount(where, weights=[loss for _, loss in points]), np.bincount(where)
    (known,) = np.nonzero(counts)
    between = np.arange(known[0], known[-1] + 1)
    means = np.interp(between, known, sums[known] / counts[known])
    return zip(between.tolist(), means.tolist(), strict=True)


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most about so many of the items, evenly spread; the first and the last are among them."""
    stride = -(-len(items) // most) or 1
    return [*items[:-1:stride], *items[-1:]]


def _finite(points: Points) -> Points:
    return [(step, loss) for step, loss in points if math.isfinite(loss)]
