"""Texts to a data directory: train.bin, val.bin, the tokenizer's file, and meta.json last."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yocto_data.errors import DataError, ShortDataError, WorkError, integer, shorten
from yocto_data.prep.directory import check_target, resolve_target, staged_directory
from yocto_data.prep.documents import Corpus, PrepareOptions, ReadCounts
from yocto_data.prep.encoding import (
    Encoded,
    Encoder,
    Tokenizer,
    encode_jobs,
    make_jobs,
    save_tokenizer,
    vocabulary_size,
)
from yocto_data.prep.meta import DataMeta, OptionsMeta, SeparatorMeta, TextMeta, token_dtype
from yocto_data.prep.sources import PathLike, Source, expand_sources
from yocto_data.prep.splitting import FirstPass, Piece, PieceCutter, SafeCutter, SplitPlan
from yocto_data.prep.token_files import TokenWriter

Progress = Callable[[int, int, int], None]
"""Called on the caller's thread with bytes done, bytes in all, tokens written so far."""


def iter_texts(
    sources: PathLike | Sequence[PathLike], options: PrepareOptions | None = None, **changes: Any
) -> Iterator[str]:
    """The text of files, directories and globs, in pieces, in bounded memory.

    Train a tokenizer on them. The pieces are those that `prepare` encodes: no piece spans two
    documents, and within one they are cut where no token crosses. A byte order mark is dropped;
    line ends stay as they are.

    Args:
        sources: one path or several; see `prepare`.
        options: encoding, errors, text_field and chunk_chars matter here.
        changes: fields of `PrepareOptions` by name, over those of `options`.

    Raises:
        DataError: a setting is out of its range or a source is missing (both at the call), or a
            source cannot be read, or none holds text.
        WorkError: a source changed while it was being read.
    """
    options = replace(options or PrepareOptions(), **changes)
    return _pieces(Corpus(sources=expand_sources(sources), options=options))


def _pieces(corpus: Corpus) -> Iterator[str]:
    with closing(corpus.documents(ReadCounts())) as documents:
        for document in documents:
            cutter = SafeCutter(corpus.options.chunk_chars)
            for block in document.blocks:
                yield from cutter.push(block)
            yield from cutter.flush()


