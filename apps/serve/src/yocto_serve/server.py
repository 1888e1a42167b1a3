"""The endpoints: from a request to a reply, and who may ask."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yocto_cli.command import UsageError
from yocto_tokenizers import TokenizerError
from yocto_train import TrainError

from yocto_serve import page
from yocto_serve.app import LOCAL_HOSTS
from yocto_serve.engine import Engine, Reply, Row
from yocto_serve.models import Library, Loaded
from yocto_serve.prompts import chat_prompt, text_prompt
from yocto_serve.protocol import (
    MOST_TEXTS,
    ApiError,
    ChatRequest,
    CompletionRequest,
    parsed,
)
from yocto_serve.replies import Writer, event, scored

LARGEST_BODY_BYTES = 4 << 20
SECONDS_FOR_BODY = 30.0
SECONDS_FOR_REPLY = 600.0
MOST_TOKENS = 4096  # of one text
_CHAT_ROOM = 400  # what old turns make room for, as in yocto-chat


class Server:
    """The endpoints over a library and an engine.

    Args:
        library: what is served.
        engine: draws.
        api_key: what requests must bring; None lets everyone in.
        allow_origin: web pages that may ask.
        hosts: names by which it may be addressed, which keeps out web pages that point a name of
            theirs here; None for any.
        log: takes a line for each request.
    """

    def __init__(
        self,
        library: Library,
        engine: Engine,
        *,
        api_key: str | None = None,
        allow_origin: tuple[str, ...] = (),
        hosts: tuple[str, ...] | None = LOCAL_HOSTS,
        log: Callable[[str], object] = lambda _line: None,
    ) -> None:
        self.library, self.engine, self._page = library, engine, page.page()
        cors = Middleware(
            CORSMiddleware, allow_origins=allow_origin, allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )  # fmt: skip
        door = Middleware(Door, api_key=api_key, allow_origin=allow_origin, hosts=hosts, log=log)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.completion, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
                Route("/status", self.status),
                Route("/", self.page),
            ],
            middleware=[cors, door] if allow_origin else [door],
            exception_handlers={
                ApiError: _refusal,
                HTTPException: _refusal,
                ClientDisconnect: lambda *_: Response(status_code=499),  # for the log
                Exception: _refusal,
            },
        )

    # --- what a model says ---------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = parsed(ChatRequest, await _body(request))
        model, messages = await self._model(asked.model), asked.plain_messages()
        limit = asked.max_completion_tokens or asked.max_tokens
        prompt = await asyncio.to_thread(
            chat_prompt, model, messages,
            room=limit or _CHAT_ROOM, truncate=asked.truncation == "auto",
        )  # fmt: skip
        left = model.window - len(prompt.ids)
        rows = _rows(asked, [prompt.ids], min(limit or left, left), stops=model.layout.stops)
        writer = Writer(
            model, rows, is_chat=True, trims=messages[-1]["role"] != "assistant",
            n_prompt=len(prompt.ids), usage=bool(asked.stream_options.get("include_usage")),
            notes={"seed": rows[0].seed, "hidden": prompt.hidden, "unknown": prompt.unknown},
        )  # fmt: skip
        return await self._reply(request, asked, rows, writer)

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = parsed(CompletionRequest, await _body(request))
        given = asked.prompts()
        if len(given) * asked.n > MOST_TEXTS:
            raise ApiError(f"at most {MOST_TEXTS} texts can be asked for at once", param="prompt")
        model = await self._model(asked.model)
        prompts = [await asyncio.to_thread(text_prompt, model, each) for each in given]
        rows = _rows(asked, prompts, asked.max_tokens)
        echoed = []
        for ids in prompts if asked.echo else ():
            score = partial(scored, model, ids, asked.likeliest)
            echoed += [await self.engine.call(score)] * asked.n
        writer = Writer(
            model, rows, is_chat=False, echoed=echoed, n_prompt=sum(map(len, prompts)),
            usage=bool(asked.stream_options.get("include_usage")), notes={"seed": rows[0].seed},
        )  # fmt: skip
        return await self._reply(request, asked, rows, writer)

    async def _reply(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        rows: list[Row],
        writer: Writer,
    ) -> Response:
        """Draw, and write what is drawn: at once, or at the end."""
        reply = Reply(writer.model, rows, seconds=SECONDS_FOR_REPLY)
        started = time.perf_counter()

        def end() -> None:
            self.engine.end(reply)
            seconds = max(time.perf_counter() - started, 1e-6)
            ends = ",".join(sorted({finish or "cut" for finish in writer.finishes}))
            request.state.note = (
                f"{writer.model.id} read {writer.n_prompt} drew {writer.n_tokens} {ends} "
                f"{writer.n_tokens / seconds:.0f} tok/s"
            )

        self.engine.begin(reply)  # what it refuses is said before the 200
        if asked.stream:
            return _Stream(_chunks(reply, writer), end=end)
        try:
            async for drawn in reply:
                writer.take(drawn)
                if await request.is_disconnected():
                    raise ClientDisconnect
        finally:
            end()
        return _json(writer.whole())

    async def _model(self, name: str) -> Loaded:
        """The model that a request names."""
        try:
            found = await asyncio.to_thread(self.library.get, name)
        except (UsageError, TrainError, TokenizerError) as error:
            message = f"the model cannot be opened: {error}"
            raise ApiError(message, status=500, param="model") from error
        if found is None:
            raise _no_model(name, self.library)
        return found

    # --- what there is ---------------------------------------------------------------------------

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        names = await asyncio.to_thread(self.library.names)
        data = [_listed(name, created) for name, created in names.items()]
        return _json({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        names = await asyncio.to_thread(self.library.names)
        if name not in names:
            raise _no_model(name, self.library)
        return _json(_listed(name, names[name]))

    async def health(self, _request: Request) -> Response:
        """GET /health."""
        return _json({"status": "ok"})

    async def status(self, _request: Request) -> Response:
        """GET /status: what the page shows."""
        found = await asyncio.to_thread(page.status, self.library)
        return _json({**found, "texts": self.engine.n_texts})

    async def page(self, _request: Request) -> Response:
        """GET /."""
        return self._page


def _rows(
    asked: ChatRequest | CompletionRequest,
    prompts: list[list[int]],
    limit: int,
    *,
    stops: tuple[str, ...] = (),
) -> list[Row]:
    """What is to be drawn: n texts for each prompt."""
    options, likeliest, stop = asked.options(), asked.likeliest, (*stops, *asked.stops())
    repeated = [ids for ids in prompts for _ in range(asked.n)]
    return [
        Row(
            prompt=ids, max_new_tokens=min(limit, MOST_TOKENS), options=options,
            seed=asked.seed + number, stop=stop,
            logprobs=likeliest is not None, alternatives=likeliest or 0,
        )
        for number, ids in enumerate(repeated)
    ]  # fmt: skip


class _Stream(StreamingResponse):
    """A reply in events, as it is drawn; `end` is called however it ends."""

    def __init__(self, chunks: AsyncIterator[bytes], *, end: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(TimeoutError):  # somebody may never read it
                async with asyncio.timeout(2 * SECONDS_FOR_REPLY):
                    await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _chunks(reply: Reply, writer: Writer) -> AsyncIterator[bytes]:
    """A stream; what fails after the 200 is said in it."""
    try:
        yield writer.beginning()
        async for drawn in reply:
            if chunk := writer.chunks(drawn):
                yield chunk
        yield writer.ending()
    except ApiError as error:
        yield event(error.body())


async def _body(request: Request) -> bytes:
    """The body of a request, of limited length and in limited time."""
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS_FOR_BODY):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_BODY_BYTES:
                    message = f"the body has over {LARGEST_BODY_BYTES >> 20} MiB; send less"
                    raise ApiError(message, status=413)
    except TimeoutError as error:
        raise ApiError(
            "the body of the request did not arrive in time; send it again", status=408
        ) from error
    return bytes(content)


def _no_model(name: str, library: Library) -> ApiError:
    shown = name if len(name) <= 100 else f"{name[:97]}..."
    message = f"there is no model {shown!r}; this server has {library.default}, and GET /v1/models"
    return ApiError(f"{message} lists all", status=404, param="model", code="model_not_found")


def _listed(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "yocto"}


def _json(content: object, status: int = 200) -> Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, media_type="application/json")


async def _refusal(request: Request, error: Exception) -> Response:
    """What an error says, in the protocol's form; nothing of those that are not expected."""
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.url.path[:100]}: {error.detail}"
        error = ApiError(what, status=error.status_code)
    if not isinstance(error, ApiError):
        error = ApiError("the server failed; its terminal says more", status=500)
    return _json(error.body(), error.status)


