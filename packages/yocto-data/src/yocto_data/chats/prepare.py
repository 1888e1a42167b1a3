"""Conversations to a data directory: .bin files, beside them masks and starts, meta.json last."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from yocto_data.chats.messages import Chat, Message, TextPart
from yocto_data.chats.reading import ChatCorpus, ChatCounts, ChatOptions
from yocto_data.errors import DataError, ShortDataError, integer
from yocto_data.prep.directory import check_target, resolve_target, staged_directory
from yocto_data.prep.encoding import (
    Encoder,
    RefusedTextError,
    Tokenizer,
    encode_jobs,
    make_jobs,
    one_line,
    save_tokenizer,
    vocabulary_size,
)
from yocto_data.prep.meta import (
    ChatsMeta,
    ChatSplitMeta,
    CountMeta,
    DataMeta,
    SeparatorMeta,
)
from yocto_data.prep.prepare import (
    Progress,
    described,
    refuse_overlap,
    require_same_sources,
    separator_of,
)
from yocto_data.prep.sources import CHATS, PathLike, expand_sources
from yocto_data.prep.splitting import FirstPass, Piece, SplitName, SplitPlan
from yocto_data.prep.token_files import HashedWriter, TokenWriter

Encode = Callable[[Sequence[Message]], tuple[Sequence[int], Sequence[bool]]]
"""Turns a conversation into ids, and says of each id whether it is learned."""

_Row = tuple[bytes, bytes]
"""A document's ids, and whether each is learned: elements of the .bin file, and bytes 0 or 1."""

