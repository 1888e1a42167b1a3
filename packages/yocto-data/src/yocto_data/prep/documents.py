"""Sources to documents, one per text file or record of a .jsonl file; and the settings for that."""

# ruff: noqa: RUF009 - setting makes a field, as dataclasses.field does

import io
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple, Self, get_args

from yocto_data.errors import DataError, integer, require_one_of, shorten
from yocto_data.prep.meta import SourceMeta
from yocto_data.prep.sources import Errors, Source, SourceFile, TextDecoder, check_encoding

SplitBy = Literal["auto", "position", "documents"]

# A record is parsed in one piece; this bounds the memory it may take.
MAX_RECORD_CHARS = 64 << 20
_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "an object",
          list: "a list", str: "a string", type(None): "null"}  # fmt: skip
# The default decoder refuses whole numbers of thousands of digits.
JSON_DECODER = json.JSONDecoder(parse_int=float)


def setting(default: Any, text: str) -> Any:
    """A field with a help text, from which a command line can make its flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The settings of `prepare` and, as far as they concern reading, of `iter_texts`.

    Each field's metadata holds a "help" text, from which a command line can make its flags. A value
    out of its range is a `DataError`.
    """

    val_ratio: float = setting(0.1, "share of the text kept for validation")
    seed: int = setting(1337, "chooses the documents kept for validation")
    encoding: str = setting("utf-8", "encoding of the texts")
    errors: Errors = setting("strict", "what to do with bytes that are not in that encoding")
    keep_cr: bool = setting(False, "keep line ends of Windows (CR LF) and of old Macs (CR)")
    text_field: str = setting("text", "key of the text in .jsonl records")
    split_by: SplitBy = setting("auto", "cut the text at one position, or keep its documents whole")
    separator: int | Literal["auto"] | None = setting(
        "auto", "id behind each document; auto: the tokenizer's end token, or a line end"
    )
    chunk_chars: int = setting(1 << 20, "about how many characters are encoded at a time")

    def __post_init__(self) -> None:
        if not 0 < self.val_ratio < 1:  # nan fails, too
            raise DataError(f"val_ratio must be above 0 and below 1, found {self.val_ratio!r}")
        require_one_of("split_by", self.split_by, get_args(SplitBy))
        require_one_of("errors", self.errors, get_args(Errors))
        plain = {
            "val_ratio": float(self.val_ratio),
            "seed": integer("seed", self.seed, 0, (1 << 64) - 1),
            "encoding": check_encoding(self.encoding),
            "chunk_chars": integer("chunk_chars", self.chunk_chars, 1),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)


class TextPart(NamedTuple):
    """A stretch of a document, encoded at once; of chats, text outside any conversation."""

    text: str
    ends: bool = True  # whether its document ends here; a long one comes in several parts


class Document(NamedTuple):
    """One text, in blocks; asking for the next document uses up the blocks of this one."""

    where: str
    blocks: Iterable[str]
    content: Any = None  # of chats: what the blocks are the text of
    kept: bool = False  # never held out: its answers are asked for in other words


