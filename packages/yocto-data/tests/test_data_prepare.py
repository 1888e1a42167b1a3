"""Texts to a data directory: where they are split, and that the same comes out each time."""

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from yocto_data import (
    DataError,
    DataMeta,
    PrepareOptions,
    ShortDataError,
    Tokenizer,
    WorkError,
    prepare,
)
from yocto_data.prep.splitting import SafeCutter

Prepared = Callable[..., tuple[DataMeta, list[int], list[int]]]
NewDirectory = Callable[[], Path]
TEXTS = st.text(st.characters(codec="utf-8"), min_size=4, max_size=80)
RATIOS = st.floats(0.01, 0.99)


@pytest.mark.property
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6), val_ratio=RATIOS, chunk_chars=st.integers(1, 30)
)
@example(texts=["\r\n\t \x00\u0301\ufeff"], val_ratio=0.5, chunk_chars=1)
@example(texts=["\U0010ffff" * 10], val_ratio=0.1, chunk_chars=100)
@example(texts=["aaaa", "bbbb"], val_ratio=0.5, chunk_chars=9)  # the cut falls between two
def test_split_by_position(
    prepared: Prepared,
    code_point_tokenizer: Tokenizer,
    texts: list[str],
    val_ratio: float,
    chunk_chars: int,
) -> None:
    """D8: train then val is the text; validation begins at character int(n * (1 - val_ratio)).

    So it is for one document unless asked otherwise, and for several, joined, if asked for.
    """
    texts = [text.replace("\ufeff", "x", 1) if text[0] == "\ufeff" else text for text in texts]
    text, one = "".join(texts), len(texts) == 1
    cut = int(len(text) * (1 - val_ratio))
    assume(min(cut, len(text) - cut) >= 2)  # another law: a split too short is refused
    meta, train, val = prepared(
        text if one else texts, tokenizer=code_point_tokenizer, val_ratio=val_ratio,
        chunk_chars=chunk_chars, split_by="auto" if one else "position", separator=None,
        keep_cr=True,
    )  # fmt: skip
    decode = code_point_tokenizer.decode
    assert (text[:cut], text[cut:]) == (decode(train), decode(val))
    assert (cut, len(text) - cut, None) == (meta.train.tokens, meta.val.tokens, meta.separator)
    ends = np.cumsum([len(each) for each in texts])
    assert int((ends - np.diff(ends, prepend=0) < cut).sum()) == meta.train.documents
    assert int((ends > cut).sum()) == meta.val.documents
    assert meta.text is not None
    assert (len(text), len(texts)) == (meta.text.characters, meta.text.documents)


@pytest.mark.parametrize(
    ("val_ratio", "train", "val"), [(0.1, 1_003_854, 111_540), (0.5, 1 << 20, 1 << 20)]
)
def test_the_counts_of_large_texts(
    prepared: Prepared, tmp_path: Path, val_ratio: float, train: int, val: int
) -> None:
    """Tiny Shakespeare's 1,115,394 characters, as in nanoGPT; a cut at a power of two."""
    text = ("ROMEO: ay me\n" * 170_000)[: train + val]
    meta, *splits = prepared(text, tmp_path, val_ratio=val_ratio)
    assert (meta.train.tokens, meta.val.tokens) == (train, val)
    assert text.encode() == b"".join(map(bytes, splits))
    assert (tmp_path / "out" / "train.bin").stat().st_size == 2 * train


@pytest.mark.property
@given(
    text=st.text("a\u00e9", min_size=1, max_size=5),
    val_ratio=RATIOS | st.sampled_from([0.5, 1e-17]),
)
@example(text="\u00e9a\u00e9", val_ratio=0.5)  # one character, and yet two tokens
@example(text="aaa", val_ratio=1e-17)
def test_a_split_too_short_is_refused(prepared: Prepared, text: str, val_ratio: float) -> None:
    """Two tokens are needed, a context of one and the next; a split without text is said to be."""
    cut = int(len(text) * (1 - val_ratio))
    sizes = [len(part.encode()) for part in (text[:cut], text[cut:])]
    if min(sizes) >= 2:
        _, train, val = prepared(text, val_ratio=val_ratio)
        assert sizes == [len(train), len(val)]
        return
    says = (
        r"split: 1, but at least 2" if min(sizes) else f"ratio {val_ratio} leaves a split without"
    )
    with pytest.raises(ShortDataError, match=re.escape(says)):
        prepared(text, val_ratio=val_ratio)


