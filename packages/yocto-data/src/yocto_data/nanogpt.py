"""Importing the train.bin and val.bin that nanoGPT's preparation scripts write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from yocto_data.errors import OptionError, OutputError, ShortDataError, show
from yocto_data.meta import SPLITS, DataMeta, SourceMeta, SplitMeta, token_dtype
from yocto_data.prepare import Progress
from yocto_data.protocol import Tokenizer
from yocto_data.sources import PathLike
from yocto_data.splitting import SplitName
from yocto_data.staging import check_target, resolve_target, staged_directory
from yocto_data.token_file import DtypeLike, TokenFile
from yocto_data.token_writer import TokenWriter
from yocto_data.tokenizer_file import save_tokenizer, vocabulary_size


def import_nanogpt(
    source_dir: PathLike,
    out_dir: PathLike,
    *,
    dtype: DtypeLike,
    vocab_size: int,
    tokenizer: Tokenizer | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> DataMeta:
    """Copy ``train.bin`` and ``val.bin`` into a data directory with a ``meta.json``.

    Headerless files do not say what they hold, so the caller does. A ``meta.pkl`` beside them is
    never opened: a pickle may run code.

    Args:
        source_dir: the directory that holds the two files.
        out_dir: the directory to make.
        dtype: element type of the files, ``uint16`` or ``uint32``.
        vocab_size: the number of valid ids; every id is compared with it.
        tokenizer: where there is one for these ids, its file and fingerprint go along.
        force: replace a data directory that is there.
        progress: called with bytes done, bytes in all, tokens so far.

    Returns:
        The content of the new meta.json; ``text`` and ``options`` are None in it.

    Raises:
        OptionError: the vocabulary is out of range, or is not the tokenizer's.
        TokenFileError: a file is missing, is no token file, or holds an id out of range.
        OutputError: ``out_dir`` holds something already, or is in use.
        WriteError: the system refused a write.
    """
    element = token_dtype(vocab_size)
    if tokenizer is not None and vocabulary_size(tokenizer) != vocab_size:
        raise OptionError(
            f"vocab_size {vocab_size} given, but the tokenizer's is {tokenizer.vocab_size}"
        )
    source, target = Path(source_dir), resolve_target(out_dir)
    if target.is_relative_to(os.path.realpath(source)):
        raise OutputError(f"{show(target)} lies within the source {show(source)}; write elsewhere")
    files = _checked(source, dtype, vocab_size)
    check_target(target, force=force)
    total_bytes = sum(file.array.nbytes for file in files.values())
    report = _Report(progress, total_bytes)
    with staged_directory(target, force=force) as directory:
        splits = {
            name: _copy(file, directory / f"{name}.bin", element, report)
            for name, file in files.items()
        }
        meta = DataMeta(
            vocab_size=vocab_size,
            tokenizer=save_tokenizer(tokenizer, directory),
            train=splits["train"],
            val=splits["val"],
            sources=tuple(
                SourceMeta(name=file.path.name, bytes=file.array.nbytes, sha256=file.sha256())
                for file in files.values()
            ),
        )
        meta.save(directory)
    return meta


def _checked(source: Path, dtype: DtypeLike, vocab_size: int) -> dict[SplitName, TokenFile]:
    """Both token files, of which every id was read."""
    files = {
        name: TokenFile(source / f"{name}.bin", dtype=dtype, vocab_size=vocab_size)
        for name in SPLITS
    }
    for file in files.values():
        file.check_ids()
        if len(file.array) < 2:
            raise ShortDataError(f"{show(file.path)} holds one token; at least 2 are needed")
    return files


class _Report:
    """Progress over both files."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress: Callable[[int, int, int], None] | None = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._tokens = 0

    def add(self, block: np.ndarray) -> None:
        self._done_bytes += block.nbytes
        self._tokens += len(block)
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes, self._tokens)


def _copy(
    file: TokenFile, path: Path, element: np.dtype[np.unsignedinteger], report: _Report
) -> SplitMeta:
    with TokenWriter(path, element) as writer:
        for block in file.blocks():
            writer.write(block.astype(element).tobytes())
            report.add(block)
    return writer.record(documents=None)