@dataclass(kw_only=True)
class Corpus:
    """One pass over all documents of some sources, in order, and what it has read so far."""

    sources: Sequence[Source]
    options: PrepareOptions
    bytes_read: int = 0
    boms_dropped: int = 0
    replaced: int = 0
    empty_documents: int = 0
    held_cr: bool = False  # whether line ends became LF
    read: list[SourceMeta] = field(default_factory=list)  # the files that lie behind it

    def drop(self, reason: str, where: str) -> None:
        """Refuse a document. Of chats, some may be unusable."""
        raise DataError(f"{where}: {reason}")

    def check_dropped(self) -> None:
        """Refuse more than the options allow; here, none was passed over."""

    def again(self) -> Self:
        """Another pass, which reads the files afresh."""
        return type(self)(sources=self.sources, options=self.options)

    def documents(self) -> Generator[Document, None, None]:
        """The documents; those without text are only counted.

        Close the generator if it is not exhausted, so that no file stays open.

        Raises:
            DataError: a source cannot be read or is not what it should be, or no source holds text.
            WorkError: a source changed meanwhile.
        """
        found = False
        for source in self.sources:
            with closing(self.documents_in(source)) as documents:
                for document in documents:
                    found = True
                    yield document
        self.finish(found)

    def documents_in(self, source: Source) -> Generator[Document, None, None]:
        """The documents of one source."""
        with SourceFile(source) as file:
            yield from self.documents_of(source, self._decoded(source, file))
        self.read.append(file.record())

    def documents_of(self, source: Source, blocks: Iterator[str]) -> Iterator[Document]:
        """The documents of one source: of each record of a .jsonl file, or the file as a whole."""
        if source.kind in ("jsonl", "parquet"):
            documents = self._records(source, blocks)
        else:
            documents = iter(((source.shown, blocks),))
        for where, texts in documents:
            if first := next(texts, ""):
                yield Document(where, chain((first,), texts))
            else:
                self.empty_documents += 1

    def finish(self, found: bool) -> None:
        """Refuse sources in which nothing was found."""
        if not found:
            one = len(self.sources) == 1
            empty = f"{self.sources[0].shown} is" if one else "all sources are"
            raise DataError(f"{empty} empty; name a file that holds text")

    def _records(
        self, source: Source, blocks: Iterator[str]
    ) -> Iterator[tuple[str, Iterator[str]]]:
        for record, part in json_lines(source, blocks):
            where = f"{source.shown}, {part}"
            try:
                text = _record_text(record, self.options.text_field)
            except ValueError as error:
                self.drop(str(error), where)
            yield where, iter((self.line_ends(text),))

    def line_ends(self, text: str) -> str:
        """The text of a record as chats and prompts write it: lines end in LF, unless CR stays."""
        if self.options.keep_cr or "\r" not in text:
            return text
        self.held_cr = True
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _decoded(self, source: Source, file: SourceFile) -> Iterator[str]:
        """The text of a file, in blocks that are never empty."""
        options = self.options
        encoding = "utf-8" if source.kind == "parquet" else options.encoding
        decoder = TextDecoder(source.shown, encoding, options.errors, alone=len(self.sources) == 1)
        line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        before = self.bytes_read
        for data in chain(file.blocks(), (b"",)):  # the last is the end
            text = decoder.push(data, final=not data)
            text = text if options.keep_cr else line_ends.decode(text, final=not data)
            self.bytes_read = before + file.bytes_read
            if text:
                yield text
        self.boms_dropped += decoder.bom_dropped
        self.replaced += decoder.replaced
        self.held_cr |= line_ends.newlines not in (None, "\n")


def lines_of(source: Source, blocks: Iterator[str]) -> Iterator[str]:
    """Lines without their newline. Only LF ends one: a record may hold U+2028 or CR as it is."""
    number, line = 1, ""
    for block in blocks:
        *lines, line = (line + block).split("\n")
        yield from lines
        number += len(lines)
        if len(line) > MAX_RECORD_CHARS:
            raise DataError(
                f"{source.shown}, line {number}: longer than {MAX_RECORD_CHARS} characters; "
                "put such a text into a .txt file of its own"
            )
    if line:
        yield line


def json_lines(source: Source, blocks: Iterator[str]) -> Iterator[tuple[Any, str]]:
    """The values of a .jsonl file, or what is wrong with one, as a `ValueError`; and which line.

    The lines of a parquet file are its rows.
    """
    unit = "row" if source.kind == "parquet" else "line"
    for number, line in enumerate(lines_of(source, blocks), start=1):
        if line.strip():
            try:
                value = JSON_DECODER.decode(line)
            except json.JSONDecodeError as error:
                value = ValueError(f"not valid JSON (column {error.colno}: {error.msg})")
            except RecursionError:
                value = ValueError("nested too deeply")
            yield value, f"{unit} {number}"


def _record_text(record: Any, field_name: str) -> str:
    """The text of a record; "" for null. Other fields are ignored."""
    shown = f"field '{shorten(field_name)}'"
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"must be an object with a {shown}, found {kind_of(record)}")
    if field_name not in record:
        texts = [key for key, value in record.items() if isinstance(value, str)]
        name = texts[0] if len(texts) == 1 else "NAME"
        raise ValueError(
            f"has no {shown}, but {shorten(', '.join(record))}; pass text_field={name}"
        )
    return "" if record[field_name] is None else text_of(record[field_name], shown)


def text_of(value: object, where: str) -> str:
    """A member of a record that must be a text; raises `ValueError` if it is none, or not UTF-8."""
    # None must never become the text "None", nor 7 the text "7".
    if not isinstance(value, str):
        raise ValueError(f"{where} must hold text, found {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold half a character
        half = f"U+{ord(value[error.start]):04X}"
        place = f"a lone surrogate ({half}) at character {error.start}"
        raise ValueError(f"{where} holds {place}; remove it") from error
    return value


def kind_of(value: object) -> str:
    """What JSON calls the type of a value."""
    return _KINDS[type(value)]
