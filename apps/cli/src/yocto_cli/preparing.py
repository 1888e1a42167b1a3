"""From texts to a data directory: learn a tokenizer, then let yocto-data do the rest.

This module brings NumPy in, so commands import it after they have parsed their flags.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from yocto_data import DataMeta, import_nanogpt, iter_texts, prepare
from yocto_tokenizers import (
    CHAT_TOKENS,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordLevelTokenizer,
)

from yocto_cli.command import UsageError, next_command
from yocto_cli.prepare import (
    PROG,
    VOCAB_SIZE,
    BpeArguments,
    CharArguments,
    ImportArguments,
    PrepareArguments,
    WordArguments,
)
from yocto_cli.screen.progress import ProgressBar
from yocto_cli.screen.terminal import counted, say
from yocto_cli.tokenizer_flags import named_tokenizer

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
Learn = Callable[[Iterator[str]], Tokenizer]

LEARNING = "learning the vocabulary"
ENCODING = "encoding"
_READING = ("encoding", "errors", "text_field")  # options that say how texts are read
_OPTIONS = (*_READING, "val_ratio", "seed", "force")
_KINDS = {"char": ("char",), "word": ("word",), "bpe": ("sentencepiece", "huggingface")}


def prepare_files(command: str, arguments: PrepareArguments) -> None:
    """yocto-prepare char, word and bpe."""
    if not arguments.text_path:
        raise UsageError("--text_path names nothing; name a text file, a directory or a glob")
    if arguments.workers < 0:
        raise UsageError(f"--workers must be 0 (one per core) or more, not {arguments.workers}")
    check_target(arguments.out_dir, val_ratio=arguments.val_ratio, force=arguments.force)
    with ProgressBar() as progress:
        meta, tokenizer = prepare_texts(
            arguments.text_path,
            arguments.out_dir,
            learn=_learner(arguments),
            tokenizer=_named_tokenizer(command, arguments),
            progress=progress.update,
            workers=arguments.workers or os.cpu_count() or 1,
            **{name: getattr(arguments, name) for name in _OPTIONS},
        )
    _say(arguments.out_dir, meta, _unknown_rate(arguments.out_dir, meta, tokenizer))


def _learner(arguments: PrepareArguments) -> Learn:
    size = getattr(arguments, "vocab_size", None)
    size = VOCAB_SIZE if size is None else size
    if isinstance(arguments, BpeArguments):
        return partial(
            SentencePieceTokenizer.train,
            vocab_size=size,
            newline=arguments.newline,
            character_coverage=arguments.character_coverage,
            shrink=arguments.shrink,
        )
    special = CHAT_TOKENS if isinstance(arguments, CharArguments) and arguments.chat_tokens else ()
    if isinstance(arguments, WordArguments):
        return partial(WordLevelTokenizer.train, vocab_size=size, special_tokens=special)
    return partial(CharTokenizer.train, special_tokens=special)


def _named_tokenizer(command: str, arguments: PrepareArguments) -> Tokenizer | None:
    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    if tokenizer is None:
        return None
    if tokenizer.kind not in _KINDS[command]:
        right = next((name for name, kinds in _KINDS.items() if tokenizer.kind in kinds), "bpe")
        raise UsageError(f"the named tokenizer is of the kind {tokenizer.kind}; use {PROG} {right}")
    given = arguments.learning_flags()
    if given.get("vocab_size") == tokenizer.vocab_size:
        del given["vocab_size"]
    if given:
        flags = " and ".join(f"--{name}" for name in given)
        raise UsageError(
            f"the named tokenizer already has its {tokenizer.vocab_size} ids and learns nothing; "
            f"leave {flags} out"
        )
    return tokenizer


def import_files(arguments: ImportArguments) -> None:
    """yocto-prepare import."""
    check_target(arguments.out_dir, force=arguments.force)
    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    vocab_size = arguments.vocab_size
    if vocab_size is None:
        if tokenizer is None:
            raise UsageError(
                "the files do not say how many ids there are; give --vocab_size, or the tokenizer "
                "that made them as --tokenizer_path"
            )
        vocab_size = tokenizer.vocab_size
    with ProgressBar() as progress:
        meta = import_nanogpt(
            arguments.data_dir,
            arguments.out_dir,
            dtype=arguments.dtype,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            force=arguments.force,
            progress=lambda done, total, _: progress.update(ENCODING, done, total),
        )
    _say(arguments.out_dir, meta)


def _say(out_dir: str, meta: DataMeta, unknown: float | None = None) -> None:
    """What was made, what is worth knowing about it, and the next command."""
    unit = {"char": "character", "word": "word"}.get(meta.tokenizer.kind or "", "token")
    tokens = counted(meta.train.tokens, "token")
    said = f"{tokens} for training, {meta.val.tokens:,} for validation"
    say(f"{out_dir}: {counted(meta.vocab_size, unit)}; {said}")
    words = ["--data_dir", out_dir]
    if meta.tokenizer.file is None:
        say("note: the files do not include the tokenizer of these ids; training needs it")
        words += ["--tokenizer_path", "TOKENIZER"]
    if unknown:
        say(f"note: {unknown:.2%} of the tokens are words outside the vocabulary (<unk>)")
    if (text := meta.text) is not None:
        found = (
            (text.boms_dropped, "byte order mark", "dropped"),
            (text.replaced, "place", f"not in {text.encoding}, handled as --errors {text.errors}"),
            (text.control_characters, "control character", "kept"),
            (text.unsafe_cuts, "cut", "in the middle of long words, where tokens may differ"),
        )
        for n, what, end in found:
            if n:
                say(f"note: {counted(n, what)} {end}")
    say(f"next: {next_command('yocto-train', *words)}")


def prepare_texts(
    sources: str | Sequence[str],
    out_dir: str | Path,
    *,
    learn: Learn,
    tokenizer: Tokenizer | None = None,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> tuple[DataMeta, Tokenizer]:
    """Learn a tokenizer from texts, and encode them with it; call `check_target` first.

    Args:
        sources: files, directories or globs.
        out_dir: the directory to make.
        learn: makes a tokenizer of the texts.
        tokenizer: used instead of learning one.
        progress: told what is happening.
        options: of `yocto_data.prepare`.

    Raises:
        DataError: a text cannot be used, or the work failed.
        TokenizerError: no vocabulary can be learned from the text.
    """
    if tokenizer is None:
        reading = {name: options[name] for name in _READING if name in options}
        tokenizer = learn(_watched(iter_texts(sources, **reading), sources, progress))

    def told(done: int, total: int, _: int) -> None:
        progress(ENCODING, done, total)

    return prepare(sources, out_dir, tokenizer=tokenizer, progress=told, **options), tokenizer


def check_target(out_dir: str | Path, *, force: bool, val_ratio: float = 0.1) -> None:
    """Find what yocto-data would refuse at the end already before a vocabulary is learned.

    Raises:
        UsageError: there is data already, or `val_ratio` is out of range.
    """
    if not 0 < val_ratio < 1:
        raise UsageError(f"--val_ratio must be above 0 and below 1, not {val_ratio}")
    if str(out_dir).startswith("~"):
        raise UsageError(f"the shell did not expand {out_dir}; write $HOME instead of ~")
    occupied = False
    with contextlib.suppress(OSError, ValueError), os.scandir(out_dir) as entries:
        occupied = not force and any(entries)
    if occupied:
        raise UsageError(
            f"{out_dir} is not empty; give --force to replace data in it, or another --out_dir"
        )


def _watched(
    texts: Iterator[str], sources: str | Sequence[str], progress: Progress
) -> Iterator[str]:
    """The same texts, while progress is told how many bytes have gone by."""
    paths = [Path(source) for source in ([sources] if isinstance(sources, str) else sources)]
    total, done = 0, 0  # of globs and directories, only reading them would tell
    with contextlib.suppress(OSError, ValueError):
        total = sum(path.stat().st_size for path in paths) if all(map(Path.is_file, paths)) else 0
    for text in texts:
        done += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        progress(LEARNING, done, max(done, total))
        yield text


def _unknown_rate(out_dir: str, meta: DataMeta, tokenizer: Tokenizer) -> float | None:
    """Share of the tokens that stand for words outside the vocabulary, or None if none can."""
    if not isinstance(tokenizer, WordLevelTokenizer):
        return None
    unknown = 0
    for split in (meta.train, meta.val):
        ids = np.memmap(Path(out_dir) / split.file, dtype=meta.dtype, mode="r")
        for start in range(0, len(ids), 1 << 22):
            unknown += int(np.count_nonzero(ids[start : start + (1 << 22)] == tokenizer.unk_id))
    return unknown / (meta.train.tokens + meta.val.tokens)
