"""Texts to a data directory: train.bin, val.bin, the tokenizer's file, and meta.json last."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from yocto_data.decoding import Errors
from yocto_data.documents import Corpus, Tally
from yocto_data.encoding import Encoded, Encoder, encode_jobs, make_jobs
from yocto_data.errors import (
    OutputError,
    ShortDataError,
    SourceChangedError,
    show,
)
from yocto_data.meta import (
    DataMeta,
    OptionsMeta,
    SeparatorMeta,
    SplitMeta,
    TextMeta,
    token_dtype,
)
from yocto_data.options import require_integer, require_word
from yocto_data.protocol import Tokenizer
from yocto_data.sources import PathLike, size_on_disk
from yocto_data.splitting import (
    Piece,
    PieceCutter,
    SplitBy,
    SplitPlan,
    Survey,
    check_split_options,
    plan_split,
    survey,
)
from yocto_data.staging import check_target, resolve_target, staged_directory
from yocto_data.texts import DEFAULT_CHUNK_CHARS, open_corpus
from yocto_data.token_writer import TokenWriter
from yocto_data.tokenizer_file import save_tokenizer, vocabulary_size

Progress = Callable[[int, int, int], None]
"""Called on the caller's thread with bytes done, bytes in all, tokens written so far."""

# Encoding characters is one table look-up: it outruns the pipe to another process.
_KINDS_KEPT_HERE = frozenset({"char"})


def prepare(
    sources: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    tokenizer: Tokenizer,
    val_ratio: float = 0.1,
    seed: int = 1337,
    encoding: str = "utf-8",
    errors: Errors = "strict",
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    block_size: int | None = None,
    text_field: str = "text",
    split_by: SplitBy = "auto",
    separator: int | Literal["auto"] | None = "auto",
    separator_position: Literal["before", "after"] = "after",
    chunk_chars: int = DEFAULT_CHUNK_CHARS,
) -> DataMeta:
    """Encode texts into a data directory, which appears whole or not at all.

    The sources are read twice, in bounded memory: once to check and count everything, once to
    encode. The files depend on the texts and all that is given here but ``workers`` and
    ``progress``.

    Args:
        sources: files, directories (their .txt and .jsonl, plain or .gz) and globs. A .jsonl file
            holds one document per line, any other file is one document.
        out_dir: the directory to make.
        tokenizer: any object with ``encode``, ``decode`` and ``vocab_size``; see ``Tokenizer``.
        val_ratio: share of the text for validation. One document is cut at character
            ``int(n * (1 - val_ratio))``; of several, whole documents go to validation, chosen by a
            hash of ``seed`` and their number.
        seed: chooses the validation documents.
        encoding: of the texts.
        errors: what to do with bytes that do not fit: ``strict`` raises, ``replace`` and
            ``ignore`` count them.
        workers: processes that encode; scripts that use more than one need the usual
            ``if __name__ == "__main__":``.
        force: replace a data directory that is there.
        progress: called with bytes done, bytes in all, tokens so far; while the texts are checked
            with 0 done. What it raises ends the preparation, which then leaves nothing.
        block_size: the context to be trained with; each split must hold one token more.
        text_field: the key of the text in .jsonl records.
        split_by: ``position`` or ``documents`` instead of what suits the number of documents.
        separator: id that parts documents; ``auto`` is the tokenizer's ``eos_id`` where it has one
            and there are several documents; None is nothing.
        separator_position: whether it stands before or after each document.
        chunk_chars: length of the pieces that are encoded, about.

    Returns:
        The content of the new meta.json.

    Raises:
        OptionError: an argument is out of its range.
        SourceError: a text cannot be used.
        TokenizerUseError: the tokenizer refused a text, or gave ids out of range.
        ShortDataError: a split holds too few tokens.
        OutputError: ``out_dir`` holds something already, or is in use.
        WorkError: a source changed meanwhile, a write failed, or a worker died.
    """
    check_split_options(val_ratio, seed, split_by)
    require_integer("chunk_chars", chunk_chars, 1)
    require_integer("workers", workers, 1)
    if block_size is not None:
        require_integer("block_size", block_size, 1)
    vocab_size = vocabulary_size(tokenizer)
    report = progress or _no_progress
    corpus = open_corpus(sources, encoding=encoding, errors=errors, text_field=text_field)
    target = resolve_target(out_dir)
    _refuse_overlap(target, sources, corpus)
    check_target(target, force=force)

    total_bytes = size_on_disk(corpus.sources)
    found = survey(
        corpus, val_ratio=val_ratio, seed=seed, heartbeat=lambda: report(0, total_bytes, 0)
    )
    run = _EncodingRun(
        cutter=PieceCutter(
            corpus=corpus,
            plan=plan_split(found, val_ratio=val_ratio, seed=seed, split_by=split_by),
            chunk_chars=chunk_chars,
            tally=Tally(),
        ),
        encoder=Encoder(tokenizer, vocab_size),
        workers=_useful_workers(workers, tokenizer, found.characters, chunk_chars),
        separator=_separator(tokenizer, separator, separator_position, found.documents, vocab_size),
        dtype=token_dtype(vocab_size),
        progress=report,
        total_bytes=total_bytes,
    )
    with staged_directory(target, force=force) as directory:
        train, val = run.write(directory)
        _require_same_sources(found.tally, run.cutter.tally)
        _require_tokens(train, val, run.cutter.plan, block_size)
        meta = DataMeta(
            vocab_size=vocab_size,
            tokenizer=save_tokenizer(tokenizer, directory),
            train=train,
            val=val,
            separator=run.separator,
            sources=tuple(found.tally.sources),
            text=_text_meta(found, run.cutter),
            options=_options_meta(run.cutter, text_field),
        )
        meta.save(directory)
    return meta


