"""The table ".bin files and meta.json" of bad input."""

import gzip
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from yocto_data import (
    DataError,
    MissingMetaError,
    TokenDataset,
    load_bin,
    verify_tokens,
)

MakeData = Callable[..., Path]
NewDirectory = Callable[[], Path]
Refused = Callable[..., str]
Says = Callable[..., None]


@pytest.fixture
def train(tmp_path: Path, make_data: MakeData) -> Path:
    """The train.bin of a small data directory: 100 tokens below 50."""
    return make_data([i % 50 for i in range(100)], vocab_size=50, directory=tmp_path) / "train.bin"


@pytest.fixture
def says(refused: Refused) -> Callable[..., None]:
    """Refused by both ways to open it, with this in the message."""

    def check(path: Path, expected: str, kind: type[DataError] = DataError, **options: Any) -> None:
        for opening in (partial(TokenDataset, block_size=4), load_bin):
            assert expected in refused(kind, partial(opening, path, **options))

    return check


def test_b1_missing(tmp_path: Path, train: Path, says: Says) -> None:
    """B1: a file that is not there is named, whether or not its directory holds data."""
    for path in (train.with_name("other.bin"), tmp_path / "no" / "train.bin"):
        says(path, path.name)
        says(path, "No such file", dtype="uint16")
    train.unlink()
    says(train, "No such file")


def test_b1_empty(train: Path, says: Says) -> None:
    """B1: an empty file is said to be empty, which mmap would put differently."""
    for path in (train, train.with_name("bare.bin")):
        path.write_bytes(b"")
        says(path, "is empty", dtype="uint16")


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFO")
def test_b1_no_regular_file(train: Path, says: Says) -> None:
    """B1: a FIFO or a directory is refused and never waited for, as token file and as meta.json."""
    train.unlink()
    os.mkfifo(train)
    says(train, "not a regular file")
    train.unlink()
    train.mkdir()
    says(train, "s a directory")
    train.with_name("meta.json").unlink()
    os.mkfifo(train.with_name("meta.json"))
    says(train, "not a regular file")


@pytest.mark.parametrize("change", [-1, 1, -2, 2])
def test_b2_another_size(train: Path, says: Says, change: int) -> None:
    """B2: one byte or one token off, both sizes are named."""
    data = train.read_bytes()
    train.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    says(train, f"has {200 + change} bytes, but meta.json records 200")


def test_b2_odd_bytes_without_meta(tmp_path: Path, says: Says) -> None:
    """B2: without meta.json a size that is no whole number of tokens is refused."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"\0\1\2")
    says(path, "3 bytes, which is not a multiple of the 2 bytes", dtype="uint16")


# B3, context tokens and one more: test_data_dataset.py.


@pytest.mark.parametrize("dtype", ["uint32", ">u2", "int16", "float32", "uint8", "junk", np.int64])
def test_b4_another_type(train: Path, says: Says, dtype: Any) -> None:
    """B4: a type that contradicts meta.json, or that no token file has, is refused."""
    says(train, "dtype", dtype=dtype)


@pytest.mark.parametrize(("position", "found"), [(1, 256), (77, 50), (99, 50)])
def test_b4_b5_an_id_out_of_range(train: Path, refused: Refused, position: int, found: int) -> None:
    """B4, B5: an id beyond the vocabulary is found when its window is read, and its place named.

    Bytes in the other order (256) are ids out of range from the second one on.
    """
    tokens = np.fromfile(train, dtype="<u2")
    if found == 256:
        tokens.byteswap(inplace=True)
    else:
        tokens[position] = found
    tokens.tofile(train)
    says = f"holds id {found} at position {position}, but vocab_size is 50"
    dataset = TokenDataset(train, 4)
    start = max(position - 4, 0)
    if start:
        assert [0, 1, 2, 3] == dataset[0][0].tolist()  # elsewhere nothing is wrong
    calls: list[Callable[[], object]] = [partial(load_bin, train), partial(verify_tokens, train)]
    calls += [lambda: dataset[start], partial(dataset.gather, np.array([50, start]))]
    for call in calls:
        assert says in refused(DataError, call)


def test_b5_far_behind(tmp_path: Path, refused: Refused) -> None:
    """B5: the position is right beyond the first block of a long file."""
    tokens = np.zeros((1 << 20) + 10, dtype="<u2")
    tokens[-3] = 9
    tokens.tofile(tmp_path / "a.bin")
    dataset = TokenDataset(tmp_path / "a.bin", 4, dtype="uint16", vocab_size=9)
    call = partial(dataset.gather, np.array([len(tokens) - 5]))
    assert f"at position {len(tokens) - 3}," in refused(DataError, call)


def test_b6_b7_no_meta(train: Path, says: Says) -> None:
    """B6, B7: without meta.json the type is never guessed; given, it is used. No pickle is read."""
    train.with_name("meta.json").unlink()
    train.with_name("meta.pkl").mkdir()  # could not be read
    says(train, "run yocto-prepare", MissingMetaError)
    assert 100 == len(load_bin(train, dtype="uint16"))
    assert 96 == len(TokenDataset(train, 4, dtype=np.dtype("<u2")))


def test_b6_a_file_that_meta_does_not_list(train: Path, says: Says) -> None:
    """B6: a .bin beside a meta.json that does not list it is not read by its neighbours' type."""
    other = train.rename(train.with_name("test.bin"))
    says(other, "not listed in the meta.json")
    assert TokenDataset(other, 4, dtype="uint16").meta is None


