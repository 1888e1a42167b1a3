"""A tokenizer at work: what it must offer, its file, and how it encodes texts, also in workers."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from yocto_data.errors import DataError, WorkError, integer, shorten, writing
from yocto_data.prep.documents import TextPart
from yocto_data.prep.files import open_regular, sha256_of
from yocto_data.prep.meta import LARGEST_VOCABULARY, SeparatorMeta, TokenizerMeta, token_dtype
from yocto_data.prep.splitting import Piece

# Many short records travel together, but not so many that their objects outweigh their text.
_MAX_PIECES_PER_JOB = 4096
_JOBS_IN_FLIGHT_PER_WORKER = 2


@runtime_checkable
class Tokenizer(Protocol):
    """Any object that turns text into ids and back.

    Five more members are used when the object has them, and need no declaration:

    - `encode_to_numpy(text) -> np.ndarray`: the same ids as `encode`, as a one-dimensional
      array of integers, without making a list first.
    - `save(path) -> Path`: writes the tokenizer's file into the directory `path` and returns
      the path of that file.
    - `fingerprint() -> str`: names the content, so that data and model can be matched.
    - `kind: str`: a short word, recorded in meta.json. Objects of kind `"char"` encode faster
      than text travels to another process and are never sent to workers.
    - `eos_id: int | None`: what comes between documents when there are several.
    """

    @property
    def vocab_size(self) -> int:
        """Every id in `range(vocab_size)` is valid."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence of ids."""


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The tokenizer's `vocab_size`, if it is an integer of at least 1 that 32 bits can hold."""
    return integer("the tokenizer's vocab_size", tokenizer.vocab_size, 1, LARGEST_VOCABULARY)


def save_tokenizer(tokenizer: Tokenizer | None, directory: Path) -> TokenizerMeta:
    """Let the tokenizer write its file, and describe it; members it lacks become None."""
    kind = getattr(tokenizer, "kind", None)
    fingerprint = getattr(tokenizer, "fingerprint", None)
    name = fingerprint() if callable(fingerprint) else None
    if not isinstance(name, str | None):
        raise DataError(
            f"the tokenizer's fingerprint must be a string, found {type(name).__name__}"
        )
    file = sha256 = None
    if (save := getattr(tokenizer, "save", None)) is not None:
        before = set(directory.iterdir())
        with writing(directory):
            path = Path(save(directory))
        if path.parent != directory or path in before or not path.is_file():
            raise DataError(
                f"the tokenizer's save must write a new file into {shorten(directory.name)} and "
                f"return its path, but returned {shorten(path)}"
            )
        with writing(path), open_regular(path) as written:
            file, sha256 = path.name, sha256_of(written)
    return TokenizerMeta(
        kind=kind if isinstance(kind, str) else None, fingerprint=name, file=file, sha256=sha256
    )


@dataclass(frozen=True)
class Encoder:
    """Encodes parts of texts to little-endian bytes; every id is checked before it is narrowed.

    Narrowing without the check would turn 65536 into 0 and -1 into 65535.
    """

    tokenizer: Tokenizer
    vocab_size: int
    separator: SeparatorMeta | None

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The element type of the bytes."""
        return token_dtype(self.vocab_size)

    def __call__(self, contents: Sequence[Any]) -> list[Any]:
        """What `encoded` makes of each, or in its place, as a string, what is wrong with it."""
        rows: list[Any] = []
        for content in contents:
            # A tokenizer may be any object: whatever it raises becomes one line.
            try:
                rows.append(self.encoded(content))
            except (ValueError, LookupError, TypeError, RuntimeError) as error:
                rows.append(_one_line(error))
        return rows

    def encoded(self, part: TextPart) -> bytes:
        """The ids of a part of a document, with the separator where the document has its end."""
        to_array: Callable[[str], np.ndarray] | None
        to_array = getattr(self.tokenizer, "encode_to_numpy", None)
        data = self.narrowed(to_array(part.text) if to_array else self.tokenizer.encode(part.text))
        if self.separator is None or not part.ends:
            return data
        return data + np.array([self.separator.id], dtype=self.dtype).tobytes()

    def narrowed(self, given: Any) -> bytes:
        """The bytes of ids; raises `ValueError` unless they are a row of integers in range."""
        ids = np.asarray(given)
        if not ids.size:  # an empty list has no integer type
            return b""
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"the tokenizer gave {ids.ndim}-dimensional {ids.dtype} instead of a row of ids"
            )
        if ids.max() >= self.vocab_size or (ids.dtype.kind == "i" and ids.min() < 0):
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise ValueError(
                f"the tokenizer gave id {wrong}, but its vocab_size is {self.vocab_size}"
            )
        return ids.astype(self.dtype, copy=False).tobytes()


def _one_line(error: Exception) -> str:
    """What a tokenizer, or any other object, says is wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text
    return shorten(text, limit=270)  # a tokenizer's advice comes last


def make_jobs(pieces: Iterable[Piece], chunk_chars: int) -> Iterator[list[Piece]]:
    """Group pieces until they hold `chunk_chars` characters together."""
    job: list[Piece] = []
    chars = 0
    for piece in pieces:
        job.append(piece)
        chars += piece.characters
        if chars >= chunk_chars or len(job) >= _MAX_PIECES_PER_JOB:
            yield job
            job, chars = [], 0
    if job:
        yield job


def encode_jobs(
    jobs: Iterator[list[Piece]], encoder: Encoder, *, workers: int
) -> Generator[tuple[list[Piece], list[Any]], None, None]:
    """Every job and what the encoder made of it, in order, whatever the number of workers.

    Raises:
        WorkError: a worker process could not be started, or died.
    """
    if workers == 1:
        for job in jobs:
            yield job, encoder([piece.content for piece in job])
        return
    # Spawned, not forked: a fork after thread pools have started may hang, and would keep our lock.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoder,),
    )
    waiting: deque[tuple[list[Piece], Future[list[Any]]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, _submit(pool, job)))
            if len(waiting) >= workers * _JOBS_IN_FLIGHT_PER_WORKER:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        for oldest, future in waiting:
            yield oldest, future.result()
    except BrokenProcessPool as error:
        raise WorkError(
            "a worker process ended early: memory ran out, or the calling script lacks "
            "`if __name__ == '__main__':`; workers=1 avoids both"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, job: list[Piece]) -> Future[list[Any]]:
    try:
        return pool.submit(_work, [piece.content for piece in job])
    except BrokenProcessPool:
        raise
    except Exception as error:  # whatever an object raises that cannot be sent to a process
        raise WorkError(
            f"cannot send the tokenizer to worker processes ({_one_line(error)}); use workers=1"
        ) from error


# In a worker process: the encoder, received once and not with every job.
_encoder: Encoder


def _start_worker(encoder: Encoder) -> None:
    global _encoder  # noqa: PLW0603 - what an initializer is for
    _encoder = encoder
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The pool's queue stays open in its workers, so they would outlive a parent that was killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(contents: list[Any]) -> list[Any]:
    return _encoder(contents)