def prepare(
    sources: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    tokenizer: Tokenizer,
    options: PrepareOptions | None = None,
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    block_size: int | None = None,
    **changes: Any,
) -> DataMeta:
    """Encode texts into a data directory, which appears whole or not at all.

    The sources are read twice, in bounded memory: once to check and count everything, once to
    encode. The files depend on the texts, the tokenizer and the options alone.

    Args:
        sources: files, directories (their .txt and .jsonl, plain or .gz) and globs. A .jsonl file
            holds one document per line, any other file is one document.
        out_dir: the directory to make.
        tokenizer: any object with `encode`, `decode` and `vocab_size`; see `Tokenizer`.
        options: how texts are read, split and encoded. One document is cut at character
            `int(n * (1 - val_ratio))`; of several, whole documents go to validation, chosen by a
            hash of `seed` and their number.
        workers: processes that encode; scripts that use more than one need the usual
            `if __name__ == "__main__":`.
        force: replace a data directory that already exists.
        progress: called with bytes done, bytes in all, tokens so far; 0 bytes are done while the
            texts are checked. If it raises, the preparation ends and leaves nothing behind.
        block_size: the context that training will use; each split must hold one token more.
        changes: fields of `PrepareOptions` by name, over those of `options`.

    Returns:
        The content of the new meta.json.

    Raises:
        DecodingError: the bytes of a text are not in the encoding.
        ShortDataError: a split holds too few tokens.
        WorkError: a source changed meanwhile, a write failed, or a worker died.
        DataError: anything else that the caller must change, from an argument to a text.
    """
    options = replace(options or PrepareOptions(), **changes)
    workers = integer("workers", workers, 1)
    if block_size is not None:
        block_size = integer("block_size", block_size, 1)
    vocab_size = vocabulary_size(tokenizer)
    report = progress or (lambda *_: None)
    corpus = Corpus(sources=expand_sources(sources), options=options)
    target = resolve_target(out_dir)
    refuse_overlap(target, sources, corpus.sources)
    check_target(target, force=force)

    total_bytes = sum(s.path.stat().st_size for s in corpus.sources if s.path.is_file())
    found = FirstPass.over(corpus, heartbeat=lambda: report(0, total_bytes, 0))
    # Encoding characters is one table look-up: it outruns the pipe to another process.
    useful = 1 if getattr(tokenizer, "kind", None) == "char" else workers
    run = _EncodingRun(
        cutter=PieceCutter(corpus=corpus, plan=SplitPlan.after(found, options)),
        encoder=Encoder(tokenizer, vocab_size),
        workers=max(1, min(useful, found.characters // options.chunk_chars)),
        separator=separator_of(tokenizer, options, found.documents, vocab_size),
        progress=report,
        total_bytes=total_bytes,
    )
    with staged_directory(target, force=force) as directory:
        with (
            TokenWriter(directory / "train.bin", token_dtype(vocab_size)) as train,
            TokenWriter(directory / "val.bin", token_dtype(vocab_size)) as val,
        ):
            run.write({"train": train, "val": val})
        require_same_sources(found.counts, run.cutter.counts)
        _require_tokens(train.tokens, val.tokens, run.cutter.plan, block_size)
        meta = DataMeta(
            vocab_size=vocab_size,
            tokenizer=save_tokenizer(tokenizer, directory),
            train=train.record(),
            val=val.record(),
            separator=run.separator,
            sources=tuple(found.counts.sources),
            **described(
                options, found, split_by=run.cutter.plan.by, unsafe_cuts=run.cutter.unsafe_cuts
            ),
        )
        meta.save(directory)
    return meta


def described(
    options: PrepareOptions, found: FirstPass, *, split_by: Any, unsafe_cuts: int
) -> dict[str, Any]:
    """What meta.json says about texts and options."""
    return {
        "text": TextMeta(
            encoding=options.encoding,
            errors=options.errors,
            characters=found.characters,
            documents=found.documents,
            empty_documents=found.counts.empty_documents,
            boms_dropped=found.counts.boms_dropped,
            replaced=found.counts.replaced,
            control_characters=found.control_characters,
            unsafe_cuts=unsafe_cuts,
        ),
        "options": OptionsMeta(
            val_ratio=options.val_ratio,
            split_by=split_by,
            seed=options.seed,
            chunk_chars=options.chunk_chars,
            text_field=options.text_field,
        ),
    }


@dataclass(frozen=True, kw_only=True)
class _EncodingRun:
    """The second pass: pieces through the encoder into the two files."""

    cutter: PieceCutter
    encoder: Encoder
    workers: int
    separator: SeparatorMeta | None
    progress: Progress
    total_bytes: int

    def write(self, writers: Mapping[str, TokenWriter]) -> None:
        chunk_chars = self.cutter.corpus.options.chunk_chars
        reported = 0
        previous: Piece[str] | None = None
        # Closed at once, even after an error: they hold open files and worker processes.
        with (
            closing(self.cutter.pieces()) as pieces,
            closing(
                encode_jobs(make_jobs(pieces, chunk_chars), self.encoder, workers=self.workers)
            ) as jobs,
        ):
            for job, encoded in jobs:
                self._write_job(writers, job, encoded, previous)
                previous = job[-1]
                if previous.bytes_read > reported:
                    reported = previous.bytes_read
                    self._report(writers, reported)
        if previous is not None:
            writers[previous.split].write(self._marks()[1])
        self._report(writers, self.total_bytes)

    def _report(self, writers: Mapping[str, TokenWriter], done_bytes: int) -> None:
        tokens = sum(writer.tokens for writer in writers.values())
        self.progress(done_bytes, self.total_bytes, tokens)

    def _write_job(
        self,
        writers: Mapping[str, TokenWriter],
        job: Sequence[Piece[str]],
        encoded: Encoded,
        previous: Piece[str] | None,
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
        """The bytes that come before and after each document."""
        if self.separator is None:
            return b"", b""
        mark = np.array([self.separator.id], dtype=self.encoder.dtype).tobytes()
        return (mark, b"") if self.separator.position == "before" else (b"", mark)


def refuse_overlap(
    target: Path, sources: PathLike | Sequence[PathLike], files: Sequence[Source]
) -> None:
    """The output must not lie in a directory that is read, nor a source in one that is replaced."""
    given = [sources] if isinstance(sources, str | os.PathLike) else sources
    for source in given:
        folder = Path(os.path.realpath(source))
        if folder.is_dir() and target.is_relative_to(folder):
            raise DataError(
                f"{shorten(target)} lies within the source {shorten(folder)}; write elsewhere"
            )
    for file in files:
        if Path(os.path.realpath(file.path)).is_relative_to(target):
            raise DataError(f"{shorten(target)} holds the source {file.shown}; write elsewhere")


def separator_of(
    tokenizer: Tokenizer, options: PrepareOptions, documents: int, vocab_size: int
) -> SeparatorMeta | None:
    """What comes between documents, if anything does."""
    separator = options.separator
    if separator == "auto":
        separator = getattr(tokenizer, "eos_id", None) if documents > 1 else None
    if separator is None:
        return None
    return SeparatorMeta(
        id=integer("separator", separator, 0, vocab_size - 1), position=options.separator_position
    )


def require_same_sources(first: ReadCounts, second: ReadCounts) -> None:
    """Refuse sources that changed between the two passes."""
    for before, after in zip(first.sources, second.sources, strict=True):
        if before != after:
            raise WorkError(
                f"{shorten(after.name)} changed between checking and encoding; try again when "
                "nothing writes to it"
            )


def _require_tokens(train: int, val: int, plan: SplitPlan, block_size: int | None) -> None:
    needed = (block_size or 1) + 1
    for name, tokens in (("training", train), ("validation", val)):
        if tokens < needed:
            context = f" for a block_size of {block_size}" if block_size else ""
            way_out = " or split_by=position" if plan.by == "documents" else ""
            raise ShortDataError(
                f"too few tokens in the {name} split: {tokens}, but at least {needed} are "
                f"needed{context} (training {train}, validation {val}); use more text, another "
                f"val_ratio{way_out}"
            )
