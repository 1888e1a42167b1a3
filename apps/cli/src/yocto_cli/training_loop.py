"""The run itself: the trainer's events go to the files, the report and the display."""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from yocto_train import Evaluated, Event, Run, Sampled, StepDone, Stopped, Trainer

from yocto_cli.command import WorkFailedError, handling
from yocto_cli.report import page as report
from yocto_cli.report.summary import About, farewell, report_of
from yocto_cli.report.tensorboard import Board
from yocto_cli.screen.display import Display, LinePrinter, make_display
from yocto_cli.screen.history import History
from yocto_cli.screen.ladder import ladder_of_files
from yocto_cli.screen.terminal import say


def train(trainer: Trainer, run: Run, *, config: str, data_dir: Path, board: Board | None) -> int:
    """Run the trainer to its end; returns the exit code.

    Args:
        trainer: ready, and restored if it is to be.
        run: its directory, locked.
        config: the text of config.toml.
        data_dir: where the data is.
        board: a writer for TensorBoard.
    """
    if not trainer.world.is_main:  # one of the processes speaks and writes for all of them
        with _stop_signals(trainer, run) as caught:
            for _ in trainer.run():
                pass
        return _exit_code(caught)
    history, data, stopped = History.of(run), trainer.train_data, False
    baselines = ladder_of_files(
        data.path,
        trainer.val_data.path,
        dtype=data.dtype,
        vocab_size=trainer.model.config.vocab_size,
        characters=getattr(trainer.tokenizer, "kind", None) == "char",
    )
    about = About(config=config, data_dir=data_dir, baselines=baselines)
    recorder = _Recorder(trainer, run, history, about, board)
    display: Display = LinePrinter()
    if trainer.world.size == 1:
        display = make_display(trainer, run, history=history, baselines=baselines)
    with _stop_signals(trainer, run) as caught, display:
        for event in trainer.run():
            is_last = isinstance(event, StepDone) and event.step == trainer.config.max_iters
            if is_last and trainer.config.sample_interval:
                trainer.request_sample()  # what the finished model writes is worth seeing
            recorder.record(event)
            display.show(event)
            stopped = isinstance(event, Stopped) and event.reason == "requested"
    say(farewell(trainer, run, stopped=stopped))
    return _exit_code(caught)


def _exit_code(caught: list[int]) -> int:
    """130 after Ctrl-C, 143 after SIGTERM or a terminal that was closed, 0 otherwise."""
    if not caught:
        return 0
    return 128 + (signal.SIGINT if caught[0] == signal.SIGINT else signal.SIGTERM)


@dataclasses.dataclass
class _Recorder:
    """Writes events to the run's files, its history and its report; a full disk is said once."""

    trainer: Trainer
    run: Run
    history: History
    about: About
    board: Board | None
    failed: set[str] = dataclasses.field(default_factory=set)

    def record(self, event: Event) -> None:
        """Take in one event."""
        self.history.take(event)
        file = "samples.jsonl" if isinstance(event, Sampled) else "metrics.jsonl"
        row: dict[str, Any] = {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}
        if "path" in row:
            row["path"] = row["path"].name
        with self._tolerating(file):
            self.run.record(file, row)
        if isinstance(event, Evaluated | Sampled | Stopped):
            with self._tolerating(report.NAME):
                found = report_of(self.trainer, self.run, self.history, self.about, event)
                report.write_report(self.run.path, found)
        if self.board is not None:
            with self._tolerating("the files of TensorBoard"):
                self.board.take(event)

    @contextlib.contextmanager
    def _tolerating(self, file: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if file not in self.failed:
                say(f"warning: cannot write {file}: {error.strerror}; training goes on without it")
            self.failed.add(file)


@contextlib.contextmanager
def _stop_signals(trainer: Trainer, run: Run) -> Iterator[list[int]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop; yields what was caught.

    A second Ctrl-C stops at once, without saving.
    """
    caught: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            saved = run.pointed("latest")
            where = f"the last checkpoint is {saved}" if saved else "nothing was saved"
            raise WorkFailedError(f"stopped at once, without saving; {where}")
        caught.append(int(number))
        trainer.request_stop()

    with handling(("SIGINT", "SIGTERM", "SIGHUP"), handle):
        yield caught
