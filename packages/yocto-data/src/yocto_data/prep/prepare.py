"""Texts to a data directory: train.bin, val.bin, the tokenizer's file, and meta.json last."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from yocto_data.errors import DataError, ShortDataError, WorkError, integer, shorten
from yocto_data.prep.directory import check_target, resolve_target, staged_directory
from yocto_data.prep.documents import Corpus, PrepareOptions
from yocto_data.prep.encoding import (
    Encoder,
    Tokenizer,
    encode_jobs,
    make_jobs,
    save_tokenizer,
    vocabulary_size,
)
from yocto_data.prep.meta import ChatsMeta, DataMeta, OptionsMeta, SeparatorMeta, TextMeta
from yocto_data.prep.remote import is_address
from yocto_data.prep.sources import PathLike, Source, expand_sources
from yocto_data.prep.splitting import FirstPass, Piece, PieceCutter, SafeCutter, SplitPlan
from yocto_data.prep.token_files import TokenWriter

_RECORDED = ("val_ratio", "seed", "chunk_chars", "text_field")  # of the options, in meta.json

Progress = Callable[[int, int, int], None]
"""Called on the caller's thread with bytes done, bytes in all, tokens written so far."""


def iter_texts(
    sources: PathLike | Sequence[PathLike], options: PrepareOptions | None = None, **changes: Any
) -> Iterator[str]:
    """The text of files, directories and globs, in pieces, in bounded memory.

    Train a tokenizer on them. The pieces are those that `prepare` encodes: no piece spans two
    documents, and within one they are cut where no token crosses. A byte order mark is dropped;
    lines end in LF, unless `keep_cr` is set.

    Args:
        sources: one path or several; see `prepare`.
        options: encoding, errors, keep_cr, text_field and chunk_chars matter here.
        changes: fields of `PrepareOptions` by name, over those of `options`.

    Raises:
        DataError: a setting is out of its range or a source is missing (both at the call), or a
            source cannot be read, or none holds text.
        WorkError: a source changed while it was being read.
    """
    options = replace(options or PrepareOptions(), **changes)
    return _pieces(Corpus(sources=expand_sources(sources), options=options))


def _pieces(corpus: Corpus) -> Iterator[str]:
    with closing(corpus.documents()) as documents:
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
        sources: files, directories, globs and addresses. A .jsonl file holds one document per line,
            .parquet one per row, any other file is one document. Names may end in .gz or .zst.
        out_dir: the directory to make.
        tokenizer: any object with `encode`, `decode` and `vocab_size`; see `Tokenizer`.
        options: how texts are read, split and encoded. One document is cut at character
            `int(n * (1 - val_ratio))`; of several, whole documents go to validation, chosen by a
            hash of `seed` and their number; if they are too few or too large to make about that
            share, all are cut as if they were one. Between them is the tokenizer's `eos_id`, or
            else the id of a line end.
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
    corpus = Corpus(sources=expand_sources(sources), options=options)
    work = Preparation(
        corpus, sources, out_dir, tokenizer, force=force, progress=progress, by_line_end=True
    )
    plan = SplitPlan.after(work.found, options)
    cutter = PieceCutter(corpus=work.corpus, plan=plan)
    encoder = Encoder(tokenizer, work.vocab_size, work.separator)
    # Encoding characters is one table look-up: it outruns the pipe to another process.
    useful = 1 if getattr(tokenizer, "kind", None) == "char" else workers
    with staged_directory(work.target, force=force) as directory:
        with (
            TokenWriter(directory / "train.bin", encoder.dtype) as train,
            TokenWriter(directory / "val.bin", encoder.dtype) as val,
        ):
            writers = {"train": train, "val": val}
            work.write(cutter.pieces(), encoder, writers, workers=useful)
        _require_tokens(train.tokens, val.tokens, plan, block_size)
        return work.finish(directory, writers, split_by=plan.by, unsafe_cuts=cutter.unsafe_cuts)


