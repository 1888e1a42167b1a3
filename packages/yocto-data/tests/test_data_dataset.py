"""Windows of a token file."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import BatchSampler, DataError, ShortDataError, TokenDataset

MakeData = Callable[..., Path]
SIZES = st.tuples(st.integers(2, 60), st.integers(1, 20)).filter(lambda pair: pair[0] > pair[1])


@pytest.mark.property
@given(size=SIZES)
@example(size=(2, 1))
@example(size=(60, 19))
def test_y_is_x_one_token_later(make_data: MakeData, size: tuple[int, int]) -> None:
    """D1: with tokens equal to their index, x[i] == start + i and y[i] == start + i + 1."""
    n_tokens, block_size = size
    dataset = TokenDataset(make_data(range(n_tokens)) / "train.bin", block_size)
    assert n_tokens - block_size == len(dataset)
    assert n_tokens == dataset.n_tokens
    for start in range(len(dataset)):
        x, y = dataset[start]
        assert list(range(start, start + block_size)) == x.tolist()
        assert list(range(start + 1, start + 1 + block_size)) == y.tolist()
        assert torch.int64 == x.dtype == y.dtype
        assert (block_size,) == x.shape == y.shape
    assert len(dataset) == len(list(iter(dataset)))
    x, y = dataset.gather(np.arange(len(dataset)))  # D2: every token is reached
    assert set(range(n_tokens)) == {*x.flatten().tolist(), *y.flatten().tolist()}


@pytest.mark.property
@given(size=SIZES, rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_gather_equals_one_by_one(
    make_data: MakeData, size: tuple[int, int], rows: list[int]
) -> None:
    """One gather gives what the windows give one by one; y shares x's tokens (D1)."""
    n_tokens, block_size = size
    rng = np.random.Philox(key=np.array([n_tokens, block_size], np.uint64))
    tokens = rng.random_raw(n_tokens) % np.uint64(65536)
    dataset = TokenDataset(make_data(tokens) / "train.bin", block_size)
    starts = np.array([row % len(dataset) for row in rows])
    x, y = dataset.gather(starts)
    assert torch.equal(torch.stack([dataset[int(start)][0] for start in starts]), x)
    assert torch.equal(torch.stack([dataset[int(start)][1] for start in starts]), y)
    assert torch.equal(y[:, :-1], x[:, 1:])
    assert torch.int64 == x.dtype == y.dtype


@pytest.mark.property
@given(size=SIZES, start=st.integers(-80, 80))
@example(size=(10, 4), start=5)
@example(size=(10, 4), start=6)
@example(size=(10, 4), start=-6)
@example(size=(10, 4), start=-7)
def test_indices_end_where_windows_end(
    make_data: MakeData, size: tuple[int, int], start: int
) -> None:
    """D2: indices behave as a list's; gather takes none below 0, where -1 would be the last."""
    n_tokens, block_size = size
    dataset = TokenDataset(make_data(range(n_tokens)) / "train.bin", block_size)
    inside = range(n_tokens - block_size)
    if -len(inside) <= start < len(inside):
        assert inside[start] == dataset[start][0][0] == dataset[np.int64(start)][0][0]  # type: ignore[index]
    else:
        with pytest.raises(IndexError):
            dataset[start]
    if start in inside:
        assert start == dataset.gather(np.array([start]))[0][0, 0]
    else:
        with pytest.raises(IndexError, match=f"window {start} of {len(inside)}"):
            dataset.gather(np.array([0, start]))


@pytest.mark.parametrize(
    "starts",
    [np.array([0.0]), np.array([True]), np.array([[0]]), np.array([], np.int64), np.int64(0)],
)
def test_gather_takes_one_row_of_int64(make_data: MakeData, starts: np.ndarray) -> None:
    """Anything else is an error, not a conversion."""
    dataset = TokenDataset(make_data(range(9)) / "train.bin", 2)
    with pytest.raises(DataError, match=r"must be int64 of shape \(n,\)"):
        dataset.gather(starts)


