"""Preparing with several processes and a progress callback: files are the same, faults are told."""

import functools
import io
import json
import os
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataMeta, TokenizerUseError, WorkerError, load_bin, prepare

NewDirectory = Callable[[], Path]


def write_records(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# One id per byte, made of parts that any process can import.
def namespace_tokenizer(**members: Any) -> Any:
    encode = functools.partial(bytearray, encoding="utf-8")
    return types.SimpleNamespace(vocab_size=256, encode=encode, decode=bytes, **members)


def test_workers_change_nothing(tmp_path: Path) -> None:
    """D7: one process or several, each file is the same to the byte."""
    texts = [f"document {number} " * (1 + number % 40) for number in range(300)]
    write_records(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").write_text("a long text of many words\n" * 3000)
    outs = []
    for workers in (1, 3):
        outs.append(tmp_path / f"out{workers}")
        prepare(
            [tmp_path / "a.jsonl", tmp_path / "b.txt"],
            outs[-1],
            tokenizer=namespace_tokenizer(eos_id=0),
            workers=workers,
            chunk_chars=5000,
        )
    assert content(outs[0]) == content(outs[1])
    meta = DataMeta.load(outs[0])
    assert sum(map(len, texts)) + 78_000 + 301 == meta.train.tokens + meta.val.tokens


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
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
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.property
@given(
    words=st.lists(st.sampled_from([" the", "thing", " is", "\n", " ", ".", "\u00e9"]), min_size=9),
    chunk_chars=st.integers(1, 12),
)
@example(words=[" the", " ", " ", "thing", "\n\n", " is"] * 20, chunk_chars=1)
def test_chunks_of_real_pieces(
    new_directory: NewDirectory,
    pieces: sentencepiece.SentencePieceProcessor,
    words: list[str],
    chunk_chars: int,
) -> None:
    """D7: with sentencepiece, too, safely cut pieces have the ids of each split encoded at once."""
    folder, text = new_directory(), "a" + "".join(words) + "a"
    (folder / "a.txt").write_bytes(text.encode())
    meta = prepare(
        folder / "a.txt",
        folder / "out",
        tokenizer=piece_tokenizer(pieces),
        val_ratio=0.5,
        chunk_chars=chunk_chars,
    )
    cut = int(len(text) * 0.5)
    assert meta.text is not None
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        ids = load_bin(folder / "out" / f"{name}.bin").tolist()
        assert part == pieces.decode(ids)
        if meta.text.unsafe_cuts == 0:
            assert pieces.encode(part) == ids


def piece_tokenizer(pieces: sentencepiece.SentencePieceProcessor) -> Any:
    return types.SimpleNamespace(
        vocab_size=pieces.get_piece_size(), encode=pieces.encode, decode=pieces.decode
    )


def test_workers_change_no_piece(
    tmp_path: Path, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    """D7: a sentencepiece model sent to workers gives the files of one process, to the byte."""
    (tmp_path / "a.txt").write_text("so it is: the thing is\nnamed by  it. " * 2000)
    for workers in (1, 2):
        prepare(
            tmp_path / "a.txt",
            tmp_path / f"out{workers}",
            tokenizer=piece_tokenizer(pieces),
            workers=workers,
            chunk_chars=5000,
        )
    assert content(tmp_path / "out1") == content(tmp_path / "out2")


def test_a_fault_in_a_worker_names_the_document(tmp_path: Path) -> None:
    """What a tokenizer raises in another process arrives as one line with file, line and place."""
    write_records(tmp_path / "a.jsonl", ["fine " * 100] * 20 + ["x\ud7ff"])
    tokenizer = namespace_tokenizer()
    tokenizer.encode = functools.partial(bytearray, encoding="ascii")
    with pytest.raises(TokenizerUseError, match=r"a\.jsonl, line 21: .*ascii"):
        prepare(
            tmp_path / "a.jsonl", tmp_path / "out", tokenizer=tokenizer, workers=2, chunk_chars=100
        )
    assert names_in(tmp_path) == ["a.jsonl"]


def test_a_tokenizer_that_cannot_travel(tmp_path: Path) -> None:
    """An object that no other process can receive is reported, with the way out."""
    (tmp_path / "a.txt").write_text("words " * 100)
    tokenizer = namespace_tokenizer()
    tokenizer.encode = lambda text: list(text.encode())
    with pytest.raises(WorkerError, match="workers=1"):
        prepare(
            tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer, workers=2, chunk_chars=50
        )
    assert names_in(tmp_path) == ["a.txt"]


class _Ending:
    """Sent to a worker, this ends it: unpickling calls ``os._exit(3)``."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


def test_a_worker_that_dies(tmp_path: Path) -> None:
    """A worker that ends without a word does not leave the caller waiting."""
    (tmp_path / "a.txt").write_text("words " * 100)
    tokenizer = namespace_tokenizer()
    tokenizer.encode = _Ending()
    with pytest.raises(WorkerError, match="ended early"):
        prepare(
            tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer, workers=2, chunk_chars=50
        )


def test_characters_stay_here(tmp_path: Path) -> None:
    """A tokenizer of kind ``char`` is never sent to workers: this one could not be."""
    (tmp_path / "a.txt").write_text("words " * 100)
    tokenizer = namespace_tokenizer(kind="char")
    tokenizer.encode = lambda text: list(text.encode())
    meta = prepare(
        tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer, workers=2, chunk_chars=50
    )
    assert meta.train.tokens + meta.val.tokens == 600


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
        chunk_chars=1 << 20,
    )
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert {total} == {call[1] for call in calls}
    assert {threading.get_ident()} == threads
    assert calls == sorted(calls)
    assert (total, total, meta.train.tokens + meta.val.tokens) == calls[-1]
    assert len({call[0] for call in calls}) >= 5
    assert len(calls) < 50


class Stopped(Exception):  # noqa: N818 - what a caller's own signal may look like
    """Raised by a progress callback."""


@pytest.mark.parametrize(("stop_at", "workers"), [(0, 1), (1, 1), (1, 2)])
def test_progress_may_stop_it(tmp_path: Path, stop_at: int, workers: int) -> None:
    """D10: what the callback raises arrives unchanged, and nothing stays, parents included."""
    (tmp_path / "a.txt").write_text("some words and more of them\n" * 50_000)

    def progress(done: int, total: int, tokens: int) -> None:
        if done >= stop_at:
            raise Stopped

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
