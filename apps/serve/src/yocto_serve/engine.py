"""The thread that draws: texts join the running batch at the next token, and leave when done.

Requests live on the event loop, models on this thread. What goes there is a function to be called
between two tokens; what comes back are the tokens of one step, handed to the loop in one call.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from yocto_model import ModelError, SamplingOptions, Token

from yocto_serve.models import Loaded
from yocto_serve.protocol import ApiError
from yocto_serve.running import Job

MOST_WAITING = 512  # texts that are drawn or wait for it
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A text to be drawn."""

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
        self.jobs: dict[Job, int] = {}  # those of the thread, with the index of their text
        self.loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Drawn | ApiError] = asyncio.Queue()
        self._n_open = len(rows)

    async def __aiter__(self) -> AsyncIterator[list[Drawn]]:
        """Yields until every text has ended; raises `ApiError` if one cannot go on."""
        while self._n_open:
            news = [await self._news.get()]
            # A slow reader gets several tokens at once.
            while not self._news.empty():
                news.append(self._news.get_nowait())
            found: list[Drawn] = []
            for each in news:
                if isinstance(each, ApiError):
                    raise each
                found.append(each)
                self._n_open -= each.finish is not None
            yield found

    def tell(self, news: Drawn | ApiError) -> None:
        """Add news; only on the loop."""
        self._news.put_nowait(news)


class Engine:
    """Runs a thread that steps the batches of all models in turns.

    Args:
        threads: how many processor threads compute; 0 leaves it to torch.
    """

    def __init__(self, *, threads: int = 0) -> None:
        self._threads = threads
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._replies: set[Reply] = set()  # of the thread
        self._stop_at: float | None = None
        self._stopped = False
        self.n_texts = 0  # drawn or waiting; of the loop
        self._thread = threading.Thread(target=self._work, name="yocto-engine", daemon=True)
        self._thread.start()

    # --- on the event loop ---------------------------------------------------------------------

    def begin(self, reply: Reply) -> None:
        """Draw a reply until it has ended; `end` must follow, whatever happens.

        Raises:
            ApiError: there is no room for more.
        """
        if self._stop_at is not None:
            raise _stopping()
        if self.n_texts + len(reply.rows) > MOST_WAITING:
            message = f"{self.n_texts} texts are waiting already; try again later"
            raise ApiError(message, status=503, kind="server_error", code="overloaded")
        self.n_texts += len(reply.rows)
        self._calls.put(lambda: self._begin(reply))

    def end(self, reply: Reply) -> None:
        """End what is not yet drawn of a reply that was begun."""
        self.n_texts -= len(reply.rows)
        self._calls.put(lambda: self._end(reply))

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that uses a model between two tokens."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if result.cancelled():
                return
            if error is None:
                result.set_result(value)  # type: ignore[arg-type] # it is what `function` returned
            else:
                result.set_exception(error)

        def work() -> None:
            value, problem = None, None
            try:
                value = function()
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                problem = error
            _on(loop, settle, value, problem)

        self._calls.put(work)
        return await result

    def stop(self, seconds: float) -> None:
        """Take no new texts, and cut those that are still drawn after so many seconds."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + seconds
            self._calls.put(lambda: None)

    def close(self) -> None:
        """End the thread; texts that are still drawn are cut."""
        self.stop(0)
        self._stopped = True
        self._calls.put(lambda: None)
        self._thread.join()

    # --- on the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while not self._stopped:
            with contextlib.suppress(queue.Empty):
                # Without anything to draw, it waits.
                self._calls.get(block=not self._replies)()
                while True:
                    self._calls.get_nowait()()
            self._cut(time.monotonic())
            for model in {reply.model for reply in self._replies}:
                self._step(model)
        self._cut(float("inf"))

    def _begin(self, reply: Reply) -> None:
        self._replies.add(reply)
        for index, row in enumerate(reply.rows):
            try:
                job = reply.model.batch.add(
                    row.prompt_ids, row.max_new_tokens, options=row.options, stop=row.stop,
                    seed=row.seed, logprobs=row.logprobs, alternatives=row.alternatives,
                )  # fmt: skip
            except ModelError as error:
                self._fail(reply, ApiError(str(error)))
                return
            reply.jobs[job] = index
            if job.finish_reason is not None:  # nothing was to be drawn
                del reply.jobs[job]
                _on(reply.loop, reply.tell, Drawn(index, [], "length"))

    def _end(self, reply: Reply) -> None:
        self._replies.discard(reply)
        for job in reply.jobs:
            reply.model.batch.cancel(job)
        reply.jobs.clear()

    def _fail(self, reply: Reply, error: ApiError) -> None:
        self._end(reply)
        _on(reply.loop, reply.tell, error)

    def _cut(self, now: float) -> None:
        """End what has taken too long."""
        for reply in [each for each in self._replies if now > each.deadline]:
            cut = [Drawn(index, [], "length") for index in reply.jobs.values()]
            self._end(reply)
            _on(reply.loop, lambda reply=reply, cut=cut: [*map(reply.tell, cut)])
        if self._stop_at is not None and now > self._stop_at:
            for reply in list(self._replies):
                self._fail(reply, _stopping())

    def _step(self, model: Loaded) -> None:
        """Draw one token for each text of a model."""
        owners = {job: reply for reply in self._replies for job in reply.jobs}
        try:
            stepped = model.batch.step()
        except Exception as error:  # noqa: BLE001 - the texts of this model end, the server goes on
            model.renew()
            message = f"the model could not go on: {error}"
            for reply in [each for each in self._replies if each.model is model]:
                self._fail(reply, ApiError(message, status=500, kind="server_error"))
            return
        news: dict[asyncio.AbstractEventLoop, list[tuple[Reply, Drawn]]] = {}
        for job, tokens in stepped:
            if job not in owners:
                continue
            reply = owners[job]
            finish = job.finish_reason
            if tokens or finish:
                ended = None if finish is None else "length" if finish == "length" else "stop"
                drawn = Drawn(reply.jobs[job], tokens, ended)
                news.setdefault(reply.loop, []).append((reply, drawn))
            if finish is not None:
                del reply.jobs[job]
                if not reply.jobs:
                    self._replies.discard(reply)
        for loop, found in news.items():
            _on(loop, lambda found=found: [reply.tell(drawn) for reply, drawn in found])


def _on(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function, *arguments)


def _stopping() -> ApiError:
    return ApiError("the server is stopping", status=503, kind="server_error", code="stopping")
