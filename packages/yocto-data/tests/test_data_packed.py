"""Chats as windows: whole conversations, every learned token exactly once, and nothing else."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import (
    BatchSampler,
    ChatBatches,
    ChatDataset,
    DataError,
    DataMeta,
    ShortDataError,
    SplitMeta,
    chat_evaluation_batches,
)
from yocto_data.chats.packed import IGNORED, cut, pack
from yocto_data.prep.meta import ChatsMeta, ChatSplitMeta, TokenizerMeta
from yocto_data.prep.token_files import TokenFile

NewDirectory = Callable[[], Path]
#: Of each document which tokens are learned; the tokens are their own positions in the file.
Masks = list[list[bool]]


def make(
    folder: Path, masks: Masks, *, starts: list[int] | None = None, ids: list[int] | None = None
) -> Path:
    """A data directory of these documents, written by hand; validation is the same."""
    bits = np.concatenate(masks).astype(bool)
    tokens = np.arange(len(bits)) if ids is None else np.array(ids)
    lengths = [len(mask) for mask in masks]
    begins = np.cumsum([0, *lengths[:-1]]) if starts is None else starts
    contents = {
        "bin": tokens.astype("<u2").tobytes(),
        "mask": np.packbits(bits, bitorder="little").tobytes(),
        "starts": np.array(begins, "<u8").tobytes(),
    }
    for ending, data in contents.items():
        for name in ("train", "val"):
            (folder / f"{name}.{ending}").write_bytes(data)
    sums = {ending: hashlib.sha256(data).hexdigest() for ending, data in contents.items()}
    files: dict[str, Any] = {
        name: SplitMeta(
            file=f"{name}.bin", tokens=len(bits), bytes=len(contents["bin"]),
            max_id=int(tokens.max()), sha256=sums["bin"], documents=len(masks),
        )
        for name in ("train", "val")
    }  # fmt: skip
    beside = ChatSplitMeta(mask=sums["mask"], starts=sums["starts"], trained=int(bits.sum()))
    chats = ChatsMeta(
        template=None, formats=(), conversations=len(masks), replies=0, texts=0, untrained=0,
        dropped=(), train=beside, val=beside,
    )  # fmt: skip
    DataMeta(vocab_size=1 << 16, tokenizer=TokenizerMeta(), **files, chats=chats).save(folder)
    return folder / "train.bin"


@st.composite
def masks(draw: st.DrawFn) -> Masks:
    """Documents whose first token is never learned, and another one always."""
    runs = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=5)
    found = []
    for each in draw(st.lists(runs, min_size=1, max_size=9)):
        found.append([False] + [on for on, length in each for _ in range(length)])
        if not any(found[-1]):
            found[-1].append(True)
    return found


CASES = [
    ([[False, True]], 1),
    ([[False] + [True] * 20], 1),
    ([[False] + [True] * 20], 7),  # a text: cut anywhere
    ([[False, True, False, True, False, True]], 2),  # cut behind each reply
    ([[False] * 9 + [True] + [False] * 9], 3),  # nothing to learn for a long time
    ([[False, True]] * 30 + [[False] * 3 + [True]], 8),
]


def with_cases(test: Any) -> Any:
    for case in CASES:
        test = example(*case)(test)
    return pytest.mark.property(given(masks(), st.integers(1, 24))(test))


@with_cases
def test_every_learned_token_is_a_target_once(
    new_directory: NewDirectory, documents: Masks, block_size: int
) -> None:
    """Over the windows in order, the targets are exactly the learned tokens.

    y is x shifted wherever it is not ignored, every window has a target, and a target's inputs are
    those in front of it in its own document: whole, if that fits.
    """
    bits = np.concatenate(documents)
    first_of = np.repeat(
        np.cumsum([0, *map(len, documents)])[:-1], [len(mask) for mask in documents]
    )
    dataset = ChatDataset(make(new_directory(), documents), block_size)
    n_windows = len(dataset)
    assert dataset.n_cut == sum(len(mask) > block_size + 1 for mask in documents)
    for epoch in (0, 1, 5):
        targets: Counter[int] = Counter()
        x, y = dataset.gather(np.arange(n_windows) + epoch * n_windows)
        assert x.shape == y.shape == (n_windows, block_size)
        assert x.dtype == y.dtype == torch.int64
        for row_x, row_y in zip(x.tolist(), y.tolist(), strict=True):
            assert any(target != IGNORED for target in row_y)
            for at, target in enumerate(row_y):
                if target == IGNORED:
                    continue
                targets[target] += 1
                assert target == row_x[at] + 1
                assert at + 1 == block_size or row_x[at + 1] == target
                length = len(documents[np.unique(first_of).tolist().index(first_of[target])])
                if length <= block_size + 1:
                    begin = int(first_of[target])
                    inputs = row_x[at + 1 - (target - begin) : at + 1]
                    assert list(range(begin, target)) == inputs
        assert Counter(np.flatnonzero(bits).tolist()) == targets
        assert sum(targets.values()) == dataset.count_trained(np.arange(n_windows)) == sum(bits)
    assert np.flatnonzero(bits).tolist() == np.concatenate(list(dataset.trained_ids())).tolist()
    batches = list(chat_evaluation_batches(dataset, 2))
    assert all(len(x) <= 2 for x, _ in batches)
    assert torch.equal(dataset.gather(np.arange(n_windows))[1], torch.cat([y for _, y in batches]))
    x, y = dataset[-1]
    assert torch.equal(x, batches[-1][0][-1])
    assert torch.equal(y, batches[-1][1][-1])


@with_cases
def test_cuts(documents: Masks, block_size: int) -> None:
    """Pieces fit, follow each other, and end behind a reply if one ends in time."""
    for mask in documents:
        trained = np.array(mask)
        pieces = cut(np.arange(len(mask)), trained, block_size + 1)
        ends = [at for at in range(1, len(mask)) if mask[at - 1] and not mask[at]]
        learned: list[int] = []
        for begin, fresh, end in pieces:
            assert 0 <= begin < fresh < end <= len(mask)
            assert end - begin <= block_size + 1
            learned += [at for at in range(fresh, end) if mask[at]]
            in_time = [at for at in ends if begin < at <= begin + block_size + 1]
            assert end == len(mask) or not in_time or end == in_time[-1]
        assert np.flatnonzero(trained).tolist() == learned


@pytest.mark.property
@given(
    header=st.integers(1, 4),
    turns=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=3, max_size=12),
    block_size=st.integers(20, 40),
)
@example(header=1, turns=[(1, 1)] * 12, block_size=20)
def test_cut_in_front_of_a_header(
    new_directory: NewDirectory, header: int, turns: list[tuple[int, int]], block_size: int
) -> None:
    """In a plain layout a reply ends with the next header, and each piece begins with one.

    As in `User: ...` and `Assistant: ...`: the header of the user is learned behind a reply, where
    it is a target once, and is in front of what the user says in the next piece, too.
    """
    opening = list(range(1, header + 1))
    ids, mask = list(opening), [False] * header
    for asked, replied in turns:
        ids += [100 + len(ids) + i for i in range(asked + replied)]
        mask += [False] * asked + [True] * replied
        ids += [99, *opening]  # a line end first
        mask += [True] * (header + 1)
    dataset = ChatDataset(make(new_directory(), [mask], ids=ids), block_size)
    assert all(ids[begin : begin + header] == opening for begin in dataset._begins)
    _, y = dataset.gather(np.arange(len(dataset)))
    assert Counter(np.array(ids)[mask].tolist()) == Counter(y[y != IGNORED].tolist())
    assert sum(mask) == dataset.count_trained(np.arange(len(dataset)))


@pytest.mark.property
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
@example([30] * 5)
@example([1] * 60)
def test_packing(lengths: list[int]) -> None:
    """Every piece lies in one window, which holds it, and no two windows could be one."""
    order, bounds = pack(np.array(lengths), 30)
    assert list(range(len(lengths))) == sorted(order.tolist())
    windows = [order[begin:end].tolist() for begin, end in pairwise(bounds)]
    assert all(window and window == sorted(window) for window in windows)
    filled = sorted(sum(lengths[piece] for piece in window) for window in windows)
    assert filled[-1] <= 30
    assert len(filled) == 1 or filled[0] + filled[1] > 30


CHATS: Masks = [[False] * (1 + n % 3) + [True] * (2 + n * 7 % 11) for n in range(40)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ChatDataset:
    return ChatDataset(make(tmp_path_factory.mktemp("chats"), CHATS), 20)


SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.property
@given(seed=SEEDS, rows=st.integers(1, 3), steps=st.lists(st.integers(0, 2**30), min_size=1))
@example(seed=2**64 - 1, rows=1, steps=[2**40, 0])
def test_the_batch_of_a_step(dataset: ChatDataset, seed: int, rows: int, steps: list[int]) -> None:
    """It follows from seed and step alone; ranks' slices join to it; its targets are counted."""
    sampler = ChatBatches(dataset, 6 * rows, seed=seed)
    for step in steps:
        x, y = sampler.batch(step)
        fresh = ChatBatches(dataset, 6 * rows, seed=seed)
        assert all(map(torch.equal, (x, y), fresh.batch(step)))
        assert int((y != IGNORED).sum()) == sampler.count_trained(step)
        for world_size in (2, 3, 6):
            parts = [
                ChatBatches(dataset, 6 * rows, seed=seed, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            joined = [torch.cat(tensors) for tensors in zip(*(p.batch(step) for p in parts))]  # noqa: B905
            assert all(map(torch.equal, (x, y), joined))
            assert {sampler.count_trained(step)} == {part.count_trained(step) for part in parts}
            assert {json.dumps(sampler.state(step))} == {json.dumps(p.state(step)) for p in parts}


@pytest.mark.property
@given(seed=SEEDS, batch_size=st.integers(1, 9), epoch=st.integers(0, 40))
def test_an_epoch_sees_every_conversation_once(
    dataset: ChatDataset, seed: int, batch_size: int, epoch: int
) -> None:
    """The rows of an epoch hold each learned token once as a target, each document whole."""
    sampler = ChatBatches(dataset, batch_size, seed=seed)
    per_epoch = sampler.windows_per_epoch
    assert len(dataset) == per_epoch
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    rows = [
        row
        for step in range(first // batch_size, -(-last // batch_size))
        for row in sampler.batch(step)[1]
    ][first % batch_size :][:per_epoch]
    targets = sorted(int(target) for row in rows for target in row if target != IGNORED)
    assert np.flatnonzero(np.concatenate(CHATS)).tolist() == targets


def test_no_conversation_is_always_the_first(dataset: ChatDataset) -> None:
    """Over epochs, the conversations of a window take turns at its begin, and stay together."""
    firsts: list[set[Any]] = [set() for _ in range(len(dataset))]
    for epoch in range(30):
        x, y = dataset.gather(np.arange(len(dataset)) + epoch * len(dataset))
        for number, (row, targets) in enumerate(zip(x, y, strict=True)):
            firsts[number].add((int(row[0]), frozenset(targets.tolist())))
    sizes = np.diff(dataset._bounds).tolist()
    assert sizes == [len({first for first, _ in found}) for found in firsts]
    assert max(sizes) > 1
    assert all(len({together for _, together in found}) == 1 for found in firsts)


def test_golden_batches(dataset: ChatDataset) -> None:
    """These numbers never change, or a saved run would continue with other data."""
    sampler = ChatBatches(dataset, 4, seed=1337)
    firsts = [sampler.batch(step)[0][:, 0].tolist() for step in (0, 1, 7, 10**9)]
    assert [
        [150, 45, 233, 35],
        [190, 79, 276, 297],
        [288, 172, 3, 213],
        [201, 276, 311, 79],
    ] == firsts
    other = ChatBatches(dataset, 4, seed=1337, stream=1).batch(0)[0][:, 0].tolist()
    assert firsts[0] != other


def test_evaluation_may_be_shorter(dataset: ChatDataset) -> None:
    """Some batches are spread evenly over the split; enough of them are all of it."""
    whole = list(chat_evaluation_batches(dataset, 3))
    some = list(chat_evaluation_batches(dataset, 3, n_batches=2))
    assert [3, 3] == [len(x) for x, _ in some]
    assert torch.equal(whole[0][0][0], some[0][0][0])
    assert len(whole) == len(list(chat_evaluation_batches(dataset, 3, n_batches=99)))


def test_a_state_names_the_mask(dataset: ChatDataset, tmp_path: Path) -> None:
    """Two data sets that differ in nothing but what is learned do not continue each other."""
    other = ChatDataset(make(tmp_path, [[False, False, *mask[2:]] for mask in CHATS]), 20)
    assert torch.equal(dataset.gather(np.arange(3))[0], other.gather(np.arange(3))[0])
    assert dataset.fingerprint != other.fingerprint
    assert ChatBatches(dataset, 4, seed=1).state(2) != ChatBatches(other, 4, seed=1).state(2)
    assert isinstance(ChatBatches(dataset, 4, seed=1), BatchSampler)


def test_another_process_maps_it_itself(dataset: ChatDataset) -> None:
    """A copy is made from the path, not from the content."""
    make_again, arguments = dataset.__reduce__()
    again: Any = make_again(*arguments)  # type: ignore[operator, misc]
    assert torch.equal(dataset[3][1], again[3][1])


@pytest.mark.parametrize(
    ("documents", "starts", "kind", "says"),
    [
        ([[False] * 9], None, ShortDataError, "train.bin holds nothing to learn"),
        ([[False] * 99], None, ShortDataError, "train.bin holds nothing to learn"),
        ([[False] * 3], None, ShortDataError, "train.bin holds nothing to learn"),
        ([[False, True]] * 2, [0, 9], DataError, "train.starts was damaged"),
        ([[False, True]] * 2, [1, 2], DataError, "train.starts was damaged"),
        ([[False, True]] * 2, [0, 0], DataError, "train.starts was damaged"),
        ([[False, True]] * 2, [0, 2**64 - 1], DataError, "train.starts was damaged"),
    ],
)
def test_what_is_refused_at_opening(
    tmp_path: Path, documents: Masks, starts: Any, kind: type[DataError], says: str
) -> None:
    """A data set without anything to learn ends in one line, before a loss is divided by 0."""
    path = make(tmp_path, documents, starts=starts)
    with pytest.raises(kind, match=says):
        ChatDataset(path, 4)


@pytest.mark.parametrize("starts", [[-1], [1.0], [[1]], []])
def test_windows_that_are_none(dataset: ChatDataset, starts: Any) -> None:
    """Whatever is no row of window numbers is refused, as for texts."""
    given = np.array(starts, dtype=None if starts else np.int64)
    with pytest.raises((DataError, IndexError)):
        dataset.gather(given)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("name", ["train.bin", "train.mask"])
def test_a_file_cut_while_in_use(tmp_path: Path, name: str) -> None:
    """Reading beyond the end of a mapped file would end the process; it is one line."""
    dataset = ChatDataset(make(tmp_path, CHATS), 20)
    with (tmp_path / name).open("rb+") as file:
        file.truncate(1)
    with pytest.raises(DataError, match="was truncated while in use"):
        dataset.gather(np.array([0]))


@pytest.mark.parametrize("name", ["train.bin", "train.mask", "train.starts"])
def test_a_file_written_over_while_in_use(tmp_path: Path, name: str) -> None:
    """Other content of the same size is noticed in each file of a split; to touch it is no harm."""
    make(tmp_path, CHATS)
    file, path = TokenFile(tmp_path / "train.bin"), tmp_path / name
    file.require_unchanged()
    os.utime(path, ns=(0, 0))
    file.require_unchanged()
    content = path.read_bytes()
    path.write_bytes(content[8:] + content[:8])
    with pytest.raises(DataError, match=f"{name} was damaged or replaced"):
        file.require_unchanged()


def test_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    """An id that damage has made too large is found when it is read, with its place."""
    path = make(tmp_path, CHATS)
    meta = json.loads((tmp_path / "meta.json").read_text())
    tokens = meta["splits"]["train"]["tokens"]
    document = DataMeta.load(tmp_path)
    small = DataMeta(**{**vars(document), "vocab_size": tokens})
    small.save(tmp_path)
    content = np.fromfile(path, "<u2")
    content[5] = 60_000
    content.tofile(path)
    with pytest.raises(DataError, match="holds id 60000 at position 5, but vocab_size is"):
        list(chat_evaluation_batches(ChatDataset(path, 20), 64))