@dataclass(frozen=True, kw_only=True)
class _EncodingRun:
    """The second pass: pieces through the encoder into the two files."""

    cutter: PieceCutter
    encoder: Encoder
    workers: int
    separator: SeparatorMeta | None
    dtype: np.dtype[np.unsignedinteger]
    progress: Progress
    total_bytes: int

    def write(self, directory: Path) -> tuple[SplitMeta, SplitMeta]:
        with (
            TokenWriter(directory / "train.bin", self.dtype) as train,
            TokenWriter(directory / "val.bin", self.dtype) as val,
        ):
            self._write_pieces({"train": train, "val": val})
        self.progress(self.total_bytes, self.total_bytes, train.tokens + val.tokens)
        return train.record(documents=train.documents), val.record(documents=val.documents)

    def _write_pieces(self, writers: Mapping[str, TokenWriter]) -> None:
        reported = 0
        # Closed at once, even after an error: open files and worker processes hang on them.
        with (
            closing(self.cutter.pieces()) as pieces,
            closing(
                encode_jobs(
                    make_jobs(pieces, self.cutter.chunk_chars), self.encoder, workers=self.workers
                )
            ) as jobs,
        ):
            previous: Piece | None = None
            for job, encoded in jobs:
                self._write_job(writers, job, encoded, previous)
                previous = job[-1]
                if previous.bytes_read > reported:
                    reported = previous.bytes_read
                    tokens = sum(writer.tokens for writer in writers.values())
                    self.progress(reported, self.total_bytes, tokens)
        if previous is not None:
            writers[previous.split].write(self._marks()[1])

    def _write_job(
        self,
        writers: Mapping[str, TokenWriter],
        job: Sequence[Piece],
        encoded: Encoded,
        previous: Piece | None,
    ) -> None:
        """Append a job's tokens; a document is closed when the next one begins."""
        before, after = self._marks()
        parts: dict[str, list[bytes | memoryview]] = {name: [] for name in writers}
        tokens = memoryview(encoded.data)
        for piece, size in zip(job, encoded.sizes, strict=True):
            if piece.start == 0:
                if previous is not None:
                    parts[previous.split].append(after)
                parts[piece.split].append(before)
            if piece.start == 0 or (previous is not None and previous.split != piece.split):
                writers[piece.split].documents += 1
            parts[piece.split].append(tokens[:size])
            tokens = tokens[size:]
            previous = piece
        for name, part in parts.items():
            writers[name].write(b"".join(part))

    def _marks(self) -> tuple[bytes, bytes]:
        """What stands before and after each document."""
        if self.separator is None:
            return b"", b""
        mark = np.array([self.separator.id], dtype=self.dtype).tobytes()
        return (mark, b"") if self.separator.position == "before" else (b"", mark)


