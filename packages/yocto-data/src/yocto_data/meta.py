"""meta.json: what a data directory holds, so that nothing about a .bin file is ever guessed."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from yocto_data import fsops
from yocto_data.errors import MetaError, MissingMetaError, reason, show
from yocto_data.options import require_integer
from yocto_data.regular import open_regular
from yocto_data.strict_json import Fields, parse

FORMAT = "yocto-data"
FORMAT_VERSION = 1
META_NAME = "meta.json"
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
LARGEST_VOCABULARY = 1 << 32

_MAX_META_BYTES = 256 << 20


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The element type of .bin files: ``<u2`` up to 65,536 ids, ``<u4`` beyond.

    Raises:
        OptionError: the vocabulary is empty, or does not fit 32 bits.
    """
    require_integer("vocab_size", vocab_size, 1, LARGEST_VOCABULARY)
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, kw_only=True)
class TokenizerMeta:
    """Which tokenizer made the ids; a member is None where the tokenizer does not offer it."""

    kind: str | None
    fingerprint: str | None
    file: str | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class SplitMeta:
    """One .bin file. ``documents`` is None where nobody counted them (imported files)."""

    file: str
    tokens: int
    bytes: int
    sha256: str
    max_id: int
    documents: int | None


@dataclass(frozen=True, kw_only=True)
class SeparatorMeta:
    """The id that stands before or after each document."""

    id: int
    position: Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class SourceMeta:
    """An input file: base name only, since absolute paths mean nothing elsewhere."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TextMeta:
    """How bytes became text: line ends are always kept, everything else is counted."""

    encoding: str
    errors: str
    newlines: Literal["kept"] = "kept"
    characters: int
    documents: int
    boms_dropped: int
    replaced: int
    control_characters: int
    unsafe_cuts: int


@dataclass(frozen=True, kw_only=True)
class OptionsMeta:
    """The settings that shaped the files."""

    val_ratio: float
    split_by: Literal["position", "documents"]
    seed: int
    chunk_chars: int
    text_field: str


@dataclass(frozen=True, kw_only=True)
class DataMeta:
    """The content of meta.json. Holds no time and no path: equal inputs give equal files.

    ``text`` and ``options`` are None for files that were imported rather than prepared.
    """

    vocab_size: int
    tokenizer: TokenizerMeta
    train: SplitMeta
    val: SplitMeta
    separator: SeparatorMeta | None = None
    sources: tuple[SourceMeta, ...] = ()
    text: TextMeta | None = None
    options: OptionsMeta | None = None

    def __post_init__(self) -> None:
        itemsize = self.dtype.itemsize
        for name in SPLITS:
            split = self.split(name)
            if split.bytes != split.tokens * itemsize:
                raise MetaError(
                    f"splits.{name} states {split.bytes} bytes, but {split.tokens} tokens of "
                    f"{self.dtype.name} are {split.tokens * itemsize}"
                )
            if split.max_id >= self.vocab_size:
                raise MetaError(
                    f"splits.{name} holds id {split.max_id}, but vocab_size is {self.vocab_size}"
                )

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The element type of both .bin files."""
        return token_dtype(self.vocab_size)

    @property
    def fingerprint(self) -> str:
        """sha256 hex of the canonical content: what a checkpoint records as its data."""
        return hashlib.sha256(_canonical(self._document()).encode()).hexdigest()

    def split(self, name: Literal["train", "val"]) -> SplitMeta:
        """The record of a split, by name."""
        return self.train if name == "train" else self.val

    def split_of_file(self, file_name: str) -> SplitMeta | None:
        """The record of a .bin file, by its base name; None for a file that is not listed."""
        return next((s for s in (self.train, self.val) if s.file == file_name), None)

    @classmethod
    def load(cls, data_dir: str | Path) -> DataMeta:
        """Read and check ``meta.json`` of a data directory.

        Raises:
            MissingMetaError: there is none.
            MetaError: it is malformed, was changed by hand, or its format is newer than this.
        """
        path = Path(data_dir) / META_NAME
        try:
            with open_regular(path) as file:
                size_bytes = file.seek(0, 2)
                file.seek(0)
                raw = file.read() if size_bytes <= _MAX_META_BYTES else b""
        except FileNotFoundError as error:
            raise MissingMetaError(
                f"no {META_NAME} in {show(path.parent)}, and a dtype is never guessed; "
                "run yocto-prepare"
            ) from error
        except OSError as error:
            raise MetaError(f"cannot read {show(path)}: {reason(error)}") from error
        if size_bytes > _MAX_META_BYTES:
            raise MetaError(f"{show(path)}: {size_bytes} bytes is too large for a meta.json")
        try:
            return _read(parse(raw.decode("utf-8")))
        except UnicodeDecodeError as error:
            raise MetaError(f"{show(path)}: not UTF-8 at byte {error.start}") from error
        except ValueError as error:
            raise MetaError(f"{show(path)}: {error}") from error

    def save(self, data_dir: str | Path) -> Path:
        """Write ``meta.json`` into a directory, synced and whole or not at all.

        Raises:
            WriteError: the system refused.
        """
        path = Path(data_dir) / META_NAME
        temporary = path.with_name(f".{META_NAME}.tmp-{secrets.token_hex(4)}")
        document = {**self._document(), "sha256": self.fingerprint}
        text = json.dumps(document, indent=2) + "\n"
        with fsops.translated(path):
            file = fsops.HashingFile(temporary)
            try:
                file.write(text.encode("ascii"))
                file.close()
            except BaseException:
                file.abandon()
                raise
            fsops.replace(temporary, path)
            fsops.sync_directory(path.parent)
        return path

    def _document(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "byte_order": "little",
            "vocab_size": self.vocab_size,
            "tokenizer": asdict(self.tokenizer),
            "splits": {name: asdict(self.split(name)) for name in SPLITS},
            "separator": asdict(self.separator) if self.separator else None,
            "sources": [asdict(source) for source in self.sources],
            "text": asdict(self.text) if self.text else None,
            "options": asdict(self.options) if self.options else None,
        }


