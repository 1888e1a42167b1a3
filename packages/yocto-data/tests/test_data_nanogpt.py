"""Importing nanoGPT's files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import (
    DataError,
    DataMeta,
    ShortDataError,
    Tokenizer,
    import_nanogpt,
    load_bin,
    verify_tokens,
)

NewDirectory = Callable[[], Path]
Refused = Callable[..., str]


def write(folder: Path, train: Any, val: Any, dtype: str = "<u2") -> Path:
    folder.mkdir(exist_ok=True)
    np.array(train).astype(dtype).tofile(folder / "train.bin")
    np.array(val).astype(dtype).tofile(folder / "val.bin")
    return folder


@pytest.mark.property
@given(
    ids=st.lists(st.integers(0, 999), min_size=2, max_size=20),
    vocab_size=st.sampled_from([1000, 1 << 16, (1 << 16) + 1]),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
@example(ids=[999, 0], vocab_size=(1 << 16) + 1, dtype="uint16")
@example(ids=[999, 0], vocab_size=1000, dtype="uint32")
def test_the_ids_arrive(
    new_directory: NewDirectory, ids: list[int], vocab_size: int, dtype: str
) -> None:
    """Whatever type the ids had, they arrive unchanged, in the type that the vocabulary needs."""
    folder = new_directory()
    source = write(folder / "nano", ids, ids[::-1], dtype)
    meta = import_nanogpt(source, folder / "out", dtype=dtype, vocab_size=vocab_size)
    assert meta == DataMeta.load(folder / "out")
    assert ids == load_bin(folder / "out" / "train.bin").tolist()
    assert ids[::-1] == load_bin(folder / "out" / "val.bin").tolist()
    assert ("uint16" if vocab_size <= 1 << 16 else "uint32") == meta.dtype.name
    assert (vocab_size, None, None) == (meta.vocab_size, meta.text, meta.options)
    assert len(ids) == verify_tokens(folder / "out" / "val.bin")


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (
            {"vocab_size": 4},
            DataError,
            "val.bin holds id 4 at position 1, but vocab_size is 4",
        ),
        ({"vocab_size": 0}, DataError, "vocab_size must be"),
        ({"dtype": "uint8"}, DataError, "dtype must be uint16 or uint32"),
        ({"dtype": "uint32"}, DataError, "holds id 131073 at position 0"),
        ({"out_dir": "nano/out"}, DataError, "lies within the source"),
        ({"out_dir": "nano"}, DataError, "lies within the source"),
        ({"source_dir": "none"}, DataError, "No such file"),
        ({"source_dir": "short"}, ShortDataError, "holds one token"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, refused: Refused, change: dict[str, Any], kind: Any, says: str
) -> None:
    """The caller's dtype and vocabulary are held against every id before anything is written."""
    write(tmp_path / "nano", [1, 2], [3, 4])
    write(tmp_path / "short", [1], [3, 4])
    arguments: dict[str, Any] = {"source_dir": "nano", "out_dir": "out", "dtype": "uint16"}
    arguments |= {"vocab_size": 5, **change}
    source, out = (tmp_path / str(arguments.pop(name)) for name in ("source_dir", "out_dir"))
    message = refused(kind, partial(import_nanogpt, source, out, force=True, **arguments))
    assert says in message


def test_a_tokenizer_goes_along(
    tmp_path: Path, refused: Refused, byte_tokenizer: Tokenizer
) -> None:
    """Its file and fingerprint are recorded; where it has another vocabulary, both are named."""
    source = write(tmp_path / "nano", [1, 2], [3, 4])
    call = partial(import_nanogpt, source, tmp_path / "out", dtype="uint16")
    message = refused(DataError, partial(call, vocab_size=99, tokenizer=byte_tokenizer))
    assert "vocab_size 99 given, but the tokenizer's is 256" in message
    size: Any = np.int64(256)
    known = call(vocab_size=size, tokenizer=byte_tokenizer).tokenizer
    assert ("byte", "tokenizer.json", "b" * 64) == (known.kind, known.file, known.fingerprint)


def test_force_replaces_an_import(tmp_path: Path, refused: Refused) -> None:
    """B7: a second import needs force; progress rises to the whole; meta.pkl is not opened."""
    source = write(tmp_path / "nano", [1, 2], [3, 4])
    (source / "meta.pkl").mkdir()
    calls: list[tuple[int, ...]] = []
    call = partial(import_nanogpt, source, tmp_path / "out", dtype="uint16", vocab_size=100)
    call()
    assert "already holds data" in refused(DataError, call)
    write(source, range(100), [3, 4])
    call(force=True, progress=lambda *numbers: calls.append(numbers))
    assert [(200, 204, 100), (204, 204, 102)] == calls
    assert list(range(100)) == load_bin(tmp_path / "out" / "train.bin").tolist()
    assert {"meta.json", "train.bin", "val.bin"} == {p.name for p in (tmp_path / "out").iterdir()}
