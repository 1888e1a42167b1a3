"""Laws of the training loop: what happens, in what order, and what ends it."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from yocto_data import DataError
from yocto_model import GPT, GPTConfig
from yocto_train import (
    RECIPES,
    Evaluated,
    Event,
    NonFiniteError,
    Run,
    Sampled,
    Saved,
    Started,
    StepDone,
    Stopped,
    Trainer,
    World,
    files,
)
from yocto_train.evaluate import Evaluation, Evaluator
from yocto_train.stepper import mixed_seed

MakeTrainer = Callable[..., Trainer]


def names(events: list[Event]) -> list[str]:
    return [f"{type(event).__name__} {event.step}" for event in events]


def of_kind(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """An empty run directory, locked."""
    run = Run(tmp_path / "run")
    run.create()
    with run.lock():
        yield run


def test_the_order_of_events(run: Run, make_trainer: MakeTrainer) -> None:
    """After a step come its report, its evaluation, its sample and its checkpoint.

    The last step has all of them; Started is first and Stopped last.
    """
    trainer = make_trainer(
        run=run, max_iters=5, eval_interval=2, sample_interval=2, log_interval=2, sample_tokens=3
    )
    assert [
        "Started 0",
        "StepDone 2", "Evaluated 2", "Sampled 2", "Saved 2",
        "StepDone 4", "Evaluated 4", "Sampled 4", "Saved 4",
        "StepDone 5", "Evaluated 5", "Saved 5",
        "Stopped 5",
    ] == names(list(trainer.run()))  # fmt: skip


def test_without_a_run_nothing_is_saved(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A trainer without a run directory trains and reports, and writes nothing."""
    events = list(make_trainer(max_iters=4).run())
    assert not of_kind(Saved, events)
    assert [] == list(tmp_path.iterdir())


def test_zero_steps(run: Run, make_trainer: MakeTrainer) -> None:
    """max_iters 0 saves the untrained model and ends."""
    trainer = make_trainer(run=run, max_iters=0, warmup_iters=0)
    assert ["Started 0", "Saved 0", "Stopped 0"] == names(list(trainer.run()))


def test_what_events_say(make_trainer: MakeTrainer) -> None:
    """Sizes, rates and counts in events are those of the settings and the data."""
    trainer = make_trainer(max_iters=6, eval_interval=3, lr=0.01, min_lr_fraction=0.1)
    events = list(trainer.run())
    started, stopped = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(stopped, Stopped)
    assert 4 * 8 == started.tokens_per_step
    assert sum(p.numel() for p in trainer.model.parameters()) == started.n_parameters
    steps = of_kind(StepDone, events)
    assert [1, 2, 3, 4, 5, 6] == [event.step for event in steps]
    assert [0.01 * 2 / 4, 0.01 * 3 / 4, 0.01] == pytest.approx([e.lr for e in steps[:3]])
    assert 0.001 == pytest.approx(steps[-1].lr)
    assert steps[0].loss == pytest.approx(steps[0].smoothed_loss)
    assert 6 * 32 / trainer.train_data.n_tokens == steps[-1].epoch
    evaluations = of_kind(Evaluated, events)
    assert all(event.tokens == trainer.val_data.n_tokens - 1 for event in evaluations)
    best = min(evaluations, key=lambda event: event.loss)
    assert (best.step, best.loss) == (stopped.best_step, stopped.best_loss)
    assert all(event.bits_per_byte < event.loss / math.log(2) for event in evaluations)


