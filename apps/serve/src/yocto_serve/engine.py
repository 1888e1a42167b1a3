"""The thread that draws: texts join the running batch at the next token, and leave when done.

Requests live on the event loop, models on this thread, which does one thing after another: take a
text in, draw for a moment, drop a text. The loop hands on what was drawn while more is drawn.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from yocto_model import Job, ModelError, SamplingOptions, Token

from yocto_serve.models import Loaded
from yocto_serve.protocol import ApiError

MOST_TEXTS_AT_ONCE = 512  # drawn, or waiting for it
_SECONDS_AT_ONCE = 0.01  # waking the loop for each token of a small model would slow it down
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A text to be drawn: the arguments of `RunningBatch.add`."""

    prompt: list[int]
    max_new_tokens: int
    options: SamplingOptions
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    alternatives: int = 0


@dataclass(frozen=True)
class Drawn:
    """What is added to one text of a request: perhaps no token, or its end."""

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
        self.unended = set(range(len(rows)))  # indices of texts
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._news: asyncio.Queue[Drawn | ApiError] = asyncio.Queue()

    def put(self, news: Drawn | ApiError) -> None:
        """Add what was drawn, or why no more will be."""
        self._news.put_nowait(news)
        if isinstance(news, ApiError):
            self.unended.clear()
        elif news.finish is not None:
            self.unended.discard(news.index)

    async def __aiter__(self) -> AsyncIterator[list[Drawn]]:
        """Yields until every text has ended; raises `ApiError` if one cannot go on."""
        while self.unended or not self._news.empty():
            try:
                async with asyncio.timeout_at(self._deadline):
                    news = [await self._news.get()]
            except TimeoutError:
                yield [Drawn(index, [], "length") for index in sorted(self.unended)]
                return
            while not self._news.empty():  # a slow reader gets several tokens at once
                news.append(self._news.get_nowait())
            for each in news:
                if isinstance(each, ApiError):
                    raise each
            yield [each for each in news if isinstance(each, Drawn)]


class Engine:
    """Runs a thread that steps the batches of all models in turns."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "yocto-engine")
        self._replies: set[Reply] = set()  # begun, and not ended
        self._drawing: asyncio.Task[None] | None = None
        self._is_stopping = False
        # The thread's: whose each job is, and which text; what the loop has not been told.
        self._jobs: dict[Job, tuple[Reply, int]] = {}
        self._news: list[tuple[Reply, Drawn | ApiError]] = []

    # --- on the event loop ---------------------------------------------------------------------

    @property
    def n_texts(self) -> int:
        """How many are drawn or wait for it."""
        return sum(len(reply.rows) for reply in self._replies)

    def begin(self, reply: Reply) -> None:
        """Draw a reply until it has ended; `end` must follow, whatever happens.

        Raises:
            ApiError: there is no room for more.
        """
        if self._is_stopping:
            raise _stopping()
        if self.n_texts + len(reply.rows) > MOST_TEXTS_AT_ONCE:
            message = f"{self.n_texts} texts are waiting already; try again later"
            raise ApiError(message, status=503, code="overloaded")
        self._replies.add(reply)
        self._thread.submit(self._add, reply)
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.create_task(self._draw())

    def end(self, reply: Reply) -> None:
        """End what is not yet drawn of a reply that was begun."""
        self._replies.discard(reply)
        self._thread.submit(self._drop, reply)

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that uses a model, between two tokens."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def stop(self, seconds: float) -> None:
        """Take no new texts, and cut those that are still drawn after so many seconds."""

        def cut() -> None:
            for reply in self._replies:
                if reply.unended:
                    reply.put(_stopping())

        self._is_stopping = True
        asyncio.get_running_loop().call_later(seconds, cut)

    def close(self) -> None:
        """End the thread; texts that are still drawn are dropped."""
        for reply in [*self._replies]:
            self.end(reply)
        self._thread.shutdown()

    async def _draw(self) -> None:
        """Draw as long as a text has not ended."""
        while any(reply.unended for reply in self._replies):
            for reply, news in await self.call(self._drawn):
                reply.put(news)

    # --- on the thread -------------------------------------------------------------------------

    def _add(self, reply: Reply) -> None:
        try:
            for index, row in enumerate(reply.rows):
                job = reply.model.batch.add(**vars(row))
                self._jobs[job] = reply, index
        except ModelError as error:
            self._fail(reply, ApiError(str(error)))

    def _drop(self, reply: Reply) -> None:
        for job in [job for job, (owner, _) in self._jobs.items() if owner is reply]:
            reply.model.batch.cancel(job)
            del self._jobs[job]

    def _fail(self, reply: Reply, error: ApiError) -> None:
        self._drop(reply)
        self._news.append((reply, error))

    def _drawn(self) -> list[tuple[Reply, Drawn | ApiError]]:
        """What is drawn in a moment: at least one token for each text whose turn it is."""
        until = time.monotonic() + _SECONDS_AT_ONCE
        while self._jobs:
            for model in {reply.model for reply, _ in self._jobs.values()}:
                self._step(model)
            if time.monotonic() > until:
                break
        news, self._news = self._news, []
        return news

    def _step(self, model: Loaded) -> None:
        """Draw one token for each text of a model."""
        try:
            stepped = model.batch.step()
        except Exception as error:  # noqa: BLE001 - these texts end, and the server goes on
            model.renew()
            for reply in {reply for reply, _ in self._jobs.values() if reply.model is model}:
                self._fail(reply, _broken(error))
            return
        for job, tokens in stepped:
            if job not in self._jobs:  # another text of this reply has failed
                continue
            reply, index = self._jobs[job]
            if job.error is not None:
                self._fail(reply, _broken(job.error))
            elif job.finish_reason is not None:
                finish = "length" if job.finish_reason == "length" else "stop"
                self._news.append((reply, Drawn(index, tokens, finish)))
                del self._jobs[job]
            elif tokens:
                self._news.append((reply, Drawn(index, tokens)))


def _broken(error: Exception) -> ApiError:
    return ApiError(f"the model could not go on: {error}", status=500)


def _stopping() -> ApiError:
    return ApiError("the server is stopping", status=503, code="stopping")
