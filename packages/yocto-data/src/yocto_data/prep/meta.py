"""meta.json: what a data directory holds, so that nobody has to guess what a .bin file means."""

import hashlib
import json
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np

from yocto_data.errors import DataError, MissingMetaError, integer, reason, shorten, writing
from yocto_data.prep import files

FORMAT = "yocto-data"
FORMAT_VERSION = 1
META_NAME = "meta.json"
TEMPLATE_NAME = "chat_template.jinja"
LARGEST_VOCABULARY = 1 << 32

_MAX_META_BYTES = 256 << 20


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The element type of .bin files: `<u2` up to 65,536 ids, `<u4` beyond.

    Raises:
        DataError: the vocabulary is empty, or does not fit 32 bits.
    """
    vocab_size = integer("vocab_size", vocab_size, 1, LARGEST_VOCABULARY)
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, kw_only=True)
class TokenizerMeta:
    """Which tokenizer made the ids; a member is None where the tokenizer does not offer it."""

    kind: str | None = None
    fingerprint: str | None = None
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitMeta:
    """One .bin file. `documents` is None where nobody counted them (imported files)."""

    file: str
    tokens: int
    bytes: int
    sha256: str
    max_id: int
    documents: int | None


@dataclass(frozen=True, kw_only=True)
class SeparatorMeta:
    """The id that comes after each document."""

    id: int
    position: Literal["before", "after"] = "after"  # `before` only in files of earlier versions


@dataclass(frozen=True, kw_only=True)
class SourceMeta:
    """An input file: base name only, since absolute paths mean nothing elsewhere.

    Of a parquet file the sha256 is that of its rows as lines of JSON.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TextMeta:
    """How bytes became text: everything that was changed or is unusual is counted.

    `newlines` is `lf` where other line ends became LF. `empty_documents` are files and records
    without text, which were passed over.
    """

    encoding: str
    errors: str
    newlines: Literal["kept", "lf"]
    characters: int
    documents: int
    empty_documents: int
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
class ChatSplitMeta:
    """What lies beside the .bin file of a split of chats, and how many tokens are learned.

    `mask` and `starts` are the sha256 of two files named after it. The first holds a bit for each
    token, the lowest of a byte first, which is 1 where the token is learned; the second the first
    token of each document, as little-endian 64-bit integers.
    """

    mask: str
    starts: str
    trained: int


@dataclass(frozen=True, kw_only=True)
class CountMeta:
    """How often something was met, and maybe where first."""

    what: str
    count: int
    first: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChatsMeta:
    """What the conversations were, and how the model is to be asked: by the template, if any.

    `template` is the sha256 of chat_template.jinja. `formats` counts records of JSON, and other
    files; `dropped` records that could not be used, by the reason. `conversations` and `texts`
    (parts of documents) are what the splits hold together; `untrained` conversations had no reply
    to learn from, and were left out.
    """

    template: str | None
    formats: tuple[CountMeta, ...]
    conversations: int
    replies: int
    texts: int
    untrained: int
    dropped: tuple[CountMeta, ...]
    train: ChatSplitMeta
    val: ChatSplitMeta