def test_the_last_evaluation_is_whole(make_trainer: MakeTrainer) -> None:
    """During the run a few batches may serve, always the same, and choose the best step.

    The last step is measured on everything as well.
    """
    trainer = make_trainer(max_iters=6, eval_interval=3, eval_iters=1)
    trainer.evaluator.batch_size = 2
    events = of_kind(Evaluated, list(trainer.run()))
    assert [(3, False), (6, False), (6, True)] == [(e.step, e.whole) for e in events]
    assert events[-1].best_loss == min(event.loss for event in events[:-1])
    events = of_kind(Evaluated, list(make_trainer(max_iters=6, eval_interval=3).run()))
    assert [(3, True), (6, True)] == [(e.step, e.whole) for e in events]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_one_batch_can_be_overfitted(arch: str, optimizer: str, make_trainer: MakeTrainer) -> None:
    """R9: with the same windows over and over, the loss falls from ln(vocabulary) to nearly 0."""
    trainer = make_trainer(
        arch, dropout=0.0, max_iters=150, eval_interval=150, optimizer=optimizer, lr=0.02,
        muon_lr=0.05, grad_clip=1.0, weight_decay=0.0, accumulate=1,
    )  # fmt: skip
    batch = trainer.sampler.batch(0)
    trainer.sampler.batch = lambda step: batch  # type: ignore[method-assign] # one batch for ever
    losses = [event.loss for event in of_kind(StepDone, list(trainer.run()))]
    assert losses[0] == pytest.approx(math.log(trainer.model.config.vocab_size), abs=0.2)
    assert losses[-1] < 0.1


