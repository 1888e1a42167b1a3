"""Texts to a data directory."""

import functools
import hashlib
import io
import json
import os
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yocto_data import (
    DataMeta,
    OptionError,
    SourceChangedError,
    TokenDataset,
    Tokenizer,
    TokenizerUseError,
    WorkerError,
    load_bin,
    prepare,
)

NewDirectory = Callable[[], Path]
TEXTS = st.text(st.characters(codec="utf-8"), min_size=4, max_size=80)
RATIOS = st.floats(0.01, 0.99)


def write_records(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.property
@given(text=TEXTS, val_ratio=RATIOS, chunk_chars=st.integers(1, 30))
@example(text="\r\n\t \x00\u0301\ufeff", val_ratio=0.5, chunk_chars=1)
@example(text="\U0010ffff" * 10, val_ratio=0.1, chunk_chars=100)
def test_one_document_is_cut_by_position(
    new_directory: NewDirectory,
    code_point_tokenizer: Tokenizer,
    text: str,
    val_ratio: float,
    chunk_chars: int,
) -> None:
    """D8: train then val is the text; validation begins at character int(n * (1 - val_ratio))."""
    text = text.removeprefix("\ufeff")
    cut = int(len(text) * (1 - val_ratio))
    if min(cut, len(text) - cut) < 2:
        return  # another law: a split too short is refused
    folder = new_directory()
    (folder / "a.txt").write_bytes(text.encode())
    out = folder / "out"
    tokenizer = code_point_tokenizer
    meta = prepare(
        folder / "a.txt", out, tokenizer=tokenizer, val_ratio=val_ratio, chunk_chars=chunk_chars
    )
    train, val = load_bin(out / "train.bin"), load_bin(out / "val.bin")
    assert text[:cut] == tokenizer.decode(train.tolist())
    assert text[cut:] == tokenizer.decode(val.tolist())
    assert (cut, len(text) - cut) == (meta.train.tokens, meta.val.tokens)
    assert (meta.train.documents, meta.val.documents) == (1, 1)
    assert meta == DataMeta.load(out)
    assert meta.separator is None
    assert meta.text is not None
    assert (len(text), 1) == (meta.text.characters, meta.text.documents)


def test_the_counts_of_tiny_shakespeare(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """1,115,394 characters at 0.1 are 1,003,854 and 111,540, as in nanoGPT."""
    (tmp_path / "a.txt").write_bytes((b"ROMEO: ay me\n" * 86_000)[:1_115_394])
    meta = prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer)
    assert (meta.train.tokens, meta.val.tokens) == (1_003_854, 111_540)
    assert (tmp_path / "out" / "train.bin").stat().st_size == 2 * 1_003_854


@pytest.mark.property
@given(text=st.text("ab. \n", min_size=8, max_size=200), chunk_chars=st.integers(1, 40))
@example(text="one two three four five six", chunk_chars=3)
def test_chunked_equals_unchunked(
    new_directory: NewDirectory, word_tokenizer: Tokenizer, text: str, chunk_chars: int
) -> None:
    """D7: where every cut was safe, the ids are those of each split encoded at once."""
    cut = int(len(text) * 0.5)
    parts = [word_tokenizer.encode(part) for part in (text[:cut], text[cut:])]
    if min(map(len, parts)) < 2:
        return
    folder = new_directory()
    (folder / "a.txt").write_text(text)
    meta = prepare(
        folder / "a.txt",
        folder / "out",
        tokenizer=word_tokenizer,
        val_ratio=0.5,
        chunk_chars=chunk_chars,
    )
    assert meta.text is not None
    if meta.text.unsafe_cuts == 0:
        assert parts[0] == load_bin(folder / "out" / "train.bin").tolist()
        assert parts[1] == load_bin(folder / "out" / "val.bin").tolist()


def is_val(seed: int, number: int, val_ratio: float) -> bool:
    """The rule for whole documents, written plainly."""
    digest = hashlib.sha256(f"yocto-data split {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < val_ratio


def test_golden_validation_documents() -> None:
    """These numbers never change, or training would see what validation once measured."""
    expected = [10, 16, 18, 30, 34, 38, 45, 55, 56]
    assert expected == [number for number in range(60) if is_val(1337, number, 0.1)]


@pytest.mark.property
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=8),
    choice=st.tuples(RATIOS, st.integers(0, 2**64 - 1)),
    position=st.sampled_from(["before", "after"]),
)
@example(texts=["aaaa", "bbbb"], choice=(0.01, 0), position="after")
@example(texts=["aaaa", "bbbb"], choice=(0.99, 0), position="before")
def test_several_documents_are_kept_whole(
    new_directory: NewDirectory,
    byte_tokenizer: Tokenizer,
    texts: list[str],
    choice: tuple[float, int],
    position: Literal["before", "after"],
) -> None:
    """Each document, with its separator, lies whole in the split that the hash names, in order.

    If the hash leaves a split without one, exactly one document goes the other way.
    """
    folder = new_directory()
    val_ratio, seed = choice
    source = write_records(folder / "a.jsonl", texts)
    meta = prepare(
        source,
        folder / "out",
        tokenizer=byte_tokenizer,
        val_ratio=val_ratio,
        seed=seed,
        separator=255,
        separator_position=position,
    )
    in_val = [is_val(seed, number, val_ratio) for number in range(len(texts))]
    found: dict[str, list[list[int]]] = {}
    for name in ("train", "val"):
        ids = load_bin(folder / "out" / f"{name}.bin").tolist()
        marks = [index for index, value in enumerate(ids) if value == 255]
        if position == "after":
            found[name] = [
                ids[a:b] for a, b in zip([0, *(m + 1 for m in marks)], marks, strict=False)
            ]
        else:
            found[name] = [
                ids[a + 1 : b] for a, b in zip(marks, [*marks[1:], len(ids)], strict=True)
            ]
    expected = {
        name: [list(t.encode()) for t, v in zip(texts, in_val, strict=True) if v == (name == "val")]
        for name in ("train", "val")
    }
    if any(in_val) and not all(in_val):
        assert expected == found
    else:
        full, other = ("val", "train") if all(in_val) else ("train", "val")
        assert len(found[other]) == 1
        rest = list(expected[full])
        rest.remove(found[other][0])
        assert len(texts) - 1 == len(found[full])
        assert sorted(rest) == sorted(found[full])
    assert [len(found["train"]), len(found["val"])] == [meta.train.documents, meta.val.documents]
    assert meta.options is not None
    assert meta.options.split_by == "documents"


