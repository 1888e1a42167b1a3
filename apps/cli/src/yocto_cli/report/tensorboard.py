"""What is measured, for TensorBoard: another reader of the trainer's events, as an extra."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yocto_train import Evaluated, Event, Sampled, StepDone

from yocto_cli.errors import UsageError
from yocto_cli.screen.terminal import visible

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DIRECTORY = "tensorboard"
INSTALL = "uv pip install 'yocto-cli[tensorboard]'"


class Board:
    """Writes events.

    Args:
        writer: torch's.
    """

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def take(self, event: Event) -> None:
        """Write what an event tells."""
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, event.step)
        if isinstance(event, Sampled):
            text = "\n".join(f"    {line}" for line in visible(event.text).split("\n"))
            self._writer.add_text("sample", text, event.step)


def scalars(event: Event) -> dict[str, float]:
    """The figures in an event, each under the split that it is about."""
    if isinstance(event, StepDone):
        return {
            "train/loss": event.loss,
            "train/smoothed_loss": event.smoothed_loss,
            "train/lr": event.lr,
            "train/grad_norm": event.grad_norm,
            "train/tokens_per_second": event.tokens_per_second,
        }
    if isinstance(event, Evaluated):
        bits = {} if event.bits_per_byte is None else {"val/bits_per_byte": event.bits_per_byte}
        return {"val/loss": event.loss, **bits}
    return {}


@contextlib.contextmanager
def opened(run: Path, *, step: int) -> Iterator[Board]:
    """A board that writes into a run's directory.

    Args:
        run: the directory.
        step: where the run goes on; what an earlier attempt wrote later than that is hidden.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    writer_class = require()
    writer = writer_class(str(run / DIRECTORY), purge_step=step + 1 if step else None)
    try:
        yield Board(writer)
    finally:
        writer.close()


def require() -> "type[SummaryWriter]":
    """Torch's writer.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        importlib.import_module("tensorboard")  # torch's writer is made of it
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"--tensorboard needs TensorBoard; install it: {INSTALL}") from error
    return SummaryWriter