def _canonical(document: object) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _read(value: object) -> DataMeta:
    fields = Fields(value, "", MetaError)
    fields.choice("format", (FORMAT,))
    version = fields.integer("format_version", minimum=1)
    if version > FORMAT_VERSION:
        raise MetaError(
            f"format_version {version} is newer than {FORMAT_VERSION}, which this yocto-data "
            "reads; update yocto-data"
        )
    dtype = fields.choice("dtype", ("uint16", "uint32"))
    fields.choice("byte_order", ("little",))
    splits = fields.nested("splits")
    stated = fields.string("sha256")
    meta = DataMeta(
        vocab_size=fields.integer("vocab_size", minimum=1),
        tokenizer=_read_tokenizer(fields.nested("tokenizer")),
        train=_read_split(splits.nested("train")),
        val=_read_split(splits.nested("val")),
        separator=(
            None if fields.absent("separator") else _read_separator(fields.nested("separator"))
        ),
        sources=tuple(
            _read_source(Fields(item, f"sources[{index}]", MetaError))
            for index, item in enumerate(fields.array("sources"))
        ),
        text=None if fields.absent("text") else _read_text(fields.nested("text")),
        options=None if fields.absent("options") else _read_options(fields.nested("options")),
    )
    splits.finish()
    fields.finish()
    if dtype != meta.dtype.name:
        raise MetaError(
            f"dtype is {dtype}, but vocab_size {meta.vocab_size} is stored as {meta.dtype.name}"
        )
    if stated != meta.fingerprint:
        raise MetaError(
            "its own sha256 differs, so it was damaged or edited; run yocto-prepare again"
        )
    return meta


def _text_or_null(fields: Fields, key: str) -> str | None:
    return None if fields.absent(key) else fields.string(key)


def _plain_name(fields: Fields, key: str) -> str:
    name = fields.string(key)
    if name != Path(name).name or "\\" in name or name in {"", ".", ".."}:
        raise MetaError(f"{key} must be a plain file name, found '{show(name)}'")
    return name


def _read_tokenizer(fields: Fields) -> TokenizerMeta:
    tokenizer = TokenizerMeta(
        kind=_text_or_null(fields, "kind"),
        fingerprint=_text_or_null(fields, "fingerprint"),
        file=None if fields.absent("file") else _plain_name(fields, "file"),
        sha256=_text_or_null(fields, "sha256"),
    )
    fields.finish()
    return tokenizer


def _read_split(fields: Fields) -> SplitMeta:
    split = SplitMeta(
        file=_plain_name(fields, "file"),
        tokens=fields.integer("tokens"),
        bytes=fields.integer("bytes"),
        sha256=fields.string("sha256"),
        max_id=fields.integer("max_id"),
        documents=None if fields.absent("documents") else fields.integer("documents"),
    )
    fields.finish()
    return split


def _read_separator(fields: Fields) -> SeparatorMeta:
    position = fields.choice("position", ("before", "after"))
    separator = SeparatorMeta(
        id=fields.integer("id"), position=cast("Literal['before', 'after']", position)
    )
    fields.finish()
    return separator


def _read_source(fields: Fields) -> SourceMeta:
    source = SourceMeta(
        name=fields.string("name"), bytes=fields.integer("bytes"), sha256=fields.string("sha256")
    )
    fields.finish()
    return source


def _read_text(fields: Fields) -> TextMeta:
    fields.choice("newlines", ("kept",))
    text = TextMeta(
        encoding=fields.string("encoding"),
        errors=fields.string("errors"),
        characters=fields.integer("characters"),
        documents=fields.integer("documents"),
        boms_dropped=fields.integer("boms_dropped"),
        replaced=fields.integer("replaced"),
        control_characters=fields.integer("control_characters"),
        unsafe_cuts=fields.integer("unsafe_cuts"),
    )
    fields.finish()
    return text


def _read_options(fields: Fields) -> OptionsMeta:
    split_by = fields.choice("split_by", ("position", "documents"))
    options = OptionsMeta(
        val_ratio=fields.number("val_ratio"),
        split_by=cast("Literal['position', 'documents']", split_by),
        seed=fields.integer("seed"),
        chunk_chars=fields.integer("chunk_chars", minimum=1),
        text_field=fields.string("text_field"),
    )
    fields.finish()
    return options
