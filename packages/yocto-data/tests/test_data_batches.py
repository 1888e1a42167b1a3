"""The batch of a step is a pure function of seed and step."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from yocto_data import BatchSampler, DataError, TokenDataset, evaluation_batches

SEEDS = st.integers(0, 2**64 - 1)
MODES = st.sampled_from(["random", "epoch"])
# (tokens, block): at least one window.
SIZES = st.tuples(st.integers(2, 90), st.integers(1, 20)).filter(lambda pair: pair[0] > pair[1])
DatasetOf = Callable[[int, int], TokenDataset]


def words_of(mode: str, key: tuple[int, int], count: int, stream: int) -> list[int]:
    """Raw words of a Philox stream; mode and stream stand in its counter."""
    counter = np.array([0, 0, ["random", "epoch"].index(mode), stream], np.uint64)
    philox = np.random.Philox(key=np.array(key, np.uint64), counter=counter)
    return [int(word) for word in philox.random_raw(count)]


def reference(
    mode: str, size: tuple[int, int], batch_size: int, key: tuple[int, int], step: int
) -> list[int]:
    """The rule of both modes, written plainly: the first tokens of a step's rows."""
    n_tokens, block_size = size
    seed, stream = key
    if mode == "random":
        words = words_of(mode, (seed, step), batch_size, stream)
        return [word % (n_tokens - block_size) for word in words]
    n_windows, tail = divmod(n_tokens - 1, block_size)
    rows = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, row = divmod(position, n_windows)
        first, *words = words_of(mode, (seed, epoch), n_windows + 1, stream)
        order = sorted(range(n_windows), key=words.__getitem__)
        rows.append(first % (tail + 1) + order[row] * block_size)
    return rows


STEPS = st.lists(st.integers(0, 40) | st.integers(0, 2**40), min_size=1, max_size=8)


@pytest.mark.property
@given(mode=MODES, size=SIZES, batch_size=st.integers(1, 12), where=st.tuples(SEEDS, SEEDS, STEPS))
@example(mode="random", size=(2, 1), batch_size=1, where=(2**64 - 1, 2**63 + 1, [0]))
@example(mode="random", size=(90, 7), batch_size=12, where=(2**63 + 1, 0, [2**40]))
@example(mode="random", size=(50, 3), batch_size=4, where=(1, 1, [2**60 - 1]))  # the largest step
@example(mode="epoch", size=(50, 3), batch_size=4, where=(1, 0, [2**60 - 1, 0]))
@example(mode="epoch", size=(2, 1), batch_size=12, where=(0, 2**64 - 1, [0, 1]))
@example(mode="epoch", size=(90, 7), batch_size=5, where=(2**64 - 1, 0, [3, 9, 0, 3]))
def test_starts_follow_the_rule(
    dataset_of: DatasetOf,
    mode: Any,
    size: tuple[int, int],
    batch_size: int,
    where: tuple[int, int, list[int]],
) -> None:
    """D3: `random` is raw words of (seed, step) in the stream given, modulo N - T.

    In `epoch`, row j of step s is window s * B + j of the epochs laid end to end. Neither the steps
    asked for before nor the global generators matter.
    """
    seed, stream, steps = where
    sampler = BatchSampler(dataset_of(*size), batch_size, seed=seed, mode=mode, stream=stream)
    assert (size[0] - 1) // size[1] == sampler.windows_per_epoch
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for step in steps:
        starts = sampler.starts(step)
        assert reference(mode, size, batch_size, (seed, stream), step) == starts.tolist()
        assert np.int64 == starts.dtype
        x, y = sampler.batch(step)
        assert starts.tolist() == x[:, 0].tolist()
        assert torch.equal(x + 1, y)


