"""Negative controls of resuming: each saved item is needed, for without it the run is another."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from yocto_model import GPT
from yocto_train import Checkpoint, CheckpointError, Run, Trainer, save_checkpoint
from yocto_train.events import Evaluated, Event, Sampled, Saved
from yocto_train.runs.state import Progress
from yocto_train.scale.machine import mixed_seed

MakeTrainer = Callable[..., Trainer]
Story = Callable[[list[Event]], list[str]]
GoOn = Callable[[Checkpoint], list[str]]
Change = Callable[[dict[str, Any]], object]
Stopped = tuple[Checkpoint, list[str]]


def with_state(path: Path, checkpoint: Checkpoint, change: Change) -> Checkpoint:
    """The same checkpoint in another run directory, with its state changed."""
    state, run, found = checkpoint.load_state(), Run(path), checkpoint.manifest
    change(state)
    run.create()
    save_checkpoint(
        run.path, checkpoint.load_model(), state, tokenizer=checkpoint.load_tokenizer(),
        data=found.data, val_loss=found.val_loss, environment=found.environment,
    )  # fmt: skip
    return Checkpoint.open(run.step_directory(state["step"]))


OPTIONS: dict[str, Any] = {"max_iters": 12, "eval_interval": 4, "optimizer": "muon"}


@pytest.fixture(scope="module")
def stopped(
    make_trainer: MakeTrainer, story: Story, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    """A checkpoint of step 8 of 12, evaluated, and the straight run's story from there."""
    run = Run(tmp_path_factory.mktemp("runs") / "first")
    run.create()
    expected = story(list(make_trainer(run=run, save_interval=8, **OPTIONS).run()))
    tail = [line for line in expected if int(line.split()[1]) > 8]
    return Checkpoint.open(run.path / "step-00000008"), tail


@pytest.fixture
def go_on(make_trainer: MakeTrainer, story: Story) -> GoOn:
    """`go_on(checkpoint)`: the story of a run that is resumed there."""

    def go(checkpoint: Checkpoint) -> list[str]:
        trainer = make_trainer(**OPTIONS)
        trainer.restore(checkpoint)
        return story(list(trainer.run()))

    return go


def test_the_control_itself(stopped: Stopped, go_on: GoOn, tmp_path: Path) -> None:
    """With nothing dropped, the copied checkpoint goes on exactly."""
    assert stopped[1] == go_on(with_state(tmp_path, stopped[0], lambda state: None))


@pytest.mark.parametrize("part", ["progress", "scaler", "config", "sampler"])
def test_a_state_without_a_part_is_refused(
    part: str, stopped: Stopped, go_on: GoOn, tmp_path: Path
) -> None:
    """Whatever is missing from opt.safetensors, the run does not go on without it."""
    with pytest.raises(CheckpointError, match=f"lacks {part}"):
        go_on(with_state(tmp_path, stopped[0], lambda state: state.pop(part)))


@pytest.mark.parametrize("field", [*(field.name for field in fields(Progress)), None])
def test_progress_without_a_field_is_refused(
    field: str | None, stopped: Stopped, go_on: GoOn, tmp_path: Path
) -> None:
    """Of where the run stood nothing may be missing, nor may anything unknown be added."""
    change = forget(unknown=1) if field is None else lambda state: state["progress"].pop(field)
    with pytest.raises(CheckpointError, match="does not say how far the run was"):
        go_on(with_state(tmp_path, stopped[0], change))


def forget_moments(*names: str, fill: float = 0.0) -> Change:
    def change(state: dict[str, Any]) -> None:
        found = [key for key in state["moments"] if key.rpartition(".")[2].startswith(names)]
        assert found
        state["moments"] |= {key: torch.full_like(state["moments"][key], fill) for key in found}

    return change


