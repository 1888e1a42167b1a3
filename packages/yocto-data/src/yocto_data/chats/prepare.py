"""Conversations to a data directory: .bin files, beside them masks and starts, meta.json last."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

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
    plan = SplitPlan.after(found, replace(options, split_by="documents"))
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


class _Encoded(NamedTuple):
    """Ids and mask of several documents, as bytes; the length of each, or what is wrong with it."""

    ids: bytes
    trained: bytes
    lengths: list[int | str]


@dataclass(frozen=True)
class _ChatEncoder:
    """Encodes conversations, and the texts between them."""

    encode: Encode
    encoder: Encoder
    separator: SeparatorMeta | None

    def __call__(self, contents: list[Chat | TextPart]) -> _Encoded:
        found = _Encoded(b"", b"", [])
        ids, masks = [], []
        for content in contents:
            try:
                row, trained = self._text(content) if isinstance(content, TextPart) else (
                    self._chat(content)
                )  # fmt: skip
                narrow = self.encoder.narrowed([row]).data
            except RefusedTextError as error:
                found.lengths.append(str(error.args[1]))
                continue
            # Whatever a template or tokenizer raises becomes one line about this document.
            except (ValueError, LookupError, TypeError, RuntimeError) as error:
                found.lengths.append(one_line(error))
                continue
            trained[:1] = False  # nothing is in front of it to predict it from
            if not trained.any():
                found.lengths.append("nothing in it is learned")
                continue
            ids.append(narrow)
            masks.append(trained.tobytes())
            found.lengths.append(len(row))
        return found._replace(ids=b"".join(ids), trained=b"".join(masks))

    def _chat(self, chat: Chat) -> tuple[np.ndarray, np.ndarray]:
        ids, trained = self.encode(chat)
        row, mask = self.encoder.row(ids), np.array(trained)
        if len(row) and (mask.dtype != np.bool_ or mask.shape != row.shape):
            raise ValueError(f"{len(row)} ids, but a mask of {mask.dtype} of shape {mask.shape}")
        return row, mask

    def _text(self, part: TextPart) -> tuple[np.ndarray, np.ndarray]:
        row = self.encoder.ids(part.text)
        if self.separator is not None and part.ends:
            at = 0 if self.separator.position == "before" else len(row)
            row = np.insert(row, at, self.separator.id)
        return row, np.ones(len(row), bool)


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
            for job, encoded in jobs:
                self._write_job(writers, job, encoded)
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
        encoded: _Encoded,
    ) -> None:
        ids = np.frombuffer(encoded.ids, self.encoder.encoder.dtype)
        trained = np.frombuffer(encoded.trained, np.bool_)
        parts: dict[str, list[slice]] = {name: [] for name in writers}
        at = 0
        for piece, length in zip(job, encoded.lengths, strict=True):
            if isinstance(length, str):
                self.counts.drop(length, piece.where)
                continue
            parts[piece.split].append(slice(at, at + length))
            at += length
            if isinstance(piece.content, TextPart):
                self.kinds["texts"] += 1
            else:
                self.kinds["conversations"] += 1
                self.kinds["replies"] += sum(m.role == "assistant" for m in piece.content)
        for name, slices in parts.items():
            if slices:
                writers[name].write([ids[part] for part in slices], [trained[p] for p in slices])

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
    bits: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # less than a byte of them
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
            mask.write(np.packbits(writer.bits, bitorder="little").tobytes())

    def write(self, ids: Sequence[np.ndarray], trained: Sequence[np.ndarray]) -> None:
        """Append documents."""
        lengths = np.array([len(row) for row in ids])
        starts = self.tokens.tokens + np.cumsum(lengths) - lengths
        self.starts.write(starts.astype("<u8").tobytes())
        self.tokens.write(np.concatenate(ids).tobytes())
        self.tokens.documents += len(ids)
        self.trained += sum(int(row.sum()) for row in trained)
        bits = np.concatenate([self.bits, *trained])
        whole = len(bits) // 8 * 8
        self.mask.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self.bits = bits[whole:]

    def record(self) -> ChatSplitMeta:
        """What meta.json says of the files beside the tokens."""
        return ChatSplitMeta(
            mask=self.mask.file_record(), starts=self.starts.file_record(), trained=self.trained
        )