@pytest.mark.property
@given(size=SIZES, batch_size=st.integers(1, 9), seed=SEEDS, epoch=st.integers(0, 50))
@example(size=(21, 4), batch_size=3, seed=1, epoch=0)
@example(size=(23, 4), batch_size=3, seed=1, epoch=1)
def test_an_epoch_visits_each_window_once(
    dataset_of: DatasetOf, size: tuple[int, int], batch_size: int, seed: int, epoch: int
) -> None:
    """D5: the targets of an epoch's rows are one contiguous range, each position once."""
    n_tokens, block_size = size
    sampler = BatchSampler(dataset_of(*size), batch_size, seed=seed, mode="epoch")
    per_epoch = sampler.windows_per_epoch
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    rows: list[int] = []
    for step in range(first // batch_size, -(-last // batch_size)):
        rows += sampler.starts(step).tolist()
    rows = rows[first % batch_size :][:per_epoch]
    targets = sorted(start + 1 + offset for start in rows for offset in range(block_size))
    assert list(range(targets[0], targets[0] + per_epoch * block_size)) == targets
    assert targets[0] >= 1
    assert targets[-1] < n_tokens


def test_epochs_together_reach_every_token(dataset_of: DatasetOf) -> None:
    """D2, D5: the grid's first token moves, so the tail beyond whole windows is used as well."""
    sampler = BatchSampler(dataset_of(20, 8), 2, seed=3, mode="epoch")
    firsts = Counter(min(sampler.starts(epoch).tolist()) for epoch in range(200))
    assert {0, 1, 2, 3} == set(firsts)
    assert min(firsts.values()) > 20


@pytest.mark.parametrize("mode", ["random", "epoch"])
def test_starts_are_uniform(dataset_of: DatasetOf, mode: Any) -> None:
    """D2: first and last start are drawn, and a chi-square test finds nothing odd."""
    dataset = dataset_of(36, 4)
    sampler = BatchSampler(dataset, 64, seed=11, mode=mode)
    counts = np.zeros(len(dataset))
    for step in range(400):
        np.add.at(counts, sampler.starts(step), 1)
    if mode == "epoch":
        # The eight windows of an epoch are shifted together, by none to three tokens.
        counts = counts.reshape(8, 4).mean(axis=0)
    assert counts.min() > 0
    expected = counts.sum() / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    quantile = {"random": 61.1, "epoch": 16.3}  # 0.999, for 31 and 3 degrees of freedom
    assert chi_square < quantile[mode]


@pytest.mark.parametrize(
    "golden",
    [
        ("random", 1337, 0, 0, [389, 95, 646, 121]),
        ("random", 1337, 0, 1, [914, 825, 806, 624]),
        ("random", 2**64 - 1, 0, 10**9, [546, 141, 360, 641]),
        ("random", 1337, 7, 0, [810, 289, 314, 251]),
        ("epoch", 1337, 0, 0, [169, 677, 809, 461]),
        ("epoch", 1337, 0, 62, [281, 988, 276, 212]),
        ("epoch", 2**64 - 1, 0, 10**9, [650, 790, 142, 430]),
        ("epoch", 1337, 7, 0, [419, 659, 507, 303]),
    ],
)
def test_golden_offsets(dataset_of: DatasetOf, golden: tuple[Any, int, int, int, Any]) -> None:
    """D3: these numbers never change, or a saved run would continue with other data.

    Step 62 of `epoch` lies across the border of two epochs of 249 windows.
    """
    mode, seed, stream, step, expected = golden
    sampler = BatchSampler(dataset_of(1000, 4), 4, seed=seed, mode=mode, stream=stream)
    assert expected == sampler.starts(step).tolist()


@pytest.mark.property
@given(mode=MODES, seed=SEEDS, step=st.integers(0, 10**6), rows=st.integers(1, 6))
@example(mode="epoch", seed=0, step=16, rows=1)
def test_ranks_share_the_global_batch(
    dataset_of: DatasetOf, mode: Any, seed: int, step: int, rows: int
) -> None:
    """D4: for every world size that divides it, the ranks' slices join to the global batch."""
    dataset = dataset_of(50, 3)
    batch_size = rows * 12
    whole = BatchSampler(dataset, batch_size, seed=seed, mode=mode).starts(step).tolist()
    for world_size in (1, 2, 3, 4, 6, 12, batch_size):
        joined: list[int] = []
        for rank in range(world_size):
            sampler = BatchSampler(
                dataset, batch_size, seed=seed, mode=mode, rank=rank, world_size=world_size
            )
            joined += sampler.starts(step).tolist()
        assert whole == joined


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
        ({"batch_size": 6, "world_size": 4}, "batch_size 6 cannot be divided among 4 ranks"),
        *(({"step": step}, "step must be") for step in (-1, 1.0, True, 2**62, "3")),
    ],
)
def test_arguments_out_of_range(dataset_of: DatasetOf, change: dict[str, Any], says: str) -> None:
    """Each argument out of range is named with its range."""
    arguments: dict[str, Any] = {"batch_size": 4, "seed": 1, "step": 0, **change}
    step = arguments.pop("step")
    with pytest.raises(DataError, match=says):
        BatchSampler(dataset_of(50, 3), **arguments).starts(step)


