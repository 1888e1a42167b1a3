"""Sources to documents: one per text file, one per record of a .jsonl file."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from yocto_data.decoding import TextDecoder
from yocto_data.errors import RecordError, SourceError, show
from yocto_data.meta import SourceMeta
from yocto_data.sources import Source, SourceFile
from yocto_data.strict_json import parse

# A record is parsed in one piece; this bounds the memory it may take.
_MAX_RECORD_CHARS = 64 << 20


class Document(NamedTuple):
    """One text, in blocks; whoever takes the next document has used up the blocks of this one."""

    where: str
    blocks: Iterator[str]


@dataclass(kw_only=True)
class Tally:
    """What one pass over the sources has met so far."""

    bytes_read: int = 0
    boms_dropped: int = 0
    replaced: int = 0
    sources: list[SourceMeta] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All documents of some sources, in order. Every pass reads the files afresh.

    Args:
        sources: as ``expand_sources`` returns them.
        encoding: as ``check_encoding`` returns it.
        errors: ``strict``, ``replace`` or ``ignore``.
        text_field: the key of a record's text.
    """

    sources: Sequence[Source]
    encoding: str
    errors: str
    text_field: str

    def documents(self, tally: Tally) -> Generator[Document, None, None]:
        """The documents of one pass, none of them empty; ``tally`` follows it.

        Close the generator where it is not used up, so that no file stays open.

        Raises:
            SourceError: a source cannot be read, holds no text, or is not what it should be.
            SourceChangedError: a source changed meanwhile.
        """
        for source in self.sources:
            with SourceFile(source) as file:
                blocks = self._decoded(source, file, tally)
                if source.kind == "text":
                    yield Document(source.shown, _nonempty(source, blocks))
                else:
                    yield from self._records(source, blocks)
            tally.sources.append(file.record())

    def _decoded(self, source: Source, file: SourceFile, tally: Tally) -> Iterator[str]:
        decoder = TextDecoder(source.shown, self.encoding, self.errors)
        before = tally.bytes_read
        for data in file.blocks():
            text = decoder.push(data)
            tally.bytes_read = before + file.bytes_read
            if text:
                yield text
        if rest := decoder.push(b"", final=True):
            yield rest
        tally.bytes_read = before + file.bytes_read
        tally.boms_dropped += decoder.bom_dropped
        tally.replaced += decoder.replaced

    def _records(self, source: Source, blocks: Iterator[str]) -> Iterator[Document]:
        number = 0
        for number, line in enumerate(_lines(source, blocks), start=1):
            where = f"{source.shown}, line {number}"
            yield Document(where, iter((_record_text(line, self.text_field, where),)))
        if not number:
            raise SourceError(f"{source.shown} is empty; leave it out, or write records to it")


def _nonempty(source: Source, blocks: Iterator[str]) -> Iterator[str]:
    block = ""
    for block in blocks:
        yield block
    if not block:
        raise SourceError(f"{source.shown} is empty; leave it out, or write text to it")


def _lines(source: Source, blocks: Iterator[str]) -> Iterator[str]:
    """Lines without their newline. Only LF ends one: a record may hold U+2028 or CR as it is."""
    waiting: list[str] = []
    waiting_chars = 0
    number = 0
    for block in blocks:
        *lines, rest = block.split("\n")
        for line in lines:
            yield "".join((*waiting, line))
            number += 1
            waiting, waiting_chars = [], 0
        waiting.append(rest)
        waiting_chars += len(rest)
        if waiting_chars > _MAX_RECORD_CHARS:
            raise RecordError(
                f"{source.shown}, line {number + 1}: longer than {_MAX_RECORD_CHARS} characters; "
                "put such a text into a .txt file of its own"
            )
    if last := "".join(waiting):
        yield last


def _record_text(line: str, field_name: str, where: str) -> str:
    if not line.strip():
        raise RecordError(f"{where}: blank; remove the line")
    try:
        record = parse(line)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error
    text = record.get(field_name) if isinstance(record, dict) else None
    if not isinstance(text, str) or not text:
        raise RecordError(f"{where}: {_missing_text(record, field_name)}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecordError(
                f"{where}: field '{show(field_name)}' holds a lone surrogate "
                f"(U+{ord(text[error.start]):04X}) at character {error.start}; remove it"
            ) from error
    return text


def _missing_text(record: object, field_name: str) -> str:
    """What is wrong with a record that has no text."""
    shown = f"field '{show(field_name)}'"
    if not isinstance(record, dict):
        return f"must be an object with a {shown}"
    if field_name not in record:
        return f"has no {shown}; pass text_field=NAME for the one that holds the text"
    value = record[field_name]
    if value == "":
        return f"{shown} is empty; remove the line"
    kind = "null" if value is None else type(value).__name__
    return f"{shown} must be a string, found {kind}"