@pytest.mark.property
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), val_ratio=RATIOS)
@example(texts=["aaaa", "bbbb"], val_ratio=0.5)  # the cut falls between two documents
def test_documents_can_be_split_by_position(
    new_directory: NewDirectory, code_point_tokenizer: Tokenizer, texts: list[str], val_ratio: float
) -> None:
    """Split by position, the joined text is cut at one character, whatever the documents."""
    text = "".join(texts)
    cut = int(len(text) * (1 - val_ratio))
    if min(cut, len(text) - cut) < 2:
        return
    folder = new_directory()
    meta = prepare(
        write_records(folder / "a.jsonl", texts),
        folder / "out",
        tokenizer=code_point_tokenizer,
        val_ratio=val_ratio,
        split_by="position",
    )
    for name, expected in (("train", text[:cut]), ("val", text[cut:])):
        ids = load_bin(folder / "out" / f"{name}.bin").tolist()
        assert expected == code_point_tokenizer.decode(ids)
    ends = np.cumsum([len(each) for each in texts])
    assert int((ends - np.diff(ends, prepend=0) < cut).sum()) == meta.train.documents
    assert int((ends > cut).sum()) == meta.val.documents


def namespace_tokenizer(**members: Any) -> Any:
    """One id per byte, made of parts that any process can import."""
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"val_ratio": 0}, "val_ratio must lie between 0 and 1"),
        ({"val_ratio": 1}, "val_ratio must lie between 0 and 1"),
        ({"val_ratio": -0.1}, "val_ratio must lie between 0 and 1"),
        ({"val_ratio": float("nan")}, "val_ratio must lie between 0 and 1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1 << 64}, "seed must be"),
        ({"workers": 0}, "workers must be an integer of at least 1, found 0"),
        ({"block_size": 0}, "block_size must be"),
        ({"chunk_chars": 0}, "chunk_chars must be"),
        ({"split_by": "line"}, "split_by must be one of auto, position, documents"),
        ({"split_by": "documents"}, "one document cannot be split by documents"),
        ({"separator": 256}, "separator must be an integer from 0 to 255, found 256"),
        ({"separator": -1}, "separator must be"),
        ({"separator": True}, "separator must be"),
        ({"separator_position": "between"}, "separator_position must be one of before, after"),
        ({"encoding": "utf-9"}, "no text encoding is called 'utf-9'"),
        ({"errors": "surrogateescape"}, "errors must be one of"),
    ],
)
def test_arguments_out_of_range(
    tmp_path: Path, byte_tokenizer: Tokenizer, change: dict[str, Any], says: str
) -> None:
    """D10 and kin: each argument out of range is named, and nothing is written."""
    (tmp_path / "a.txt").write_text("some words")
    with pytest.raises(OptionError, match=says):
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer, **change)
    assert names_in(tmp_path) == ["a.txt"]


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


def test_a_source_that_changes_between_the_passes(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    """D9: a file whose content is replaced after the check fails, though its size is the same."""
    (tmp_path / "a.txt").write_text("first words")

    class Swapping:
        vocab_size = 256
        decode = byte_tokenizer.decode

        @property
        def eos_id(self) -> None:  # asked for between the passes
            (tmp_path / "a.txt").write_text("other words")

        def encode(self, text: str) -> Sequence[int]:
            (tmp_path / "b.txt").write_text("x")
            return byte_tokenizer.encode(text)

    (tmp_path / "b.txt").write_text("second words")
    with pytest.raises(SourceChangedError, match=r"a\.txt changed"):
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", tokenizer=Swapping())
    assert not (tmp_path / "out").exists()


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


@pytest.mark.property
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), chunk_chars=st.integers(1, 50))
def test_equal_inputs_give_equal_files(
    new_directory: NewDirectory, byte_tokenizer: Tokenizer, seed: int, chunk_chars: int
) -> None:
    """Prepared twice, in other places and at another time, every file is the same to the byte."""
    contents = []
    for _ in range(2):
        folder = new_directory()
        write_records(folder / "a.jsonl", ["some words", "other words", "and more"])
        prepare(
            folder / "a.jsonl",
            folder / "out",
            tokenizer=byte_tokenizer,
            seed=seed,
            chunk_chars=chunk_chars,
        )
        contents.append(content(folder / "out"))
    assert contents[0] == contents[1]


def test_the_data_set_opens(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """What was prepared is what a data set needs; a full verification finds nothing."""
    (tmp_path / "a.txt").write_text("some words " * 20)
    meta = prepare(
        tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer, val_ratio=0.5, block_size=8
    )
    dataset = TokenDataset(tmp_path / "out" / "val.bin", 8)
    dataset.verify()
    assert (meta, 256, meta.val.sha256) == (dataset.meta, dataset.vocab_size, dataset.fingerprint)
