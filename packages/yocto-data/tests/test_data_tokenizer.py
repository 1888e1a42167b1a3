"""A tokenizer at work: its ids are checked, its file goes along, workers change nothing."""

import functools
import hashlib
import io
import os
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataError, DataMeta, Tokenizer, WorkError, prepare

Prepared = Callable[..., tuple[DataMeta, list[int], list[int]]]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One id per byte, made of parts that any process can import.
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
    ("documents", "eos_id", "expected"), [(2, 7, 7), (1, 7, None), (2, None, 10), (1, None, None)]
)
def test_the_separator_by_default(
    prepared: Prepared, documents: int, eos_id: int | None, expected: int | None
) -> None:
    """`auto` is the tokenizer's eos_id, or a line end, where there is something to part."""
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
    options: dict[str, Any] = {"split_by": "position", "val_ratio": 0.1, "separator": None}
    _, train, val = prepared(texts, tokenizer=tokenizer, **options)
    assert list(b"onetwothreefourfive") == train + val


def test_any_object_will_do(byte_tokenizer: Tokenizer) -> None:
    """The protocol is structural: three members make a tokenizer."""
    assert isinstance(byte_tokenizer, Tokenizer)
    assert not isinstance(object(), Tokenizer)


@pytest.fixture(scope="module")
def pieces() -> Any:
    """A BPE model whose pieces begin with spaces, and may hold line ends."""
    model = io.BytesIO()
    text = "the  thing is named by it.\n  the  name is a thing:\n\n  so it is. "
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=310,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = processor.get_piece_size()
    return namespace_tokenizer(vocab_size=size, encode=processor.encode, decode=processor.decode)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_workers_change_nothing(
    new_directory: Callable[[], Path], prepared: Prepared, pieces: Any, kind: str
) -> None:
    """D7: prepared again, elsewhere, by several processes, each file is the same to the byte."""
    tokenizer = namespace_tokenizer(eos_id=0) if kind == "bytes" else pieces
    texts = [f"the document is {number} " * (1 + number % 40) for number in range(300)]
    texts.append("a long thing of many names\n" * 3000)
    contents = []
    for workers in (1, 3):
        folder = new_directory()
        meta, *_ = prepared(
            texts, folder, tokenizer=tokenizer, workers=workers, chunk_chars=5000, val_ratio=0.1
        )
        contents.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
    assert contents[0] == contents[1]
    if kind == "bytes":
        assert sum(map(len, texts)) + 301 == meta.train.tokens + meta.val.tokens


@pytest.fixture(scope="module", params=["words", "pieces"])
def cut_safely(request: pytest.FixtureRequest, word_tokenizer: Tokenizer, pieces: Any) -> Any:
    """A tokenizer whose ids may depend on where a text is cut."""
    return pieces if request.param == "pieces" else word_tokenizer


@pytest.mark.property
@given(
    words=st.lists(st.sampled_from([" the", "thing", " is", "\n", " ", ".", "\u00e9"]), min_size=9),
    chunk_chars=st.integers(1, 40),
)
@example(words=[" the", " ", " ", "thing", "\n\n", " is"] * 20, chunk_chars=1)
def test_chunked_equals_unchunked(
    prepared: Prepared, cut_safely: Any, words: list[str], chunk_chars: int
) -> None:
    """D7: where every cut was safe, the ids are those of each split encoded at once."""
    text = "a b" + "".join(words) + "a b"
    meta, train, val = prepared(text, tokenizer=cut_safely, chunk_chars=chunk_chars)
    cut = int(len(text) * 0.5)
    assert meta.text is not None
    for ids, part in ((train, text[:cut]), (val, text[cut:])):
        if cut_safely.decode is not None:
            assert part == cut_safely.decode(ids)
        if meta.text.unsafe_cuts == 0:
            assert cut_safely.encode(part) == ids


class _Ending:
    """Sent to a worker, this ends it: unpickling calls `os._exit(3)`."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


@pytest.mark.parametrize(
    ("encode", "kind", "says"),
    [
        (functools.partial(bytearray, encoding="ascii"), DataError, r"a\.jsonl, line 21: .*ascii"),
        (lambda text: list(text.encode()), WorkError, "workers=1"),
        (_Ending(), WorkError, "ended early"),
    ],
    ids=["refuses a text", "cannot travel", "dies"],
)
def test_a_worker_that_cannot_work(
    tmp_path: Path, prepared: Prepared, encode: Any, kind: type[DataError], says: str
) -> None:
    """What is wrong in another process arrives as one line, and nobody waits.

    A text that is refused is named by file, line and place.
    """
    texts = ["fine " * 100] * 20 + ["x\ud7ff"]
    tokenizer = namespace_tokenizer(encode=encode)
    with pytest.raises(kind, match=says):
        prepared(texts, tmp_path, tokenizer=tokenizer, workers=2, chunk_chars=100)
    assert names_in(tmp_path) == ["a.jsonl"]


def test_characters_stay_here(prepared: Prepared) -> None:
    """A tokenizer of kind `char` is never sent to workers: this one could not be."""
    tokenizer = namespace_tokenizer(kind="char", encode=lambda text: list(text.encode()))
    _, train, val = prepared("words " * 100, tokenizer=tokenizer, workers=2, chunk_chars=50)
    assert len(train) + len(val) == 600


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    """Bytes and tokens only rise, on the caller's thread; the last call says that all is done."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("some words and more of them\n" * 100_000)
    calls: list[tuple[int, int, int]] = []
    threads = set()

    def progress(done: int, total: int, tokens: int) -> None:
        calls.append((done, total, tokens))
        threads.add(threading.get_ident())

    meta = prepare(
        tmp_path,
        tmp_path.parent / f"{tmp_path.name}-out",
        tokenizer=namespace_tokenizer(),
        workers=2,
        progress=progress,
    )
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert {total} == {call[1] for call in calls}
    assert {threading.get_ident()} == threads
    assert calls == sorted(calls)
    assert (total, total, meta.train.tokens + meta.val.tokens) == calls[-1]
    assert len({call[0] for call in calls}) >= 5
    assert len(calls) < 50


class Stopped(OSError):  # noqa: N818 - what a caller's own signal may look like
    """Raised by a progress callback."""


@pytest.mark.parametrize(("stop_at", "workers"), [(0, 1), (1, 1), (1, 2)])
def test_progress_may_stop_it(tmp_path: Path, stop_at: int, workers: int) -> None:
    """D10: what the callback raises arrives unchanged, and nothing stays, parents included."""

    def progress(done: int, total: int, tokens: int) -> None:
        if done >= stop_at:
            raise Stopped

    (tmp_path / "a.txt").write_text("some words and more of them\n" * 50_000)
    with pytest.raises(Stopped):
        prepare(
            tmp_path / "a.txt",
            tmp_path / "new" / "deep" / "out",
            tokenizer=namespace_tokenizer(),
            progress=progress,
            workers=workers,
            chunk_chars=100_000,
        )
    assert names_in(tmp_path) == ["a.txt"]