@dataclass(frozen=True, kw_only=True)
class DataMeta:
    """The content of meta.json. It holds no time and no path: equal inputs give equal files.

    `text` and `options` are None for files that were imported rather than prepared; `chats` is None
    for texts, and then has no key in the file.
    """

    vocab_size: int
    tokenizer: TokenizerMeta
    train: SplitMeta
    val: SplitMeta
    separator: SeparatorMeta | None = None
    sources: tuple[SourceMeta, ...] = ()
    text: TextMeta | None = None
    options: OptionsMeta | None = None
    chats: ChatsMeta | None = None

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("val", self.val)):
            if split.bytes != (expected := split.tokens * self.dtype.itemsize):
                raise DataError(
                    f"splits.{name} states {split.bytes} bytes, but {split.tokens} tokens of "
                    f"{self.dtype.name} take {expected}"
                )
            if split.max_id >= self.vocab_size:
                raise DataError(
                    f"splits.{name} holds id {split.max_id}, but vocab_size is {self.vocab_size}"
                )
            if self.chats is not None:
                trained = getattr(self.chats, name).trained
                if not 0 <= trained <= split.tokens:
                    raise DataError(
                        f"chats.{name} states {trained} of {split.tokens} tokens as learned"
                    )
        for file in (self.train.file, self.val.file, self.tokenizer.file):
            if file is not None and (file != Path(file).name or "\\" in file or file == ".."):
                raise DataError(f"a file must be named without a folder, found '{shorten(file)}'")

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The element type of both .bin files."""
        return token_dtype(self.vocab_size)

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the canonical content: what a checkpoint records as its data."""
        content = json.dumps(self._document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def split_of_file(self, file_name: str) -> SplitMeta | None:
        """The record of a .bin file, by its base name; None for a file that is not listed."""
        return next((s for s in (self.train, self.val) if s.file == file_name), None)

    def chats_of_file(self, file_name: str) -> ChatSplitMeta | None:
        """What lies beside a .bin file, by its base name; None if it does not hold chats."""
        if self.chats is None:
            return None
        return {self.train.file: self.chats.train, self.val.file: self.chats.val}.get(file_name)

    @classmethod
    def load(cls, data_dir: str | Path) -> Self:
        """Read `meta.json` of a data directory: only what `save` would write again is accepted.

        Raises:
            MissingMetaError: there is none.
            DataError: it was damaged or edited, or its format is newer than this version reads.
        """
        path = Path(data_dir) / META_NAME
        try:
            with files.open_regular(path) as file:
                raw = file.read(_MAX_META_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingMetaError(
                f"{shorten(path.parent)} is not a prepared data directory: there is no {META_NAME} "
                "in it; run yocto-prepare on the text first"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {shorten(path)}: {reason(error)}") from error
        if len(raw) > _MAX_META_BYTES:
            raise DataError(f"{shorten(path)} is larger than any {META_NAME}")
        try:
            meta = cls._of(json.loads(raw))
            if meta.to_json() != raw.decode("ascii"):
                raise ValueError("yocto-data would write this content differently")
        except DataError as error:  # its message already says what is wrong
            raise DataError(f"{shorten(path)}: {error}") from error
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{shorten(path)} was damaged or edited ({shorten(detail)}); run yocto-prepare "
                "again"
            ) from error
        return meta

    def save(self, data_dir: str | Path) -> Path:
        """Write `meta.json` into a directory, synced and whole or not at all."""
        path = Path(data_dir) / META_NAME
        with writing(path):
            files.replace_file(path, self.to_json().encode("ascii"))
        return path

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Self:
        """The value of a document; whatever else is wrong shows when it is written again."""
        if document["format"] != FORMAT:
            raise ValueError(f"its format must be {FORMAT}")
        if (version := document["format_version"]) != FORMAT_VERSION:
            raise DataError(
                f"format_version is {shorten(repr(version))}, but this yocto-data reads "
                f"{FORMAT_VERSION}; update yocto-data, or run yocto-prepare again"
            )
        members = {"chats": None, **document, **document["splits"]}
        meta: Self = _read(cls, {name: members[name] for name in get_type_hints(cls)})
        return meta

    def to_json(self) -> str:
        """What `meta.json` holds, sealed with its own sha256."""
        return json.dumps({**self._document(), "sha256": self.fingerprint}, indent=2) + "\n"

    def _document(self) -> dict[str, object]:
        members = asdict(self)
        if self.chats is None:
            del members["chats"]  # texts are described as they were before there were chats
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "byte_order": "little",
            "splits": {"train": members.pop("train"), "val": members.pop("val")},
            **members,
        }


def _read(hint: Any, value: Any) -> Any:
    """A JSON value, if it has exactly this type: for an int, neither True nor 1.0 will do."""
    kinds = get_args(hint) or (hint,)  # the types of a union or tuple, the values of a Literal
    if get_origin(hint) is tuple:
        return tuple(_read(kinds[0], each) for each in value)
    record: Any = kinds[0] if is_dataclass(kinds[0]) else None
    if record is not None and value is not None:
        hints = get_type_hints(record)
        return record(**{name: _read(hints[name], member) for name, member in value.items()})
    if type(value) not in kinds and value not in kinds:
        raise ValueError(f"{value!r} has the wrong type")
    return value
