"""The curve of report.html: lines in an SVG, and their labels in HTML above it.

The SVG is stretched to whatever width there is, with strokes that keep theirs. Labels are no part
of it, so on a phone they are as large as the rest of the text.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from yocto_cli.screen.chart import Chart
from yocto_cli.screen.ladder import Baseline

_SIDE = 1000.0  # of the SVG's square of coordinates
_MOST_POINTS = 600
_STEPS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def chart_html(chart: Chart, best_step: int | None) -> str:
    """The chart as HTML, with the best evaluation marked; a sentence where there is nothing yet."""
    losses = [(step, loss) for step, loss in chart.losses if math.isfinite(loss)]
    evaluations = [(step, loss) for step, loss in chart.evaluations if math.isfinite(loss)]
    values = [loss for _, loss in (*losses, *evaluations)]
    if not values:
        return '<p class="quiet">The first figures are still to come.</p>'
    low = min(values)
    high = max([*values, *(baseline.loss for baseline in chart.baselines)])
    margin = max(0.05 * (high - low), 0.02)
    scale = _Scale(low=low - margin, high=high + margin, last=max(chart.max_iters, 1))
    lines = [
        *(_level(scale, baseline.loss, "rung") for baseline in chart.baselines),
        _polyline(scale, _thinned(losses), "train"),
        _polyline(scale, evaluations, "val"),
        *(_dot(scale, step, loss, best=step == best_step) for step, loss in evaluations),
    ]
    labels = [
        *(_tick(scale, value) for value in ticks(low, high)),
        *(_baseline_label(scale, baseline) for baseline in chart.baselines),
    ]
    return (
        '<div class="chart" role="img" aria-label="Loss by step: training and validation">'
        f'<svg viewBox="0 0 {_SIDE:g} {_SIDE:g}" preserveAspectRatio="none">'
        f"{''.join(lines)}</svg>{''.join(labels)}</div>"
        f'<p class="axis"><span>step 0</span><span>{chart.max_iters:,}</span></p>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Between three and seven round values from `low` to `high`, as far as there are."""
    step = next((step for step in _STEPS if (high - low) / step <= 6), _STEPS[-1])
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 2) for number in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class _Scale:
    low: float
    high: float
    last: int

    def x(self, step: float) -> float:
        """From the left, in parts of one."""
        return min(max(step / self.last, 0.0), 1.0)

    def y(self, loss: float) -> float:
        """From the top, in parts of one."""
        return min(max((self.high - loss) / (self.high - self.low), 0.0), 1.0)


def _polyline(scale: _Scale, points: Sequence[tuple[int, float]], kind: str) -> str:
    path = " ".join(
        f"{_SIDE * scale.x(step):.1f},{_SIDE * scale.y(loss):.1f}" for step, loss in points
    )
    return f'<polyline class="{kind}" points="{path}"/>' if points else ""


def _level(scale: _Scale, loss: float, kind: str) -> str:
    y = f"{_SIDE * scale.y(loss):.1f}"
    return f'<line class="{kind}" x1="0" x2="{_SIDE:g}" y1="{y}" y2="{y}"/>'


def _dot(scale: _Scale, step: int, loss: float, *, best: bool) -> str:
    # A line of no length with round ends stays round however the picture is stretched.
    where = f"{_SIDE * scale.x(step):.1f} {_SIDE * scale.y(loss):.1f}"
    words = f"step {step:,}: validation loss {loss:.4f}{', the best' if best else ''}"
    kind = "dot best" if best else "dot"
    return f'<path class="{kind}" d="M{where}h0"><title>{words}</title></path>'


def _tick(scale: _Scale, value: float) -> str:
    return f'<span class="tick" style="top:{100 * scale.y(value):.2f}%">{value:g}</span>'


def _baseline_label(scale: _Scale, baseline: Baseline) -> str:
    top = 100 * scale.y(baseline.loss)
    return (
        f'<span class="rung-label" style="top:{top:.2f}%">{html.escape(baseline.name)} '
        f"<b>{baseline.loss:.2f}</b></span>"
    )


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = -(-len(points) // _MOST_POINTS)
    return [*points[:: max(stride, 1)], *points[-1:]]
