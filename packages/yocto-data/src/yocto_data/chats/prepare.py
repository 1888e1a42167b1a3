"""Conversations to a data directory: .bin files, beside them masks and starts, meta.json last."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np

from yocto_data.chats.messages import Chat, Message
from yocto_data.chats.reading import ChatCorpus, ChatOptions
from yocto_data.errors import DataError, ShortDataError, integer
from yocto_data.prep.directory import staged_directory
from yocto_data.prep.documents import TextPart
from yocto_data.prep.encoding import Encoder, Tokenizer
from yocto_data.prep.meta import (
    TEMPLATE_NAME,
    ChatsMeta,
    ChatSplitMeta,
    CountMeta,
    DataMeta,
)
from yocto_data.prep.prepare import Preparation, Progress
from yocto_data.prep.sources import CHATS, PathLike, expand_sources
from yocto_data.prep.splitting import Piece, SplitName, SplitPlan
from yocto_data.prep.token_files import HashedWriter, TokenWriter

Encode = Callable[[Sequence[Message]], tuple[Sequence[int], Sequence[bool]]]
"""Turns a conversation into ids, and says of each id whether it is learned."""


class _Row(NamedTuple):
    """What is written of a conversation, or of a part of a text."""

    ids: bytes  # elements of the .bin file
    trained: bytes  # 0 or 1 for each id
    kinds: Counter[str]  # what it counts as in meta.json


def prepare_chats(
    sources: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    tokenizer: Tokenizer,
    encode: Encode,
    template: str | None = None,
    options: ChatOptions | None = None,
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    **changes: Any,
) -> DataMeta:
    """Encode conversations into a data directory, which appears whole or not at all.

    The sources are read twice, in bounded memory: once to check and count everything, once to
    encode. What can be read, told by the keys of each record: OpenAI's `messages`, ShareGPT's
    `conversations`, Alpaca's `instruction`, prompt and completion in several spellings, what
    yocto-chat saved, all as .jsonl or .json; exports of WhatsApp; and texts, in which paragraphs
    with lines `User: ` and `Assistant: ` are conversations, and all else is learned as it is.

    Args:
        sources: as for `prepare`, and .json files.
        out_dir: the directory to make.
        tokenizer: encodes texts outside conversations; its file is saved, too.
        encode: the ids of a conversation, and whether each is learned: what the assistant says and
            the id that ends its turn, where the message is `trained`. The first id is never
            learned, since nothing is in front of it. A conversation for which it raises a
            ValueError is a bad record.
        template: the chat template behind `encode`, kept as chat_template.jinja.
        options: how texts are read and split. Whole conversations, and parts of texts, go to
            validation, chosen by a hash of `seed` and their number.
        workers: processes that encode; `encode` must then be something that pickle can send.
        force: replace a data directory that already exists.
        progress: as for `prepare`.
        changes: fields of `ChatOptions` by name, over those of `options`.

    Returns:
        The content of the new meta.json.

    Raises:
        ShortDataError: there is too little to share between training and validation.
        DataError: as for `prepare`, and if more than `max_bad` records cannot be used.
    """
    options = replace(options or ChatOptions(), **changes)
    workers = integer("workers", workers, 1)
    if template is not None and not template.strip():
        raise DataError("the chat template is empty; give None where there is none")
    first = ChatCorpus(sources=expand_sources(sources, CHATS), options=options)
    work = Preparation(first, sources, out_dir, tokenizer, force=force, progress=progress)
    if work.found.documents < 2:
        raise ShortDataError(
            "one conversation, or a text without any, cannot be shared between training and "
            "validation; use more conversations"
        )
    corpus = cast("ChatCorpus", work.corpus)
    corpus.expected = first.records
    pieces = _pieces(corpus, SplitPlan.after(work.found, replace(options, split_by="documents")))
    encoder = _ChatEncoder(tokenizer, work.vocab_size, work.separator, encode)
    with staged_directory(work.target, force=force) as directory:
        with (
            _ChatWriter.opened(directory, "train", encoder.dtype) as train,
            _ChatWriter.opened(directory, "val", encoder.dtype) as val,
        ):
            writers = {"train": train, "val": val}
            work.write(pieces, encoder, writers, workers=workers)
        for name, writer in writers.items():
            if not writer.documents:
                raise ShortDataError(f"no conversation is left for {name}.bin; use more")
        kinds = train.kinds + val.kinds
        chats = ChatsMeta(
            template=None if template is None else _saved(directory / TEMPLATE_NAME, template),
            formats=tuple(CountMeta(what=n, count=c) for n, c in first.formats.items()),
            conversations=kinds["conversations"],
            replies=kinds["replies"],
            texts=kinds["texts"],
            untrained=first.untrained,
            dropped=tuple(
                CountMeta(what=reason, count=count, first=corpus.first_dropped[reason])
                for reason, count in corpus.dropped.items()
            ),
            train=train.chat_record(),
            val=val.chat_record(),
        )
        return work.finish(directory, writers, split_by="documents", chats=chats)


@dataclass(frozen=True)
class _ChatEncoder(Encoder):
    """Encodes conversations, and the texts between them."""

    encode: Encode

    def encoded(self, content: Chat | TextPart) -> Any:
        """A row; a ValueError if nothing in it is learned."""
        if isinstance(content, TextPart):
            data = super().encoded(content)
            trained = np.ones(len(data) // self.dtype.itemsize, bool)
            kinds = Counter(texts=1)
        else:
            replies = sum(message.role == "assistant" for message in content)
            kinds = Counter(conversations=1, replies=replies)
            ids, given = self.encode(content)
            data, trained = self.narrowed(ids), np.array(given)
            count = len(data) // self.dtype.itemsize
            if trained.shape != (count,) or (count and trained.dtype != np.bool_):
                found = f"a mask of {trained.dtype} of shape {trained.shape}"
                raise ValueError(f"{count} ids, but {found}")
        trained[:1] = False  # nothing is in front of it to predict it from
        if not trained.any():
            raise ValueError("nothing in it is learned")
        return _Row(data, trained.tobytes(), kinds)


def _pieces(corpus: ChatCorpus, plan: SplitPlan) -> Generator[Piece, None, None]:
    with closing(corpus.documents()) as documents:
        for ordinal, document in enumerate(documents):
            split: SplitName = "val" if plan.is_val(ordinal) and not document.kept else "train"
            characters = sum(map(len, document.blocks))
            yield Piece(document.content, characters, split, document.where, corpus.bytes_read)


class _ChatWriter(TokenWriter):
    """The three files of a split."""

    def __init__(
        self, path: Path, dtype: np.dtype[Any], mask: HashedWriter, starts: HashedWriter
    ) -> None:
        super().__init__(path, dtype)
        self._mask, self._starts = mask, starts
        self._bits = b""  # one byte for each, but too few to make a byte of eight
        self._trained = 0
        self.kinds: Counter[str] = Counter()

    @classmethod
    @contextmanager
    def opened(cls, directory: Path, name: SplitName, dtype: np.dtype[Any]) -> Iterator[Self]:
        """New files in a directory, complete when the block ends."""
        with (
            HashedWriter(directory / f"{name}.mask") as mask,
            HashedWriter(directory / f"{name}.starts") as starts,
            cls(directory / f"{name}.bin", dtype, mask, starts) as writer,
        ):
            yield writer
            mask.write(_packed(writer._bits))

    def write_rows(self, rows: Sequence[_Row]) -> None:
        """Append documents."""
        lengths = np.array([len(row.trained) for row in rows], dtype=np.int64)
        starts = self.tokens + np.cumsum(lengths) - lengths
        self._starts.write(starts.astype("<u8").tobytes())
        self.write(b"".join(row.ids for row in rows))
        trained = b"".join(row.trained for row in rows)
        self._trained += trained.count(b"\1")
        for row in rows:
            self.kinds.update(row.kinds)
        bits = self._bits + trained
        whole = len(bits) // 8 * 8
        self._mask.write(_packed(bits[:whole]))
        self._bits = bits[whole:]

    def chat_record(self) -> ChatSplitMeta:
        """What meta.json says of the files beside the tokens."""
        return ChatSplitMeta(
            mask=self._mask.sha256(), starts=self._starts.sha256(), trained=self._trained
        )


def _saved(path: Path, text: str) -> str:
    with HashedWriter(path) as file:
        file.write(text.encode("utf-8"))
    return file.sha256()


def _packed(bits: bytes) -> bytes:
    return np.packbits(np.frombuffer(bits, bool), bitorder="little").tobytes()
