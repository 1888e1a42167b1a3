"""The live screen of a training: rich's thread draws it four times a second.

Nothing is drawn by a step. The thread looks up how far the trainer is, and draws a frame of that;
so the cost does not depend on the number of steps.
"""

import contextlib
import math
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from yocto_train import Evaluated, Event, Run, Sampled, Saved, StepDone, Trainer, lr_factor

from yocto_cli.screen.display import say
from yocto_cli.screen.frame import Facts, frame
from yocto_cli.screen.history import History
from yocto_cli.screen.keyboard import Keyboard, in_foreground, suspendable
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.panels import ASCII, UNICODE
from yocto_cli.screen.terminal import can_show, counted, one_line, visible

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES_PER_SECOND = 4
_GLYPHS = "━╸─│┌┐└┘┤·●…⠿"
# So many evaluations without a new best, while the training loss still falls, are worth a word.
_STALE_EVALUATIONS = 3


class LiveDisplay:
    """Shows events on a terminal, and acts on keys.

    Args:
        trainer: asked for where it stands, at each frame.
        run: its directory.
        history: what was measured so far; its owner keeps it up to date.
        baselines: the loss ladder.
    """

    def __init__(
        self, trainer: Trainer, run: Run, *, history: History, baselines: tuple[Baseline, ...] = ()
    ) -> None:
        self._trainer, self._run, self._history, self._baselines = trainer, run, history, baselines
        self._stream = sys.stdout
        self.glyphs = UNICODE if can_show(self._stream, _GLYPHS) else ASCII
        self._console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._keys = Keyboard(sys.stdin, self._pressed)
        self._restore = contextlib.ExitStack()
        self._pending: frozenset[str] = frozenset()
        self._reported: StepDone | None = None
        self._evaluated: Evaluated | None = None
        self._title = self._safe(str(run.path))

    def __enter__(self) -> Self:
        self._restore.enter_context(suspendable(self._leave, self._settle))
        self._settle()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._leave()
        finally:
            self._restore.close()

    def show(self, event: Event) -> None:
        """Take in an event; the next frame shows it."""
        done = ""
        if isinstance(event, StepDone):
            self._reported = event
        elif isinstance(event, Evaluated):
            self._evaluated, done = event, "e"
        elif isinstance(event, Sampled):
            done = "s"
        elif isinstance(event, Saved):
            done = "c"
            for note in event.notes:
                say(f"note: {self._safe(note)}")
        self._pending -= {done}
        self._settle()

    # --- terminal and keys ---------------------------------------------------------------------

    def _settle(self) -> None:
        """Draw and read keys in the foreground, and do neither in the background."""
        if not in_foreground(self._stream):
            self._leave()
            return
        self._keys.open()
        if self._live is None:
            self._live = _Live(
                _Screen(self),
                console=self._console,
                refresh_per_second=FRAMES_PER_SECOND,
                vertical_overflow="crop",
            )
            self._live.start()

    def _leave(self) -> None:
        """Give the terminal back, with the last frame on it."""
        self._keys.close()
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                live.stop()

    def _pressed(self, key: str) -> None:
        requests: dict[str, Callable[[], None]] = {
            "s": self._trainer.request_sample,
            "e": self._trainer.request_evaluation,
            "c": self._trainer.request_save,
            "q": self._trainer.request_stop,
        }
        if key.lower() in requests:
            requests[key.lower()]()
            self._pending |= {key.lower()}

    # --- facts ---------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """What a frame shows now."""
        trainer, reported, evaluated = self._trainer, self._reported, self._evaluated
        progress, config = trainer.progress, trainer.config
        step, weight = progress.step, progress.loss_weight
        bits, unit = self._bits(evaluated)
        left = None
        if reported is not None and reported.seconds_left is not None:
            left = reported.seconds_left
            if config.max_iters > reported.step:
                left *= (config.max_iters - step) / (config.max_iters - reported.step)
        return Facts(
            run=self._title,
            model=self._model(),
            step=step,
            max_iters=config.max_iters,
            loss=progress.loss_sum / weight if weight else None,
            val_loss=progress.val_loss,
            best_loss=progress.best_loss,
            best_step=progress.best_step,
            bits=bits,
            unit=unit,
            lr=config.lr * lr_factor(step, config),
            grad_norm=None if reported is None else reported.grad_norm,
            tokens_per_second=None if reported is None else reported.tokens_per_second,
            seconds_left=left,
            losses=tuple(self._history.losses),
            evaluations=tuple(self._history.evaluations.items()),
            baselines=self._baselines,
            sample=self._sample(),
            no_sample=self._no_sample(),
            advice=self._advice(),
            keys=self._keys.usable,
            pending=self._pending,
        )

    def _model(self) -> tuple[str, ...]:
        config = self._trainer.model.config
        millions = f"{config.n_parameters / 1e6:.2f}M"
        layers = counted(config.n_layer, "layer")
        return layers, f"{config.n_embd} wide", millions, str(self._trainer.placement.device)

    def _bits(self, evaluated: Evaluated | None) -> tuple[float | None, str]:
        """The loss in bits, by the unit that suits the tokenizer."""
        if getattr(self._trainer.tokenizer, "kind", None) == "char":
            loss = self._trainer.progress.val_loss
            return None if loss is None else loss / math.log(2), "char"
        return None if evaluated is None else evaluated.bits_per_byte, "byte"

    def _sample(self) -> tuple[int, int, str, str] | None:
        if not self._history.samples:
            return None
        sample = self._history.samples[-1]
        text = self._safe((sample.prompt + sample.text).lstrip("\n"), lines=True)
        return sample.step, sample.seed, self._safe(sample.prompt.strip()), text

    def _no_sample(self) -> str:
        config = self._trainer.config
        if not config.sample_interval:
            return ""
        # Rounded up: at such a step itself the sample is about to be written.
        rounds = max(1, math.ceil(self._trainer.progress.step / config.sample_interval))
        first = rounds * config.sample_interval
        now = "; press s for one now" if self._keys.usable else ""
        return f"the first one comes after step {first}{now}"

    def _advice(self) -> str:
        """Overfitting, in words; nothing while all is well."""
        progress = self._trainer.progress
        losses = self._history.losses
        if progress.stale_evaluations < _STALE_EVALUATIONS or progress.best_step is None:
            return ""
        at_best = [loss for step, loss in losses if step <= progress.best_step][-1:]
        if not at_best or losses[-1][1] >= at_best[0]:
            return ""
        return (
            f"best was step {progress.best_step}, and training on only memorises: q finishes, "
            f"--ckpt {self._title}/best.pt has it"
        )

    def _safe(self, text: str, *, lines: bool = False) -> str:
        """Text that neither acts nor fails on this terminal."""
        shown = visible(text) if lines else one_line(text)
        encoding = self._stream.encoding or "ascii"
        return shown.encode(encoding, "backslashreplace").decode(encoding)


class _Screen:
    """Renders the frame of the moment at the size of the moment."""

    def __init__(self, display: LiveDisplay) -> None:
        self._display = display

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.size
        # The last line stays free: a terminal may scroll when it is written to.
        lines = frame(self._display.facts(), width - 1, height - 1, self._display.glyphs)
        for line in lines:
            for text, style in line:
                yield Segment(text, Style.parse(style) if style else None)
            yield Segment.line()


class _Live(Live):
    """Rich's, for windows that change their size and terminals that go away."""

    _size: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Draw a frame."""
        size = tuple(self.console.size)
        with contextlib.suppress(OSError, ValueError):
            if self._size not in (None, size):
                self.console.clear()  # the lines drawn before were broken anew by the terminal
            self._size = (size[0], size[1])
            super().refresh()
