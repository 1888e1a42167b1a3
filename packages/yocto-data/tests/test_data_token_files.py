"""The table ".bin files and meta.json" of bad input."""

import gzip
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_data import (
    DataError,
    MetaError,
    MissingMetaError,
    OptionError,
    ShortDataError,
    TokenDataset,
    TokenFileError,
    compare_splits,
    load_bin,
)

MakeData = Callable[..., Path]
NewDirectory = Callable[[], Path]
Refused = Callable[..., str]


@pytest.fixture
def train(tmp_path: Path, make_data: MakeData) -> Path:
    """The train.bin of a small data directory: 100 tokens below 50."""
    return make_data([i % 50 for i in range(100)], vocab_size=50, directory=tmp_path) / "train.bin"


def opened(path: Path, **options: Any) -> list[Callable[[], object]]:
    """Both ways to open a token file."""
    keep = {"dtype": options["dtype"]} if "dtype" in options else {}
    return [partial(TokenDataset, path, 4, **options), partial(load_bin, path, **keep)]


def test_b1_missing(tmp_path: Path, train: Path, refused: Refused) -> None:
    """B1: a file that is not there is named, whether or not its directory holds data."""
    for path in (train.with_name("other.bin"), tmp_path / "no" / "train.bin"):
        for call in opened(path):
            assert path.name in refused(TokenFileError, call)
        for call in opened(path, dtype="uint16"):
            assert "No such file" in refused(TokenFileError, call)
    train.unlink()
    for call in opened(train):
        assert "No such file" in refused(TokenFileError, call)


def test_b1_empty(train: Path, refused: Refused) -> None:
    """B1: an empty file is said to be empty, which mmap would put differently."""
    train.write_bytes(b"")
    for call in opened(train):
        assert "is empty" in refused(TokenFileError, call)
    bare = train.with_name("bare.bin")
    bare.write_bytes(b"")
    for call in opened(bare, dtype="uint16"):
        assert "is empty" in refused(TokenFileError, call)


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFO")
def test_b1_no_regular_file(train: Path, refused: Refused) -> None:
    """B1: a FIFO or a directory is refused and never waited for, as token file and as meta.json."""
    train.unlink()
    os.mkfifo(train)
    for call in opened(train):
        assert "not a regular file" in refused(TokenFileError, call)
    train.unlink()
    train.mkdir()
    for call in opened(train):
        assert "not a regular file, but a directory" in refused(TokenFileError, call)
    train.with_name("meta.json").unlink()
    os.mkfifo(train.with_name("meta.json"))
    for call in opened(train):
        assert "not a regular file" in refused(MetaError, call)


@pytest.mark.parametrize("change", [-1, 1, -2, 2])
def test_b2_another_size(train: Path, refused: Refused, change: int) -> None:
    """B2: one byte or one token off, both sizes are named."""
    data = train.read_bytes()
    train.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    for call in opened(train):
        message = refused(TokenFileError, call)
        assert f"has {200 + change} bytes, meta.json records 200" in message


def test_b2_odd_bytes_without_meta(tmp_path: Path, refused: Refused) -> None:
    """B2: without meta.json a size that is no whole number of tokens is refused."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"\0\1\2")
    for call in opened(path, dtype="uint16"):
        assert "3 bytes, which is no multiple of the 2 bytes" in refused(TokenFileError, call)


# B3, context tokens and one more: test_data_dataset.py.


@pytest.mark.parametrize("dtype", ["uint32", ">u2", "int16", "float32", "uint8", "junk", np.int64])
def test_b4_another_type(train: Path, refused: Refused, dtype: Any) -> None:
    """B4: a type that contradicts meta.json, or that no token file has, is refused."""
    kind = TokenFileError if dtype == "uint32" else OptionError
    for call in opened(train, dtype=dtype):
        refused(kind, call)


def test_b4_big_endian_content(train: Path, refused: Refused) -> None:
    """B4: bytes in the other order are ids out of range, found by reading, whatever the batch."""
    tokens = np.fromfile(train, dtype="<u2")
    tokens.astype(">u2").tofile(train)
    assert "at position 1," in refused(TokenFileError, partial(load_bin, train))
    dataset = TokenDataset(train, 4)
    assert "holds id 256 at position 1" in refused(TokenFileError, dataset.verify)
    assert "holds id 256 at position 1" in refused(TokenFileError, lambda: dataset[3])
    for start in (np.array([20]), np.array([0])):
        refused(TokenFileError, partial(dataset.gather, start))


def test_b5_an_id_out_of_range(train: Path, refused: Refused) -> None:
    """B5: one id beyond the vocabulary is found when its window is read, and its place named."""
    tokens = np.fromfile(train, dtype="<u2")
    tokens[77] = 50
    tokens.tofile(train)
    says = "holds id 50 at position 77, but vocab_size is 50"
    dataset = TokenDataset(train, 4)
    assert [0, 1, 2, 3] == dataset[0][0].tolist()  # elsewhere nothing is wrong
    assert says in refused(TokenFileError, lambda: dataset[73])
    assert says in refused(TokenFileError, partial(dataset.gather, np.array([0, 75])))
    assert says in refused(TokenFileError, dataset.verify)
    assert says in refused(TokenFileError, partial(load_bin, train))


def test_b5_far_behind(tmp_path: Path, refused: Refused) -> None:
    """B5: the position is right beyond the first block of a long file."""
    tokens = np.zeros((1 << 20) + 10, dtype="<u2")
    tokens[-3] = 9
    tokens.tofile(tmp_path / "a.bin")
    dataset = TokenDataset(tmp_path / "a.bin", 4, dtype="uint16", vocab_size=9)
    assert f"at position {len(tokens) - 3}," in refused(TokenFileError, dataset.verify)


def test_b6_no_meta(train: Path, refused: Refused) -> None:
    """B6: without meta.json the type is never guessed; given, it is used."""
    train.with_name("meta.json").unlink()
    for call in opened(train):
        assert "run yocto-prepare" in refused(MissingMetaError, call)
    assert 100 == len(load_bin(train, dtype="uint16"))
    assert 96 == len(TokenDataset(train, 4, dtype=np.dtype("<u2")))


def test_b6_a_file_that_meta_does_not_list(train: Path, refused: Refused) -> None:
    """B6: a .bin beside a meta.json that does not list it is not read by its neighbours' type."""
    other = train.rename(train.with_name("test.bin"))
    for call in opened(other):
        assert "not listed in the meta.json" in refused(TokenFileError, call)
    assert TokenDataset(other, 4, dtype="uint16").meta is None


