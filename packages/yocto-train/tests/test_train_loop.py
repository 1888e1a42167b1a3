"""Laws of the training loop: what happens, in what order, and that it learns."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from yocto_model import GPT
from yocto_train import RECIPES, Run, Trainer, World
from yocto_train.events import Evaluated, Event, Sampled, Saved, Started, StepDone, Stopped
from yocto_train.scale.machine import mixed_seed

MakeTrainer = Callable[..., Trainer]


def names(events: list[Event]) -> list[str]:
    return [f"{type(event).__name__} {event.step}" for event in events]


def of_kind(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# What training computes changes on purpose only: a change of initial weights, batches, dropout,
# schedule or optimizer moves these, and who means to make one puts the new figures here.
GOLDEN: dict[tuple[str, str], list[float]] = {
    ("gpt2", "adamw"): [
        3.69064522, 3.6626935, 3.57412148, 3.54933023, 3.43015575, 3.37162399, 3.36989331,
        3.27991199,
    ],
    ("modern", "muon"): [
        3.68887949, 3.67578506, 3.65335584, 3.64396882, 3.59880662, 3.56746626, 3.59136224,
        3.49357414,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("arch", "optimizer"), list(GOLDEN))
def test_losses_are_the_golden_ones(arch: str, optimizer: str, make_trainer: MakeTrainer) -> None:
    """Eight steps with dropout, two parts a step, clipping, warm-up and decay.

    In float64 the losses agree to many digits on any machine.
    """
    trainer = make_trainer(
        arch, optimizer=optimizer, dtype=torch.float64, dropout=0.1, max_iters=8, lr=0.01
    )
    losses = [event.loss for event in of_kind(StepDone, list(trainer.run()))]
    assert GOLDEN[arch, optimizer] == pytest.approx(losses, rel=1e-6)


def test_the_order_of_events(run: Run, make_trainer: MakeTrainer) -> None:
    """After a step come its report, its evaluation, its sample and its checkpoint."""
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
    assert 6 * trainer.config.batch_size / trainer.sampler.windows_per_epoch == steps[-1].epoch
    evaluations = of_kind(Evaluated, events)
    assert all(event.tokens == trainer.val_data.n_tokens - 1 for event in evaluations)
    best = min(evaluations, key=lambda event: event.loss)
    assert (best.step, best.loss) == (stopped.best_step, stopped.best_loss)
    assert all(event.bits_per_byte < event.loss / math.log(2) for event in evaluations)


def test_the_last_evaluation_is_whole(make_trainer: MakeTrainer) -> None:
    """During the run a few batches choose the best step; the last is measured on all as well."""
    trainer = make_trainer(max_iters=6, eval_interval=3, eval_iters=1)
    trainer.eval_batch_size = 2
    events = of_kind(Evaluated, list(trainer.run()))
    assert [(3, False), (6, False), (6, True)] == [(e.step, e.whole) for e in events]
    assert events[-1].best_loss == min(event.loss for event in events[:-1])
    events = of_kind(Evaluated, list(make_trainer(max_iters=6, eval_interval=3).run()))
    assert [(3, True), (6, True)] == [(e.step, e.whole) for e in events]


def losses_of_one_batch(trainer: Trainer) -> list[float]:
    batch = trainer.sampler.batch(0)
    trainer.sampler.batch = lambda step: batch  # type: ignore[method-assign] # one batch for ever
    return [event.loss for event in of_kind(StepDone, list(trainer.run()))]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_one_batch_can_be_overfitted(arch: str, optimizer: str, make_trainer: MakeTrainer) -> None:
    """R9: with the same windows over and over, the loss falls from ln(vocabulary) to nearly 0."""
    trainer = make_trainer(
        arch, dropout=0.0, max_iters=150, eval_interval=150, optimizer=optimizer, lr=0.02,
        muon_lr=0.05, grad_clip=1.0, weight_decay=0.0, accumulate=1,
    )  # fmt: skip
    losses = losses_of_one_batch(trainer)
    assert losses[0] == pytest.approx(math.log(trainer.model.config.vocab_size), abs=0.2)
    assert losses[-1] < 0.1


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_can_overfit_one_batch(
    name: str, make_model: Callable[..., GPT], make_trainer: MakeTrainer
) -> None:
    """With its own optimizer, rates and schedule, in 300 steps of a model 32 wide."""
    recipe = RECIPES[name]
    sizes = {**recipe.model, "block_size": 8, "n_layer": 2, "n_embd": 32}
    fixed = {"max_iters": 300, "batch_size": 4, "accumulate": 1, "eval_interval": 300}
    model = make_model(recipe.arch, **sizes)
    losses = losses_of_one_batch(make_trainer(model=model, **{**recipe.train, **fixed}))
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
    """R5: the optimizer sees the raw gradient, scaled down if it is longer than the limit.

    A limit of 0 leaves it alone. The reported norm is the raw one's.
    """
    seen: list[Tensor] = []
    norms: list[float] = []
    for clip in (0.0, limit):
        trainer = make_trainer(dropout=0.0, grad_clip=clip, max_iters=1, warmup_iters=0)

        def spy(*_: object, model: GPT = trainer.model) -> None:
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            seen.append(torch.cat(gradients))

        monkeypatch.setattr(trainer.optimizers[0], "step", spy)
        norms += [event.grad_norm for event in of_kind(StepDone, list(trainer.run()))]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] == pytest.approx(float(seen[0].norm()), rel=1e-5)
    expected = min(1.0, limit / norms[0]) if limit else 1.0
    torch.testing.assert_close(seen[1], seen[0] * expected, rtol=1e-4, atol=1e-9)


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


# --- requests: acted on between steps, by all ranks or by none ----------------------------------


class Unheard(World):
    """Among other ranks, before they have heard of anything."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(False for _ in flags)


def asked(trainer: Trainer, what: str, at: type[Event]) -> list[Event]:
    """The events of a run during which something is asked for at the first event of a kind."""
    events: list[Event] = []
    for event in trainer.run():
        if type(event) is at and at not in map(type, events):
            getattr(trainer, f"request_{what}")()
        events.append(event)
    return events


@pytest.mark.parametrize("what", ["evaluation", "save", "sample"])
def test_no_request_adds_a_step(what: str, run: Run, make_trainer: MakeTrainer) -> None:
    """Whatever is asked for after the last step, it is the last."""
    events = asked(make_trainer(run=run, max_iters=4, eval_interval=4), what, at=Saved)
    assert 4 == max(event.step for event in events)
    assert isinstance(events[-1], Stopped)
    assert (2 if what == "evaluation" else 1) == len([e for e in events if type(e) is Evaluated])
    assert 4 == run.latest().step


@pytest.mark.parametrize("what", ["evaluation", "save", "sample"])
@pytest.mark.parametrize("at", [StepDone, Evaluated])
def test_a_rank_does_nothing_alone(
    what: str, at: type[Event], run: Run, make_trainer: MakeTrainer
) -> None:
    """Before all ranks have agreed, a request changes nothing: one that acted would wait."""
    settings = {"max_iters": 6, "eval_interval": 3}
    expected = [(type(event), event.step) for event in make_trainer(run=run, **settings).run()]
    trainer = make_trainer(run=Run(run.path), **settings, world=Unheard())
    assert expected == [(type(event), event.step) for event in asked(trainer, what, at)]


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