@pytest.mark.property
@given(
    texts=st.lists(st.text("a \t\n\r\x00\x1b\x7f\x9b", min_size=3, max_size=20), min_size=2),
    chunk_chars=st.integers(1, 4),
)
@example(texts=["\x00\x1b\x7faaaaaaaaa", "\x00aaaaaaaaa"], chunk_chars=1)
def test_counts_are_over_all_documents(
    prepared: Prepared, texts: list[str], chunk_chars: int
) -> None:
    """Controls: all but tab and line ends. Cuts where ids may differ."""
    meta, *_ = prepared(texts, chunk_chars=chunk_chars, split_by="documents", keep_cr=True)
    assert meta.text is not None
    assert sum(c in "\x00\x1b\x7f\x9b" for c in "".join(texts)) == meta.text.control_characters
    assert sum(cut(text, chunk_chars)[1] for text in texts) == meta.text.unsafe_cuts


def test_progress_begins_while_texts_are_checked(prepared: Prepared) -> None:
    """The first call comes before any text is encoded; there is none for each short record."""
    calls: list[tuple[int, ...]] = []

    def encode(text: str) -> list[int]:
        assert [0] == [done for done, _, _ in calls]
        return list(text.encode())

    tokenizer = SimpleNamespace(vocab_size=256, encode=encode, decode=None)
    prepared(["a document"] * 100, tokenizer=tokenizer, progress=lambda *call: calls.append(call))
    assert len(calls) > 1


def is_val(seed: int, number: int, val_ratio: float) -> bool:
    """The rule for whole documents, written plainly."""
    digest = hashlib.sha256(f"yocto-data split {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < val_ratio


def parted(ids: list[int]) -> list[list[int]]:
    """The documents of a split whose separator is 255."""
    marks = [index for index, value in enumerate(ids) if value == 255]
    return [ids[a:b] for a, b in zip([0, *(m + 1 for m in marks)], marks, strict=False)]


@pytest.mark.property
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=8),
    choice=st.tuples(RATIOS, st.integers(0, 2**64 - 1)),
)
@example(texts=["aaaa", "bbbb"], choice=(0.01, 0))
@example(texts=["aaaa", "bbbb"], choice=(0.99, 0))
def test_documents_are_kept_whole(
    prepared: Prepared, texts: list[str], choice: tuple[float, int]
) -> None:
    """Each document, with its separator, lies whole in one split, in order, and none is empty."""
    val_ratio, seed = choice
    meta, *splits = prepared(
        texts, val_ratio=val_ratio, seed=seed, separator=255, split_by="documents", keep_cr=True,
    )  # fmt: skip
    found = [parted(ids) for ids in splits]
    documents = [list(text.encode()) for text in texts]
    assert sorted(documents) == sorted(found[0] + found[1])
    for split in found:
        in_order = iter(documents)
        assert split
        assert all(document in in_order for document in split)
    assert [len(found[0]), len(found[1])] == [meta.train.documents, meta.val.documents]
    assert meta.options is not None
    assert meta.options.split_by == "documents"


@pytest.mark.property
@given(
    sizes=st.lists(st.sampled_from([4, 5, 50, 400, 3000]), min_size=2, max_size=60),
    choice=st.tuples(st.floats(0.02, 0.9), st.integers(0, 99)),
)
@example(sizes=[3000, 4], choice=(0.1, 1337))
@example(sizes=[400] * 10, choice=(0.1, 1337))
def test_the_share_is_what_was_asked_for(
    prepared: Prepared, sizes: list[int], choice: tuple[float, int]
) -> None:
    """Validation gets about `val_ratio` of the text, whatever the number and sizes of documents.

    It is as the hash says, or with other whole documents, or else cut at one place.
    """
    ratio, seed = choice
    assume(sum(sizes) * min(ratio, 1 - ratio) >= 8)
    texts = ["x" * size for size in sizes]
    meta, _, val = prepared(texts, val_ratio=ratio, seed=seed, separator=None)
    assert abs(len(val) / sum(sizes) - ratio) <= 0.25 * min(ratio, 1 - ratio) + 1 / sum(sizes)
    by_hash = [size for number, size in enumerate(sizes) if is_val(seed, number, ratio)]
    assert meta.options is not None
    if abs(sum(by_hash) - ratio * sum(sizes)) <= 0.25 * min(ratio, 1 - ratio) * sum(sizes):
        assert (sum(by_hash), "documents") == (len(val), meta.options.split_by)
    if len(sizes) == 2:  # nothing but the texts decides
        other, *_ = prepared(texts, val_ratio=ratio, seed=seed + 1, separator=None)
        assert meta.options.split_by == "documents" or meta.val.sha256 == other.val.sha256


