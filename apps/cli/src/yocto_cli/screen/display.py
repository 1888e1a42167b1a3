"""What a person sees of a training: readers of the trainer's events."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, Self

from yocto_cli.screen.keyboard import in_foreground
from yocto_cli.screen.terminal import is_terminal, one_line, visible

if TYPE_CHECKING:
    from types import TracebackType

    from yocto_train import Event, Run, Trainer

    from yocto_cli.screen.history import History
    from yocto_cli.screen.ladder import Baseline


class Display(Protocol):
    """Shows events while it is entered."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        """End, and leave the terminal as it was."""
        ...

    def show(self, event: "Event") -> None:
        """Show one event."""
        ...


def make_display(
    trainer: "Trainer", run: "Run", *, history: "History", baselines: "tuple[Baseline, ...]" = ()
) -> Display:
    """The display that suits where stdout goes: a screen for a person, lines for anything else.

    Args:
        trainer: what trains.
        run: its directory.
        history: what was measured so far; its owner keeps it up to date.
        baselines: the loss ladder.
    """
    if not wants_screen():
        return LinePrinter()
    from yocto_cli.screen.live import LiveDisplay  # noqa: PLC0415 - only where it is shown

    return LiveDisplay(trainer, run, history=history, baselines=baselines)


def wants_screen() -> bool:
    """Whether stdout is a terminal that can move its cursor, and this process its foreground."""
    capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown") or os.name == "nt"
    return is_terminal(sys.stdout) and capable and in_foreground(sys.stdout)


class LinePrinter:
    """One line of `key=value` per report, with the values of metrics.jsonl."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        return None

    def show(self, event: "Event") -> None:
        """Print the event's line, if it has one."""
        line = line_of(event)
        if line:
            say(line)


def line_of(event: "Event") -> str:
    """An event in one line of `key=value`, or nothing; a sample in lines of its own."""
    from yocto_train import Evaluated, Sampled, Saved, StepDone  # noqa: PLC0415 - brings torch in

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
        notes = "".join(f"\nnote: {one_line(note)}" for note in event.notes)
        return f"step={event.step} saved={event.path.name}{notes}"
    if isinstance(event, Sampled):
        return f"step={event.step} sample:\n{visible(event.prompt + event.text).strip()}\n"
    return ""


def say(text: str) -> None:
    """A line on stdout; a console that is closed or full does not stop a training."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
