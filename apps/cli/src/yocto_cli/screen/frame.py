"""One frame of the training screen: facts in, styled lines out. Pure, and the same for any clock.

 yocto-train  checkpoints/philosophy-char  4 layers · 128 wide · 0.82M · cpu
 ━━━━━━━━━━━━━━━━━━━━━━╸───────────────  61%  1220/2000  1m54s left  41.2k tok/s
 loss 1.742  val 1.861  best 1.858 @1100  2.68 bits/char  lr 6.1e-04  grad 0.9
 ... the curve and the ladder, the sample, the keys

The panels are in panels.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from yocto_cli.screen.chart import Chart, Points
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.panels import (
    MOST_SAMPLE_LINES,
    UNICODE,
    Glyphs,
    Line,
    chart_lines,
    cut,
    fitting,
    framed,
    wrapped,
)

_LEAST_CURVE_LINES = 5  # fewer show nothing
_MOST_CURVE_LINES = 16
_LEAST_SAMPLE_LINES = 3  # a border, a line of text, a border
_USUAL_SAMPLE_LINES = 6  # so that a short sample does not move the screen


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a frame shows. Every text is safe for a terminal already.

    Attributes:
        run: the run directory.
        model: the model in a few words each.
        step: finished steps.
        max_iters: the last step.
        loss: smoothed training loss, if there is one yet.
        val_loss: of the last evaluation.
        best_loss: the lowest validation loss.
        best_step: its step.
        bits: bits per unit of text, comparable between tokenizers.
        unit: "char" or "byte".
        lr: learning rate of the next step.
        grad_norm: of the last step reported, before clipping.
        tokens_per_second: of training.
        seconds_left: an estimate, or None while there is none.
        losses: step and smoothed training loss.
        evaluations: step and validation loss.
        baselines: the loss ladder.
        sample: step, seed, prompt and text of the last sample.
        no_sample: what stands in its place; empty for no place at all.
        advice: a line of advice, or nothing.
        keys: whether keys are read.
        pending: keys that were pressed and have not been acted upon.
    """

    run: str
    model: Sequence[str]
    step: int
    max_iters: int
    loss: float | None = None
    val_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    bits: float | None = None
    unit: str = "char"
    lr: float = 0.0
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    losses: Points = ()
    evaluations: Points = ()
    baselines: tuple[Baseline, ...] = ()
    sample: tuple[int, int, str, str] | None = None
    no_sample: str = ""
    advice: str = ""
    keys: bool = False
    pending: frozenset[str] = frozenset()


def frame(facts: Facts, width: int, rows: int, glyphs: Glyphs = UNICODE) -> list[Line]:
    """The lines of a frame: at most `rows`, none wider than `width` cells.

    With few rows the sample goes first, then the curve with the ladder.
    """
    head = [_title(facts, width, glyphs), _progress(facts, width, glyphs), _numbers(facts, width)]
    if facts.advice:
        head.append([(cut(f" {facts.advice}", width), "yellow")])
    title, body = _sample(facts, width, glyphs)
    for_curve, for_sample = _shares(rows - len(head) - 1, len(body))
    middle: list[Line] = []
    if for_curve:
        chart = Chart(
            losses=facts.losses,
            evaluations=facts.evaluations,
            max_iters=facts.max_iters,
            baselines=facts.baselines,
        )
        middle += chart_lines(chart, _here(facts), width, for_curve, glyphs)
    if for_sample:
        style = "dim" if facts.sample is None else ""
        middle += framed(title, body, width, for_sample, glyphs=glyphs, style=style)
    return [*head, *middle, _keys(facts, width)][: max(rows, 1)]