def forget(**values: object) -> Change:
    return lambda state: state["progress"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        forget_moments("exp_avg"), forget_moments("step", fill=1.0), forget_moments("momentum_"),
        forget(loss_sum=0.0), forget(loss_weight=0.0), forget(best_loss=0.5), forget(step=7),
        forget(evaluated_step=None),
    ],
    ids=[
        "moments of AdamW", "steps of AdamW", "momentum of Muon", "smoothed loss", "its weight",
        "best loss", "step", "evaluated step",
    ],
)  # fmt: skip
def test_each_saved_item_matters(
    change: Change, stopped: Stopped, go_on: GoOn, tmp_path: Path
) -> None:
    """Negative control: forget one saved item, and the resumed run is no longer the same."""
    assert stopped[1] != go_on(with_state(tmp_path, stopped[0], change))


@pytest.mark.parametrize(
    ("name", "message"), [("blocks.9.ln_1.weight.step", "no parameter"), ("ln_f.weight", "shape")]
)
def test_moments_of_another_model_are_refused(
    name: str, message: str, stopped: Stopped, go_on: GoOn, tmp_path: Path
) -> None:
    """C13: a moment of a parameter that the model lacks, or of another shape, is refused."""

    def change(state: dict[str, Any]) -> None:
        key = name if name.endswith("step") else f"{name}.exp_avg"
        state["moments"][key] = torch.zeros(1)

    with pytest.raises(CheckpointError, match=f"state of another model: .*{message}"):
        go_on(with_state(tmp_path, stopped[0], change))


def test_the_weights_matter(stopped: Stopped, go_on: GoOn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with the last bit of the embeddings changed, the resumed run is another."""
    load = Checkpoint.load_model

    def load_other(checkpoint: Checkpoint) -> GPT:
        model = load(checkpoint)
        with torch.no_grad():
            model.token_emb.weight.view(torch.int32)[:] ^= 1
        return model

    monkeypatch.setattr(Checkpoint, "load_model", load_other)
    assert stopped[1] != go_on(stopped[0])


def test_the_best_step_and_the_last_sample_matter(
    make_trainer: MakeTrainer, run: Run, tmp_path: Path
) -> None:
    """Negative control: forgotten, best would point elsewhere, and a sample be written twice."""
    options = {"max_iters": 8, "eval_interval": 4, "sample_interval": 4, "sample_tokens": 2}
    for event in (first := make_trainer(run=run, **options)).run():
        if isinstance(event, Saved):
            first.request_stop()
    # As after an evaluation that nothing will beat.
    ends: list[object] = []
    for change in (forget(best_loss=0.0), forget(best_loss=0.0, best_step=None, sampled_step=None)):
        copy = with_state(tmp_path / f"copy{len(ends)}", run.latest(), change)
        resumed = make_trainer(**options)
        resumed.restore(copy)
        events = list(resumed.run())
        best = [event.best_step for event in events if isinstance(event, Evaluated)]
        ends.append((best, [event.step for event in events if isinstance(event, Sampled)]))
    assert [([4], [8]), ([None], [4, 8])] == ends


def test_stale_evaluations_matter(make_trainer: MakeTrainer, run: Run, tmp_path: Path) -> None:
    """Negative control: with the count of stale evaluations forgotten, early stopping is late."""
    settings = {"max_iters": 30, "eval_interval": 2, "patience": 3}
    trainer = make_trainer(run=run, **settings)
    trainer.progress.best_loss, trainer.progress.best_step = 0.0, 0  # never reached
    for event in trainer.run():
        if event.step == 4:
            trainer.request_stop()
    ends: list[int] = []
    for change in (lambda state: None, forget(stale_evaluations=0)):
        resumed = make_trainer(**settings)
        resumed.restore(with_state(tmp_path / f"copy{len(ends)}", run.latest(), change))
        ends.append(list(resumed.run())[-1].step)
    assert [6, 8] == ends


def test_dropout_seeds_matter(
    make_trainer: MakeTrainer, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: seeds that are a plain sum give other losses; ours tell all four apart."""
    assert mixed_seed(1, 2, 3, 4) == mixed_seed(1, 2, 3, 4)
    numbers = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (1, 23, 4, 0)]
    seeds = {mixed_seed(*four) for four in numbers}
    assert 6 == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    plain = story(list(make_trainer(max_iters=4).run()))
    monkeypatch.setattr("yocto_train.scale.machine.mixed_seed", lambda *numbers: 7 + sum(numbers))
    assert plain != story(list(make_trainer(max_iters=4).run()))
