"""What a person sees of a training: a screen on a terminal, lines anywhere else.

Steps draw nothing. Four times a second rich's thread looks up how far the trainer is and draws a
frame, so the cost does not depend on the number of steps.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from yocto_train import Evaluated, Event, Run, Sampled, Saved, StepDone, Trainer

from yocto_cli.screen.curve import History
from yocto_cli.screen.frame import Frame
from yocto_cli.screen.keyboard import Keyboard, in_foreground, suspendable
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.terminal import is_terminal, one_line, say

FRAME_RATE = 4  # a second
_ANSWERS: dict[type[Event], str] = {Sampled: "s", Evaluated: "e", Saved: "c"}


def live_display(
    trainer: Trainer, run: Run, *, history: History, baselines: Sequence[Baseline] = ()
) -> "LiveDisplay | None":
    """A screen where a person looks at stdout; elsewhere None, and `line_of` tells what happens.

    The owner of `history` keeps it up to date; `baselines` are the loss ladder.
    """
    # The terminal must be able to move its cursor, and must not belong to another job.
    capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown") or os.name == "nt"
    if is_terminal(sys.stdout) and capable and in_foreground(sys.stdout):
        return LiveDisplay(trainer, run, history=history, baselines=baselines)
    return None


def line_of(event: Event) -> str:
    """An event in one line of `key=value`, or nothing; a sample in lines of its own."""
    if isinstance(event, StepDone):
        left = "" if event.seconds_left is None else f" seconds_left={event.seconds_left:.0f}"
        return (
            f"step={event.step} loss={event.loss:.4f} smoothed_loss={event.smoothed_loss:.4f} "
            f"lr={event.lr:.2e} grad_norm={event.grad_norm:.2f} "
            f"tokens_per_second={event.tokens_per_second:.0f}{left}"
        )
    if isinstance(event, Evaluated):
        bits = "" if event.bits_per_byte is None else f" bits_per_byte={event.bits_per_byte:.4f}"
        best = " best" if event.is_best else f" best_step={event.best_step}"
        return f"step={event.step} val_loss={event.loss:.4f}{bits} tokens={event.tokens}{best}"
    if isinstance(event, Saved):
        notes = "".join(f"\nnote: {note}" for note in event.notes)
        return f"step={event.step} saved={event.path.name}{notes}"
    if isinstance(event, Sampled):
        return f"step={event.step} sample:\n{(event.prompt + event.text).strip()}\n"
    return ""


class LiveDisplay:
    """Shows events on a terminal, and acts on keys; arguments as for `live_display`."""

    def __init__(
        self, trainer: Trainer, run: Run, *, history: History, baselines: Sequence[Baseline] = ()
    ) -> None:
        self._stream = sys.stdout
        self._console = Console(file=self._stream, markup=False, highlight=False, emoji=False)
        self._live: Live | None = None
        self._keys = Keyboard(sys.stdin, self._pressed)
        self.frame = Frame(
            trainer=trainer, run=one_line(str(run.path)), history=history, baselines=baselines,
            stream=self._stream, keys=self._keys.usable,
        )  # fmt: skip
        self._restore = contextlib.ExitStack()
        self._requests = {"s": trainer.request_sample, "e": trainer.request_evaluation,
                          "c": trainer.request_save, "q": trainer.request_stop}  # fmt: skip

    def __enter__(self) -> Self:
        self._restore.enter_context(suspendable(self._leave, self._settle))
        self._settle()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._leave()
        finally:
            self._restore.close()

    def show(self, event: Event) -> None:
        """Accept an event; the next frame shows it."""
        if isinstance(event, StepDone):
            self.frame.reported = event
        elif isinstance(event, Evaluated):
            self.frame.evaluated = event
        elif isinstance(event, Saved):
            for note in event.notes:
                say(f"note: {note}")
        self.frame.pending.discard(_ANSWERS.get(type(event), ""))
        self._settle()

    def _settle(self) -> None:
        """Draw and read keys in the foreground, and do neither in the background."""
        if not in_foreground(self._stream):
            self._leave()
            return
        self._keys.open()
        if self._live is None:
            self._live = _Live(self.frame, console=self._console, refresh_per_second=FRAME_RATE)
            self._live.start()

    def _leave(self) -> None:
        """Give the terminal back, with the last frame on it."""
        self._keys.close()
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                live.stop()

    def _pressed(self, key: str) -> None:
        if request := self._requests.get(key.lower()):
            request()
            self.frame.pending.add(key.lower())


class _Live(Live):
    """Rich's Live, for windows that change size and terminals that disappear."""

    _size: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Draw a frame."""
        size = (self.console.width, self.console.height)
        with contextlib.suppress(OSError, ValueError):
            if self._size not in (None, size):
                self.console.clear()  # the terminal has wrapped the old lines anew
            self._size = size
            super().refresh()
