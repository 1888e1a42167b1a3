"""Laws of the schedules: pure functions of the step."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_train import TrainConfig, lr_factor
from yocto_train.schedules import cosine, muon_momentum, warmup, wsd


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    max_iters = draw(st.integers(1, 10_000))
    return TrainConfig(
        max_iters=max_iters,
        warmup_iters=draw(st.integers(0, max_iters - 1)),
        schedule=draw(st.sampled_from(["cosine", "wsd"])),
        decay_fraction=draw(st.floats(0.01, 1)),
        min_lr_fraction=draw(st.floats(0, 1)),
    )


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"max_iters": 100, "warmup_iters": 10, **settings})


@pytest.mark.property
@given(configs(), st.data())
@example(TrainConfig(max_iters=1, warmup_iters=0), None)
@example(TrainConfig(schedule="wsd", decay_fraction=1.0, min_lr_fraction=0.0), None)
def test_the_factor_is_bounded(config: TrainConfig, data: st.DataObject | None) -> None:
    """R4: 0 <= factor <= 1 at every step, and above 0 at every step that updates."""
    top = config.max_iters
    steps = [0, top - 1, top] if data is None else [data.draw(st.integers(0, top + 10))]
    for step in steps:
        factor = lr_factor(step, config)
        assert 0 <= factor <= 1
        assert factor > 0 or step >= top or config.min_lr_fraction == 0


@pytest.mark.property
@given(configs(), st.integers(0, 10_000))
@example(TrainConfig(), 99)
@example(TrainConfig(schedule="wsd"), 200)
def test_no_jumps(config: TrainConfig, step: int) -> None:
    """R4: a step changes the factor by no more than the curve's steepest part allows.

    That is a line over the warm-up, over the decay, or half a cosine over the rest.
    """
    rise = 1 / (config.warmup_iters + 1)
    if config.schedule == "wsd":
        fall = 1 / max(1.0, config.decay_fraction * config.max_iters)
    else:
        fall = math.pi / 2 / (config.max_iters - config.warmup_iters)
    change = abs(lr_factor(step + 1, config) - lr_factor(step, config))
    assert change <= max(rise, fall) + 1e-12


@pytest.mark.property
@given(configs())
@example(TrainConfig())
@example(TrainConfig(schedule="wsd"))
def test_after_warm_up_it_never_rises(config: TrainConfig) -> None:
    """R4: the maximum is where the warm-up ends; a cosine or a decay only falls."""
    steps = [*range(config.warmup_iters, min(config.max_iters + 1, config.warmup_iters + 60))]
    factors = [lr_factor(step, config) for step in steps]
    assert factors == sorted(factors, reverse=True)


def test_fixed_points() -> None:
    """The values that nanoGPT's formula gives; half-way down a cosine is the mean of its ends."""
    settings = config(min_lr_fraction=0.1)
    assert lr_factor(0, settings) == pytest.approx(1 / 11)
    assert lr_factor(9, settings) == pytest.approx(10 / 11)
    assert lr_factor(10, settings) == 1
    assert lr_factor(55, settings) == pytest.approx((1 + 0.1) / 2)
    third = 10 + 90 // 3  # a third of the way down: the cosine of 60 degrees is a half
    assert lr_factor(third, settings) == pytest.approx(0.1 + 0.9 * 0.75)
    assert lr_factor(100, settings) == pytest.approx(0.1)
    assert lr_factor(1_000, settings) == pytest.approx(0.1)


def test_wsd_is_flat_then_a_line() -> None:
    """WSD: 1 until the decay begins, then a straight line down to the floor."""
    settings = config(schedule="wsd", decay_fraction=0.4, min_lr_fraction=0.2)
    assert [lr_factor(step, settings) for step in (10, 30, 60)] == [1, 1, 1]
    assert lr_factor(80, settings) == pytest.approx((1 + 0.2) / 2)
    assert lr_factor(100, settings) == pytest.approx(0.2)

    # A cosine, or a decay, over one step; without warm-up the first update has the peak rate.
    assert cosine(0, max_iters=10, warmup_iters=0, min_fraction=0.1) == warmup(0, 0) == 1
    assert cosine(5, max_iters=5, warmup_iters=4, min_fraction=0.0) == pytest.approx(0)
    shortest: dict[str, Any] = {"max_iters": 5, "warmup_iters": 0, "min_fraction": 0.0}
    assert [wsd(step, decay_fraction=0.2, **shortest) for step in (3, 4, 5)] == [1, 1, 0]


@pytest.mark.property
@given(st.integers(0, 300), st.integers(0, 200))
@example(0, 0)
@example(10, 10)
def test_warm_up_is_a_line_to_one(step: int, warmup_iters: int) -> None:
    """(step + 1) / (warmup_iters + 1), and 1 ever after."""
    expected = Fraction(step + 1, warmup_iters + 1) if step < warmup_iters else 1
    assert float(expected) == pytest.approx(warmup(step, warmup_iters), rel=1e-15)


@pytest.mark.property
@given(st.integers(0, 500), st.integers(0, 500))
@example(0, 0)
@example(99, 100)
def test_the_flat_part_does_not_know_the_length(step: int, longer: int) -> None:
    """Before its decay, WSD gives the same factors for any length of the run."""
    rest: dict[str, Any] = {"warmup_iters": 50, "decay_fraction": 0.5, "min_fraction": 0.0}
    assert wsd(step, max_iters=1_000, **rest) == wsd(step, max_iters=1_000 + longer, **rest)


@pytest.mark.property
@given(st.integers(0, 2_000), st.integers(0, 1_000), st.floats(0, 0.999))
@example(0, 0, 0.95)
@example(300, 300, 0.5)
def test_muon_momentum(step: int, warmup_iters: int, momentum: float) -> None:
    """The momentum rises from at most 0.85 and never leaves the range up to its final value."""
    settings = TrainConfig(muon_momentum=momentum, muon_warmup_iters=warmup_iters)
    now, later = muon_momentum(step, settings), muon_momentum(step + 1, settings)
    assert min(0.85, momentum) <= now <= later <= max(momentum, 0.0) + 1e-12
    assert muon_momentum(warmup_iters + 1, settings) == pytest.approx(momentum)


def test_muon_momentum_is_a_line() -> None:
    """From 0.85, over the whole of the warm-up; a smaller momentum is there at once."""
    settings = TrainConfig(muon_momentum=0.95, muon_warmup_iters=200)
    values = [muon_momentum(step, settings) for step in (0, 50, 100, 200, 500)]
    assert [0.85, 0.875, 0.9, 0.95, 0.95] == pytest.approx(values)
    assert muon_momentum(0, TrainConfig(muon_momentum=0.5)) == 0.5
