"""What is measured, for TensorBoard: another reader of the trainer's events, as an extra."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yocto_train import Evaluated, Event, Sampled, StepDone

from yocto_cli.command import UsageError
from yocto_cli.screen.terminal import visible

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DIRECTORY = "tensorboard"
INSTALL = "uv pip install 'yocto-cli[tensorboard]'"
# The figures of an event, under the split that they are about.
_FIGURES: dict[type[Event], tuple[str, tuple[str, ...]]] = {
    StepDone: ("train", ("loss", "smoothed_loss", "lr", "grad_norm", "tokens_per_second")),
    Evaluated: ("val", ("loss", "bits_per_byte")),
}


class Board:
    """Hands events to torch's writer."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def take(self, event: Event) -> None:
        """Write what an event tells."""
        split, names = _FIGURES.get(type(event), ("", ()))
        for name in names:
            value = getattr(event, name)
            if value is not None:
                self._writer.add_scalar(f"{split}/{name}", value, event.step)
        if isinstance(event, Sampled):
            text = visible(event.text).replace("\n", "\n    ")
            self._writer.add_text("sample", f"    {text}", event.step)


@contextlib.contextmanager
def opened(run: Path, *, step: int) -> Iterator[Board]:
    """A board that writes into a run's directory; errors as of `require`.

    The run goes on after `step`: what an earlier attempt wrote later than that is hidden.
    """
    writer = require()(str(run / DIRECTORY), purge_step=step + 1 if step else None)
    with contextlib.closing(writer):
        yield Board(writer)


def require() -> "type[SummaryWriter]":
    """Torch's writer; a UsageError says where to get it."""
    try:
        importlib.import_module("tensorboard")  # torch's writer is made of it
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"--tensorboard needs TensorBoard; install it: {INSTALL}") from error
    return SummaryWriter
