"""A session: the socket, the loop, the run that is watched, and the end.

Whoever asks while torch is imported and the model opened waits for that, and is answered.
"""

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

import uvicorn
from yocto_cli.command import UsageError, next_command
from yocto_cli.models import model_line
from yocto_cli.sample import talk
from yocto_cli.screen.terminal import say
from yocto_model import ModelError
from yocto_tokenizers import ChatTemplate, TokenizerError
from yocto_train import TrainError

from yocto_serve.app import LOCAL_HOSTS, ServeArguments, ServerArguments, is_loopback

if TYPE_CHECKING:
    from yocto_serve.models import Library
    from yocto_serve.server import Server

_SECONDS_TO_END = 10  # for what is drawn when the server is told to stop
_SECONDS_BETWEEN_LOOKS = 1.0  # at the run


def run(arguments: ServeArguments, template: ChatTemplate | None) -> None:
    """Serve until a signal ends it, which is raised again; raises as `Library` does."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the log is ours
    flags = arguments.server
    is_guarded = is_loopback(flags.host) and flags.api_key is None
    with contextlib.closing(_listening(flags)) as listening:
        from yocto_serve.engine import Engine  # noqa: PLC0415 - brings torch in
        from yocto_serve.models import Library  # noqa: PLC0415 - the same
        from yocto_serve.server import Server  # noqa: PLC0415 - the same

        library = Library(arguments.model, template=template)
        served = library.served
        talk(model_line(served.opened, served.generator))
        for note in served.opened.notes:
            talk(f"note: {note}")
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        with contextlib.closing(Engine()) as engine:
            server = Server(
                library, engine, api_key=flags.api_key, allow_origin=flags.allow_origin,
                hosts=(*LOCAL_HOSTS, flags.host) if is_guarded else None, log=talk,
            )  # fmt: skip
            say(f"{library.default} answers at {address} and to programs at {address}/v1")
            asyncio.run(_serve(server, listening))


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


class _Uvicorn(uvicorn.Server):
    """Uvicorn, which tells the engine when it is told to stop."""

    def __init__(self, server: "Server") -> None:
        config = uvicorn.Config(
            server.app, interface="asgi3", log_config=None, access_log=False, lifespan="off",
            ws="none", server_header=False, timeout_graceful_shutdown=_SECONDS_TO_END + 2,
        )  # fmt: skip
        super().__init__(config)
        self._engine = server.engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.stop(_SECONDS_TO_END)
        await super().shutdown(sockets)


async def _serve(server: "Server", listening: socket.socket) -> None:
    watching = asyncio.create_task(_watch(server.library))
    await _Uvicorn(server).serve(sockets=[listening])
    watching.cancel()


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