class Canary:
    """Unpickled, this makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_b7_meta_pkl_is_never_opened(train: Path, refused: Refused) -> None:
    """B7: a pickle beside the files is neither needed nor read."""
    canary = train.with_name("canary")
    train.with_name("meta.pkl").write_bytes(pickle.dumps(Canary(canary)))
    train.with_name("meta.json").unlink()
    for call in opened(train):
        refused(MissingMetaError, call)
    load_bin(train, dtype="uint16")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"vocab_size": 60}, "vocab_size 50 and 60"),
        ({"fingerprint": "b"}, "fingerprint a and b"),
        ({"fingerprint": None}, "fingerprint a and None"),
    ],
)
def test_b8_two_tokenizers(
    make_data: MakeData, refused: Refused, other: dict[str, Any], says: str
) -> None:
    """B8: splits of different tokenizers are refused, naming the difference."""
    options: dict[str, Any] = {"vocab_size": 50, "fingerprint": "a"}
    one = make_data(range(9), **options)
    two = make_data(range(9), range(5, 9), **{**options, **other})
    train = TokenDataset(one / "train.bin", 2)
    val = TokenDataset(two / "val.bin", 2)
    assert says in refused(TokenFileError, partial(compare_splits, train, val))


def test_b9_odd_splits(make_data: MakeData) -> None:
    """B9: one id only, or validation that equals training, is said and not refused."""
    plain = make_data(range(9), range(5, 9))
    equal = make_data(range(9), range(9))
    constant = make_data([3] * 9, range(9))

    def odd(folder: Path) -> tuple[str, ...]:
        return compare_splits(
            TokenDataset(folder / "train.bin", 2), TokenDataset(folder / "val.bin", 2)
        )

    assert () == odd(plain)
    assert ["equals"] == [line.split()[1] for line in odd(equal)]
    assert ["holds one id only"] == [" ".join(line.split()[1:5])[:-1] for line in odd(constant)]


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
    tmp_path: Path, train: Path, refused: Refused, content: bytes, kind: str
) -> None:
    """B11: text, an archive, a page are told apart from tokens, and named, with meta or without."""
    train.write_bytes(content)
    for call in opened(train):
        assert f"not a token file, it looks like {kind}" in refused(TokenFileError, call)
    other = tmp_path / "other.bin"
    other.write_bytes(content)
    for call in opened(other, dtype="uint16"):
        assert f"not a token file, it looks like {kind}" in refused(TokenFileError, call)


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
    assert ids.tolist() == load_bin(path, dtype=dtype).tolist()


def test_b12_another_content(train: Path, refused: Refused) -> None:
    """B12: a file of the right size with another content is refused when asked to verify."""
    tokens = np.fromfile(train, dtype="<u2")
    tokens[5] ^= 1
    tokens.tofile(train)
    dataset = TokenDataset(train, 4)
    assert "its sha256 is" in refused(TokenFileError, dataset.verify)


def test_k15_truncated_in_place(train: Path, refused: Refused) -> None:
    """K15: a file cut while it is mapped is an error at the next access, never a signal."""
    dataset = TokenDataset(train, 4)
    with train.open("rb+") as file:
        file.truncate(100)
    for call in (
        lambda: dataset[0],
        partial(dataset.gather, np.array([0])),
        dataset.verify,
        lambda: dataset.is_constant,
    ):
        assert "truncated while in use, from 200 to 100" in refused(TokenFileError, call)


@pytest.mark.parametrize("vocab_size", [0, 2**32 + 1, True, "5"])
def test_the_vocabulary_is_checked(train: Path, refused: Refused, vocab_size: Any) -> None:
    """A vocabulary given by the caller has the same range as any."""
    refused(OptionError, partial(TokenDataset, train, 4, vocab_size=vocab_size))


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


def test_a_short_file_names_what_it_needs(train: Path, refused: Refused) -> None:
    """The number of tokens that a block size needs is in the message."""
    message = refused(ShortDataError, partial(TokenDataset, train, 100))
    assert "holds 100 tokens, but a block_size of 100 needs at least 101" in message
