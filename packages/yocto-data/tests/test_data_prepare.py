"""Texts to a data directory: where they are split, and that the same comes out each time."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from yocto_data import DataError, DataMeta, PrepareOptions, Tokenizer, WorkError, prepare

Prepared = Callable[..., tuple[DataMeta, list[int], list[int]]]
NewDirectory = Callable[[], Path]
TEXTS = st.text(st.characters(codec="utf-8"), min_size=4, max_size=80)
RATIOS = st.floats(0.01, 0.99)


@pytest.mark.property
@given(text=TEXTS, val_ratio=RATIOS, chunk_chars=st.integers(1, 30))
@example(text="\r\n\t \x00\u0301\ufeff", val_ratio=0.5, chunk_chars=1)
@example(text="\U0010ffff" * 10, val_ratio=0.1, chunk_chars=100)
def test_one_document_is_cut_by_position(
    prepared: Prepared,
    code_point_tokenizer: Tokenizer,
    text: str,
    val_ratio: float,
    chunk_chars: int,
) -> None:
    """D8: train then val is the text; validation begins at character int(n * (1 - val_ratio))."""
    text = text.removeprefix("\ufeff")
    cut = int(len(text) * (1 - val_ratio))
    assume(min(cut, len(text) - cut) >= 2)  # another law: a split too short is refused
    tokenizer = code_point_tokenizer
    meta, train, val = prepared(
        text, tokenizer=tokenizer, val_ratio=val_ratio, chunk_chars=chunk_chars
    )
    assert (text[:cut], text[cut:]) == (tokenizer.decode(train), tokenizer.decode(val))
    assert (cut, len(text) - cut) == (meta.train.tokens, meta.val.tokens)
    assert (meta.train.documents, meta.val.documents, meta.separator) == (1, 1, None)
    assert meta.text is not None
    assert (len(text), 1) == (meta.text.characters, meta.text.documents)


def test_the_counts_of_tiny_shakespeare(prepared: Prepared, tmp_path: Path) -> None:
    """1,115,394 characters at 0.1 are 1,003,854 and 111,540, as in nanoGPT."""
    meta, _, _ = prepared(("ROMEO: ay me\n" * 86_000)[:1_115_394], tmp_path, val_ratio=0.1)
    assert (meta.train.tokens, meta.val.tokens) == (1_003_854, 111_540)
    assert (tmp_path / "out" / "train.bin").stat().st_size == 2 * 1_003_854


@pytest.mark.property
@given(text=st.text("ab. \n", min_size=8, max_size=200), chunk_chars=st.integers(1, 40))
@example(text="one two three four five six", chunk_chars=3)
def test_chunked_equals_unchunked(
    prepared: Prepared, word_tokenizer: Tokenizer, text: str, chunk_chars: int
) -> None:
    """D7: where every cut was safe, the ids are those of each split encoded at once."""
    cut = int(len(text) * 0.5)
    parts = [word_tokenizer.encode(part) for part in (text[:cut], text[cut:])]
    assume(min(map(len, parts)) >= 2)
    meta, train, val = prepared(text, tokenizer=word_tokenizer, chunk_chars=chunk_chars)
    assert meta.text is not None
    if meta.text.unsafe_cuts == 0:
        assert parts == [train, val]


def is_val(seed: int, number: int, val_ratio: float) -> bool:
    """The rule for whole documents, written plainly."""
    digest = hashlib.sha256(f"yocto-data split {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < val_ratio


def test_golden_validation_documents() -> None:
    """These numbers never change, or training would see what validation once measured."""
    expected = [10, 16, 18, 30, 34, 38, 45, 55, 56]
    assert expected == [number for number in range(60) if is_val(1337, number, 0.1)]


def parted(ids: list[int], position: str) -> list[list[int]]:
    """The documents of a split whose separator is 255."""
    marks = [index for index, value in enumerate(ids) if value == 255]
    if position == "after":
        return [ids[a:b] for a, b in zip([0, *(m + 1 for m in marks)], marks, strict=False)]
    return [ids[a + 1 : b] for a, b in zip(marks, [*marks[1:], len(ids)], strict=True)]


@pytest.mark.property
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=8),
    choice=st.tuples(RATIOS, st.integers(0, 2**64 - 1)),
    position=st.sampled_from(["before", "after"]),
)
@example(texts=["aaaa", "bbbb"], choice=(0.01, 0), position="after")
@example(texts=["aaaa", "bbbb"], choice=(0.99, 0), position="before")
def test_several_documents_are_kept_whole(
    prepared: Prepared,
    texts: list[str],
    choice: tuple[float, int],
    position: Literal["before", "after"],
) -> None:
    """Each document, with its separator, lies whole in the split that the hash names, in order.

    If the hash leaves a split without one, exactly one document goes the other way.
    """
    val_ratio, seed = choice
    meta, *splits = prepared(
        texts, val_ratio=val_ratio, seed=seed, separator=255, separator_position=position
    )
    found = [parted(ids, position) for ids in splits]
    expected: list[list[list[int]]] = [[], []]
    for number, text in enumerate(texts):
        expected[is_val(seed, number, val_ratio)].append(list(text.encode()))
    if all(expected):
        assert expected == found
    else:
        full = expected.index([]) ^ 1  # the split that the hash filled
        assert len(found[full ^ 1]) == 1
        expected[full].remove(found[full ^ 1][0])
        assert sorted(expected[full]) == sorted(found[full])
    assert [len(found[0]), len(found[1])] == [meta.train.documents, meta.val.documents]
    assert meta.options is not None
    assert meta.options.split_by == "documents"


@pytest.mark.property
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), val_ratio=RATIOS)
@example(texts=["aaaa", "bbbb"], val_ratio=0.5)  # the cut falls between two documents
def test_documents_can_be_split_by_position(
    prepared: Prepared, code_point_tokenizer: Tokenizer, texts: list[str], val_ratio: float
) -> None:
    """Split by position, the joined text is cut at one character, whatever the documents."""
    text = "".join(texts)
    cut = int(len(text) * (1 - val_ratio))
    assume(min(cut, len(text) - cut) >= 2)
    tokenizer = code_point_tokenizer
    meta, train, val = prepared(
        texts, tokenizer=tokenizer, val_ratio=val_ratio, split_by="position"
    )
    assert (text[:cut], text[cut:]) == (tokenizer.decode(train), tokenizer.decode(val))
    ends = np.cumsum([len(each) for each in texts])
    assert int((ends - np.diff(ends, prepend=0) < cut).sum()) == meta.train.documents
    assert int((ends > cut).sum()) == meta.val.documents


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(({"val_ratio": ratio}, "val_ratio must be above 0") for ratio in (0, 1, -0.1, np.nan)),
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
        ({"errors": "surrogateescape"}, "errors must be one of strict, replace, ignore"),
    ],
)
def test_arguments_out_of_range(
    tmp_path: Path, prepared: Prepared, change: dict[str, Any], says: str
) -> None:
    """D10 and kin: each argument out of range is named, and nothing is written."""
    with pytest.raises(DataError, match=says):
        prepared("some words", tmp_path, **change)
    assert ["a.txt"] == [path.name for path in tmp_path.iterdir()]


def test_options_are_one_object(prepared: Prepared) -> None:
    """Given as an object, by name, or both, with NumPy's numbers or Python's: the same files."""
    texts = [f"document {number}" for number in range(9)]
    named, *_ = prepared(texts, seed=5, val_ratio=0.25, chunk_chars=3, separator=0)
    options = PrepareOptions(seed=np.uint64(5), val_ratio=np.float32(0.25), chunk_chars=7)  # type: ignore[arg-type]
    both, *_ = prepared(
        texts, options=options, val_ratio=0.25, chunk_chars=np.int8(3), separator=np.int64(0),
        workers=np.int64(1), block_size=np.int64(2),
    )  # fmt: skip
    assert named.fingerprint == both.fingerprint
    with pytest.raises(TypeError, match="valratio"):
        prepared(texts, valratio=0.1)


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
    with pytest.raises(WorkError, match=r"a\.txt changed"):
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", tokenizer=Swapping())
    assert not (tmp_path / "out").exists()


@pytest.mark.property
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), chunk_chars=st.integers(1, 50))
def test_equal_inputs_give_equal_files(
    new_directory: NewDirectory, prepared: Prepared, seed: int, chunk_chars: int
) -> None:
    """Prepared twice, in other places and at another time, every file is the same to the byte."""
    contents = []
    for folder in (new_directory(), new_directory()):
        texts = ["some words", "other words", "and more"]
        prepared(texts, folder, seed=seed, chunk_chars=chunk_chars)
        contents.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
    assert contents[0] == contents[1]
