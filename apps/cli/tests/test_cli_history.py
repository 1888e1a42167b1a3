"""A run's course, from events and from files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from yocto_cli.screen.history import History, Sample
from yocto_cli.training_loop import train
from yocto_train import Event, Run, Sampled, StepDone, Trainer


def test_files_tell_what_events_told(make_trainer: Any, tmp_path: Path) -> None:
    """A resumed run knows the same curve, evaluations and samples as one that was not stopped."""
    trainer: Trainer = make_trainer()
    run, told, plain = Run(tmp_path / "runs" / "tiny"), History(), trainer.run

    def watched() -> Iterator[Event]:
        for event in plain():
            told.take(event)
            yield event

    trainer.run = watched  # type: ignore[method-assign] # the trainer, overheard
    run.create()
    assert train(trainer, run, config="", data_dir=tmp_path, board=None) == 0
    read = History.of(run)
    assert told == read
    assert [2, 4, 6, 8] == [step for step, _ in read.losses]
    assert [4, 8] == sorted(read.evaluations) == [sample.step for sample in read.samples]
    assert (8, trainer.model.config.n_parameters) == (read.max_iters, read.n_parameters)


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "[]", "null", '{"event": "stepdone"}', '{"event": "stepdone", "step": "x"}',
        '{"event": "stepdone", "step": 1, "smoothed_loss": null}',
        '{"event": "evaluated", "step": 1, "loss": "low"}', '{"event": 3, "step": 1}',
        '{"event": "started", "step": 0, "max_iters": "many"}',
    ],
)  # fmt: skip
def test_rows_that_make_no_sense_are_left_out(line: str, tmp_path: Path) -> None:
    """Nothing in a file is taken for granted."""
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert History() == History.of(Run(tmp_path))


def test_a_history_stays_small() -> None:
    """Of very many reports every other one goes, again and again; the newest stays."""
    history, told = History(), {"lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 1.0, "epoch": 0.0}
    for step in range(1, 20_001):
        history.take(
            StepDone(step=step, loss=1.0, smoothed_loss=1.0, seconds_left=None, **told)
        )  # fmt: skip
        history.take(Sampled(step=step, prompt="", text="t", seed=1))
    steps = [step for step, _ in history.losses]
    assert 1000 < len(steps) <= 4096
    assert sorted(set(steps)) == steps
    assert 20_000 == steps[-1]
    assert 100 < len(history.samples) <= 512
    assert Sample(step=1, seed=1, prompt="", text="t") == history.samples[0]
