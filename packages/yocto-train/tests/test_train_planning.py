"""How a budget of time becomes a size and a number of steps."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_model import ARCHITECTURES, GPT, GPTConfig
from yocto_train import TrainConfig, TrainConfigError
from yocto_train.scale import planning
from yocto_train.scale.planning import SIZES, Candidate, choose, memory_bytes
from yocto_train.tune.lora import adapt

property_test = pytest.mark.property


def machine(speed: float, slower: Mapping[int, float] | None = None) -> Any:
    """A measurement of a machine that does `speed` weight updates (weights x tokens) a second."""

    def measure(size: Mapping[str, Any]) -> Candidate:
        n_parameters = 12 * size["n_layer"] * size["n_embd"] ** 2
        tokens = size["batch_size"] * size["block_size"]
        step = n_parameters * tokens / speed * (slower or {}).get(SIZES.index(size), 1.0)
        return Candidate(
            size=size, n_parameters=n_parameters, seconds_per_step=step,
            tokens_per_step=tokens, evaluation_seconds=3 * step,
        )  # fmt: skip

    return measure


SPEEDS = st.floats(1e8, 1e15)
SECONDS = st.floats(10, 1e5)


def place_of(candidate: Candidate) -> int:
    return SIZES.index(candidate.size)


@property_test
@given(SECONDS, SPEEDS)
def test_the_plan_fits_into_the_time(seconds: float, speed: float) -> None:
    """Steps and evaluations take no longer than asked for, and one step more would."""
    try:
        candidate, iters = choose(seconds, machine(speed))
    except TrainConfigError:
        smallest = machine(speed)(SIZES[0])
        assert smallest.iters(seconds, 8) < 50
        return
    assert iters >= 50
    assert iters * candidate.seconds_per_step + 8 * candidate.evaluation_seconds <= seconds * 1.001
    more = (iters + 1) * candidate.seconds_per_step + 8 * candidate.evaluation_seconds
    assert more >= seconds * 0.999


@property_test
@given(SECONDS, SPEEDS, st.floats(1, 4))
def test_more_time_never_chooses_a_smaller_model(
    seconds: float, speed: float, factor: float
) -> None:
    """The size grows with the time, and with the machine's speed."""
    try:
        before = place_of(choose(seconds, machine(speed))[0])
    except TrainConfigError:
        return
    assert before <= place_of(choose(seconds * factor, machine(speed))[0])
    assert before <= place_of(choose(seconds, machine(speed * factor))[0])


@property_test
@given(SECONDS, SPEEDS, st.dictionaries(st.integers(0, len(SIZES) - 1), st.floats(0.8, 1.25)))
def test_a_busy_moment_moves_the_choice_by_one_size_at_most(
    seconds: float, speed: float, slower: dict[int, float]
) -> None:
    """A quarter more or less on any measurement never makes another kind of model."""
    try:
        quiet = place_of(choose(seconds, machine(speed))[0])
        busy = place_of(choose(seconds, machine(speed, slower))[0])
    except TrainConfigError:
        return
    assert abs(quiet - busy) <= 1


@property_test
@given(SECONDS, SPEEDS, st.sampled_from([3.0, planning.CHAT_TOKENS_PER_PARAMETER]))
def test_the_nearest_to_the_wanted_tokens_per_parameter(
    seconds: float, speed: float, wanted: float
) -> None:
    """No size that makes enough steps comes nearer to the rule."""

    def distance(candidate: Candidate) -> float:
        iters = candidate.iters(seconds, 8)
        if iters < 50:
            return math.inf
        tokens = candidate.tokens_per_parameter(iters)
        return abs(math.log(tokens / wanted))

    candidates = [machine(speed)(size) for size in SIZES]
    try:
        chosen, _ = choose(seconds, machine(speed), wanted=wanted)
    except TrainConfigError:
        return
    assert distance(chosen) <= min(map(distance, candidates)) * 1.000001


def test_too_short_a_time_says_so() -> None:
    """The message names the time and the way out."""
    message = r"^1 s is too short for 50 steps .*; give more time, or choose .* yourself$"
    with pytest.raises(TrainConfigError, match=message):
        choose(1, machine(1e3))


def test_more_epochs_need_more_against_overfitting() -> None:
    """Nothing for a few epochs; then weight decay, and dropout where each token is seen often."""
    chosen = [planning.against_overfitting(epochs) for epochs in (0.1, 4, 8, 8.5, 16, 16.5)]
    assert [0.0, 0.0, 0.0, 0.1, 0.1, 0.2] == [each["dropout"] for each in chosen]
    assert [0.0, 0.0, 0.1, 0.1, 0.1, 0.1] == [each["weight_decay"] for each in chosen]


SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_hidden": 24, "vocab_size": 65}


def test_memory_grows_with_each_part() -> None:
    """At least four floats per weight, and more with every dimension."""
    base, kept, recomputed = GPTConfig(**SHAPE), 2 * (14 * 8 + 4 * 24), 2 * 8 + (14 * 8 + 4 * 24)
    plain, less = TrainConfig(), TrainConfig(grad_checkpointing=True)
    weights = 16 * base.n_parameters
    assert memory_bytes(base, plain, tokens=100) == weights + 4 * 100 * (kept + 3 * 65)
    assert memory_bytes(base, less, tokens=100) == weights + 4 * 100 * (recomputed + 3 * 65)
    for train in (plain, less, TrainConfig(lora_rank=4)):
        assert memory_bytes(base, train, tokens=100) < memory_bytes(base, train, tokens=200)
        for name, value in SHAPE.items():
            larger = GPTConfig(**{**SHAPE, name: value * 2})
            if name != "n_head":
                assert memory_bytes(base, train, tokens=9) < memory_bytes(larger, train, tokens=9)


@property_test
@given(rank=st.integers(1, 64), n_layer=st.integers(1, 40), arch=st.sampled_from([*ARCHITECTURES]))
def test_adapters_take_less_memory_where_they_are_thin(rank: int, n_layer: int, arch: str) -> None:
    """One float per frozen weight, half of one in half precision, and four per learned one."""
    model = GPTConfig.from_arch(arch, n_layer=n_layer, n_embd=768, n_head=12, n_kv_head=4)
    train = TrainConfig(lora_rank=rank)
    gpt = GPT(model.replace(n_layer=1, vocab_size=8, block_size=8))
    adapt(gpt, rank=rank, alpha=1.0, seed=0)
    learned = n_layer * sum(w.numel() for w in gpt.parameters() if w.requires_grad)
    frozen = memory_bytes(model, train, tokens=0) - 16 * learned
    assert frozen == 4 * model.n_parameters
    in_half = memory_bytes(model, train, tokens=0, half=True) - 16 * learned
    matrices = n_layer * sum(w.numel() for w, _ in gpt.parameter_roles().matrices
                             if not w.requires_grad)  # fmt: skip
    assert in_half == frozen - 2 * matrices


@property_test
@given(n_layer=st.integers(2, 40), tokens=st.integers(1, 10**6))
def test_checkpointing_saves_more_memory_in_deeper_models(n_layer: int, tokens: int) -> None:
    def saved(layers: int) -> int:
        model = GPTConfig(**{**SHAPE, "n_layer": layers})
        kept, recomputed = (
            memory_bytes(model, TrainConfig(grad_checkpointing=on), tokens=tokens)
            for on in (False, True)
        )
        return kept - recomputed

    assert 0 < saved(n_layer) < saved(n_layer + 1)
