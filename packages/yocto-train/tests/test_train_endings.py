"""What ends a run: no progress, requests, signals, losses that are not finite, lost data."""

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from yocto_data import DataError
from yocto_model import TextGenerator
from yocto_train import Evaluation, NonFiniteError, Run, SaveError, Trainer, cross_entropy
from yocto_train.events import Evaluated, Event, Saved, StepDone, Stopped

MakeTrainer = Callable[..., Trainer]


def names(events: list[Event]) -> list[str]:
    return [f"{type(event).__name__} {event.step}" for event in events]


def of_kind(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# --- no progress, nothing left to do, and requests to stop ---------------------------------------


def fake_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the next evaluations give these losses."""
    left = iter(losses)
    monkeypatch.setattr(
        "yocto_train.evaluation.evaluate",
        lambda *_, **__: Evaluation(loss=next(left), tokens=1, whole=True),
    )


def test_early_stopping(
    run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `patience` evaluations without a new best the run ends, saved; the best step stays."""
    fake_losses(monkeypatch, [3.0, 2.0, 2.5, 2.0, 2.1, 9.9])
    trainer = make_trainer(run=run, max_iters=30, eval_interval=2, patience=3, keep=2)
    stopped = list(trainer.run())[-1]
    assert isinstance(stopped, Stopped)
    assert ("no progress", 10) == (stopped.reason, stopped.step)
    assert (4, 2.0) == (stopped.best_step, stopped.best_loss)
    assert run.path / "step-00000004" == run.pointed("best")
    assert run.path / "step-00000010" == run.pointed("latest")


def test_a_run_that_had_ended_ends_again(
    run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed with the same settings, an early stop and a finished run make no further step."""
    fake_losses(monkeypatch, [3.0, 3.1, 3.2])
    list(make_trainer(run=run, max_iters=30, eval_interval=2, patience=2).run())
    again = make_trainer(run=run, max_iters=30, eval_interval=2, patience=2)
    again.restore(run.latest())
    assert ["Started 6", "Stopped 6"] == names(list(again.run()))


def test_already_there(run: Run, make_trainer: MakeTrainer) -> None:
    """C17: resumed with fewer steps than it has made, a run ends at once and changes nothing."""
    list(make_trainer(run=run, max_iters=6, eval_interval=3).run())
    before = sorted((path, path.lstat().st_mtime_ns) for path in run.path.rglob("*"))
    for fewer in (6, 4):
        again = make_trainer(run=run, max_iters=fewer, eval_interval=3)
        again.restore(run.latest())
        assert ["Started 6", "Stopped 6"] == names(list(again.run()))
    assert before == sorted((path, path.lstat().st_mtime_ns) for path in run.path.rglob("*"))


def test_a_loss_that_is_no_number_is_never_the_best(
    run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K20: it is reported, saved as unknown, and counts as no progress; a later sound one wins."""
    fake_losses(monkeypatch, [math.nan, math.inf, 4.0])
    events = list(make_trainer(run=run, max_iters=6, eval_interval=2).run())
    assert [None, None, 6] == [event.best_step for event in of_kind(Evaluated, events)]
    assert [False, False, True] == [event.is_best for event in of_kind(Saved, events)]
    assert run.latest().val_loss == 4.0
    for event in of_kind(Evaluated, events):
        run.record("metrics.jsonl", {"step": event.step, "loss": event.loss})
    assert [None, None, 4.0] == [row["loss"] for row in run.rows("metrics.jsonl")]


@pytest.mark.parametrize("when", [0, 3])
def test_a_stop_request_between_steps(when: int, run: Run, make_trainer: MakeTrainer) -> None:
    """K6: the step is finished and saved, whether the request came before the first or later."""
    trainer = make_trainer(run=run)
    events = []
    if when == 0:
        trainer.request_stop()
    for event in trainer.run():
        events.append(event)
        if event.step == when:
            trainer.request_stop()
    assert [f"Saved {when}", f"Stopped {when}"] == names(events)[-2:]
    assert "requested" == events[-1].reason  # type: ignore[attr-defined] # it is a Stopped
    assert when == run.latest().step


def test_an_evaluation_that_is_given_up_is_made_up_for(run: Run, make_trainer: MakeTrainer) -> None:
    """K6: also at the last step, the step is saved, and the resumed run finds out the best."""
    settings = {"max_iters": 4, "eval_interval": 4}
    trainer = make_trainer(run=run, **settings)
    trainer.model.register_forward_pre_hook(
        lambda module, _: None if module.training else trainer.request_stop()
    )
    trainer.eval_batch_size = 1
    assert ["StepDone 4", "Saved 4", "Stopped 4"] == names(list(trainer.run()))[-3:]
    assert run.pointed("best") is None
    again = make_trainer(run=run, **settings)
    assert {} == again.restore(run.latest())
    assert ["Started 4", "Evaluated 4", "Saved 4"] == names(list(again.run()))[:3]
    assert run.path / "step-00000004" == run.pointed("best")


# --- NaN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_before_the_update(
    where: str, value: float, optimizer: str, *, run: Run, make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """K19: logged or not, it is an error before any weight changes and anything is saved.

    The message names the step and the last good checkpoint.
    """
    trainer = make_trainer(run=run, eval_interval=2, optimizer=optimizer, log_interval=100)
    events = trainer.run()
    next(event for event in events if isinstance(event, Saved))
    trainer._step()
    weights = {name: w.clone() for name, w in trainer.model.state_dict().items()}
    if where == "loss":
        monkeypatch.setattr(
            "yocto_train.step.cross_entropy", lambda *a, **k: cross_entropy(*a, **k) * value
        )
    else:
        parameter = next(trainer.model.parameters())
        parameter.register_hook(lambda grad: grad * value)  # type: ignore[no-untyped-call]
    with pytest.raises(NonFiniteError, match=rf"{where} of step 4 is not finite") as caught:
        next(events)
    assert f"{run.path / 'step-00000002'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert 3 == trainer.progress.step
    assert all(torch.equal(weights[n], w) for n, w in trainer.model.state_dict().items())
    assert ["step-00000002"] == sorted(p.name for p in run.path.glob("step-*"))


# --- what happens on the disk meanwhile ----------------------------------------------------------


@pytest.fixture
def own_data(data_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(data_dir, tmp_path / "data")
    return tmp_path / "data"


def test_data_replaced_while_training(make_trainer: MakeTrainer, own_data: Path) -> None:
    """K14: a file put in place by a rename leaves a training that is under way its old content."""
    expected = [event.loss for event in of_kind(StepDone, list(make_trainer().run()))]
    losses = []
    for event in make_trainer(data=own_data).run():
        if isinstance(event, StepDone):
            losses.append(event.loss)
        if event.step == 2:
            (own_data / "new").write_bytes(bytes((own_data / "train.bin").stat().st_size))
            (own_data / "new").replace(own_data / "train.bin")
    assert expected == losses


@pytest.mark.parametrize(("name", "step"), [("train", 3), ("val", 5)])
def test_data_cut_off_while_training(
    run: Run, make_trainer: MakeTrainer, own_data: Path, name: str, step: int
) -> None:
    """K15: a file that was made shorter ends the run with the data's error; what is good is saved.

    With the file as it was, it goes on as if nothing had been: from a step, or an evaluation.
    """
    expected = [event.loss for event in of_kind(StepDone, list(make_trainer().run()))]
    content = (own_data / f"{name}.bin").read_bytes()
    events = make_trainer(run=run, data=own_data).run()
    next(event for event in events if isinstance(event, StepDone) and event.step == step)
    os.truncate(own_data / f"{name}.bin", 10)
    with pytest.raises(DataError, match=rf"{name}\.bin"):
        list(events)
    (own_data / f"{name}.bin").write_bytes(content)
    assert step == run.latest().step
    again = make_trainer(run=run, data=own_data)
    again.restore(run.latest())
    assert expected[step:] == [e.loss for e in of_kind(StepDone, list(again.run()))]


@pytest.mark.parametrize("name", ["train", "val"])
def test_data_written_over_while_training(
    run: Run, make_trainer: MakeTrainer, own_data: Path, name: str
) -> None:
    """Other ids of the vocabulary, in the same file: they are noticed instead of the next save.

    To touch the file, or to write what it held, does no harm.
    """
    events = make_trainer(run=run, data=own_data, eval_interval=2).run()
    saved = (event for event in events if isinstance(event, Saved))
    path = own_data / f"{name}.bin"
    content = path.read_bytes()
    assert next(saved).step == 2
    os.utime(path, ns=(0, 0))
    path.write_bytes(content)
    assert next(saved).step == 4
    with path.open("r+b") as file:
        file.write(content[2:4] + content[:2])
    with pytest.raises(DataError, match=rf"{name}\.bin was damaged or replaced"):
        list(events)
    assert run.latest().step == 4


# --- whatever ends a training, in whatever it does, it goes on as if nothing was ----------------

SETTINGS: dict[str, Any] = {
    "max_iters": 6, "eval_interval": 2, "sample_interval": 2, "sample_tokens": 3, "keep": 9,
}  # fmt: skip
WHERE = ("step", "evaluation", "sample", "save")


@dataclass(frozen=True)
class Scene:
    """A run that something happens to, and the run of the same settings that is let alone."""

    run: Run
    straight: Trainer
    make_trainer: Callable[..., Trainer]
    patch: pytest.MonkeyPatch

    def begin(self, where: str, act: Callable[[], None]) -> Trainer:
        """Let `act` happen once, in the midst of step 3 or of what comes after step 4."""
        trainer = self.make_trainer(run=self.run, **SETTINGS)
        left = [act]

        def once() -> None:
            if left:
                left.pop()()

        def before_forward(module: nn.Module, _: object) -> None:
            moment = (module.training, trainer.progress.step)
            if moment == {"step": (True, 2), "evaluation": (False, 4)}.get(where):
                once()

        stream, rename = TextGenerator.stream, os.rename

        def stream_slowly(*arguments: Any, **options: Any) -> Iterator[Any]:
            for piece in stream(*arguments, **options):
                if where == "sample" and trainer.progress.step == 4:
                    once()
                yield piece

        def rename_late(source: Path, target: Path) -> None:
            if where == "save" and trainer.progress.step == 4:
                once()
            rename(source, target)

        trainer.model.register_forward_pre_hook(before_forward)
        self.patch.setattr(TextGenerator, "stream", stream_slowly)
        self.patch.setattr(os, "rename", rename_late)
        return trainer

    def assert_goes_on(self) -> None:
        """Nothing half done is left, and a resumed run ends where the straight one does."""
        self.patch.undo()
        assert not list(self.run.path.glob(".tmp-*"))
        assert () == self.run.latest().skipped
        resumed = self.make_trainer(run=self.run, **SETTINGS)
        assert {} == resumed.restore(self.run.latest())
        list(resumed.run())
        expected, found = self.straight.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert self.straight.progress == resumed.progress


@pytest.fixture(scope="module")
def straight(make_trainer: Callable[..., Trainer]) -> Trainer:
    trainer = make_trainer(**SETTINGS)
    list(trainer.run())
    return trainer


@pytest.fixture
def scene(
    straight: Trainer, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> Iterator[Scene]:
    run = Run(tmp_path / "run")
    run.create()
    with pytest.MonkeyPatch.context() as patch:
        yield Scene(run, straight, make_trainer, patch)


@pytest.mark.parametrize("where", WHERE)
def test_a_signal(where: str, scene: Scene) -> None:
    """K6: SIGTERM in a step, an evaluation, a sample or a save: the step is finished and saved."""
    trainer = scene.begin(where, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: trainer.request_stop())
    try:
        last = 3 if where == "step" else 4
        assert [f"Saved {last}", f"Stopped {last}"] == names(list(trainer.run()))[-2:]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert last == scene.run.latest().step
    scene.assert_goes_on()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", WHERE)
def test_an_end_in_the_midst(where: str, error: type[BaseException], scene: Scene) -> None:
    """K7, K21: a second Ctrl-C, or a lack of memory: the error passes, the last save is intact."""

    def act() -> None:
        raise error

    trainer = scene.begin(where, act)
    failed_save = where == "save" and error is MemoryError
    with pytest.raises(SaveError if failed_save else error):
        list(trainer.run())
    assert 2 == scene.run.latest().step
    scene.assert_goes_on()