# B10, a sparse file of 5 GB: test_data_dataset.py.


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"First Citizen:\nBefore we proceed any further, hear me speak.\n", "text"),
        ("Der Mond ist aufgegangen, \u00fc\u00e4\u00f6\n".encode() * 20, "text"),
        (b"\x1b[31mred\x1b[0m and so on", "text"),
        (b"<!DOCTYPE html>\n<html><body>Not Found</body></html>", "HTML"),
        (b"\n <html lang='de'>", "HTML"),
        (gzip.compress(b"tokens", mtime=0), "gzip"),
        (b"PK\x03\x04" + b"\0" * 40, "a zip archive"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    ],
)
def test_b11_no_token_file(
    tmp_path: Path, train: Path, says: Says, content: bytes, kind: str
) -> None:
    """B11: text, an archive, a page are told apart from tokens, and named, with meta or without."""
    train.write_bytes(content)
    says(train, f"not a token file: it looks like {kind}")
    other = tmp_path / "other.bin"
    other.write_bytes(content)
    says(other, f"not a token file: it looks like {kind}", dtype="uint16")


@pytest.mark.property
@given(vocab_size=st.integers(2, 1 << 17), seed=st.integers(0, 2**32))
def test_b11_tokens_are_not_taken_for_text(
    new_directory: NewDirectory, vocab_size: int, seed: int
) -> None:
    """B11: ids of any vocabulary, drawn evenly, pass where no meta.json vouches for them."""
    words = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(300)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    ids = (words % np.uint64(vocab_size)).astype(dtype)
    path = new_directory() / "a.bin"
    ids.tofile(path)
    tokens = load_bin(path, dtype=dtype)
    assert ids.tolist() == tokens.tolist()
    assert isinstance(tokens, torch.LongTensor)


def test_b12_another_content(train: Path, refused: Refused) -> None:
    """B12: a file of the right size with another content is refused when asked to verify."""
    assert 100 == verify_tokens(train)
    tokens = np.fromfile(train, dtype="<u2")
    tokens[5] ^= 1
    tokens.tofile(train)
    assert "its sha256 is" in refused(DataError, partial(verify_tokens, train))


def test_k15_truncated_in_place(train: Path, refused: Refused) -> None:
    """K15: a file cut while it is mapped is an error at the next access, never a signal."""
    dataset = TokenDataset(train, 4)
    with train.open("rb+") as file:
        file.truncate(100)
    for call in (lambda: dataset[0], partial(dataset.gather, np.array([0]))):
        assert "truncated while in use, from 200 to 100" in refused(DataError, call)


@pytest.mark.property
@given(data=st.binary(max_size=80), dtype=st.sampled_from(["uint16", "uint32"]))
def test_any_bytes_open_or_are_refused(
    new_directory: NewDirectory, data: bytes, dtype: str
) -> None:
    """Whatever a file holds, opening gives its tokens or our error."""
    path = new_directory() / "a.bin"
    path.write_bytes(data)
    try:
        tokens = load_bin(path, dtype=dtype)
    except DataError:
        return
    assert np.frombuffer(data, dtype).tolist() == tokens.tolist()
