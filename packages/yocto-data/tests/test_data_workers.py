"""Preparing with several processes and a progress callback: files are the same, faults are told."""

import functools
import io
import os
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataError, DataMeta, WorkError, prepare

Prepared = Callable[..., tuple[DataMeta, list[int], list[int]]]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One id per byte, made of parts that any process can import.
def namespace_tokenizer(**members: Any) -> Any:
    encode = functools.partial(bytearray, encoding="utf-8")
    known = {"vocab_size": 256, "encode": encode, "decode": bytes}
    return types.SimpleNamespace(**{**known, **members})


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
    """D7: one process or several, each file is the same to the byte."""
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


@pytest.mark.property
@given(
    words=st.lists(st.sampled_from([" the", "thing", " is", "\n", " ", ".", "\u00e9"]), min_size=9),
    chunk_chars=st.integers(1, 12),
)
@example(words=[" the", " ", " ", "thing", "\n\n", " is"] * 20, chunk_chars=1)
def test_chunks_of_real_pieces(
    prepared: Prepared, pieces: Any, words: list[str], chunk_chars: int
) -> None:
    """D7: with sentencepiece, too, safely cut pieces have the ids of each split encoded at once."""
    text = "a" + "".join(words) + "a"
    meta, train, val = prepared(text, tokenizer=pieces, chunk_chars=chunk_chars)
    cut = int(len(text) * 0.5)
    assert meta.text is not None
    for ids, part in ((train, text[:cut]), (val, text[cut:])):
        assert part == pieces.decode(ids)
        if meta.text.unsafe_cuts == 0:
            assert pieces.encode(part) == ids


def test_a_fault_in_a_worker_names_the_document(tmp_path: Path, prepared: Prepared) -> None:
    """What a tokenizer raises in another process arrives as one line with file, line and place."""
    tokenizer = namespace_tokenizer(encode=functools.partial(bytearray, encoding="ascii"))
    texts = ["fine " * 100] * 20 + ["x\ud7ff"]
    with pytest.raises(DataError, match=r"a\.jsonl, line 21: .*ascii"):
        prepared(texts, tmp_path, tokenizer=tokenizer, workers=2, chunk_chars=100)
    assert names_in(tmp_path) == ["a.jsonl"]


class _Ending:
    """Sent to a worker, this ends it: unpickling calls `os._exit(3)`."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


@pytest.mark.parametrize(
    ("encode", "says"),
    [(lambda text: list(text.encode()), "workers=1"), (_Ending(), "ended early")],
    ids=["cannot travel", "dies"],
)
def test_a_worker_that_cannot_work(
    tmp_path: Path, prepared: Prepared, encode: Any, says: str
) -> None:
    """An object that no process can receive, or a worker that dies: the way out, and no waiting."""
    tokenizer = namespace_tokenizer(encode=encode)
    with pytest.raises(WorkError, match=says):
        prepared("words " * 100, tmp_path, tokenizer=tokenizer, workers=2, chunk_chars=50)
    assert names_in(tmp_path) == ["a.txt"]


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
