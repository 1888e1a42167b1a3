"""What the installed command runs first; it imports next to nothing."""

from yocto_cli.entry import start


def chat() -> None:
    """yocto-chat."""
    start("yocto_chat.app", "yocto-chat")
