"""report.html: a run as a page that opens anywhere, offline, without scripts.

The curve is an SVG that stretches to any width, while its strokes keep theirs. Its labels are HTML
above it, so on a phone they are as large as the rest of the text.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from yocto_data.prep.files import replace_file

from yocto_cli.screen.curve import Chart, History, Points, Sample, Scale, thinned
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.terminal import visible

NAME = "report.html"
_MOST_SAMPLES = 24
_MOST_POINTS = 600
_SIDE = 1000  # of the SVG's square of coordinates


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the page."""

    name: str
    status: str  # how far the run is, in a few words
    history: History
    baselines: Sequence[Baseline]
    max_iters: int
    best_step: int | None
    best_loss: float | None
    unit: str  # what losses are per: "character" or "token"
    n_parameters: int
    details: Sequence[tuple[str, str]]  # names and values about model, data and training
    commands: Sequence[tuple[str, str]]  # what to do with it, and the command for that
    config: str  # the text of config.toml


def write_report(directory: Path, report: Report) -> None:
    """Put report.html in place in one step, or raise OSError and leave the old one."""
    replace_file(directory / NAME, page(report).encode())


def page(report: Report) -> str:
    """The page. Every text from outside is escaped, and shown rather than obeyed."""
    template = Template((files("yocto_cli.report") / NAME).read_text(encoding="utf-8"))
    return template.substitute(
        name=_safe(report.name),
        status=_safe(report.status),
        figures=_figures(report),
        commands="".join(
            f'<p class="label">{_safe(purpose)}</p><code class="command">{_safe(command)}</code>'
            for purpose, command in report.commands
        ),
        chart=_chart(report),
        without_baselines="" if report.baselines else "hidden",
        samples=_samples(report.history),
        details="".join(
            f"<div><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd></div>"
            for name, value in report.details
        ),
        config=_safe(report.config),
    )


def _safe(text: str) -> str:
    return html.escape(visible(text))


def _figures(report: Report) -> str:
    n, loss, unit = report.n_parameters, report.best_loss, report.unit
    figures = []
    if loss is not None:
        figures.append((f"{loss:.3f}", f"validation loss at step {report.best_step:,}"))
        if unit == "character":  # tokens are of many lengths
            figures.append((f"{loss / math.log(2):.2f}", "bits per character"))
        choices = math.exp(min(loss, 700))
        figures.append((f"{choices:.1f}", f"{unit}s it hesitates between, on average"))
    figures.append((f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n:,}", "parameters"))
    return "".join(f'<div class="figure"><b>{n}</b><span>{of}</span></div>' for n, of in figures)


# --- the curve -----------------------------------------------------------------------------------


def _chart(report: Report) -> str:
    chart = Chart(report.history, max_iters=report.max_iters)
    if not chart.losses and not chart.evaluations:
        return '<p class="quiet">Nothing has been measured yet.</p>'
    scale = chart.scale(*(baseline.loss for baseline in report.baselines))
    levels = [(100 * scale.y(baseline.loss), baseline) for baseline in report.baselines]
    lines = [
        *(f'<line class="baseline" x1="0" x2="{_SIDE}" y1="{10 * y:.1f}" y2="{10 * y:.1f}"/>'
          for y, _ in levels),
        _line(scale, thinned(chart.losses, _MOST_POINTS), "train"),
        _line(scale, chart.evaluations, "val"),
        *(_dot(scale, step, loss, best=step == report.best_step)
          for step, loss in chart.evaluations),
    ]  # fmt: skip
    labels = [
        *(f'<span class="tick" style="top:{100 * scale.y(value):.2f}%">{value:g}</span>'
          for value in scale.ticks()),
        *(f'<span class="baseline-label" style="top:{y:.2f}%">{_safe(baseline.name)} '
          f"<b>{baseline.loss:.2f}</b></span>" for y, baseline in levels),
    ]  # fmt: skip
    return (
        '<div class="chart" role="img" aria-label="Loss by step: training and validation">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none">'
        f"{''.join(lines)}</svg>{''.join(labels)}</div>"
        f'<p class="axis"><span>step 0</span><span>{report.max_iters:,}</span></p>'
    )


def _line(scale: Scale, points: Points, kind: str) -> str:
    path = " ".join(f"{_SIDE * scale.x(x):.1f},{_SIDE * scale.y(y):.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>' if points else ""


def _dot(scale: Scale, step: int, loss: float, *, best: bool) -> str:
    # A line of zero length with round ends stays round however the picture is stretched.
    where = f"{_SIDE * scale.x(step):.1f} {_SIDE * scale.y(loss):.1f}"
    title = f"step {step:,}: validation loss {loss:.4f}{', the best' if best else ''}"
    kind = "dot best" if best else "dot"
    return f'<path class="{kind}" d="M{where}h0"><title>{title}</title></path>'


# --- the samples ---------------------------------------------------------------------------------


def _samples(history: History) -> str:
    """All samples, or if there are many, some spread evenly from the first to the last."""
    samples = thinned(history.samples, _MOST_SAMPLES)
    items = [_sample(sample, history.evaluations.get(sample.step)) for sample in samples]
    if not items:
        return '<p class="quiet">No sample has been written yet.</p>'
    return f'<ol class="samples">{"".join(items)}</ol>'


def _sample(sample: Sample, loss: float | None) -> str:
    measured = "" if loss is None else f"<span>validation loss {loss:.3f}</span>"
    prompt, text = sample.prompt, sample.text
    if not prompt.strip():
        prompt, text = "", text.lstrip("\n")
    return (
        f'<li><h3>step {sample.step:,}{measured}</h3><blockquote dir="auto" lang="">'
        f"<em>{_safe(prompt)}</em>{_safe(text)}</blockquote></li>"
    )
