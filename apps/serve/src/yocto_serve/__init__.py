"""Serve a yocto model: OpenAI's protocol, and a page to talk to it."""

__all__ = ["main"]


def main() -> None:
    """The command, as it is installed; nothing heavy is imported before Ctrl-C is quiet."""
    from yocto_cli import start  # noqa: PLC0415 - importing the package costs nothing

    start("yocto_serve.app", "yocto-serve")
