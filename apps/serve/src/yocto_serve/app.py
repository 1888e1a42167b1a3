"""yocto-serve: its flags. The heavy imports wait until they have been read: --help is quick."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from yocto_cli.arguments import CommandArguments, flag, load
from yocto_cli.command import UsageError, run_command
from yocto_cli.model_arguments import ModelArguments

PROG = "yocto-serve"
DESCRIPTION = f"""\
Serves a model to programs that speak OpenAI's protocol, and to a browser: the newest model, unless
a flag names another. While its run trains, each new checkpoint is taken up.

Examples:
  {PROG}
  {PROG} --ckpt checkpoints/philosophy-bpe --port 8080
  {PROG} --host 0.0.0.0 --api_key "a long secret"

Then open http://127.0.0.1:8000, or point a program at http://127.0.0.1:8000/v1."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class ServerArguments:
    """Where it listens, and to whom."""

    host: str = flag(
        "127.0.0.1", "the address to listen on; others than this computer's need a key"
    )
    port: int = flag(8000, "the port to listen on; 0 takes a free one")
    api_key: str | None = flag(None, "the key that every request must bring", shown="any or none")
    auth: bool = flag(True, "demand a key where other computers can reach --host")
    allow_origin: tuple[str, ...] = flag((), "web pages that may ask: https://example.org, or *")
    template: str | None = flag(
        None, "a file with a chat template (Jinja) to ask by", shown="the model's own"
    )


@dataclass(frozen=True, kw_only=True)
class ServeArguments(CommandArguments):
    """The flags of yocto-serve."""

    SHORT: ClassVar[tuple[str, ...]] = (
        "ckpt", "host", "port", "api_key", "allow_origin", "threads",
    )  # fmt: skip

    server: ServerArguments = ServerArguments()
    model: ModelArguments = field(default_factory=ModelArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-serve; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv)


def _main(argv: list[str]) -> None:
    arguments = load(ServeArguments, argv, prog=PROG, description=DESCRIPTION)
    _check(arguments.server)
    from yocto_cli.asking import read_template  # noqa: PLC0415 - brings NumPy in
    from yocto_cli.models import located  # noqa: PLC0415 - the same

    path = arguments.server.template
    template = None if path is None else read_template(Path(path).expanduser())
    located(arguments.model.ckpt, arguments.model)
    from yocto_serve.session import run  # noqa: PLC0415 - brings uvicorn in

    run(arguments, template)


def _check(server: ServerArguments) -> None:
    """Raise `UsageError` for what cannot be meant."""
    if not 0 <= server.port < 1 << 16:
        raise UsageError(f"--port must be from 0 to 65535, not {server.port}")
    if server.api_key is not None and not (server.api_key.isascii() and server.api_key.strip()):
        raise UsageError("--api_key must be a text of ASCII characters; leave it out for no key")
    for origin in server.allow_origin:
        if not re.fullmatch(r"[\w+.-]+://[^/\s]+|null|\*", origin, re.ASCII):
            raise UsageError(f"--allow_origin {origin} must be like https://example.org, or *")
    if not is_loopback(server.host) and server.api_key is None and server.auth:
        raise UsageError(
            f"--host {server.host} can be reached from other computers; set --api_key, or say "
            "--no_auth to serve everyone"
        )


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may stand for any address
        return False