@pytest.mark.parametrize("preset", sorted(RECIPES))
def test_every_preset_can_overfit_one_batch(preset: str, make_trainer: MakeTrainer) -> None:
    """With its own optimizer, rates and schedule, in 300 steps of a model 32 wide."""
    recipe = RECIPES[preset]
    fixed = {"max_iters": 300, "batch_size": 4, "accumulate": 1, "eval_interval": 300}
    trainer = make_trainer(
        model=GPT(
            GPTConfig.from_arch(
                recipe.arch,
                **{**recipe.model, "vocab_size": 45, "block_size": 8, "n_layer": 2, "n_embd": 32},
            ),
            generator=torch.Generator().manual_seed(1),
        ),
        **{**recipe.train, **fixed},
    )
    batch = trainer.sampler.batch(0)
    trainer.sampler.batch = lambda step: batch  # type: ignore[method-assign] # one batch for ever
    losses = [event.loss for event in of_kind(StepDone, list(trainer.run()))]
    assert losses[0] > 3
    assert losses[-1] < 0.3


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_is_one_batch(arch: str, optimizer: str, make_trainer: MakeTrainer) -> None:
    """R2: cutting the batch into 1, 2 or 4 parts gives the same steps, in float64 to rounding."""
    results = []
    for accumulate in (1, 2, 4):
        trainer = make_trainer(
            arch, dropout=0.0, dtype=torch.float64, accumulate=accumulate, optimizer=optimizer,
            max_iters=4,
        )  # fmt: skip
        losses = [event.loss for event in of_kind(StepDone, list(trainer.run()))]
        results.append((losses, trainer.model.state_dict()))
    for losses, weights in results[1:]:
        assert results[0][0] == pytest.approx(losses, rel=1e-6)  # float32 sum of the report
        for name, value in weights.items():
            torch.testing.assert_close(value, results[0][1][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("limit", [0.0, 0.01, 1e6])
def test_clipping_bounds_the_norm_and_keeps_the_direction(
    limit: float, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R5: clipping bounds the norm and keeps the direction.

    The gradient that the optimizer sees is the raw one, scaled down if it is longer than the limit;
    0 leaves it alone. The reported norm is the raw one's.
    """
    raw, clipped = (
        make_trainer(dropout=0.0, grad_clip=clip, max_iters=1, warmup_iters=0)
        for clip in (0.0, limit)
    )
    seen: list[Tensor] = []
    norms: list[float] = []
    for trainer in (raw, clipped):

        def spy(*_: object, model: GPT = trainer.model) -> None:
            seen.append(
                torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            )

        monkeypatch.setattr(trainer.optimizers[0], "step", spy)
        norms += [event.grad_norm for event in of_kind(StepDone, list(trainer.run()))]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] == pytest.approx(float(seen[0].norm()), rel=1e-5)
    expected = min(1.0, limit / norms[0]) if limit else 1.0
    torch.testing.assert_close(seen[1], seen[0] * expected, rtol=1e-4, atol=1e-9)


# --- what ends a run -----------------------------------------------------------------------------


def fake_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the next evaluations give these losses."""
    left = iter(losses)
    monkeypatch.setattr(
        Evaluator, "measure",
        lambda *_: (Evaluation(loss=next(left), tokens=1, whole=True), 0.0),
    )  # fmt: skip


def test_early_stopping(
    run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `patience` evaluations in a row without a new best, the run ends, saved.

    Best.pt is the best step, which no pruning removes.
    """
    fake_losses(monkeypatch, [3.0, 2.0, 2.5, 2.0, 2.1, 9.9])
    trainer = make_trainer(run=run, max_iters=30, eval_interval=2, patience=3, keep=2)
    stopped = list(trainer.run())[-1]
    assert isinstance(stopped, Stopped)
    assert ("no progress", 10, 4, 2.0) == (
        stopped.reason, stopped.step, stopped.best_step, stopped.best_loss,
    )  # fmt: skip
    assert run.path / "step-00000004" == run.pointed("best.pt")
    assert run.path / "step-00000010" == run.pointed("latest.pt")


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
    """K20: it is reported, saved as unknown, and counts as an evaluation without progress.

    A later sound loss is the best.
    """
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


@pytest.mark.parametrize("last", [True, False])
def test_a_stop_request_inside_an_evaluation(
    last: bool, run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K6: the evaluation is given up, the step saved, also if it is the last one.

    Resuming makes up for the evaluation, and best.pt then points to the step.
    """
    settings = {"max_iters": 4 if last else 8, "eval_interval": 4}
    trainer = make_trainer(run=run, **settings)
    asked: list[bool] = []
    forward = trainer.model.forward

    def spy(idx: Tensor, **kwargs: Any) -> Tensor:
        if not trainer.model.training:
            asked.append(True)
            trainer.request_stop()
        return forward(idx, **kwargs)

    trainer.evaluator.batch_size = 1
    monkeypatch.setattr(trainer.model, "forward", spy)
    events = list(trainer.run())
    assert 1 == len(asked)
    assert ["Saved 4", "Stopped 4"] == names(events)[-2:]
    assert "requested" == events[-1].reason  # type: ignore[attr-defined] # it is a Stopped
    assert run.pointed("best.pt") is None

    again = make_trainer(run=run, **settings)
    assert {} == again.restore(run.latest())
    resumed = names(list(again.run()))
    assert ["Started 4", "Evaluated 4", "Saved 4"] == resumed[:3]
    assert run.pointed("best.pt") is not None
    straight = make_trainer(**settings)
    list(straight.run())
    assert straight.progress.best_loss == again.progress.best_loss
    assert straight.progress.best_step == again.progress.best_step


def test_a_stop_request_inside_a_sample(
    run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K6: the sample is given up at once, the step saved; resuming writes the whole sample."""
    settings = {"max_iters": 4, "eval_interval": 4, "sample_interval": 2, "sample_tokens": 5}
    trainer = make_trainer(run=run, **settings)
    forward = trainer.model.forward
    asked: list[bool] = []

    def spy(idx: Tensor, **kwargs: Any) -> Tensor:
        if not trainer.model.training:
            asked.append(True)
            trainer.request_stop()
        return forward(idx, **kwargs)

    monkeypatch.setattr(trainer.model, "forward", spy)
    hidden = trainer.model.hidden_states

    def spy_hidden(idx: Tensor, **kwargs: Any) -> Tensor:
        if not trainer.model.training:
            asked.append(True)
            trainer.request_stop()
        return hidden(idx, **kwargs)

    monkeypatch.setattr(trainer.model, "hidden_states", spy_hidden)
    events = list(trainer.run())
    assert not of_kind(Sampled, events)
    assert asked
    assert ["Saved 2", "Stopped 2"] == names(events)[-2:]
    assert trainer.model.training

    again = make_trainer(run=run, **settings)
    again.restore(run.latest())
    resumed = list(again.run())
    straight = list(make_trainer(**settings).run())
    assert [e.text for e in of_kind(Sampled, straight)] == [
        e.text for e in of_kind(Sampled, resumed)
    ]


def test_samples_do_not_change_training(make_trainer: MakeTrainer) -> None:
    """With and without samples and evaluations, the losses of the steps are the same bits."""
    plain = list(make_trainer(eval_interval=100).run())
    busy = list(make_trainer(eval_interval=1, sample_interval=1, sample_tokens=3).run())
    assert [e.loss for e in of_kind(StepDone, plain)] == [e.loss for e in of_kind(StepDone, busy)]
    texts = of_kind(Sampled, busy)
    assert all(event.prompt == "\n" and event.text for event in texts)


def test_requests_from_outside(run: Run, make_trainer: MakeTrainer) -> None:
    """An evaluation, a sample and a checkpoint can be asked for; each is made once."""
    trainer = make_trainer(run=run, eval_interval=100, max_iters=6, sample_tokens=2)
    events = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            trainer.request_evaluation()
            trainer.request_sample()
            trainer.request_save()
    assert ["StepDone 2", "Evaluated 2", "Sampled 2", "Saved 2", "StepDone 3"] == names(events)[2:7]
    assert [2, 6] == [event.step for event in of_kind(Evaluated, events)]
    assert [2] == [event.step for event in of_kind(Sampled, events)]


# --- NaN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_before_the_update(
    where: str, value: float, optimizer: str, run: Run, make_trainer: MakeTrainer
) -> None:
    """K19: what is not finite ends the run before it does harm.

    Whether it is logged or not, a loss or gradient that is no number is an error before any weight
    or moment changes and before anything is saved; the message names the step and the last good
    checkpoint.
    """
    trainer = make_trainer(run=run, eval_interval=2, optimizer=optimizer, log_interval=100)
    events = trainer.run()
    while not isinstance(next(events), Saved):
        pass
    trainer._step()
    weights = {name: w.clone() for name, w in trainer.model.state_dict().items()}
    if where == "loss":
        loss = trainer.stepper._loss
        trainer.stepper._loss = lambda x, y: loss(x, y) * value  # type: ignore[method-assign] # a fault
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


def test_a_stop_request_during_a_save(
    run: Run, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K6, K7: the save is completed, and no further step is made."""
    trainer = make_trainer(run=run, eval_interval=3)
    rename = files.rename

    def spy(source: Path, target: Path) -> None:
        trainer.request_stop()
        rename(source, target)

    monkeypatch.setattr(files, "rename", spy)
    assert ["Saved 3", "Stopped 3"] == names(list(trainer.run()))[-2:]
    assert 3 == run.latest().step


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


def test_data_cut_off_while_training(run: Run, make_trainer: MakeTrainer, own_data: Path) -> None:
    """K15: a file that was made shorter ends the run with the data's error, and saves nothing."""
    trainer = make_trainer(run=run, data=own_data, eval_interval=2)
    events = trainer.run()
    while not isinstance(next(events), Saved):
        pass
    with (own_data / "train.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(DataError, match=r"train\.bin"):
        list(events)
    assert ["step-00000002"] == sorted(path.name for path in run.path.glob("step-*"))


# --- a rank among several ------------------------------------------------------------------------


class SecondOfTwo(World):
    """A rank that hears nothing of the other one."""

    rank, size = 1, 2


def test_a_rank_takes_its_rows_and_its_dropout(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 of 2 sees the second half of the batch, and draws its masks from seeds of its own."""
    trainer = make_trainer(max_iters=1, warmup_iters=0, world=SecondOfTwo())
    whole = make_trainer(max_iters=1, warmup_iters=0)
    for ours, all_rows in zip(trainer.sampler.batch(0), whole.sampler.batch(0), strict=True):
        assert torch.equal(all_rows[2:], ours)
    seeds: list[int] = []
    monkeypatch.setattr("torch.manual_seed", seeds.append)
    trainer._step()
    assert [mixed_seed(5, 0, micro, 1) for micro in (0, 1)] == seeds
