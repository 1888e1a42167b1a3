"""meta.json, and the strictness with which it is read."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import (
    DataError,
    DataMeta,
    MissingMetaError,
    SplitMeta,
    TokenDataset,
    prepare,
    token_dtype,
)
from yocto_data.prep.meta import (
    ChatsMeta,
    ChatSplitMeta,
    CountMeta,
    OptionsMeta,
    TokenizerMeta,
)

NewDirectory = Callable[[], Path]


@st.composite
def metas(draw: st.DrawFn) -> DataMeta:
    """Anything of the right types, as far as its sizes agree."""
    vocab_size = draw(st.integers(1, 2**32))

    def splits(name: str) -> st.SearchStrategy[SplitMeta]:
        tokens = draw(st.integers(0, 2**62))
        return st.builds(
            SplitMeta,
            file=st.just(f"{name}.bin"),
            tokens=st.just(tokens),
            bytes=st.just(tokens * token_dtype(vocab_size).itemsize),
            max_id=st.integers(0, vocab_size - 1),
        )

    options = st.none() | st.builds(OptionsMeta, val_ratio=st.floats(0, 1))
    tokenizers = st.builds(TokenizerMeta, file=st.just("vocab.json"), kind=..., fingerprint=...)
    return draw(
        st.builds(
            DataMeta, vocab_size=st.just(vocab_size), train=splits("train"), val=splits("val"),
            tokenizer=tokenizers, options=options, separator=..., sources=..., text=...,
        )
    )  # fmt: skip


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
def test_no_vocabulary_out_of_range(tmp_path: Path, vocab_size: Any) -> None:
    """D14: wherever a vocabulary's size is given, its range is named."""
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.bin").write_bytes(b"\0" * 8)
    tokenizer: Any = SimpleNamespace(vocab_size=vocab_size)
    calls: list[Callable[[], object]] = [
        partial(token_dtype, vocab_size),
        partial(prepare, tmp_path / "a.txt", tmp_path / "out", tokenizer=tokenizer),
    ]
    if vocab_size is not None:
        calls += [
            partial(TokenDataset, tmp_path / "a.bin", 1, dtype="uint16", vocab_size=vocab_size)
        ]
    for call in calls:
        with pytest.raises(DataError, match="vocab_size must be an integer from 1 to 4294967296"):
            call()


def chats_of(trained: int) -> ChatsMeta:
    beside = ChatSplitMeta(mask="0" * 64, starts="0" * 64, trained=trained)
    return ChatsMeta(
        template="0" * 64, formats=(CountMeta(what="text", count=1),), conversations=1, replies=1,
        texts=0, untrained=0, dropped=(), train=beside, val=beside,
    )  # fmt: skip


def meta_of(chats: ChatsMeta | None = None) -> DataMeta:
    split: Any = {"tokens": 3, "bytes": 6, "sha256": "0" * 64, "max_id": 2, "documents": 1}
    return DataMeta(
        vocab_size=5,
        tokenizer=TokenizerMeta(kind="char"),
        train=SplitMeta(file="train.bin", **split),
        val=SplitMeta(file="val.bin", **split),
        chats=chats,
    )