_TEMPLATE_NAME = "chat_template.jinja"


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
        sources: files, directories (their .txt, .jsonl and .json, plain or .gz) and globs.
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
        progress: called with bytes done, bytes in all, tokens so far; 0 bytes are done while the
            sources are checked. If it raises, the preparation ends and leaves nothing behind.
        changes: fields of `ChatOptions` by name, over those of `options`.

    Returns:
        The content of the new meta.json.

    Raises:
        ShortDataError: there is too little to share between training and validation.
        WorkError: a source changed meanwhile, a write failed, or a worker died.
        DataError: anything else that the caller must change, such as more than `max_bad` records
            that cannot be used.
    """
    options = replace(options or ChatOptions(), **changes)
    workers = integer("workers", workers, 1)
    vocab_size = vocabulary_size(tokenizer)
    if template is not None and not template.strip():
        raise DataError("the chat template is empty; give None where there is none")
    report = progress or (lambda *_: None)
    corpus = ChatCorpus(sources=expand_sources(sources, CHATS), options=options)
    target = resolve_target(out_dir)
    refuse_overlap(target, sources, corpus.sources)
    check_target(target, force=force)

    total_bytes = sum(s.path.stat().st_size for s in corpus.sources if s.path.is_file())
    counts = ChatCounts()
    found = _first_pass(corpus, counts, heartbeat=lambda: report(0, total_bytes, 0))
    if found.documents < 2:
        raise ShortDataError(
            "one conversation cannot be shared between training and validation; use more"
        )
    plan = SplitPlan.after(found, options)
    separator = separator_of(tokenizer, options, found.documents, vocab_size)
    run = _EncodingRun(
        corpus=corpus,
        plan=plan,
        records=counts.records,
        encoder=_ChatEncoder(encode, Encoder(tokenizer, vocab_size), separator),
        workers=max(1, min(workers, found.characters // options.chunk_chars)),
        report=lambda done, tokens: report(done, total_bytes, tokens),
    )
    with staged_directory(target, force=force) as directory:
        dtype = run.encoder.encoder.dtype
        with (
            _SplitWriter.opened(directory, "train", dtype) as train,
            _SplitWriter.opened(directory, "val", dtype) as val,
        ):
            run.write({"train": train, "val": val})
        report(total_bytes, total_bytes, train.tokens.tokens + val.tokens.tokens)
        require_same_sources(counts, run.counts)
        written = None
        if template is not None:
            with HashedWriter(directory / _TEMPLATE_NAME) as file:
                file.write(template.encode("utf-8"))
            written = file.file_record()
        meta = DataMeta(
            vocab_size=vocab_size,
            tokenizer=save_tokenizer(tokenizer, directory),
            train=train.tokens.record(),
            val=val.tokens.record(),
            separator=separator,
            sources=tuple(counts.sources),
            **described(options, found, split_by="documents", unsafe_cuts=0),
            chats=ChatsMeta(
                template=written,
                formats=tuple(CountMeta(what=n, count=c) for n, c in counts.formats.items()),
                conversations=run.kinds["conversations"],
                replies=run.kinds["replies"],
                texts=run.kinds["texts"],
                untrained=counts.untrained,
                dropped=tuple(
                    CountMeta(what=reason, count=count, first=run.counts.first_dropped[reason])
                    for reason, count in run.counts.dropped.items()
                ),
                train=train.record(),
                val=val.record(),
            ),
        )
        meta.save(directory)
    return meta


def _first_pass(corpus: ChatCorpus, counts: ChatCounts, heartbeat: Callable[[], None]) -> FirstPass:
    found = FirstPass(counts=counts)
    read = -1
    with closing(corpus.items(counts)) as items:
        for item in items:
            found.count_document(corpus.options.seed)
            for text in item.texts:
                found.count_text(text)
            if counts.bytes_read != read:  # not for each of many short records
                read = counts.bytes_read
                heartbeat()
    return found


@dataclass(frozen=True)
class _ChatEncoder:
    """Encodes conversations, and the texts between them."""

    encode: Encode
    encoder: Encoder
    separator: SeparatorMeta | None

    def __call__(self, contents: list[Chat | TextPart]) -> list[_Row | str]:
        """The row of each, or what is wrong with it."""
        return [self._row(content) for content in contents]

    def _row(self, content: Chat | TextPart) -> _Row | str:
        try:
            ids, trained = self._ids(content)
            data = self.encoder.narrowed([ids]).data
        except RefusedTextError as error:
            return str(error.args[1])
        # Whatever a template or tokenizer raises becomes one line about this document.
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            return one_line(error)
        trained[:1] = False  # nothing is in front of it to predict it from
        return (data, trained.tobytes()) if trained.any() else "nothing in it is learned"

    def _ids(self, content: Chat | TextPart) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(content, TextPart):
            row = self.encoder.ids(content.text)
            if self.separator is not None and content.ends:
                at = 0 if self.separator.position == "before" else len(row)
                row = np.insert(row, at, self.separator.id)
            return row, np.ones(len(row), bool)
        ids, trained = self.encode(content)
        row, mask = self.encoder.row(ids), np.array(trained)
        if len(row) and (mask.dtype != np.bool_ or mask.shape != row.shape):
            raise ValueError(f"{len(row)} ids, but a mask of {mask.dtype} of shape {mask.shape}")
        return row, mask


@dataclass(kw_only=True)
class _EncodingRun:
    """The second pass: items through the encoder into the files of the two splits."""

    corpus: ChatCorpus
    plan: SplitPlan
    records: int  # in all, as the first pass has counted them
    encoder: _ChatEncoder
    workers: int
    report: Callable[[int, int], None]
    counts: ChatCounts = field(default_factory=ChatCounts)
    kinds: Counter[str] = field(default_factory=Counter)

    def write(self, writers: Mapping[str, "_SplitWriter"]) -> None:
        chunk_chars = self.corpus.options.chunk_chars
        # Closed at once, even after an error: they hold open files and worker processes.
        with (
            closing(self._pieces()) as pieces,
            closing(
                encode_jobs(make_jobs(pieces, chunk_chars), self.encoder, workers=self.workers)
            ) as jobs,
        ):
            for job, rows in jobs:
                self._write_job(writers, job, rows)
                self.counts.check(self.corpus.options.max_bad, self.records)
                tokens = sum(writer.tokens.tokens for writer in writers.values())
                self.report(job[-1].bytes_read, tokens)
        for name, writer in writers.items():
            if not writer.tokens.documents:
                raise ShortDataError(f"no conversation is left for {name}.bin; use more")

    def _write_job(
        self,
        writers: Mapping[str, "_SplitWriter"],
        job: Sequence[Piece[Chat | TextPart]],
        rows: Sequence[_Row | str],
    ) -> None:
        parts: dict[str, list[_Row]] = {name: [] for name in writers}
        for piece, row in zip(job, rows, strict=True):
            if isinstance(row, str):
                self.counts.drop(row, piece.where)
                continue
            parts[piece.split].append(row)
            if isinstance(piece.content, TextPart):
                self.kinds["texts"] += 1
            else:
                self.kinds["conversations"] += 1
                self.kinds["replies"] += sum(m.role == "assistant" for m in piece.content)
        for name, part in parts.items():
            writers[name].write(part)

    def _pieces(self) -> Generator[Piece[Chat | TextPart], None, None]:
        with closing(self.corpus.items(self.counts)) as items:
            for ordinal, item in enumerate(items):
                split: SplitName = "val" if self.plan.is_val(ordinal) else "train"
                characters = sum(map(len, item.texts))
                yield Piece(item.content, characters, split, item.where, 0, item.bytes_read)


@dataclass(kw_only=True)
class _SplitWriter:
    """The three files of a split."""

    tokens: TokenWriter
    mask: HashedWriter
    starts: HashedWriter
    bits: bytes = b""  # one byte for each, but too few to make a byte of eight
    trained: int = 0

    @classmethod
    @contextmanager
    def opened(
        cls, directory: Path, name: SplitName, dtype: np.dtype[Any]
    ) -> Iterator["_SplitWriter"]:
        """New files in a directory, complete when the block ends."""
        with (
            TokenWriter(directory / f"{name}.bin", dtype) as tokens,
            HashedWriter(directory / f"{name}.mask") as mask,
            HashedWriter(directory / f"{name}.starts") as starts,
        ):
            writer = cls(tokens=tokens, mask=mask, starts=starts)
            yield writer
            mask.write(_packed(writer.bits))

    def write(self, rows: Sequence[_Row]) -> None:
        """Append documents."""
        lengths = np.array([len(trained) for _, trained in rows], dtype=np.int64)
        starts = self.tokens.tokens + np.cumsum(lengths) - lengths
        self.starts.write(starts.astype("<u8").tobytes())
        self.tokens.write(b"".join(data for data, _ in rows))
        self.tokens.documents += len(rows)
        trained = b"".join(trained for _, trained in rows)
        self.trained += trained.count(b"\1")
        bits = self.bits + trained
        whole = len(bits) // 8 * 8
        self.mask.write(_packed(bits[:whole]))
        self.bits = bits[whole:]

    def record(self) -> ChatSplitMeta:
        """What meta.json says of the files beside the tokens."""
        return ChatSplitMeta(
            mask=self.mask.file_record(), starts=self.starts.file_record(), trained=self.trained
        )


def _packed(bits: bytes) -> bytes:
    return np.packbits(np.frombuffer(bits, bool), bitorder="little").tobytes()
