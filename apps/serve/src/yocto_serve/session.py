"""A session: the socket, the loop, the run that is watched, and the end.

The page answers at once; what needs the model waits while torch is imported and the model opened.
"""

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from yocto_cli.command import UsageError, next_command
from yocto_cli.models import model_line
from yocto_cli.sample import talk
from yocto_cli.screen.terminal import say
from yocto_model import ModelError
from yocto_tokenizers import ChatTemplate, TokenizerError
from yocto_train import TrainError

from yocto_serve.app import LOCAL_HOSTS, ServeArguments, ServerArguments, is_loopback
from yocto_serve.page import page

if TYPE_CHECKING:
    from yocto_serve.engine import Engine
    from yocto_serve.models import Library

_SECONDS_TO_END = 10  # for what is drawn when the server is told to stop
_SECONDS_BETWEEN_LOOKS = 1.0  # at the run


def run(arguments: ServeArguments, template: ChatTemplate | None) -> None:
    """Serve until a signal ends it, which is raised again; raises as `Library` does."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the log is ours
    with contextlib.closing(_listening(arguments.server)) as listening:
        asyncio.run(_serve(arguments, template, listening))


def _listening(flags: ServerArguments) -> socket.socket:
    """The socket, bound before anything slow happens: who comes early waits for the model."""
    family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
    try:
        return socket.create_server((flags.host, flags.port), family=family)
    except OSError as error:
        other = next_command("yocto-serve", "--port", str(flags.port + 1))
        raise UsageError(
            f"cannot listen on {flags.host} port {flags.port}: {error.strerror}; try {other}"
        ) from error


class Uvicorn(uvicorn.Server):
    """Uvicorn, whose application is there before its model.

    Args:
        hosts: by these names the page may be asked for before that; None for any.

    Attributes:
        app: answers all requests, once the model is open.
        engine: draws from then on, and is told when the server is told to stop.
    """

    engine: "Engine | None" = None

    def __init__(self, hosts: tuple[str, ...] | None) -> None:
        config = uvicorn.Config(
            self.answer, interface="asgi3", log_config=None, access_log=False, lifespan="off",
            ws="none", server_header=False, timeout_graceful_shutdown=_SECONDS_TO_END + 2,
        )  # fmt: skip
        super().__init__(config)
        self.app: asyncio.Future[ASGIApp] = asyncio.get_running_loop().create_future()
        self._hosts, self._page = hosts, page()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: the page at once, all else by the application."""
        host = Headers(scope=scope).get("host", "").rpartition(":")[0]
        is_local = self._hosts is None or host in self._hosts
        is_early = scope["path"] == "/" and is_local and not self.app.done()
        app: ASGIApp = self._page if is_early else await asyncio.shield(self.app)
        await app(scope, receive, send)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.cancel()  # who waits for the model waits in vain
        if self.engine is not None:
            self.engine.stop(_SECONDS_TO_END)
        await super().shutdown(sockets)


async def _serve(
    arguments: ServeArguments, template: ChatTemplate | None, listening: socket.socket
) -> None:
    flags = arguments.server
    is_guarded = is_loopback(flags.host) and flags.api_key is None
    hosts = (*LOCAL_HOSTS, flags.host) if is_guarded else None
    server = Uvicorn(hosts)

    def opened() -> "Library":
        from yocto_serve.models import Library  # noqa: PLC0415 - brings torch in

        return Library(arguments.model, template=template)

    async def drawing() -> None:
        """Open the model, and let the server use it until it ends."""
        try:
            library = await asyncio.to_thread(opened)
        except BaseException:
            server.should_exit = True
            raise
        if server.should_exit:
            return
        from yocto_serve.engine import Engine  # noqa: PLC0415 - brought torch in
        from yocto_serve.server import Server  # noqa: PLC0415 - the same

        served = library.served
        talk(model_line(served.opened, served.generator))
        for note in served.opened.notes:
            talk(f"note: {note}")
        with contextlib.closing(Engine()) as server.engine:
            whole = Server(
                library, server.engine, api_key=flags.api_key, allow_origin=flags.allow_origin,
                hosts=hosts, log=talk,
            )  # fmt: skip
            server.app.set_result(whole.app)
            host, port = listening.getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            say(f"{library.default} answers at {address} and to programs at {address}/v1")
            await _watch(library)

    working = asyncio.create_task(drawing())
    await server.serve(sockets=[listening])
    if working.done():
        await working  # raises what was wrong
    working.cancel()


async def _watch(library: "Library") -> None:
    """Take up new checkpoints of the run; what is wrong with one is said once."""
    said = ""
    while True:
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        try:
            if await asyncio.to_thread(library.refresh):
                talk(f"now serving {library.served.id}")
        except (UsageError, TrainError, TokenizerError, ModelError, OSError) as error:
            if str(error) != said:
                talk(f"warning: the next checkpoint cannot be served: {error}")
            said = str(error)
