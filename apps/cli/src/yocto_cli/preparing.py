"""From texts to a data directory: learn a tokenizer, then let yocto-data do the rest.

This module brings NumPy and torch in, so commands import it after they have parsed their flags.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from yocto_data import DataMeta, iter_texts, prepare
from yocto_tokenizers import CharTokenizer, Tokenizer, WordLevelTokenizer

from yocto_cli.errors import UsageError
from yocto_cli.screen.terminal import one_line

Errors = Literal["strict", "replace", "ignore"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LEARNING = "learning the vocabulary"
ENCODING = "encoding"


def prepare_char(
    text_path: str | Sequence[str],
    out_dir: str | Path,
    *,
    val_ratio: float = 0.1,
    force: bool = False,
    progress: Progress | None = None,
    block_size: int | None = None,
) -> DataMeta:
    """Prepare texts at character level; arguments and errors as of `prepare_texts`.

    Raises:
        UsageError: `out_dir` cannot be used, or `val_ratio` is out of range.
    """
    check_target(out_dir, val_ratio=val_ratio, force=force)
    meta, _ = prepare_texts(
        text_path,
        out_dir,
        learn=CharTokenizer.train,
        val_ratio=val_ratio,
        force=force,
        progress=progress,
        block_size=block_size,
    )
    return meta


def prepare_texts(
    text_path: str | Sequence[str],
    out_dir: str | Path,
    *,
    learn: Callable[[Iterator[str]], Tokenizer],
    tokenizer: Tokenizer | None = None,
    val_ratio: float = 0.1,
    seed: int = 1337,
    encoding: str = "utf-8",
    errors: Errors = "strict",
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    block_size: int | None = None,
    text_field: str = "text",
) -> tuple[DataMeta, Tokenizer]:
    """Learn a tokenizer from texts, and encode them with it; see `check_target` first.

    Args:
        text_path: files, directories or globs.
        out_dir: the directory to make.
        learn: makes a tokenizer of the texts.
        tokenizer: to be used instead of learning one.
        val_ratio: share of the text for validation.
        seed: chooses the validation documents where there are several.
        encoding: of the texts.
        errors: what to do with bytes that are not in it.
        workers: processes that encode.
        force: replace a data directory that is there.
        progress: told what is happening.
        block_size: the context to be trained with; a split that is too short is then refused here.
        text_field: the key of the text in .jsonl records.

    Raises:
        DataError: a text cannot be used, or the work failed.
        TokenizerError: the text gives no vocabulary.
    """
    if tokenizer is None:
        texts = iter_texts(text_path, encoding=encoding, errors=errors, text_field=text_field)
        tokenizer = learn(watched(texts, text_path, progress))
    meta = prepare(
        text_path,
        out_dir,
        tokenizer=tokenizer,
        val_ratio=val_ratio,
        seed=seed,
        encoding=encoding,
        errors=errors,
        workers=workers,
        force=force,
        progress=encoding_progress(progress),
        block_size=block_size,
        text_field=text_field,
    )
    return meta, tokenizer


def check_target(out_dir: str | Path, *, force: bool, val_ratio: float = 0.1) -> None:
    """Find what yocto-data would refuse at the end already before a vocabulary is learned.

    Raises:
        UsageError: there is data already, or `val_ratio` is out of range.
    """
    problems = []
    if not 0 < val_ratio < 1:
        problems.append(f"--val_ratio must be above 0 and below 1, not {val_ratio}")
    shown = one_line(str(out_dir))
    if str(out_dir).startswith("~"):
        problems.append(f"the shell did not expand {shown}; write $HOME instead of ~")
    else:
        try:
            with os.scandir(out_dir) as entries:
                occupied = not force and any(entries)
        except (OSError, ValueError):
            occupied = False  # not there yet, or nothing one can write to: yocto-data says what
        if occupied:
            problems.append(
                f"{shown} is not empty; give --force to replace data in it, or another --out_dir"
            )
    if problems:
        raise UsageError(problems)


def watched(
    texts: Iterator[str], sources: str | Sequence[str], progress: Progress | None
) -> Iterator[str]:
    """The same texts, while progress is told how many bytes have gone by."""
    if progress is None:
        yield from texts
        return
    total = plain_size(sources)
    done = 0
    for text in texts:
        done += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        progress(LEARNING, done, max(done, total))
        yield text


def plain_size(sources: str | Sequence[str]) -> int:
    """Bytes of the sources that are plain files; 0 where only reading them would tell."""
    total = 0
    for source in [sources] if isinstance(sources, str) else sources:
        try:
            status = Path(source).stat()
        except (OSError, ValueError):
            return 0
        if not Path(source).is_file():
            return 0
        total += status.st_size
    return total


def encoding_progress(progress: Progress | None) -> Callable[[int, int, int], None] | None:
    """Progress in the form that yocto-data calls."""
    if progress is None:
        return None
    return lambda done, total, _tokens: progress(ENCODING, done, total)


def unknown_rate(out_dir: str | Path, meta: DataMeta, tokenizer: Tokenizer) -> float | None:
    """Share of the tokens that stand for words outside the vocabulary, or None if none can.

    Args:
        out_dir: the data directory, just made.
        meta: its meta.json.
        tokenizer: its tokenizer.
    """
    if not isinstance(tokenizer, WordLevelTokenizer):
        return None
    unknown = 0
    for split in (meta.train, meta.val):
        ids = np.memmap(Path(out_dir) / split.file, dtype=meta.dtype, mode="r")
        for start in range(0, len(ids), 1 << 22):
            unknown += int(np.count_nonzero(ids[start : start + (1 << 22)] == tokenizer.unk_id))
    return unknown / (meta.train.tokens + meta.val.tokens)
