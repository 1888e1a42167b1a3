"""The thread that draws: texts join the running batch at the next token, and leave when done.

Requests live on the event loop, models on this thread. What goes there is a function to be called
between two tokens; what comes back is what one step drew, handed to the loop in one call.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from yocto_model import Job, ModelError, SamplingOptions, Token

from yocto_serve.models import Loaded
from yocto_serve.protocol import ApiError

MOST_TEXTS_AT_ONCE = 512  # drawn, or waiting for it
_SECONDS_BETWEEN_NEWS = 0.01  # waking the loop for each token of a small model would slow it down
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A text to be drawn; fields as in `RunningBatch.add`."""

    prompt_ids: list[int]
    max_new_tokens: int
    options: SamplingOptions
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    alternatives: int = 0


@dataclass(frozen=True)
class Drawn:
    """What one step adds to one text of a request: perhaps no token, or its end."""

    index: int
    tokens: list[Token]
    finish: str | None = None  # "stop" or "length" with the last tokens


class Reply:
    """The texts of one request; iterate over it to get what was drawn since the last time.

    Args:
        model: draws them.
        rows: one for each text.
        seconds: after so long, texts are cut.
    """

    def __init__(self, model: Loaded, rows: Sequence[Row], *, seconds: float) -> None:
        self.model, self.rows = model, rows
        self.deadline = time.monotonic() + seconds
        self.jobs: dict[Job, int] = {}  # not ended yet, with the index of the text; the thread's
        self.news: asyncio.Queue[Drawn | ApiError] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[list[Drawn]]:
        """Yields until every text has ended; raises `ApiError` if one cannot go on."""
        n_open = len(self.rows)
        while n_open:
            news = [await self.news.get()]
            while not self.news.empty():  # a slow reader gets several tokens at once
                news.append(self.news.get_nowait())
            found: list[Drawn] = []
            for each in news:
                if isinstance(each, ApiError):
                    raise each
                found.append(each)
                n_open -= each.finish is not None
            yield found


class Engine:
    """Runs a thread that steps the batches of all models in turns.

    Args:
        threads: how many processor threads compute; 0 leaves it to torch.

    Attributes:
        n_texts: how many are drawn or wait for it.
    """

    def __init__(self, *, threads: int = 0) -> None:
        self.n_texts = 0
        self._threads = threads
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stop_at, self._is_closed = float("inf"), False
        self._replies: set[Reply] = set()  # the thread's, like `_news`
        self._news: list[tuple[Reply, Drawn | ApiError]] = []
        self._told_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="yocto-engine", daemon=True)
        self._thread.start()

    # --- on the event loop ---------------------------------------------------------------------

    def begin(self, reply: Reply) -> None:
        """Draw a reply until it has ended; `end` must follow, whatever happens.

        Raises:
            ApiError: there is no room for more.
        """
        if self._stop_at < float("inf"):
            raise _stopping()
        if self.n_texts + len(reply.rows) > MOST_TEXTS_AT_ONCE:
            message = f"{self.n_texts} texts are waiting already; try again later"
            raise ApiError(message, status=503, kind="server_error", code="overloaded")
        self._loop = asyncio.get_running_loop()
        self.n_texts += len(reply.rows)
        self._calls.put(lambda: self._begin(reply))

    def end(self, reply: Reply) -> None:
        """End what is not yet drawn of a reply that was begun."""
        self.n_texts -= len(reply.rows)
        self._calls.put(lambda: self._end(reply))

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that uses a model, between two tokens."""
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                result.set_exception(error)

        self._calls.put(work)
        return await asyncio.wrap_future(result)

    def stop(self, seconds: float) -> None:
        """Take no new texts, and cut those that are still drawn after so many seconds."""
        self._stop_at = min(self._stop_at, time.monotonic() + seconds)

    def close(self) -> None:
        """End the thread; texts that are still drawn are cut."""
        self.stop(0)
        self._is_closed = True
        self._calls.put(lambda: None)
        self._thread.join()

    # --- on the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while not self._is_closed:
            with contextlib.suppress(queue.Empty):
                self._calls.get(block=not self._replies)()  # with nothing to draw, it waits
                while True:
                    self._calls.get_nowait()()
            self._cut(time.monotonic())
            for model in {reply.model for reply in self._replies}:
                self._step(model)
            self._tell()
        self._cut(float("inf"))
        self._tell()

    def _begin(self, reply: Reply) -> None:
        self._replies.add(reply)
        try:
            for index, row in enumerate(reply.rows):
                job = reply.model.batch.add(
                    row.prompt_ids, row.max_new_tokens, options=row.options, stop=row.stop,
                    seed=row.seed, logprobs=row.logprobs, alternatives=row.alternatives,
                )  # fmt: skip
                reply.jobs[job] = index
        except ModelError as error:
            self._fail(reply, ApiError(str(error)))

    def _end(self, reply: Reply) -> None:
        self._replies.discard(reply)
        for job in reply.jobs:
            reply.model.batch.cancel(job)
        reply.jobs.clear()

    def _fail(self, reply: Reply, error: ApiError) -> None:
        self._end(reply)
        self._news.append((reply, error))

    def _cut(self, now: float) -> None:
        """End what has taken too long."""
        for reply in list(self._replies):
            if now > self._stop_at:
                self._fail(reply, _stopping())
            elif now > reply.deadline:
                self._news += [(reply, Drawn(index, [], "length")) for index in reply.jobs.values()]
                self._end(reply)

    def _step(self, model: Loaded) -> None:
        """Draw one token for each text of a model."""
        replies = [reply for reply in self._replies if reply.model is model]
        owners = {job: reply for reply in replies for job in reply.jobs}
        try:
            stepped = model.batch.step()
        except Exception as error:  # noqa: BLE001 - these texts end, and the server goes on
            model.renew()
            for reply in replies:
                self._fail(reply, _broken(error))
            return
        for job, tokens in stepped:
            reply, finish = owners[job], job.finish_reason
            if job.error is not None:
                self._fail(reply, _broken(job.error))
            if job not in reply.jobs:  # another text of this reply has failed
                continue
            index = reply.jobs[job]
            if finish is not None:
                del reply.jobs[job]
                self._news.append(
                    (reply, Drawn(index, tokens, "length" if finish == "length" else "stop"))
                )
                if not reply.jobs:
                    self._replies.discard(reply)
            elif tokens:
                self._news.append((reply, Drawn(index, tokens)))

    def _tell(self) -> None:
        """Hand all news to the event loop, unless it heard some just now and nothing has ended."""
        now = time.monotonic()
        is_urgent = any(not isinstance(each, Drawn) or each.finish for _, each in self._news)
        if not is_urgent and now < self._told_at + _SECONDS_BETWEEN_NEWS:
            return
        news, self._news, self._told_at = self._news, [], now

        def deliver() -> None:
            for reply, each in news:
                reply.news.put_nowait(each)

        if news and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(deliver)


def _broken(error: Exception) -> ApiError:
    return ApiError(f"the model could not go on: {error}", status=500, kind="server_error")


def _stopping() -> ApiError:
    return ApiError("the server is stopping", status=503, kind="server_error", code="stopping")
