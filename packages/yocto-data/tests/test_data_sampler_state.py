"""What a sampler takes: arguments and steps in range, and only a state of its own stream."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_data import BatchSampler, OptionError, StateError, TokenDataset

SEEDS = st.integers(0, 2**64 - 1)
MODES = st.sampled_from(["random", "epoch"])
DatasetOf = Callable[[int, int], TokenDataset]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, found -1"),
        ({"seed": 2**64}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"seed": "abc"}, "seed must be"),
        ({"stream": -1}, "stream must be"),
        ({"world_size": 0}, "world_size must be"),
        ({"rank": 1}, "rank must be an integer from 0 to 0, found 1"),
        ({"rank": -1}, "rank must be"),
        ({"mode": "shuffle"}, "mode must be one of random, epoch"),
        ({"batch_size": 6, "world_size": 4}, "batch_size 6 does not divide among 4 ranks"),
    ],
)
def test_arguments_out_of_range(dataset_of: DatasetOf, change: dict[str, Any], says: str) -> None:
    """Each argument out of range is named with its range."""
    arguments: dict[str, Any] = {"batch_size": 4, "seed": 1, **change}
    batch_size = arguments.pop("batch_size")
    with pytest.raises(OptionError, match=says):
        BatchSampler(dataset_of(50, 3), batch_size, **arguments)


@pytest.mark.parametrize("step", [-1, 1.0, True, 2**62, "3"])
def test_steps_out_of_range(dataset_of: DatasetOf, step: Any) -> None:
    """A step is an integer that 64-bit arithmetic can hold."""
    for mode in ("random", "epoch"):
        with pytest.raises(OptionError, match="step must be"):
            BatchSampler(dataset_of(50, 3), 4, seed=1, mode=mode).starts(step)


def test_huge_steps_work(dataset_of: DatasetOf) -> None:
    """The largest step that is allowed gives valid rows in both modes."""
    dataset = dataset_of(50, 3)
    for mode in ("random", "epoch"):
        sampler = BatchSampler(dataset, 4, seed=1, mode=mode)
        starts = sampler.starts((1 << 62) // 4 - 1)
        assert 0 <= starts.min() <= starts.max() < len(dataset)


@pytest.mark.property
@given(mode=MODES, seed=SEEDS, stream=SEEDS, step=st.integers(0, 10**9))
def test_a_state_survives_json(
    dataset_of: DatasetOf, mode: Any, seed: int, stream: int, step: int
) -> None:
    """A state written as JSON and read back is accepted, and says where to continue."""
    dataset = dataset_of(50, 3)
    sampler = BatchSampler(dataset, 6, seed=seed, mode=mode, stream=stream)
    state = json.loads(json.dumps(sampler.state(step)))
    other = BatchSampler(dataset, 6, seed=seed, mode=mode, stream=stream, rank=1, world_size=3)
    assert step == sampler.check_state(state) == other.check_state(state)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("format_version", 2, "another format_version: saved 2, now 1"),
        ("mode", "epoch", "another mode: saved epoch, now random"),
        ("seed", 2, "another seed: saved 2, now 1"),
        ("seed", True, "another seed: saved True, now 1"),
        ("seed", 1.0, "another seed: saved 1.0, now 1"),
        ("stream", 9, "another stream: saved 9, now 0"),
        ("batch_size", 12, "another batch_size: saved 12, now 6"),
        ("block_size", 4, "another block_size: saved 4, now 3"),
        ("data", "0" * 64, "another data: saved 0000"),
        ("data", None, "another data: saved None"),
        ("step", -1, "no valid step, found -1"),
        ("step", True, "no valid step, found True"),
        ("step", None, "no valid step, found None"),
        ("rank", 0, "unknown key 'rank'"),
    ],
)
def test_another_state_is_refused(dataset_of: DatasetOf, key: str, value: Any, says: str) -> None:
    """Whatever differs is named with both values."""
    sampler = BatchSampler(dataset_of(50, 3), 6, seed=1)
    with pytest.raises(StateError, match=says):
        sampler.check_state({**sampler.state(4), key: value})


def test_each_key_of_a_state_is_needed(dataset_of: DatasetOf) -> None:
    """A state without one of its members is refused."""
    sampler = BatchSampler(dataset_of(50, 3), 6, seed=1)
    state = sampler.state(4)
    for key in state:
        with pytest.raises(StateError):
            sampler.check_state({name: state[name] for name in state if name != key})
