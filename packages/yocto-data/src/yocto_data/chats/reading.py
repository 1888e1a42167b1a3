"""Sources to conversations: which format a file or record has, and what of it cannot be used."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from yocto_data.chats import layouts
from yocto_data.chats.messages import Chat, chat_of, is_trained, worded
from yocto_data.errors import DataError, shorten
from yocto_data.prep.documents import (
    JSON_DECODER,
    MAX_RECORD_CHARS,
    Corpus,
    Document,
    PrepareOptions,
    TextPart,
    json_lines,
    lines_of,
    setting,
)
from yocto_data.prep.sources import CHATS, PathLike, Source, expand_sources

_MOST_REASONS = 10  # told apart; a file of another kind may hold any number of them


@dataclass(frozen=True, kw_only=True)
class ChatOptions(PrepareOptions):
    """The settings of `prepare_chats` and `iter_chats`: those of texts, and two more.

    `split_by` has no `position` here, and `text_field` is not used: records are told by their keys.
    """

    me: str | None = setting(None, "who of a WhatsApp export is the assistant")
    max_bad: float = setting(0.01, "share of the records that may be unusable")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_by == "position":
            raise DataError("conversations are not cut; use split_by=documents")
        if not 0 <= self.max_bad <= 1:  # nan fails, too
            raise DataError(f"max_bad must be from 0 to 1, found {self.max_bad!r}")


@dataclass(kw_only=True)
class ChatCorpus(Corpus):
    """One pass over all conversations of some sources, in order, and what it has read so far.

    A record is one of JSON, or a conversation or text of other files. `untrained` are conversations
    without a reply to learn from.
    """

    options: ChatOptions
    expected: int = 0  # records in all, where an earlier pass has counted them
    records: int = 0
    untrained: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # by the reason
    first_dropped: dict[str, str] = field(default_factory=dict)  # for each reason, where

    def drop(self, reason: str, where: str) -> None:
        """Count a record that cannot be used."""
        if reason not in self.dropped and len(self.dropped) >= _MOST_REASONS:
            reason = "other reasons"
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, where)

    def check_dropped(self) -> None:
        """Refuse more than max_bad of all records, with the reasons and where they are."""
        records = self.expected or self.records
        if (bad := self.dropped.total()) > self.options.max_bad * records:
            reasons = "; ".join(
                f"{shorten(self.first_dropped[reason], 80)}: {shorten(reason, 120)}"
                + f" ({count} times)" * (count > 1)
                for reason, count in self.dropped.most_common(2)
            )
            raise DataError(
                f"{bad} of {records} records cannot be used, and max_bad is "
                f"{self.options.max_bad:g}: {reasons}"
            )

    def documents_of(self, source: Source, blocks: Iterator[str]) -> Iterator[Document]:
        """The conversations and texts of one source; bad records are counted."""
        for content, part in self._contents(source, blocks):
            where = f"{source.path.name}, {part}"
            if isinstance(content, TextPart):
                yield Document(where, [content.text], content)
                continue
            if not is_trained(content):
                self.untrained += 1
                continue
            first, *others = worded(content)
            for chat in (first, *others):
                texts = [message.content for message in chat]
                yield Document(where, texts, chat, kept=bool(others) and chat is first)

    def finish(self, found: bool) -> None:
        """Refuse sources of which too much cannot be used, or in which nothing was found."""
        self.check_dropped()
        if self.options.me is not None and "WhatsApp" not in self.formats:
            raise DataError("me is given, but no source is a WhatsApp export that is understood")
        if not found:
            shown = self.sources[0].shown if len(self.sources) == 1 else "the sources"
            raise DataError(f"{shown}: no reply to learn from, and no text; name another file")

    def _contents(
        self, source: Source, blocks: Iterator[str]
    ) -> Iterator[tuple[Chat | TextPart, str]]:
        """What a source holds, and which part of it each is."""
        if source.kind != "text":
            values = _values if source.kind == "json" else json_lines
            for value, part in values(source, blocks):
                self.records += 1
                try:
                    contents = self._of_record(value)
                except ValueError as error:
                    self.drop(str(error), f"{source.path.name}, {part}")
                    continue
                for content in contents:
                    if isinstance(content, TextPart) or not any("\r" in m.content for m in content):
                        yield content, part
                    else:
                        ends = self.line_ends
                        yield tuple(m._replace(content=ends(m.content)) for m in content), part
            return
        first = next(blocks, "")
        self.empty_documents += not first.strip()
        blocks = chain((first,), blocks)
        if layouts.is_whatsapp(first):
            self.formats["WhatsApp"] += 1
            lines = lines_of(source, blocks)
            contents = layouts.whatsapp_chats(lines, self.options.me, source.shown)
        else:
            self.formats["text"] += 1
            contents = layouts.dialogues_and_texts(blocks)
        for number, content in enumerate(contents, start=1):
            self.records += 1
            yield content, f"part {number}"

    def _of_record(self, value: object) -> Iterable[Chat | TextPart]:
        if isinstance(value, ValueError):
            raise value
        name, content = chat_of(value)
        self.formats[name] += 1
        if not isinstance(content, str):
            return (content,)
        self.empty_documents += not content.strip()
        return layouts.dialogues_and_texts((self.line_ends(content),))


def iter_chats(
    sources: PathLike | Sequence[PathLike], options: ChatOptions | None = None, **changes: Any
) -> Iterator[Chat | TextPart]:
    """The conversations and texts of files, directories and globs, in bounded memory.

    Train a tokenizer on what they say, or show them. What can be read: see `prepare_chats`.

    Of the options, given as an object or by name, encoding, errors, keep_cr, me and max_bad matter
    here. The errors are those of `iter_texts`, and a DataError if too much cannot be used.
    """
    options = replace(options or ChatOptions(), **changes)
    documents = ChatCorpus(sources=expand_sources(sources, CHATS), options=options).documents()
    return (document.content for document in documents)


# --- records -------------------------------------------------------------------------------------


_VALUE = re.compile(r"[\s,]*([^\s,])")


def _values(source: Source, blocks: Iterator[str]) -> Iterator[tuple[object, str]]:
    """The members of a .json file that is an array, or else its values one after another.

    They are parsed one by one as the text arrives. Behind a syntax error nothing can be told apart,
    so that ends the reading.
    """
    text, number, wanted = "", 0, 0
    brackets = ""  # those of the array that were met
    for block in chain(blocks, ("",)):  # the last one is the end
        text += block
        if block and len(text) < wanted:
            continue
        at = 0
        try:
            while found := _VALUE.match(text, at):
                at = found.start(1)
                if found[1] in ("[" * (not brackets and not number), "]" * (brackets == "[")):
                    brackets, at = brackets + found[1], at + 1
                    continue
                value, end = JSON_DECODER.raw_decode(text, at)
                if block and end == len(text):
                    break  # a number may go on
                number += 1
                yield value, f"record {number}"
                at = end
        except RecursionError as error:
            raise _not_json(source, number, "nested too deeply") from error
        except json.JSONDecodeError as error:
            if not block or len(text) - at > MAX_RECORD_CHARS:
                raise _not_json(source, number, error.msg) from error
        text = text[at:]
        wanted = 2 * len(text)  # so that a long record is not parsed again for every block
    if brackets == "[":
        raise _not_json(source, number, "the file is cut off")


def _not_json(source: Source, number: int, reason: str) -> DataError:
    return DataError(f"{source.shown} is not valid JSON behind record {number} ({reason})")