def _no_progress(done: int, total: int, tokens: int) -> None:
    del done, total, tokens


def _refuse_overlap(target: Path, sources: PathLike | Sequence[PathLike], corpus: Corpus) -> None:
    """Neither may the output lie in a directory that is read, nor a source in what is replaced."""
    given = [sources] if isinstance(sources, str | os.PathLike) else sources
    for source in given:
        folder = Path(os.path.realpath(source))
        if folder.is_dir() and target.is_relative_to(folder):
            raise OutputError(
                f"{show(target)} lies within the source {show(folder)}; write elsewhere"
            )
    for file in corpus.sources:
        if Path(os.path.realpath(file.path)).is_relative_to(target):
            raise OutputError(f"{show(target)} holds the source {file.shown}; write elsewhere")


def _separator(
    tokenizer: Tokenizer,
    separator: int | Literal["auto"] | None,
    position: Literal["before", "after"],
    documents: int,
    vocab_size: int,
) -> SeparatorMeta | None:
    require_word("separator_position", position, ("before", "after"))
    if separator == "auto":
        separator = getattr(tokenizer, "eos_id", None) if documents > 1 else None
    if separator is None:
        return None
    require_integer("separator", separator, 0, vocab_size - 1)
    return SeparatorMeta(id=separator, position=position)


def _useful_workers(workers: int, tokenizer: Tokenizer, characters: int, chunk_chars: int) -> int:
    if getattr(tokenizer, "kind", None) in _KINDS_KEPT_HERE:
        return 1
    return max(1, min(workers, characters // chunk_chars))


def _require_same_sources(first: Tally, second: Tally) -> None:
    for before, after in zip(first.sources, second.sources, strict=True):
        if before != after:
            raise SourceChangedError(
                f"{after.name} changed between checking and encoding; run again when it is at rest"
            )


def _require_tokens(
    train: SplitMeta, val: SplitMeta, plan: SplitPlan, block_size: int | None
) -> None:
    needed = (block_size or 1) + 1
    for name, split in (("training", train), ("validation", val)):
        if split.tokens < needed:
            context = f" for a block_size of {block_size}" if block_size else ""
            way_out = " or split_by=position" if plan.by == "documents" else ""
            raise ShortDataError(
                f"the {name} split has {split.tokens} tokens, but needs at least {needed}{context} "
                f"(training {train.tokens}, validation {val.tokens}); use more text, another "
                f"val_ratio{way_out}"
            )


def _text_meta(found: Survey, cutter: PieceCutter) -> TextMeta:
    return TextMeta(
        encoding=cutter.corpus.encoding,
        errors=cutter.corpus.errors,
        characters=found.characters,
        documents=found.documents,
        boms_dropped=found.tally.boms_dropped,
        replaced=found.tally.replaced,
        control_characters=found.control_characters,
        unsafe_cuts=cutter.unsafe_cuts,
    )


def _options_meta(cutter: PieceCutter, text_field: str) -> OptionsMeta:
    return OptionsMeta(
        val_ratio=float(cutter.plan.val_ratio),
        split_by=cutter.plan.by,
        seed=cutter.plan.seed,
        chunk_chars=cutter.chunk_chars,
        text_field=text_field,
    )
