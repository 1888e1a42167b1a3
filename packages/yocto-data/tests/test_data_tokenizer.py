"""What a tokenizer gives `prepare`: its ids are checked, and its file and names go along."""

import functools
import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from yocto_data import DataError, DataMeta, Tokenizer, prepare

Prepared = Callable[..., tuple[DataMeta, list[int], list[int]]]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One id per byte.
def namespace_tokenizer(**members: Any) -> Any:
    encode = functools.partial(bytearray, encoding="utf-8")
    known = {"vocab_size": 256, "encode": encode, "decode": bytes}
    return types.SimpleNamespace(**{**known, **members})


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([1, 5], "gave id 5, but its vocab_size is 5"),
        ([-1, 2], "gave id -1, but its vocab_size is 5"),
        ([1 << 16], "gave id 65536"),
        ([1 << 70], "object instead of a row of ids"),
        ([0.5], "float64 instead of a row of ids"),
        ([True], "bool instead of a row of ids"),
        ([[1]], "2-dimensional"),
        ("ab", "0-dimensional"),
        (None, "0-dimensional"),
        (np.array([2, 300], dtype=np.uint16), "gave id 300"),
        (KeyError("a"), "KeyError: 'a'"),
        (ValueError("several\nlines"), "several lines"),
        (TypeError(), "TypeError"),
    ],
)
def test_wrong_ids_are_refused(tmp_path: Path, ids: Any, says: str) -> None:
    """D9: an id out of range, or no id at all, fails before final files appear, and is named."""

    def encode(text: str) -> Any:
        if "needle" not in text:
            return [0] * len(text)
        if isinstance(ids, Exception):
            raise ids
        return ids

    (tmp_path / "a.txt").write_text("some hay " * 9)
    (tmp_path / "b.txt").write_text("a needle ")
    out = tmp_path.parent / f"{tmp_path.name}-out"
    with pytest.raises(DataError, match=rf"b\.txt: .*{says}"):
        prepare(tmp_path, out, tokenizer=namespace_tokenizer(vocab_size=5, encode=encode))
    assert not out.exists()


def test_the_place_in_a_long_document_is_named(prepared: Prepared) -> None:
    """The error says from which character on the tokenizer was stuck."""
    tokenizer = namespace_tokenizer(encode=functools.partial(bytearray, encoding="ascii"))
    with pytest.raises(DataError, match=r"a\.txt \(from character 283 on\): 'ascii'"):
        prepared(
            "plain " * 50 + "caf\u00e9 " * 3, tokenizer=tokenizer, chunk_chars=50, val_ratio=0.1
        )


def test_numpy_ids_are_taken_where_offered(prepared: Prepared) -> None:
    """`encode_to_numpy` is used instead of `encode`, and its ids are checked alike."""

    def encode_to_numpy(text: str) -> np.ndarray:
        return np.array([ord(character) + 65_000 for character in text], dtype=">i8")

    tokenizer = namespace_tokenizer(
        vocab_size=np.int32(70_000), encode=None, encode_to_numpy=encode_to_numpy
    )
    meta, train, _ = prepared("abcdefgh", tokenizer=tokenizer)
    assert train == [65_097, 65_098, 65_099, 65_100]
    assert (meta.dtype.name, meta.val.max_id) == ("uint32", 65_104)


@pytest.mark.parametrize(
    ("documents", "eos_id", "expected"), [(2, 7, 7), (1, 7, None), (2, None, None)]
)
def test_the_separator_by_default(
    prepared: Prepared, documents: int, eos_id: int | None, expected: int | None
) -> None:
    """`auto` is the tokenizer's eos_id, where it has one and there is something to part."""
    texts = ["some words", "more words"][:documents]
    meta, train, val = prepared(texts, tokenizer=namespace_tokenizer(eos_id=eos_id))
    assert expected == (meta.separator.id if meta.separator else None)
    assert documents * (11 if expected is not None else 10) == len(train) + len(val)


def test_the_tokenizer_goes_along(
    tmp_path: Path, prepared: Prepared, byte_tokenizer: Tokenizer
) -> None:
    """Its file lies beside the data and meta.json knows kind, fingerprint, name and hash."""
    meta, _, _ = prepared("some words", tmp_path, tokenizer=byte_tokenizer)
    known = meta.tokenizer
    assert ("byte", "b" * 64, "tokenizer.json") == (known.kind, known.fingerprint, known.file)
    assert hashlib.sha256(b"{}").hexdigest() == known.sha256
    expected = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    assert expected == names_in(tmp_path / "out")


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ({"save": lambda path: path.parent / "a.txt"}, "save"),
        ({"save": lambda path: path / "train.bin"}, "save"),
        ({"fingerprint": lambda: b"bytes"}, "fingerprint must be a string, found bytes"),
    ],
)
def test_what_goes_along_is_checked(
    tmp_path: Path, prepared: Prepared, member: dict[str, Any], says: str
) -> None:
    """A tokenizer that saves elsewhere, or over a token file, or has no proper name, is refused."""
    with pytest.raises(DataError, match=says):
        prepared("some words", tmp_path, tokenizer=namespace_tokenizer(**member))
    assert names_in(tmp_path) == ["a.txt"]


def test_a_file_of_any_name_is_replaced(tmp_path: Path, prepared: Prepared) -> None:
    """With force, a tokenizer's file of its own name is known by the old meta.json, and goes."""

    def save(path: Path) -> Path:
        (path / "my.vocab").write_text("x")
        return path / "my.vocab"

    prepared("some words", tmp_path, tokenizer=namespace_tokenizer(save=save))
    prepared("some words", tmp_path, tokenizer=namespace_tokenizer(), force=True)
    assert names_in(tmp_path / "out") == ["meta.json", "train.bin", "val.bin"]


def test_the_largest_id_is_recorded(prepared: Prepared) -> None:
    """max_id is the largest id of each split, 0 where there is no other."""
    meta, _, _ = prepared("\0\0\0\1\0\7\3\0", val_ratio=0.625)
    assert (0, 7) == (meta.train.max_id, meta.val.max_id)


def test_ids_of_several_types(prepared: Prepared) -> None:
    """Texts whose ids come in different integer types, or not at all, are joined unharmed."""
    kinds = iter(["<u2", "<i8", ">i4", "u1", "<u8", "<u2", "<i8", ">i4", "u1", "<u8"])

    def encode_to_numpy(text: str) -> np.ndarray:
        ids = [] if text.startswith("-") else list(text.encode())
        return np.array(ids, dtype=next(kinds) if ids else float)

    texts = ["one", "two", "-", "three", "four", "--", "five"]
    tokenizer = namespace_tokenizer(encode_to_numpy=encode_to_numpy)
    _, train, val = prepared(texts, tokenizer=tokenizer, split_by="position", val_ratio=0.1)
    assert list(b"onetwothreefourfive") == train + val
