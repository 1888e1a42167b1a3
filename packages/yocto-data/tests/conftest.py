"""Tokenizers of a few lines, data directories made by hand, and what "refused" means."""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from yocto_data import (
    DataError,
    DataMeta,
    SplitMeta,
    TokenDataset,
    Tokenizer,
    load_bin,
    prepare,
    token_dtype,
)
from yocto_data.prep.meta import TokenizerMeta

NewDirectory = Callable[[], Path]


class ByteTokenizer:
    """One id per byte of UTF-8; lossless, and additive at every place."""

    kind = "byte"
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    def save(self, path: str | os.PathLike[str]) -> Path:
        file = Path(path) / "tokenizer.json"
        file.write_text("{}")
        return file

    def fingerprint(self) -> str:
        return "b" * 64


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def code_point_tokenizer() -> Tokenizer:
    """One id per character, far more than 16 bits hold; has neither `save` nor a name."""
    return SimpleNamespace(
        vocab_size=0x110000,
        encode=lambda text: [ord(character) for character in text],
        decode=lambda ids: "".join(map(chr, ids)),
    )


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """Runs of space, words and symbols, each by a hash: additive at safe cuts only."""

    def encode(text: str) -> list[int]:
        words = re.findall(r"\s+|\w+|[^\w\s]", text)
        return [zlib.crc32(word.encode()) % (1 << 20) for word in words]

    return SimpleNamespace(vocab_size=1 << 20, encode=encode, decode=None)


@pytest.fixture(scope="session")
def new_directory(tmp_path_factory: pytest.TempPathFactory) -> NewDirectory:
    """A fresh directory per call, so that each generated case has its own."""
    return lambda: tmp_path_factory.mktemp("case")


MakeData = Callable[..., Path]


@pytest.fixture(scope="session")
def make_data(new_directory: NewDirectory) -> MakeData:
    """Write train.bin, val.bin and a meta.json that is true of them."""

    def make(
        train: Sequence[int] | np.ndarray,
        val: Sequence[int] | np.ndarray = (0, 1),
        *,
        vocab_size: int = 1 << 16,
        directory: Path | None = None,
    ) -> Path:
        directory = directory or new_directory()
        dtype = token_dtype(vocab_size)
        splits: dict[str, Any] = {}
        for name, tokens in (("train", train), ("val", val)):
            array = np.asarray(tokens).astype(dtype)
            data = array.tobytes()
            (directory / f"{name}.bin").write_bytes(data)
            splits[name] = SplitMeta(
                file=f"{name}.bin",
                tokens=len(array),
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                max_id=int(array.max(initial=0)),
                documents=1,
            )
        DataMeta(vocab_size=vocab_size, tokenizer=TokenizerMeta(), **splits).save(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def dataset_of(make_data: MakeData) -> Callable[[int, int], TokenDataset]:
    """Data sets whose tokens are their own positions, each size written once."""
    known: dict[tuple[int, int], TokenDataset] = {}

    def make(n_tokens: int, block_size: int) -> TokenDataset:
        if (n_tokens, block_size) not in known:
            path = make_data(range(n_tokens)) / "train.bin"
            known[n_tokens, block_size] = TokenDataset(path, block_size)
        return known[n_tokens, block_size]

    return make


def _write(folder: Path, texts: str | Sequence[str]) -> Path:
    """One text as a .txt file, several as records."""
    if isinstance(texts, str):
        (folder / "a.txt").write_bytes(texts.encode())
        return folder / "a.txt"
    records = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "a.jsonl").write_text(records)
    return folder / "a.jsonl"


Prepared = Callable[..., tuple[DataMeta, list[int], list[int]]]


@pytest.fixture(scope="session")
def prepared(new_directory: NewDirectory, byte_tokenizer: Tokenizer) -> Prepared:
    """Prepare texts in a directory: the meta.json, and the ids of both splits."""

    def call(
        texts: str | Sequence[str], folder: Path | None = None, **options: Any
    ) -> tuple[DataMeta, list[int], list[int]]:
        folder = folder or new_directory()
        options.setdefault("tokenizer", byte_tokenizer)
        options.setdefault("val_ratio", 0.5)
        meta = prepare(_write(folder, texts), folder / "out", **options)
        assert meta == DataMeta.load(folder / "out")
        train, val = (load_bin(folder / "out" / f"{name}.bin") for name in ("train", "val"))
        return meta, train.tolist(), val.tolist()

    return call


Prepare = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: Tokenizer) -> Prepare:
    """Prepare a source into tmp_path/out."""

    def call(source: Any, **options: Any) -> Any:
        options.setdefault("tokenizer", byte_tokenizer)
        options.setdefault("val_ratio", 0.5)
        return prepare(source, options.pop("out", tmp_path / "out"), **options)

    return call


def _snapshot(directory: Path) -> dict[str, bytes | None]:
    def content(path: Path) -> bytes | None:
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None

    return {str(path.relative_to(directory)): content(path) for path in directory.rglob("*")}


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Call something that must raise one of our errors: a short message, nothing written."""

    def call(kind: type[DataError], function: Callable[[], object]) -> str:
        before = _snapshot(tmp_path)
        with pytest.raises(kind) as caught:
            function()
        message = str(caught.value)
        assert type(caught.value) is kind
        assert 0 < len(message) <= 400, message
        assert before == _snapshot(tmp_path)
        return message

    return call
