"""One frame of the training screen, drawn by rich.

 yocto-train  checkpoints/philosophy-char  4 layers · 128 wide · 0.82M · cpu
 ━━━━━━━━━━━━━━━━━━━━━━╺━━━━━━━━━━━━━━━  61%  1220/2000  1m54s left  3m02s gone  41.2k tok/s
 loss 1.742  val 1.861  best 1.858 @1100  2.68 bits/char  lr 6.1e-04  grad 0.9
 ... the curve beside the loss ladder, the sample, the keys

Nothing is said by colour alone. Texts reach rich only through `Frame._text`, which escapes them:
rich would pass escape codes on to the terminal.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.box import SQUARE
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from yocto_train import Evaluated, StepDone, Trainer, lr_factor

from yocto_cli.screen.curve import MARK, Chart, History
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.terminal import can_show, counted, duration, encodable, one_line, visible

_LEAST_CURVE_LINES = 5  # fewer show nothing
_LEAST_SAMPLE_LINES = 3  # a border, the text, a border
_AXIS_CELLS, _LADDER_CELLS, _LEAST_CELLS_WITH_LADDER = 7, 34, 57
# After this many evaluations without a new best, while training loss still falls, give advice.
_STALE_EVALUATIONS = 3
_KEYS = {"s": "sample", "e": "evaluate", "c": "checkpoint", "q": "finish and save",
         "Ctrl-C": "stop and save"}  # fmt: skip
# Where there is little room, the ways out come first.
_SHORT_KEYS = {"q": "finish", "^C": "stop", "s": "sample", "e": "evaluate", "c": "checkpoint"}
_KEYS_CELLS = 76
_IN_ASCII = str.maketrans({"·": "|", "│": "|", "┤": "+", MARK: "o", "…": "..."})


@dataclass(kw_only=True)
class Frame:
    """Draws how far a trainer is at the moment, at the terminal's present size."""

    trainer: Trainer
    run: str  # the run directory, in one line
    history: History  # its owner keeps it up to date
    baselines: Sequence[Baseline]
    stream: TextIO  # where frames are shown; its encoding limits the characters
    keys: bool  # whether keys are read
    pending: set[str] = field(default_factory=set)  # keys that were pressed and not yet acted on
    reported: StepDone | None = None
    evaluated: Evaluated | None = None
    begun: float = field(default_factory=time.monotonic)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last cells stay free: a terminal may scroll when they are written.
        width, rows = max(options.size.width - 1, 1), max(options.size.height - 1, 1)
        parts = [self._title(width), self._progress(width), self._numbers(width)]
        if advice := self._advice():
            parts.append(_row([self._text((f" {advice}", "yellow"))], width))
        has_sample = bool(self.history.samples or self.trainer.config.sample_interval)
        curve_lines, sample_lines = _shares(rows - len(parts) - 1, has_sample=has_sample)
        if curve_lines:
            parts.append(self._chart(width, curve_lines))
        if sample_lines:
            parts.append(self._sample(width, sample_lines))
        parts.append(self._key_names(width))
        yield Constrain(Group(*parts[:rows]), width)

    @property
    def _ascii(self) -> bool:
        return not can_show(self.stream, "·│┤●…⠿")

    def _text(self, *parts: str | tuple[str, str]) -> Text:
        """Texts, some with a style, that neither act nor fail on this terminal."""
        whole = Text(tab_size=4)
        for part in parts:
            text, style = (part, "") if isinstance(part, str) else part
            shown = visible(text).translate(_IN_ASCII) if self._ascii else visible(text)
            whole.append(encodable(shown, self.stream), style)
        return whole

    # --- the lines on top ------------------------------------------------------------------------

    def _title(self, width: int) -> RenderableType:
        config, device = self.trainer.model.config, self.trainer.placement.device
        model = (f" · {config.n_embd} wide", f" · {config.n_parameters / 1e6:.2f}M", f" · {device}")
        pieces = [
            self._text((" yocto-train", "bold"), f"  {self.run}"),
            self._text((f"  {counted(config.n_layer, 'layer')}", "dim")),
            *(self._text((part, "dim")) for part in model),
        ]
        return _row(pieces, width)

    def _progress(self, width: int) -> RenderableType:
        step, reported = self.trainer.progress.step, self.reported
        total = max(self.trainer.config.max_iters, 1)
        words = [f"{int(100 * step / total):3d}%", f"  {step}/{total}", "  …"]
        if reported is not None:
            if reported.seconds_left is not None:
                seconds = reported.seconds_left
                if total > reported.step:  # the report may be some steps old
                    seconds *= (total - step) / (total - reported.step)
                words[2] = f"  {duration(seconds)} left"
            words.append(f"  {duration(time.monotonic() - self.begun)} gone")
            words.append(f"  {_thousands(reported.tokens_per_second)} tok/s")
        bar = ProgressBar(total, step, complete_style="cyan", finished_style="cyan")
        grid = Table.grid(padding=(0, 0, 0, 1), pad_edge=True, expand=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, overflow="crop")
        grid.add_row(bar, _row([self._text(word) for word in words], width - 14))
        return grid

    def _numbers(self, width: int) -> RenderableType:
        """What was measured; if there is little room, only the first figures."""
        progress, config, found = self.trainer.progress, self.trainer.config, []
        if (loss := self._smoothed_loss) is not None:
            found.append(("loss ", f"{loss:.3f}", "bold"))
        if progress.val_loss is not None:
            found.append(("val ", f"{progress.val_loss:.3f}", "bold"))
        if progress.best_loss is not None:
            found.append(("best ", f"{progress.best_loss:.3f} @{progress.best_step}", ""))
        # In bits losses can be compared between tokenizers.
        if getattr(self.trainer.tokenizer, "kind", None) == "char":
            if progress.val_loss is not None:
                found.append(("", f"{progress.val_loss / math.log(2):.2f} bits/char", ""))
        elif self.evaluated is not None and self.evaluated.bits_per_byte is not None:
            found.append(("", f"{self.evaluated.bits_per_byte:.2f} bits/byte", ""))
        found.append(("lr ", f"{config.lr * lr_factor(progress.step, config):.1e}", ""))
        if self.reported is not None:
            found.append(("grad ", f"{self.reported.grad_norm:.2g}", ""))
        pieces = [self._text((f" {name}", "dim"), (f"{n} ", style)) for name, n, style in found]
        return _row(pieces, width)

    @property
    def _smoothed_loss(self) -> float | None:
        progress = self.trainer.progress
        return progress.loss_sum / progress.loss_weight if progress.loss_weight else None

    def _advice(self) -> str:
        """Overfitting, in words; nothing while all is well."""
        progress, losses = self.trainer.progress, self.history.losses
        if progress.stale_evaluations < _STALE_EVALUATIONS or progress.best_step is None:
            return ""
        at_best = [loss for step, loss in losses if step <= progress.best_step][-1:]
        if not at_best or losses[-1][1] >= at_best[0]:
            return ""
        return (
            f"step {progress.best_step} was best, and since then it only memorises: q finishes, "
            f"--ckpt {self.run}/best is that step"
        )

    # --- the curve and the ladder ----------------------------------------------------------------

    def _chart(self, width: int, lines: int) -> RenderableType:
        has_ladder = self.baselines and width >= _LEAST_CELLS_WITH_LADDER
        cells = max(1, width - _AXIS_CELLS - (_LADDER_CELLS if has_ladder else 1))
        chart = Chart(self.history, max_iters=self.trainer.config.max_iters)
        scale, axis = chart.scale(), ["      │"] * lines
        axis[0], axis[-1] = f" {scale.high:4.1f} ┤", f" {scale.low:4.1f} ┤"
        curve = "\n".join(chart.lines(cells, lines, braille=not self._ascii))
        grid = Table.grid()
        for column in (_AXIS_CELLS, cells):
            grid.add_column(width=column, no_wrap=True, overflow="crop")
        row = [self._text(("\n".join(axis), "dim")), self._text((curve, "cyan"))]
        row[1].highlight_regex("[●o]", "magenta")
        if has_ladder:
            row.append(self._ladder(lines))
        grid.add_row(*row)
        return grid

    def _ladder(self, lines: int) -> Text:
        """The baselines from the highest loss to the lowest, with the model between them."""
        here, name = self.trainer.progress.val_loss, "you are here"
        if here is None and (loss := self._smoothed_loss) is not None:
            here, name = round(loss, 1), "training loss"  # the best known before an evaluation
        rows = []
        for baseline in self.baselines:
            passed = " passed" if here is not None and here < baseline.loss else ""
            rows.append((baseline.loss, f"{baseline.name:<18}{passed}", ""))
        if here is not None and math.isfinite(here):
            rows.append((here, name, "bold"))
        rows.sort(key=lambda row: -row[0])
        parts = [(f"  {loss:5.2f}  {words}\n", style) for loss, words, style in rows]
        if self.history.evaluations and len(rows) + 2 <= lines:
            parts += [(f"\n      {MARK}", "magenta"), ("  validation", "dim")]
        return self._text(*parts)

    # --- the sample and the keys -----------------------------------------------------------------

    def _sample(self, width: int, lines: int) -> RenderableType:
        if self.history.samples:
            sample = self.history.samples[-1]
            prompt = one_line(sample.prompt.strip())
            title = f"sample @{sample.step} · seed {sample.seed}"
            title += f' · "{prompt}"' if prompt else ""
            body = self._text((sample.prompt + sample.text).lstrip("\n")[: width * lines])
        else:
            interval = self.trainer.config.sample_interval
            # Rounded up: at such a step itself the sample is about to be written.
            first = interval * max(1, math.ceil(self.trainer.progress.step / interval))
            now = "; press s for one now" if self.keys else ""
            title = "sample"
            body = self._text((f"the first one comes after step {first}{now}", "dim"))
        panel = Panel(
            body, title=self._text((title, "not dim")), title_align="left", box=SQUARE,
            border_style="dim", height=lines,
        )  # fmt: skip
        return Padding(panel, (0, 0, 0, 1))

    def _key_names(self, width: int) -> RenderableType:
        if not self.keys:
            return _row([self._text((" Ctrl-C stops and saves", "dim"))], width)
        pieces = []
        for key, name in (_KEYS if width >= _KEYS_CELLS else _SHORT_KEYS).items():
            words = (f"{name}!", "") if key in self.pending else (f"{name} ", "dim")
            pieces.append(self._text((f" {key} ", "bold"), words))
        return _row(pieces, width)


def _row(pieces: Sequence[Text], width: int) -> Text:
    """The pieces in one line; the last ones are left out where there is no room for them."""
    line = Text.assemble(*pieces, no_wrap=True, overflow="crop")
    line.rstrip()
    if line.cell_len > width and len(pieces) > 1:
        return _row(pieces[:-1], width)
    line.truncate(max(width, 1))
    return line


def _shares(rest: int, *, has_sample: bool) -> tuple[int, int]:
    """Lines for the curve and for the sample; both stay as they are while the run goes on."""
    if rest < _LEAST_CURVE_LINES:
        return 0, 0
    sample = 0
    if has_sample and rest >= _LEAST_CURVE_LINES + _LEAST_SAMPLE_LINES:
        sample = max(min(rest - _LEAST_CURVE_LINES, 5), 2 * rest // 5)
    return rest - sample, sample


def _thousands(number: float) -> str:
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.2f}M"
