"""What a tokenizer gives `prepare`: its ids are checked, and its file and names go along."""

import functools
import hashlib
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from yocto_data import Tokenizer, TokenizerUseError, load_bin, prepare


def write_records(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One id per byte.
def namespace_tokenizer(**members: Any) -> Any:
    encode = functools.partial(bytearray, encoding="utf-8")
    return types.SimpleNamespace(vocab_size=256, encode=encode, decode=bytes, **members)


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
        (KeyError("\x1b[2J"), r"KeyError: '\\x1b\[2J'"),
        (ValueError("several\nlines"), "several lines"),
        (TypeError(), "TypeError"),
    ],
)
def test_wrong_ids_are_refused(tmp_path: Path, ids: Any, says: str) -> None:
    """D9: an id out of range, or no id at all, fails before final files appear, and is named."""

    class Wrong:
        vocab_size = 5

        def encode(self, text: str) -> Any:
            if "needle" not in text:
                return [0] * len(text)
            if isinstance(ids, Exception):
                raise ids
            return ids

        def decode(self, ids: Sequence[int]) -> str:
            return ""

    (tmp_path / "a.txt").write_text("some hay " * 9)
    (tmp_path / "b.txt").write_text("a needle ")
    with pytest.raises(TokenizerUseError, match=rf"b\.txt: .*{says}") as caught:
        prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", tokenizer=Wrong())
    assert str(caught.value).isprintable()
    assert not (tmp_path.parent / f"{tmp_path.name}-out").exists()


def test_the_place_in_a_long_document_is_named(tmp_path: Path) -> None:
    """The error says from which character on the tokenizer was stuck."""
    (tmp_path / "a.txt").write_text("plain " * 50 + "caf\u00e9 " * 3)
    tokenizer = namespace_tokenizer()
    tokenizer.encode = functools.partial(bytearray, encoding="ascii")
    with pytest.raises(TokenizerUseError, match=r"a\.txt \(from character 283 on\): 'ascii'"):
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer, chunk_chars=50)


def test_numpy_ids_are_taken_where_offered(tmp_path: Path) -> None:
    """``encode_to_numpy`` is used instead of ``encode``, and its ids are checked alike."""
    (tmp_path / "a.txt").write_text("abcdefgh")

    class Fast:
        vocab_size = 70_000

        def encode(self, text: str) -> list[int]:
            raise AssertionError

        def encode_to_numpy(self, text: str) -> np.ndarray:
            return np.array([ord(character) + 65_000 for character in text], dtype=">i8")

        def decode(self, ids: Sequence[int]) -> str:
            return ""

    meta = prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=Fast(), val_ratio=0.5)
    assert load_bin(tmp_path / "out" / "train.bin").tolist() == [65_097, 65_098, 65_099, 65_100]
    assert (meta.dtype.name, meta.val.max_id) == ("uint32", 65_104)


@pytest.mark.parametrize(
    ("documents", "eos_id", "expected"), [(2, 7, 7), (1, 7, None), (2, None, None)]
)
def test_the_separator_by_default(
    tmp_path: Path, documents: int, eos_id: int | None, expected: int | None
) -> None:
    """``auto`` is the tokenizer's eos_id, where it has one and there is something to part."""
    write_records(tmp_path / "a.jsonl", ["some words", "more words"][:documents])
    tokenizer = namespace_tokenizer(eos_id=eos_id)
    meta = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=tokenizer, val_ratio=0.5)
    assert expected == (meta.separator.id if meta.separator else None)
    total = meta.train.tokens + meta.val.tokens
    assert documents * 10 + (documents if expected is not None else 0) == total


def test_the_tokenizer_goes_along(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """Its file lies beside the data and meta.json knows kind, fingerprint, name and hash."""
    (tmp_path / "a.txt").write_text("some words")
    meta = prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer, val_ratio=0.5)
    assert ("byte", "b" * 64, "tokenizer.json", hashlib.sha256(b"{}").hexdigest()) == (
        meta.tokenizer.kind,
        meta.tokenizer.fingerprint,
        meta.tokenizer.file,
        meta.tokenizer.sha256,
    )
    expected = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    assert expected == names_in(tmp_path / "out")


def test_save_must_stay_in_the_directory(tmp_path: Path) -> None:
    """A tokenizer that saves elsewhere, or over a token file, is refused."""
    (tmp_path / "a.txt").write_text("some words")

    def elsewhere(path: Path) -> Path:
        return tmp_path / "a.txt"

    def over(path: Path) -> Path:
        return Path(path) / "train.bin"

    for save in (elsewhere, over):
        with pytest.raises(TokenizerUseError, match="save"):
            prepare(
                tmp_path / "a.txt",
                tmp_path / "out",
                tokenizer=namespace_tokenizer(save=save),
                val_ratio=0.5,
            )
        assert names_in(tmp_path) == ["a.txt"]


def test_a_file_of_any_name_is_replaced(tmp_path: Path) -> None:
    """With force, a tokenizer's file of its own name is known by the old meta.json, and goes."""
    (tmp_path / "a.txt").write_text("some words")

    def save(path: Path) -> Path:
        file = Path(path) / "my.vocab"
        file.write_text("x")
        return file

    with_file = namespace_tokenizer(save=save)
    out = tmp_path / "out"
    prepare(tmp_path / "a.txt", out, tokenizer=with_file, val_ratio=0.5)
    prepare(tmp_path / "a.txt", out, tokenizer=namespace_tokenizer(), val_ratio=0.5, force=True)
    assert names_in(out) == ["meta.json", "train.bin", "val.bin"]


def test_the_largest_id_is_recorded(tmp_path: Path) -> None:
    """max_id is the largest id of each split, 0 where there is no other."""
    (tmp_path / "a.txt").write_bytes(b"\0\0\0\1\0\7\3\0")
    meta = prepare(
        tmp_path / "a.txt", tmp_path / "out", tokenizer=namespace_tokenizer(), val_ratio=0.625
    )
    assert (0, 7) == (meta.train.max_id, meta.val.max_id)


def test_a_fingerprint_is_a_name(tmp_path: Path) -> None:
    """What could not be written into meta.json as a name is refused at once."""
    (tmp_path / "a.txt").write_text("some words")
    tokenizer = namespace_tokenizer(fingerprint=lambda: b"bytes")
    with pytest.raises(TokenizerUseError, match="fingerprint must be a str, found bytes"):
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer, val_ratio=0.5)
    assert names_in(tmp_path) == ["a.txt"]


def test_ids_of_several_types(tmp_path: Path) -> None:
    """Texts whose ids come in different integer types, or not at all, are joined unharmed."""
    kinds = iter(["<u2", "<i8", ">i4", "u1", "<u8", "<u2", "<i8", ">i4", "u1", "<u8"])

    def encode_to_numpy(text: str) -> np.ndarray:
        ids = [] if text.startswith("-") else list(text.encode())
        return np.array(ids, dtype=next(kinds) if ids else float)

    write_records(tmp_path / "a.jsonl", ["one", "two", "-", "three", "four", "--", "five"])
    tokenizer = namespace_tokenizer(encode_to_numpy=encode_to_numpy)
    meta = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=tokenizer, split_by="position")
    assert 19 == meta.train.tokens + meta.val.tokens
    both = [*load_bin(tmp_path / "out" / "train.bin"), *load_bin(tmp_path / "out" / "val.bin")]
    assert sorted(b"onetwothreefourfive") == sorted(both)
