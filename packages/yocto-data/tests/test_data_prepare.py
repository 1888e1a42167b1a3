"""Texts to a data directory: where they are split, and that the same comes out each time."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yocto_data import (
    DataMeta,
    OptionError,
    SourceChangedError,
    TokenDataset,
    Tokenizer,
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


@pytest.mark.property
@given(texts=st.lists(st.text("a\t\n\r\x00\x1b\x7f\x9b", min_size=3, max_size=9), min_size=2))
def test_control_characters_are_counted(
    new_directory: NewDirectory, byte_tokenizer: Tokenizer, texts: list[str]
) -> None:
    """Over all documents: those below U+0020 but tab and line ends, and U+007F."""
    folder = new_directory()
    source = write_records(folder / "a.jsonl", texts)
    meta = prepare(source, folder / "out", tokenizer=byte_tokenizer, split_by="documents")
    controls = [c for c in "".join(texts) if c in "\x00\x1b\x7f"]
    assert meta.text is not None
    assert len(controls) == meta.text.control_characters


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