def test_numpy_integers_are_integers(dataset_of: DatasetOf) -> None:
    """Whatever an integer comes from, the batch and the state are the same."""
    dataset = dataset_of(50, 3)
    plain = BatchSampler(dataset, 4, seed=7, rank=1, world_size=2, mode="epoch")
    other: Any = [np.int64(4), np.uint64(7), np.int8(1), np.int32(2)]
    numpy = BatchSampler(dataset, other[0], seed=other[1], rank=other[2], world_size=other[3])
    numpy.mode = "epoch"
    assert plain.starts(3).tolist() == numpy.starts(np.uint16(3)).tolist()  # type: ignore[arg-type]
    assert json.dumps(plain.state(3)) == json.dumps(numpy.state(3))


def test_a_state_names_what_batches_depend_on(dataset_of: DatasetOf) -> None:
    """It survives JSON, is the same for every rank, and differs where batches would."""
    base: dict[str, Any] = {"batch_size": 6, "seed": 2**64 - 1}
    state = BatchSampler(dataset_of(50, 3), **base).state(4)
    assert state == json.loads(json.dumps(state))
    assert state == BatchSampler(dataset_of(50, 3), **base, rank=1, world_size=3).state(4)
    changes: list[tuple[int, int, dict[str, Any]]] = [
        (50, 3, {"seed": 1}), (50, 3, {"mode": "epoch"}), (50, 3, {"stream": 1}),
        (50, 3, {"batch_size": 12}), (50, 4, {}), (51, 3, {}),
    ]  # fmt: skip
    for n_tokens, block_size, change in changes:
        sampler = BatchSampler(dataset_of(n_tokens, block_size), **{**base, **change})
        assert state != sampler.state(4)
    assert state != BatchSampler(dataset_of(50, 3), **base).state(5)


@pytest.mark.property
@given(size=SIZES, batch_size=st.integers(1, 9))
@example(size=(9, 4), batch_size=1)
@example(size=(10, 4), batch_size=3)
@example(size=(2, 1), batch_size=1)
def test_evaluation_batches_hold_the_whole_split(
    dataset_of: DatasetOf, size: tuple[int, int], batch_size: int
) -> None:
    """Batch after batch, x is every token but the last and y every token but the first."""
    pairs = list(evaluation_batches(dataset_of(*size), batch_size))
    assert list(range(size[0] - 1)) == [int(i) for x, _ in pairs for i in x.flatten()]
    assert list(range(1, size[0])) == [int(i) for _, y in pairs for i in y.flatten()]
    assert all(x.shape == y.shape and len(x) <= batch_size for x, y in pairs)
    assert all(x.shape[1] == size[1] for x, _ in pairs[:-1])  # only the last may be short


class LoaderMachine(RuleBasedStateMachine):
    """D6: steps, saves, restores and changes of world size, against the stream laid out plainly.

    Restores may follow restores, and lie across the borders of epochs (16 windows, batches of 6).
    """

    make: DatasetOf

    @initialize(mode=MODES, seed=st.integers(0, 3))
    def start(self, mode: Any, seed: int) -> None:
        self.mode, self.seed, self.world_size, self.step = mode, seed, 1, 0
        self.saved: dict[str, Any] = self.samplers()[0].state(0)

    def samplers(self) -> list[BatchSampler]:
        make = partial(BatchSampler, type(self).make(50, 3), 6, seed=self.seed, mode=self.mode)
        return [make(rank=rank, world_size=self.world_size) for rank in range(self.world_size)]

    @rule()
    def next_batch(self) -> None:
        rows = [row for sampler in self.samplers() for row in sampler.starts(self.step).tolist()]
        expected = reference(self.mode, (50, 3), 6, (self.seed, 0), self.step)
        assert expected == rows
        self.step += 1

    @rule()
    def save(self) -> None:
        self.saved = json.loads(json.dumps(self.samplers()[-1].state(self.step)))

    @rule(world_size=st.sampled_from([1, 2, 3, 6]))
    def restore(self, world_size: int) -> None:
        self.world_size = world_size
        self.step = self.saved["step"]
        assert all(sampler.state(self.step) == self.saved for sampler in self.samplers())


@pytest.mark.property
def test_loader_machine(dataset_of: DatasetOf) -> None:
    """D6: see the machine."""
    from hypothesis.stateful import run_state_machine_as_test

    LoaderMachine.make = staticmethod(dataset_of)
    run_state_machine_as_test(LoaderMachine, settings=settings(deadline=None))
