"""Pieces of text to token bytes, here or in worker processes, always in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from yocto_data.errors import TokenizerUseError, WorkerError, show
from yocto_data.meta import token_dtype
from yocto_data.protocol import Tokenizer
from yocto_data.splitting import Piece

# Many short records travel together, but not so many that their objects outweigh their text.
_MAX_PIECES_PER_JOB = 4096
_JOBS_IN_FLIGHT_PER_WORKER = 2


class Fault(NamedTuple):
    """A text that could not be encoded: which of several, and why."""

    number: int
    message: str


class Encoded(NamedTuple):
    """Token bytes of several texts, joined, and how many bytes are each one's."""

    data: bytes
    sizes: list[int]


class Encoder:
    """Encodes texts to little-endian bytes, and checks every id before it is narrowed.

    Narrowing without the check would turn 65536 into 0 and -1 into 65535.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)

    def __call__(self, texts: Sequence[str]) -> Encoded | Fault:
        """The bytes of all texts, or the first text that failed."""
        rows: list[np.ndarray] = []
        for text in texts:
            try:
                rows.append(self._ids(text))
            # A tokenizer is anybody's object: its own refusals, and what its slips raise, become
            # one line with the document's name. Nothing is passed over.
            except (ValueError, LookupError, TypeError, RuntimeError) as error:
                return Fault(len(rows), _one_line(error))
        # Many short texts are checked and narrowed together. Signed and unsigned 64-bit ids join as
        # float64, which is exact up to 2^53, and no vocabulary goes beyond 2^32.
        ids = rows[0] if len(rows) == 1 else np.concatenate(rows)
        if ids.size and (ids.min() < 0 or ids.max() >= self._vocab_size):
            return self._out_of_range(rows)
        sizes = [len(row) * self._dtype.itemsize for row in rows]
        return Encoded(ids.astype(self._dtype, copy=False).tobytes(), sizes)

    def _ids(self, text: str) -> np.ndarray:
        to_array: Callable[[str], np.ndarray] | None
        to_array = getattr(self._tokenizer, "encode_to_numpy", None)
        ids = np.asarray(to_array(text) if to_array else self._tokenizer.encode(text))
        if not ids.size:  # an empty list has no integer type
            return np.empty(0, dtype=self._dtype)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"the tokenizer gave {ids.ndim}-dimensional {ids.dtype} instead of a row of ids"
            )
        return ids

    def _out_of_range(self, rows: list[np.ndarray]) -> Fault:
        number, wrong = next(
            (number, int(row[bad][0]))
            for number, row in enumerate(rows)
            if (bad := (row < 0) | (row >= self._vocab_size)).any()
        )
        return Fault(
            number, f"the tokenizer gave id {wrong}, but its vocab_size is {self._vocab_size}"
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text
    return show(text, limit=270)  # a tokenizer's advice comes last


Job = list[Piece]


def make_jobs(pieces: Iterable[Piece], chunk_chars: int) -> Iterator[Job]:
    """Group pieces until they hold ``chunk_chars`` characters together."""
    job: Job = []
    chars = 0
    for piece in pieces:
        job.append(piece)
        chars += len(piece.text)
        if chars >= chunk_chars or len(job) >= _MAX_PIECES_PER_JOB:
            yield job
            job, chars = [], 0
    if job:
        yield job


def encode_jobs(
    jobs: Iterator[Job], encoder: Encoder, *, workers: int
) -> Generator[tuple[Job, Encoded], None, None]:
    """Every job with its token bytes, in order, whatever the number of workers.

    Raises:
        TokenizerUseError: the tokenizer refused a text, or gave ids out of range, in the document
            named.
        WorkerError: a worker process could not be started, or died.
    """
    results = _here(jobs, encoder) if workers == 1 else _in_workers(jobs, encoder, workers)
    for job, encoded in results:
        if isinstance(encoded, Fault):
            piece = job[encoded.number]
            since = f" (from character {piece.start} on)" if piece.start else ""
            raise TokenizerUseError(f"{piece.where}{since}: {encoded.message}")
        yield job, encoded


def _here(jobs: Iterator[Job], encoder: Encoder) -> Iterator[tuple[Job, Encoded | Fault]]:
    for job in jobs:
        yield job, encoder([piece.text for piece in job])


def _in_workers(
    jobs: Iterator[Job], encoder: Encoder, workers: int
) -> Iterator[tuple[Job, Encoded | Fault]]:
    # Spawned, not forked: a fork after thread pools have started may hang, and would keep our lock.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoder,),
    )
    waiting: deque[tuple[Job, Future[Encoded | Fault]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, _submit(pool, job)))
            if len(waiting) >= workers * _JOBS_IN_FLIGHT_PER_WORKER:
                yield _take(waiting)
        while waiting:
            yield _take(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, job: Job) -> Future[Encoded | Fault]:
    try:
        return pool.submit(_work, [piece.text for piece in job])
    except BrokenProcessPool as error:
        raise _broken() from error
    except Exception as error:  # whatever an object raises that cannot be sent to a process
        raise WorkerError(
            f"cannot send the tokenizer to worker processes ({_one_line(error)}); use workers=1"
        ) from error


def _take(
    waiting: deque[tuple[Job, Future[Encoded | Fault]]],
) -> tuple[Job, Encoded | Fault]:
    job, future = waiting.popleft()
    try:
        return job, future.result()
    except BrokenProcessPool as error:
        raise _broken() from error


def _broken() -> WorkerError:
    return WorkerError(
        "a worker process ended early: memory ran out, or the calling script lacks "
        "`if __name__ == '__main__':`; workers=1 needs neither"
    )


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


def _work(texts: list[str]) -> Encoded | Fault:
    return _encoder(texts)
