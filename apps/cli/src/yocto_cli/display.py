"""What a person sees of a training: readers of the trainer's events."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, Self

from yocto_cli.terminal import visible

if TYPE_CHECKING:
    from types import TracebackType

    from yocto_train import Event, Run, Trainer


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


def make_display(trainer: "Trainer", run: "Run") -> Display:
    """The display that suits where stdout goes."""
    del trainer, run
    return LinePrinter()


class LinePrinter:
    """One line of `key=value` per report, the same names and values as metrics.jsonl."""

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
            _print(line)


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
        return f"step={event.step} saved={event.path.name}"
    if isinstance(event, Sampled):
        return f"step={event.step} sample:\n{visible(event.prompt + event.text).strip()}\n"
    return ""


def _print(text: str) -> None:
    """A console that is closed or full does not stop a training."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