@pytest.mark.property
@given(size=SIZES, start=st.integers(-3, 65), length=st.integers(-2, 65))
def test_window_lies_within_the_file(
    make_data: MakeData, size: tuple[int, int], start: int, length: int
) -> None:
    """Any stretch with a target behind it can be read, no other."""
    n_tokens, block_size = size
    dataset = TokenDataset(make_data(range(n_tokens)) / "train.bin", block_size)
    if start >= 0 and length >= 1 and start + length < n_tokens:
        x, y = dataset.window(start, length)
        assert list(range(start, start + length)) == x.tolist()
        assert list(range(start + 1, start + length + 1)) == y.tolist()
    else:
        with pytest.raises(IndexError):
            dataset.window(start, length)


@pytest.mark.property
@given(block_size=st.integers(1, 40))
def test_a_block_needs_one_token_more(make_data: MakeData, block_size: int) -> None:
    """D2, B3: T tokens are too few, and the error names T + 1; T + 1 tokens are one window."""
    path = make_data(range(block_size), range(block_size + 1))
    message = f"holds {block_size} of {block_size + 1} tokens;"
    with pytest.raises(ShortDataError, match=message):
        TokenDataset(path / "train.bin", block_size)
    assert len(TokenDataset(path / "val.bin", block_size)) == 1


@pytest.mark.parametrize("block_size", [0, -1, 1.0, True, "4", None])
def test_block_size_is_a_positive_integer(make_data: MakeData, block_size: int) -> None:
    """The range is named."""
    with pytest.raises(DataError, match="block_size must be an integer of at least 1"):
        TokenDataset(make_data(range(9)) / "train.bin", block_size)


def test_a_replaced_file_leaves_the_old_map(make_data: MakeData) -> None:
    """A rename over the file changes nothing for a data set that is open (K14)."""
    folder = make_data(range(100))
    dataset = TokenDataset(folder / "train.bin", 4)
    other = make_data(range(50, 90))
    (other / "train.bin").rename(folder / "train.bin")
    assert dataset[0][0].tolist() == [0, 1, 2, 3]
    assert dataset[95][0].tolist() == [95, 96, 97, 98]


def test_a_copy_maps_the_file_again(make_data: MakeData) -> None:
    """Sent to another process, a data set is its path and settings, not its tokens."""
    folder = make_data(range(10_000))
    dataset = TokenDataset(folder / "train.bin", 4, dtype="uint16", vocab_size=20_000)
    sent = multiprocessing.reduction.ForkingPickler.dumps(dataset)
    assert len(sent) < 1000
    again = multiprocessing.reduction.ForkingPickler.loads(sent)
    assert torch.equal(dataset[77][1], again[77][1])
    assert (again.vocab_size, again.dtype.name, again.block_size) == (20_000, "uint16", 4)


def test_what_is_stated_is_known(make_data: MakeData, tmp_path: Path) -> None:
    """dtype, vocab_size and fingerprint come from meta.json, from the caller, or by reading."""
    folder = make_data([1, 2, 3], vocab_size=70_000)
    known = TokenDataset(folder / "train.bin", 1)
    assert (known.dtype.name, known.vocab_size) == ("uint32", 70_000)
    assert known.meta is not None
    assert known.meta.train.sha256 == known.fingerprint
    (tmp_path / "bare.bin").write_bytes((folder / "train.bin").read_bytes())
    bare = TokenDataset(tmp_path / "bare.bin", 1, dtype="uint32")
    assert (bare.meta, bare.vocab_size) == (None, None)
    assert known.fingerprint == bare.fingerprint


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
def test_a_sparse_file_of_5_gb_opens_and_samples(tmp_path: Path) -> None:
    """D11, B10: the last window lies beyond 32 bits of offset, and memory stays flat."""
    path = tmp_path / "train.bin"
    last = np.array([7, 8, 9], dtype="<u2").tobytes()
    with path.open("wb") as file:
        file.truncate(5 << 30)
        file.seek(-len(last), 2)
        file.write(last)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    before = peak_bytes()
    dataset = TokenDataset(path, 2, dtype="uint16", vocab_size=10)
    sampler = BatchSampler(dataset, 64, seed=1)
    assert sum(int(sampler.batch(step)[0].sum()) for step in range(20)) == 0
    x, y = dataset[len(dataset) - 1]
    assert (x.tolist(), y.tolist()) == ([7, 8], [8, 9])
    assert peak_bytes() - before < 200 << 20
