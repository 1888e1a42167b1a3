"""report.html: a run as a page that opens anywhere, offline, without scripts."""

import html
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yocto_cli.report.chart import chart_html
from yocto_cli.report.style import STYLE
from yocto_cli.screen.chart import Chart
from yocto_cli.screen.history import History, Sample
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.terminal import visible

NAME = "report.html"
_MOST_SAMPLES = 24


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page tells.

    Attributes:
        name: of the run.
        status: how far it is, in a few words.
        history: its course.
        baselines: the loss ladder.
        max_iters: the step where it ends.
        best_step: the step of the lowest validation loss, if there is one.
        best_loss: that loss.
        bits: the same in bits per `unit`, if that is known.
        unit: "character" or "token".
        n_parameters: distinct weights.
        facts: names and values about model, data and training.
        commands: what to do with it, and the command for that.
        config: the text of config.toml.
    """

    name: str
    status: str
    history: History
    baselines: Sequence[Baseline]
    max_iters: int
    best_step: int | None
    best_loss: float | None
    bits: float | None
    unit: str
    n_parameters: int
    facts: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    config: str


def write_report(directory: Path, report: Report) -> None:
    """Put report.html in place in one step: a reader sees the old page or the new one.

    Raises:
        OSError: the system refused.
    """
    # Named as the run's other temporary files: a crash leaves nothing that stays.
    temporary = directory / f".tmp-{NAME}-{secrets.token_hex(4)}"
    try:
        temporary.write_text(page(report), encoding="utf-8")
        temporary.replace(directory / NAME)
    finally:
        temporary.unlink(missing_ok=True)


def page(report: Report) -> str:
    """The page. Every text from outside is escaped, and shown rather than obeyed."""
    chart = Chart(
        losses=tuple(report.history.losses),
        evaluations=tuple(sorted(report.history.evaluations.items())),
        max_iters=report.max_iters,
        baselines=tuple(report.baselines),
    )
    name = _safe(report.name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name} · yocto</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{name}</h1>
<p class="status">{_safe(report.status)}</p>
{_figures(report)}
{_commands(report.commands)}
</header>
<main>
<h2>Loss</h2>
{chart_html(chart, report.best_step)}
{_legend(report.baselines)}
<h2>What it writes</h2>
{_samples(report.history)}
<h2>How it was made</h2>
{_facts(report.facts)}
<details><summary>config.toml, which trains it again</summary>
<pre>{_safe(report.config)}</pre></details>
</main>
</body>
</html>
"""


def _safe(text: str) -> str:
    return html.escape(visible(text))


def _figures(report: Report) -> str:
    figures = []
    if report.best_loss is not None:
        figures.append((f"{report.best_loss:.3f}", f"validation loss at step {report.best_step:,}"))
    if report.bits is not None:
        figures.append((f"{report.bits:.2f}", f"bits per {report.unit}"))
    if report.best_loss is not None:
        choices = math.exp(min(report.best_loss, 700))
        what = "characters" if report.unit == "character" else "tokens"
        figures.append((f"{choices:.1f}", f"{what} it wavers between, on average"))
    figures.append((_counted(report.n_parameters), "parameters"))
    return '<div class="figures">' + "".join(
        f'<div class="figure"><b>{number}</b><span>{words}</span></div>'
        for number, words in figures
    ) + "</div>"  # fmt: skip


def _counted(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<p class="label">{_safe(purpose)}</p><code class="command">{_safe(command)}</code>'
        for purpose, command in commands
    )


def _legend(baselines: Sequence[Baseline]) -> str:
    entries = [("t", "training, smoothed"), ("v", "validation")]
    words = ""
    if baselines:
        entries.append(("r", "models that only count"))
        words = (
            '<p class="quiet">The dotted lines are models that learn nothing but frequencies, '
            "scored on the same validation text. What lies below the last of them is what this "
            "model knows beyond counting.</p>"
        )
    shown = "".join(f'<span><i class="{kind}"></i>{name}</span>' for kind, name in entries)
    return f'<p class="legend">{shown}</p>{words}'


def _samples(history: History) -> str:
    if not history.samples:
        return '<p class="quiet">No sample has been written yet.</p>'
    shown = _spread(history.samples)
    items = "".join(_sample(sample, history.evaluations.get(sample.step)) for sample in shown)
    return f'<ol class="samples">{items}</ol>'


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """All of a few, or a number of them spread evenly from the first to the last."""
    n = len(samples)
    if n <= _MOST_SAMPLES:
        return list(samples)
    return [samples[i * (n - 1) // (_MOST_SAMPLES - 1)] for i in range(_MOST_SAMPLES)]


def _sample(sample: Sample, loss: float | None) -> str:
    measured = "" if loss is None else f"<span>validation loss {loss:.3f}</span>"
    prompt, text = sample.prompt, sample.text
    if not prompt.strip():
        prompt, text = "", text.lstrip("\n")
    return (
        f'<li><h3>step {sample.step:,}{measured}</h3><blockquote dir="auto" lang="">'
        f"<em>{_safe(prompt)}</em>{_safe(text)}</blockquote></li>"
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{_safe(k)}</dt><dd>{_safe(v)}</dd></div>" for k, v in facts)
    return f"<dl>{items}</dl>"
