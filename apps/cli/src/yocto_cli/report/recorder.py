"""The trainer's events on disk: the run's files, its report, and TensorBoard's as an extra."""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yocto_train import Evaluated, Event, Run, Sampled, StepDone, Stopped, Trainer

from yocto_cli.command import UsageError, next_command
from yocto_cli.report import page
from yocto_cli.report.summary import details_of
from yocto_cli.screen.curve import History
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.terminal import say, visible

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# The figures of an event, under the split that they describe.
_FIGURES: dict[type[Event], tuple[str, tuple[str, ...]]] = {
    StepDone: ("train", ("loss", "smoothed_loss", "lr", "grad_norm", "tokens_per_second")),
    Evaluated: ("val", ("loss", "bits_per_byte")),
}

_STATES = {
    "finished": "finished",
    "requested": "stopped, and can be resumed",
    "no progress": "ended early, because it no longer improved",
}


@dataclasses.dataclass
class Recorder:
    """Writes events to the run's files, history and report; reports a failed write only once."""

    trainer: Trainer
    run: Run
    history: History
    _: dataclasses.KW_ONLY
    config: str  # the text of config.toml
    data_dir: Path
    baselines: tuple[Baseline, ...]
    board: "SummaryWriter | None" = None
    failed: set[str] = dataclasses.field(default_factory=set)

    def record(self, event: Event) -> None:
        """Record one event."""
        self.history.take(event)
        file = "samples.jsonl" if isinstance(event, Sampled) else "metrics.jsonl"
        row: dict[str, Any] = {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}
        if "path" in row:
            row["path"] = row["path"].name
        with self._tolerating(file):
            self.run.record(file, row)
        if isinstance(event, Evaluated | Sampled | Stopped):
            with self._tolerating(page.NAME):
                page.write_report(self.run.path, self._report(event))
        if self.board is not None:
            with self._tolerating("the files of TensorBoard"):
                _show_on(self.board, event)

    def _report(self, event: Event) -> page.Report:
        """The report as of an event."""
        trainer, run = self.trainer, self.run
        progress, max_iters = trainer.progress, trainer.config.max_iters
        is_char = getattr(trainer.tokenizer, "kind", None) == "char"
        state = _STATES[event.reason] if isinstance(event, Stopped) else "training"
        details = details_of(trainer, self.data_dir)
        return page.Report(
            name=run.name, status=f"{state} · step {progress.step:,} of {max_iters:,}",
            history=self.history, baselines=self.baselines, max_iters=max_iters,
            best_step=progress.best_step, best_loss=progress.best_loss,
            unit="character" if is_char else "token",
            n_parameters=trainer.model.config.n_parameters,
            details=[*details.items(), ("seed", str(trainer.config.seed))],
            commands=[
                ("Talk to it", next_command("yocto-chat", "--ckpt", str(run.path))),
                ("Watch it learn", next_command("yocto-sample", "--timelapse", str(run.path))),
            ],
            config=self.config,
        )  # fmt: skip

    @contextlib.contextmanager
    def _tolerating(self, file: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if file not in self.failed:
                say(f"warning: cannot write {file}: {error.strerror}; training goes on without it")
            self.failed.add(file)


def _show_on(board: "SummaryWriter", event: Event) -> None:
    split, names = _FIGURES.get(type(event), ("", ()))
    for name in names:
        if (value := getattr(event, name)) is not None:
            board.add_scalar(f"{split}/{name}", value, event.step)
    if isinstance(event, Sampled):
        text = visible(event.text).replace("\n", "\n    ")
        board.add_text("sample", f"    {text}", event.step)


def tensorboard() -> "type[SummaryWriter]":
    """Torch's writer; if it is not available, a UsageError says how to install it."""
    try:
        importlib.import_module("tensorboard")  # torch's writer needs it
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError as error:
        install = "uv pip install 'yocto-cli[tensorboard]'"
        raise UsageError(f"--tensorboard needs TensorBoard; install it: {install}") from error
    return SummaryWriter
