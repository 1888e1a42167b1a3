"""meta.json, and the strictness with which it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataMeta, MetaError, MissingMetaError, OptionError, SplitMeta, token_dtype
from yocto_data.meta import OptionsMeta, SeparatorMeta, SourceMeta, TextMeta, TokenizerMeta
from yocto_data.strict_json import parse

NewDirectory = Callable[[], Path]

COUNTS = st.integers(0, 2**62)
NAMES = st.none() | st.text(st.characters(codec="utf-8"), max_size=10)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def metas(draw: st.DrawFn) -> DataMeta:
    vocab_size = draw(st.integers(1, 2**32))
    itemsize = token_dtype(vocab_size).itemsize

    def split(name: str) -> SplitMeta:
        tokens = draw(COUNTS)
        return SplitMeta(
            file=f"{name}.bin",
            tokens=tokens,
            bytes=tokens * itemsize,
            sha256=draw(HASHES),
            max_id=draw(st.integers(0, vocab_size - 1)),
            documents=draw(st.none() | COUNTS),
        )

    text = TextMeta(
        encoding="utf-8",
        errors="strict",
        characters=draw(COUNTS),
        documents=draw(COUNTS),
        boms_dropped=draw(COUNTS),
        replaced=draw(COUNTS),
        control_characters=draw(COUNTS),
        unsafe_cuts=draw(COUNTS),
    )
    options = OptionsMeta(
        val_ratio=draw(st.floats(0, 1)),
        split_by=draw(st.sampled_from(["position", "documents"])),
        seed=draw(st.integers(0, 2**64 - 1)),
        chunk_chars=draw(st.integers(1, 2**40)),
        text_field=draw(st.text(st.characters(codec="utf-8"))),
    )
    separators = st.builds(SeparatorMeta, id=COUNTS, position=st.sampled_from(["before", "after"]))
    sources = st.builds(SourceMeta, name=st.text(), bytes=COUNTS, sha256=HASHES)
    return DataMeta(
        vocab_size=vocab_size,
        tokenizer=TokenizerMeta(
            kind=draw(NAMES), fingerprint=draw(NAMES), file="vocab.json", sha256=draw(NAMES)
        ),
        train=split("train"),
        val=split("val"),
        separator=draw(st.none() | separators),
        sources=tuple(draw(st.lists(sources, max_size=3))),
        text=draw(st.none() | st.just(text)),
        options=draw(st.none() | st.just(options)),
    )


@pytest.mark.property
@given(meta=metas())
def test_what_is_saved_is_loaded(new_directory: NewDirectory, meta: DataMeta) -> None:
    """Loading gives an equal value with an equal fingerprint; saving twice gives equal bytes."""
    folder = new_directory()
    path = meta.save(folder)
    first = path.read_bytes()
    loaded = DataMeta.load(folder)
    assert meta == loaded
    assert meta.fingerprint == loaded.fingerprint
    loaded.save(folder)
    assert first == path.read_bytes()
    assert [entry.name for entry in folder.iterdir()] == ["meta.json"]


@pytest.mark.property
@given(vocab_size=st.integers(1, 2**32))
@example(vocab_size=1 << 16)
@example(vocab_size=(1 << 16) + 1)
@example(vocab_size=1 << 32)
def test_the_dtype_holds_every_id(vocab_size: int) -> None:
    """The element type holds vocab_size - 1, is little-endian, and is 16 bits wide if that does."""
    dtype = token_dtype(vocab_size)
    assert vocab_size - 1 <= np.iinfo(dtype).max
    assert (vocab_size <= 1 << 16) == (dtype == np.dtype("<u2"))
    assert dtype in (np.dtype("<u2"), np.dtype("<u4"))


@pytest.mark.parametrize("vocab_size", [0, -1, 2**32 + 1, True, 65.0, "65", None])
def test_no_dtype_for_a_vocabulary_out_of_range(vocab_size: Any) -> None:
    """D14: the range is named."""
    with pytest.raises(OptionError, match="from 1 to 4294967296"):
        token_dtype(vocab_size)


def meta_of(**changes: Any) -> DataMeta:
    split: Any = {"tokens": 3, "bytes": 6, "sha256": "0" * 64, "max_id": 2, "documents": 1}
    values: dict[str, Any] = {
        "vocab_size": 5,
        "tokenizer": TokenizerMeta(kind="char", fingerprint=None, file=None, sha256=None),
        "train": SplitMeta(file="train.bin", **split),
        "val": SplitMeta(file="val.bin", **split),
    }
    return DataMeta(**{**values, **changes})


def document_of(meta: DataMeta, folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(meta.save(folder).read_text())
    return loaded


def change(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        document = document[parent]
    if value is ...:
        del document[key]
    else:
        document[key] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", "nanogpt", "format must be one of yocto-data"),
        ("format_version", 2, "format_version 2 is newer than 1"),
        ("format_version", True, "format_version must be an integer, found true or false"),
        ("format_version", 0, "at least 1"),
        ("dtype", "uint32", "dtype is uint32, but vocab_size 5 is stored as uint16"),
        ("dtype", "float32", "dtype must be one of uint16, uint32"),
        ("byte_order", "big", "byte_order must be one of little"),
        ("vocab_size", 6, "sha256 differs"),
        ("vocab_size", 2, "holds id 2, but vocab_size is 2"),
        ("vocab_size", "5", "vocab_size must be an integer, found a string"),
        ("vocab_size", 5.0, "vocab_size must be an integer, found a fraction"),
        ("vocab_size", 2**33, "from 1 to 4294967296"),
        ("splits", [], "splits must be an object, found a list"),
        ("splits.test", {}, "unknown key in splits: test"),
        ("splits.val", ..., "splits.val is missing"),
        ("splits.val.tokens", 4, "states 6 bytes, but 4 tokens of uint16 are 8"),
        ("splits.val.tokens", -3, "splits.val.tokens must be at least 0"),
        ("splits.val.tokens", None, "splits.val.tokens must be an integer, found null"),
        ("splits.val.file", "../val.bin", "must be a plain file name"),
        ("splits.val.file", "..", "must be a plain file name"),
        ("splits.val.file", "a\\b", "must be a plain file name"),
        ("tokenizer.file", "/etc/passwd", "must be a plain file name"),
        ("tokenizer", None, "tokenizer must be an object, found null"),
        ("sources", [1], r"sources\[0\] must be an object, found an integer"),
        ("separator", {"id": 1, "position": "between"}, "position must be one of before, after"),
        ("extra\x1b", 1, r"unknown key in the top level: extra\\x1b"),
        ("sha256", "0" * 64, "sha256 differs"),
        ("sha256", ..., "sha256 is missing"),
        ("text", {}, "text.newlines is missing"),
    ],
)
def test_a_wrong_member_is_named(tmp_path: Path, path: str, value: Any, says: str) -> None:
    """Whatever member is missing, added, or of another type or range: one line that names it."""
    document = document_of(meta_of(), tmp_path)
    change(document, path, value)
    (tmp_path / "meta.json").write_text(json.dumps(document))
    with pytest.raises(MetaError, match=says) as caught:
        DataMeta.load(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1, column 2"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[]", "the top level must be an object, found a list"),
        (b"null", "found null"),
        (b'{"format": "yocto-data", "format": "yocto-data"}', "'format' stands there twice"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "d": 3}}', "'d' stands there twice"),
        (b'{"format_version": NaN}', "NaN is not a number"),
        (b'{"format_version": -Infinity}', "-Infinity is not a number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "digits"),
        (b"\x80\x04\x95", "not UTF-8 at byte 0"),
    ],
)
def test_what_is_no_strict_json_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """JSON that another reader would let pass, or choke on, is one line here."""
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(MetaError, match=says) as caught:
        DataMeta.load(tmp_path)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_no_meta_is_an_error_of_its_own(tmp_path: Path) -> None:
    """B6: without meta.json nothing is guessed, and the message says what to run."""
    with pytest.raises(MissingMetaError, match="run yocto-prepare"):
        DataMeta.load(tmp_path)


def test_a_huge_meta_is_not_read(tmp_path: Path) -> None:
    """The size is looked at before the content: a sparse terabyte takes no memory."""
    with (tmp_path / "meta.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MetaError, match="too large"):
        DataMeta.load(tmp_path)


@pytest.mark.property
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_strict_json_reads_what_json_writes(value: object) -> None:
    """Strictness refuses nothing that a correct writer produces."""
    assert value == parse(json.dumps(value))


@pytest.mark.property
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_not_crashed_on(new_directory: NewDirectory, data: bytes) -> None:
    """Any bytes as meta.json: our error, and nothing else."""
    folder = new_directory()
    (folder / "meta.json").write_bytes(data)
    with pytest.raises(MetaError):
        DataMeta.load(folder)


@pytest.mark.property
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(
    new_directory: NewDirectory, position: int, bit: int
) -> None:
    """A damaged meta.json never loads as another value: refused, or equal (white space)."""
    folder = new_directory()
    meta = meta_of()
    data = bytearray(meta.save(folder).read_bytes())
    data[position % len(data)] ^= 1 << bit
    (folder / "meta.json").write_bytes(bytes(data))
    try:
        assert meta == DataMeta.load(folder)
    except MetaError:
        return