def _shares(rest: int, body_lines: int) -> tuple[int, int]:
    """Lines for the curve and for the sample, which is `body_lines` of text."""
    if rest < _LEAST_CURVE_LINES:
        return 0, 0
    if not body_lines or rest < _LEAST_CURVE_LINES + _LEAST_SAMPLE_LINES:
        return min(rest, _MOST_CURVE_LINES), 0
    wanted = min(max(body_lines + 2, _USUAL_SAMPLE_LINES), MOST_SAMPLE_LINES)
    sample = min(wanted, rest - max(_LEAST_CURVE_LINES, min(rest // 2, _MOST_CURVE_LINES)))
    return min(rest - sample, _MOST_CURVE_LINES), sample


def _here(facts: Facts) -> tuple[str, float] | None:
    """Where the model stands on the ladder; before an evaluation the training loss must do."""
    if facts.val_loss is not None:
        return "you are here", facts.val_loss
    return None if facts.loss is None else ("training loss", round(facts.loss, 1))


def _sample(facts: Facts, width: int, glyphs: Glyphs) -> tuple[str, Sequence[str]]:
    """Title and text of the sample; no text where it has no place."""
    if width < 20:
        return "", ()
    if facts.sample is None:
        return "sample", [facts.no_sample] if facts.no_sample else []
    step, seed, prompt, text = facts.sample
    quoted = f' {glyphs.dot} "{prompt}"' if prompt else ""
    title = f"sample @{step} {glyphs.dot} seed {seed}{quoted}"
    return title, wrapped(text, width - 5, MOST_SAMPLE_LINES - 2)


# --- the lines on top ----------------------------------------------------------------------------


def _title(facts: Facts, width: int, glyphs: Glyphs) -> Line:
    run, model = f"  {facts.run}", list(facts.model)
    while model and cell_len(f" yocto-train{run}  {_joined(model, glyphs)}") > width:
        model.pop()
    rest = f"  {_joined(model, glyphs)}" if model else ""
    return fitting([(" yocto-train", "bold"), (run, ""), (rest, "dim")], width)


def _joined(words: Sequence[str], glyphs: Glyphs) -> str:
    return f" {glyphs.dot} ".join(words)


def _progress(facts: Facts, width: int, glyphs: Glyphs) -> Line:
    share = facts.step / facts.max_iters if facts.max_iters else 1.0
    left = glyphs.unknown if facts.seconds_left is None else f"{duration(facts.seconds_left)} left"
    words = [f"{int(100 * share):3d}%", f"{facts.step}/{facts.max_iters}", left]
    if facts.tokens_per_second is not None:
        words.append(f"{_thousands(facts.tokens_per_second)} tok/s")
    while len(words) > 1 and len("  ".join(words)) + 14 > width:
        words.pop()
    text = "  ".join(words)
    cells = max(1, width - len(text) - 4)
    halves = int(2 * cells * min(share, 1.0))
    bar = glyphs.full * (halves // 2) + glyphs.half * (halves % 2)
    return fitting(
        [(f" {bar}", "cyan"), (glyphs.empty * (cells - len(bar)), "dim"), (f"  {text}", "")], width
    )


def _numbers(facts: Facts, width: int) -> Line:
    found: list[tuple[int, str, str, str]] = []  # what goes first where there is no room; name, ...
    if facts.loss is not None:
        found.append((0, "loss ", f"{facts.loss:.3f}", "bold"))
    if facts.val_loss is not None:
        found.append((1, "val ", f"{facts.val_loss:.3f}", "bold"))
    if facts.best_loss is not None:
        found.append((2, "best ", f"{facts.best_loss:.3f} @{facts.best_step}", ""))
    if facts.bits is not None:
        found.append((3, "", f"{facts.bits:.2f} bits/{facts.unit}", ""))
    found.append((4, "lr ", f"{facts.lr:.1e}", ""))
    if facts.grad_norm is not None:
        found.append((5, "grad ", f"{facts.grad_norm:.2g}", ""))
    while len(found) > 1 and sum(len(name + value) + 2 for _, name, value, _ in found) > width + 1:
        found.remove(max(found))
    line: Line = []
    for _, name, value, style in found:
        line += [(f"{'  ' if line else ' '}{name}", "dim"), (value, style)]
    return fitting(line, width)


def duration(seconds: float) -> str:
    """`45s`, `1m54s`, `2h05m`, `3d04h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = whole // 60
    if minutes < 60 * 24:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes // 1440}d{minutes // 60 % 24:02d}h"


def _thousands(number: float) -> str:
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.2f}M"


# --- the keys ------------------------------------------------------------------------------------

_KEY_STYLE = {True: "", False: "dim"}
_KEYS = (("s", "sample"), ("e", "evaluate"), ("c", "checkpoint"), ("q", "finish and save"))


def _keys(facts: Facts, width: int) -> Line:
    if not facts.keys:
        return [(cut(" Ctrl-C stops and saves", width), "dim")]
    line: Line = []
    for key, name in _KEYS:
        waiting = key in facts.pending
        line += [
            (f" {key}", "bold"),
            (f" {name}{'!' if waiting else ' '}", "" if waiting else "dim"),
        ]
    line += [(" Ctrl-C", "bold"), (" stop and save", "dim")]
    if sum(cell_len(text) for text, _ in line) > width:
        line = []
        for key, name in _KEYS:
            mark = "!" if key in facts.pending else ""
            line += [(f" {key}", "bold"), (f" {name.split()[0]}{mark}", "dim")]
        line += [(" ^C", "bold"), (" stop", "dim")]
    return fitting(line, width)