class Preparation:
    """What the preparation of texts and that of chats have in common.

    It begins with all checks and the first pass; `write` is the second, `finish` saves meta.json.

    Args:
        first: what the first pass reads.
        sources: what the user has named.
        by_line_end: whether one separates documents where the tokenizer has no end token.
        others: as for `prepare`.
    """

    def __init__(
        self,
        first: Corpus,
        sources: PathLike | Sequence[PathLike],
        out_dir: PathLike,
        tokenizer: Tokenizer,
        *,
        force: bool,
        progress: Progress | None,
        by_line_end: bool = False,
    ) -> None:
        self.corpus = first.again()
        self.tokenizer, self.vocab_size = tokenizer, vocabulary_size(tokenizer)
        self.target = resolve_target(out_dir)
        refuse_overlap(self.target, sources, first.sources)
        check_target(self.target, force=force)
        self._total_bytes = sum(source.size for source in first.sources)
        self._progress = progress or (lambda *_: None)
        self.found = FirstPass(first, heartbeat=lambda: self._progress(0, self._total_bytes, 0))
        self.separator = self._separator(by_line_end=by_line_end)

    def _separator(self, *, by_line_end: bool) -> SeparatorMeta | None:
        """What comes between documents, if anything does."""
        options = self.corpus.options
        separator = options.separator
        if separator == "auto":
            several = self.found.documents > 1
            separator = getattr(self.tokenizer, "eos_id", None) if several else None
            if separator is None and several and by_line_end:
                # A vocabulary without a line end, or whatever else any object may raise.
                with suppress(ValueError, LookupError, TypeError, RuntimeError):
                    (separator,) = self.tokenizer.encode("\n")
        if separator is None:
            return None
        return SeparatorMeta(id=integer("separator", separator, 0, self.vocab_size - 1))

    def write(
        self,
        pieces: Generator[Piece, None, None],
        encoder: Encoder,
        writers: Mapping[str, TokenWriter],
        *,
        workers: int,
    ) -> None:
        """Append what the encoder makes of the pieces; the corpus hears of what it refuses."""
        chunk_chars = self.corpus.options.chunk_chars
        workers = max(1, min(workers, self.found.characters // chunk_chars))
        reported = 0
        jobs = encode_jobs(make_jobs(pieces, chunk_chars), encoder, workers=workers)
        # Closed at once, even after an error: they hold open files and worker processes.
        with closing(pieces), closing(jobs):
            for job, rows in jobs:
                parts: dict[str, list[Any]] = {name: [] for name in writers}
                for piece, row in zip(job, rows, strict=True):
                    if isinstance(row, str):
                        self.corpus.drop(row, piece.place)
                    else:
                        parts[piece.split].append(row)
                        writers[piece.split].documents += piece.is_first
                for name, part in parts.items():
                    writers[name].write_rows(part)
                self.corpus.check_dropped()
                if job[-1].bytes_read > reported:
                    reported = job[-1].bytes_read
                    self._report(writers, reported)
        self._report(writers, self._total_bytes)
        for before, after in zip(self.found.corpus.read, self.corpus.read, strict=True):
            if before != after:
                raise WorkError(
                    f"{shorten(after.name)} changed between checking and encoding; try again when "
                    "nothing writes to it"
                )

    def _report(self, writers: Mapping[str, TokenWriter], done_bytes: int) -> None:
        tokens = sum(writer.tokens for writer in writers.values())
        self._progress(done_bytes, self._total_bytes, tokens)

    def finish(
        self,
        directory: Path,
        writers: Mapping[str, TokenWriter],
        *,
        split_by: Literal["position", "documents"],
        unsafe_cuts: int = 0,
        chats: ChatsMeta | None = None,
    ) -> DataMeta:
        """Save the tokenizer and meta.json, the last of the files."""
        options, found, first = self.corpus.options, self.found, self.found.corpus
        meta = DataMeta(
            vocab_size=self.vocab_size,
            tokenizer=save_tokenizer(self.tokenizer, directory),
            train=writers["train"].record(),
            val=writers["val"].record(),
            separator=self.separator,
            sources=tuple(first.read),
            text=TextMeta(
                encoding=options.encoding,
                errors=options.errors,
                newlines="lf" if first.held_cr else "kept",
                characters=found.characters,
                documents=found.documents,
                empty_documents=first.empty_documents,
                boms_dropped=first.boms_dropped,
                replaced=first.replaced,
                control_characters=found.control_characters,
                unsafe_cuts=unsafe_cuts,
            ),
            options=OptionsMeta(
                split_by=split_by,
                **{name: getattr(options, name) for name in _RECORDED},
            ),
            chats=chats,
        )
        meta.save(directory)
        return meta


def refuse_overlap(
    target: Path, sources: PathLike | Sequence[PathLike], files: Sequence[Source] = ()
) -> None:
    """The output must not lie in a directory that is read, nor a source in one that is replaced."""
    given = [sources] if isinstance(sources, str | os.PathLike) else sources
    for source in given:
        if is_address(os.fspath(source)):
            continue
        folder = Path(os.path.realpath(source))
        if folder.is_dir() and target.is_relative_to(folder):
            raise DataError(
                f"{shorten(target)} lies within the source {shorten(folder)}; write elsewhere"
            )
    for file in files:
        if not file.address and Path(os.path.realpath(file.path)).is_relative_to(target):
            raise DataError(f"{shorten(target)} holds the source {file.shown}; write elsewhere")


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
