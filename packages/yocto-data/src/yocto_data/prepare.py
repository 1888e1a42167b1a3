"""Texts to a data directory: train.bin, val.bin, the tokenizer's file, and meta.json last."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from yocto_data.decoding import Errors
from yocto_data.documents import Corpus, Tally
from yocto_data.encoding import PieceEncoder, encode_jobs, make_jobs
from yocto_data.errors import (
    MetaError,
    OptionError,
    OutputError,
    ShortDataError,
    SourceChangedError,
    show,
)
from yocto_data.meta import (
    META_NAME,
    DataMeta,
    OptionsMeta,
    SeparatorMeta,
    SplitMeta,
    TextMeta,
    token_dtype,
)
from yocto_data.protocol import Tokenizer
from yocto_data.sources import PathLike
from yocto_data.splitting import (
    PieceCutter,
    SplitBy,
    Survey,
    check_split_options,
    plan_split,
    survey,
)
from yocto_data.staging import check_target, resolve_target, staged_directory
from yocto_data.texts import DEFAULT_CHUNK_CHARS, check_chunk_chars, open_corpus
from yocto_data.token_writer import TokenWriter
from yocto_data.tokenizer_file import save_tokenizer, vocabulary_size

Progress = Callable[[int, int, int], None]
"""Called on the caller's thread with bytes done, bytes in all, tokens written so far."""

OUR_FILES = frozenset(
    {META_NAME, "train.bin", "val.bin", "vocab.json", "tokenizer.json", "tokenizer.model"}
)
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
    encode. The files depend on texts, tokenizer, ``val_ratio``, ``seed`` and ``chunk_chars``;
    never on ``workers``.

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
    check_chunk_chars(chunk_chars)
    _check_counts(workers=workers, block_size=block_size)
    vocab_size = vocabulary_size(tokenizer)
    report = progress or _no_progress
    corpus = open_corpus(sources, encoding=encoding, errors=errors, text_field=text_field)
    target = resolve_target(out_dir)
    _refuse_overlap(target, sources, corpus)
    known_names = OUR_FILES | _recorded_names(target)
    check_target(target, force=force, known_names=known_names)

    total = sum(source.path.stat().st_size for source in corpus.sources)
    found = survey(corpus, val_ratio=val_ratio, seed=seed, heartbeat=lambda: report(0, total, 0))
    plan = plan_split(found, val_ratio=val_ratio, seed=seed, split_by=split_by)
    mark = _separator(tokenizer, separator, separator_position, found.documents, vocab_size)

    with staged_directory(target, force=force, known_names=known_names) as directory:
        encoding_run = _EncodingRun(
            cutter=PieceCutter(corpus=corpus, plan=plan, chunk_chars=chunk_chars, tally=Tally()),
            encoder=PieceEncoder(tokenizer, vocab_size),
            workers=_useful_workers(workers, tokenizer, found.characters, chunk_chars),
            separator=mark,
            dtype=token_dtype(vocab_size),
            progress=report,
            total_bytes=total,
        )
        train, val = encoding_run.write(directory)
        _require_same_sources(found.tally, encoding_run.cutter.tally)
        _require_tokens(train, val, block_size)
        meta = DataMeta(
            vocab_size=vocab_size,
            tokenizer=save_tokenizer(tokenizer, directory),
            train=train,
            val=val,
            separator=mark,
            sources=tuple(found.tally.sources),
            text=_text_meta(corpus, found, encoding_run.cutter.unsafe_cuts),
            options=OptionsMeta(
                val_ratio=float(val_ratio),
                split_by=plan.by,
                seed=seed,
                chunk_chars=chunk_chars,
                text_field=text_field,
            ),
        )
        meta.save(directory)
    return meta


@dataclass(frozen=True, kw_only=True)
class _EncodingRun:
    """The second pass: pieces through the encoder into the two files."""

    cutter: PieceCutter
    encoder: PieceEncoder
    workers: int
    separator: SeparatorMeta | None
    dtype: np.dtype[np.unsignedinteger]
    progress: Progress
    total_bytes: int

    def write(self, directory: Path) -> tuple[SplitMeta, SplitMeta]:
        mark = self.separator
        data = b"" if mark is None else np.array([mark.id], dtype=self.dtype).tobytes()
        before = data if mark is not None and mark.position == "before" else b""
        after = data if mark is not None and mark.position == "after" else b""
        with (
            TokenWriter(directory / "train.bin", self.dtype) as train,
            TokenWriter(directory / "val.bin", self.dtype) as val,
        ):
            jobs = make_jobs(self.cutter.pieces(), self.cutter.chunk_chars)
            reported = 0
            for piece, tokens in encode_jobs(jobs, self.encoder, workers=self.workers):
                writer = train if piece.split == "train" else val
                writer.documents += piece.opens_in_split
                writer.write((before if piece.first else b"") + tokens)
                writer.write(after if piece.last else b"")
                if piece.bytes_read > reported:
                    reported = piece.bytes_read
                    self.progress(reported, self.total_bytes, train.tokens + val.tokens)
        self.progress(self.total_bytes, self.total_bytes, train.tokens + val.tokens)
        return train.record(documents=train.documents), val.record(documents=val.documents)


def _no_progress(done: int, total: int, tokens: int) -> None:
    del done, total, tokens


def _check_counts(*, workers: int, block_size: int | None) -> None:
    for name, value in (("workers", workers), ("block_size", block_size)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name} must be an integer of at least 1, found {value!r}")


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


def _recorded_names(target: Path) -> frozenset[str]:
    """The tokenizer's file may have any name; the old meta.json knows it."""
    try:
        file = DataMeta.load(target).tokenizer.file
    except MetaError:
        return frozenset()
    return frozenset() if file is None else frozenset({file})


def _separator(
    tokenizer: Tokenizer,
    separator: int | Literal["auto"] | None,
    position: Literal["before", "after"],
    documents: int,
    vocab_size: int,
) -> SeparatorMeta | None:
    if position not in {"before", "after"}:
        raise OptionError(f"separator_position must be before or after, found {position!r}")
    if separator == "auto":
        separator = getattr(tokenizer, "eos_id", None) if documents > 1 else None
    if separator is None:
        return None
    if isinstance(separator, bool) or not isinstance(separator, int):
        raise OptionError(f"separator must be an id, auto or None, found {separator!r}")
    if not 0 <= separator < vocab_size:
        raise OptionError(f"separator {separator} is no id of a vocabulary of {vocab_size}")
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


def _require_tokens(train: SplitMeta, val: SplitMeta, block_size: int | None) -> None:
    needed = (block_size or 1) + 1
    for name, split in (("training", train), ("validation", val)):
        if split.tokens < needed:
            raise ShortDataError(
                f"the {name} split has {split.tokens} tokens, but needs at least {needed}"
                + (f" for a block_size of {block_size}" if block_size else "")
                + f" (training {train.tokens}, validation {val.tokens}); use more text"
                + (", a smaller block_size or another val_ratio" if block_size else "")
            )


def _text_meta(corpus: Corpus, found: Survey, unsafe_cuts: int) -> TextMeta:
    return TextMeta(
        encoding=corpus.encoding,
        errors=corpus.errors,
        characters=found.characters,
        documents=found.documents,
        boms_dropped=found.tally.boms_dropped,
        replaced=found.tally.replaced,
        control_characters=found.control_characters,
        unsafe_cuts=unsafe_cuts,
    )