def test_a_line_end_tells_documents_apart(
    prepared: Prepared, code_point_tokenizer: Tokenizer
) -> None:
    """Where a vocabulary has no end token; none is needed for one document."""
    for texts, separator in ((["one poem", "two"], 10), ("one poem and more", None)):
        meta, train, val = prepared(texts, tokenizer=code_point_tokenizer, val_ratio=0.3)
        assert separator == (meta.separator and meta.separator.id)
        together = texts if isinstance(texts, str) else "".join(f"{text}\n" for text in texts)
        assert sorted(together) == sorted(code_point_tokenizer.decode(train + val))


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
        ({"split_by": "documents"}, "^one document cannot be split by documents; use "),
        ({"separator": 256}, "separator must be an integer from 0 to 255, found 256"),
        ({"separator": -1}, "separator must be"),
        ({"separator": True}, "separator must be"),
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


# --- where long texts are cut ---

# Few characters, so that every kind of neighbour turns up: spaces of several kinds, line ends,
# letters, symbols, a combining mark, the sign that sentencepiece writes for a space.
CUT_TEXTS = st.text(alphabet="ab. \n\r\t\u00a0\u2028\u0301\u2581\U0001f600", max_size=80)
WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def cut(text: str, chunk_chars: int, blocks: list[int] | None = None) -> tuple[list[str], int]:
    cutter = SafeCutter(chunk_chars)
    pieces = []
    start = 0
    for length in blocks or []:
        pieces += cutter.push(text[start : start + length])
        start += length
    pieces += cutter.push(text[start:])
    pieces += cutter.flush()
    return pieces, cutter.unsafe_cuts


@pytest.mark.property
@given(CUT_TEXTS, st.integers(1, 12), st.lists(st.integers(0, 30), max_size=12))
@example("a b", 1, [])
@example("aaaa aaaa aaaa", 4, [4, 1, 1])
@example("a" * 20 + " b", 4, [17, 1])
def test_pieces_are_the_text_and_short(text: str, chunk_chars: int, blocks: list[int]) -> None:
    """Joined pieces are the text; each has 1 to four times the target; arrival changes nothing."""
    pieces, unsafe_cuts = cut(text, chunk_chars)
    assert text == "".join(pieces)
    assert all(1 <= len(piece) <= 4 * chunk_chars for piece in pieces)
    assert (pieces, unsafe_cuts) == cut(text, chunk_chars, blocks)


@pytest.mark.property
@given(CUT_TEXTS, st.integers(1, 12))
@example("one two three four", 3)
@example("a\n\nb\n\nc\nd", 1)
def test_safe_cuts_part_no_word(text: str, chunk_chars: int) -> None:
    """D7: a cut before a space behind text, or behind a newline, parts no word; others count."""
    pieces, unsafe_cuts = cut(text, chunk_chars)
    others = 0
    for before, after in pairwise(pieces):
        before_space = after[0] == " " and not before[-1].isspace()
        after_newline = before[-1] == "\n" and not after[0].isspace()
        others += not (before_space or after_newline)
    assert unsafe_cuts >= others
    if unsafe_cuts == 0:
        words = [word for piece in pieces for word in WORDS.findall(piece)]
        assert WORDS.findall(text) == words


@pytest.mark.parametrize(
    ("text", "pieces", "unsafe_cuts"),
    [
        ("abcd efgh", ["abcd", " efgh"], 0),  # exactly at the target
        ("abcde fgh", ["abcde", " fgh"], 0),  # the first place past it
        ("abcd  efg", ["abcd", "  efg"], 0),  # before the first of two spaces
        ("abc  defg", ["abc  defg"], 0),  # the second of two spaces is no place
        ("abcd\nefgh ijkl", ["abcd\nefgh", " ijkl"], 0),  # a space beats an earlier newline
        ("abcd\nefghijklmnop", ["abcd\n", "efghijklmnop"], 0),  # no space within 16
        ("abcdefghijklmnop q", ["abcdefghijklmnop", " q"], 0),  # a space at the very limit
        ("abcdefghijklmnopq r", ["abcdefghijklmnop", "q r"], 1),  # one too far
        ("abcdefghijklmnop", ["abcdefghijklmnop"], 0),  # ends at the limit: no cut at all
        ("abcdefghijklmno\npq", ["abcdefghijklmno\n", "pq"], 0),  # a newline at the very limit
        ("abcdefghijklmnop\nq", ["abcdefghijklmnop", "\nq"], 1),  # one too far
        ("", [], 0),
    ],
)
def test_golden_cuts(text: str, pieces: list[str], unsafe_cuts: int) -> None:
    """The rule, spelled out for a target of 4 and so a maximum of 16."""
    assert (pieces, unsafe_cuts) == cut(text, 4)