class Door:
    """Lets in who may ask, and writes a line about each request, without any text.

    Who may ask comes from the right host, from a page that is allowed, with the key.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, allow_origin: tuple[str, ...],
        hosts: tuple[str, ...] | None, log: Callable[[str], object],
    ) -> None:  # fmt: skip
        self._app, self._log = app, log
        self._key, self._origins, self._hosts = api_key, allow_origin, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, started, status = Request(scope), time.perf_counter(), 500
        app = self._app
        if problem := self._problem(request):
            app = await _refusal(request, problem)
        elif request.method == "OPTIONS":
            app = Response(status_code=204, headers={"allow": "GET, POST, OPTIONS"})

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request.state.note = ""
        try:
            await app(scope, receive, watched)
        except Exception as error:
            request.state.note = f"unexpected {type(error).__name__}"
            raise
        finally:
            if status != 200 or request.url.path not in ("/health", "/status"):
                words = [
                    time.strftime("%H:%M:%S"), request.method, request.url.path[:100], str(status),
                    request.state.note, f"{time.perf_counter() - started:.2f} s",
                ]  # fmt: skip
                self._log(" ".join(filter(None, words)))

    def _problem(self, request: Request) -> ApiError | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts is not None and name not in self._hosts:
            return ApiError(f"this server is not {name[:100]!r}; ask it as 127.0.0.1", status=403)
        is_ours = origin is None or origin.partition("://")[2] == host
        if not is_ours and not {origin, "*"} & {*self._origins}:
            page_of = f"web pages of {str(origin)[:100]}"
            message = f"{page_of} may not ask; start yocto-serve with --allow_origin"
            return ApiError(message, status=403)
        if self._key is None or request.url.path in ("/", "/health"):
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if hmac.compare_digest(given.encode(), self._key.encode()):
            return None
        return ApiError("the API key is missing or wrong", status=401, code="invalid_api_key")