def sealed(document: dict[str, Any]) -> str:
    """A document as somebody would write it who knows how it is sealed."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=2)


def change(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        document = document[parent]
    if value is ...:
        del document[key]
    else:
        document[key] = value


DAMAGED = "was damaged or edited"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", "nanogpt", "its format must be yocto-data"),
        ("format_version", 2, "format_version is 2, but this yocto-data reads 1; update"),
        ("format_version", True, DAMAGED),
        ("format_version", "2" * 9999, "format_version is '2222"),
        ("dtype", "uint32", DAMAGED),
        ("byte_order", "big", DAMAGED),
        ("vocab_size", 2, "holds id 2, but vocab_size is 2"),
        ("vocab_size", "5", DAMAGED),
        ("vocab_size", 5.0, DAMAGED),
        ("vocab_size", 2**33, "from 1 to 4294967296"),
        ("splits", [], DAMAGED),
        ("test", {}, DAMAGED),
        ("splits.val", ..., "no 'val'"),
        ("splits.val.extra", 1, DAMAGED),
        ("splits.val.file", ..., DAMAGED),
        ("splits.val.tokens", 4, "states 6 bytes, but 4 tokens of uint16 take 8"),
        ("splits.val.tokens", None, DAMAGED),
        ("splits.val.documents", True, DAMAGED),
        ("splits.val.documents", 1.0, DAMAGED),
        ("splits.val.file", "../val.bin", "named without a folder"),
        ("splits.val.file", "..", "named without a folder"),
        ("splits.val.file", "a\\b", "named without a folder"),
        ("tokenizer.file", "/etc/passwd", "named without a folder"),
        ("tokenizer.kind", ["char"], DAMAGED),
        ("tokenizer", None, DAMAGED),
        ("sources", [1], DAMAGED),
        ("sources", {}, DAMAGED),
        ("separator", {"id": 1, "position": "between"}, DAMAGED),
        ("extra\x1b", 1, DAMAGED),
        ("text", {}, DAMAGED),
        ("text", "x" * 99_999, DAMAGED),
        ("chats", None, DAMAGED),  # texts have no such key
        ("chats.val", ..., DAMAGED),
        ("chats.template", {}, DAMAGED),
        ("chats.formats", [["text", 1]], DAMAGED),
        ("chats.val.trained", 4, "states 4 of 3 tokens as learned"),
        ("chats.val.trained", True, DAMAGED),
    ],
)
def test_a_wrong_member_is_refused(tmp_path: Path, path: str, value: Any, says: str) -> None:
    """Whatever member is missing, added, or of another type or range, though well sealed."""
    chats = chats_of(3) if path.startswith("chats.") else None
    document = json.loads(meta_of(chats).save(tmp_path).read_text())
    change(document, path, value)
    (tmp_path / "meta.json").write_text(sealed(document) + "\n")
    with pytest.raises(DataError, match=says) as caught:
        DataMeta.load(tmp_path)
    assert type(caught.value) is DataError
    assert len(str(caught.value)) < 500


def test_what_is_well_sealed_is_read(tmp_path: Path) -> None:
    """The seal of the test above is the right one; without it, or with another, nothing is read."""
    meta = meta_of(chats_of(3))
    text = meta.save(tmp_path).read_text()
    document = json.loads(text)
    assert meta == DataMeta.load(tmp_path)
    assert text == sealed(document) + "\n"
    for seal in ("0" * 64, None):
        (tmp_path / "meta.json").write_text(json.dumps({**document, "sha256": seal}, indent=2))
        with pytest.raises(DataError, match=DAMAGED):
            DataMeta.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[]", b"null", b'"format"', b'{"format": NaN}',
     b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b"\x80\x04\x95",
     b'{"format": "yocto-data", "format": "yocto-data", "format_version": 1}'],
)  # fmt: skip
def test_what_is_no_meta_is_refused(tmp_path: Path, content: bytes) -> None:
    """JSON that another reader would let pass, or choke on, is one line here."""
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(DataError, match=DAMAGED) as caught:
        DataMeta.load(tmp_path)
    assert len(str(caught.value)) < 500


def test_no_meta_and_a_huge_one(tmp_path: Path) -> None:
    """B6: without meta.json the message says what to run; a sparse terabyte takes no memory."""
    with pytest.raises(MissingMetaError, match="run yocto-prepare"):
        DataMeta.load(tmp_path)
    with (tmp_path / "meta.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="larger than any"):
        DataMeta.load(tmp_path)


@pytest.mark.property
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_not_crashed_on(new_directory: NewDirectory, data: bytes) -> None:
    """Any bytes as meta.json: our error, and nothing else."""
    folder = new_directory()
    (folder / "meta.json").write_bytes(data)
    with pytest.raises(DataError):
        DataMeta.load(folder)


@pytest.mark.property
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_a_flipped_bit_or_a_cut_is_refused(
    new_directory: NewDirectory, position: int, bit: int, cut: bool
) -> None:
    """A damaged meta.json never loads."""
    folder = new_directory()
    data = bytearray(meta_of().save(folder).read_bytes())
    if cut:
        del data[position % len(data) :]
    else:
        data[position % len(data)] ^= 1 << bit
    (folder / "meta.json").write_bytes(bytes(data))
    with pytest.raises(DataError):
        DataMeta.load(folder)
