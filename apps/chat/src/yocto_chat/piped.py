"""Without a terminal: all of stdin is one message, and stdout gets the reply and nothing else."""

import sys

from yocto_cli.arguments import UsageError, WorkFailedError
from yocto_model import ModelError

from yocto_chat.chat import Chat

_MAX_BYTES = 1 << 20


def read_message() -> tuple[str, bool]:
    """All of stdin, and whether some of it was no UTF-8 and is U+FFFD now.

    Raises:
        UsageError: it is empty, too long, or no text.
    """
    content = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UsageError("stdin holds more than 1 MiB; a message is a short text")
    if b"\0" in content:
        raise UsageError("stdin is binary, not text; pipe a message into it")
    text = content.decode("utf-8-sig", "replace")
    if not text.strip():
        raise UsageError("stdin is empty; pipe a message into it, or run it in a terminal")
    damaged = text.count("\ufffd") != content.count("\ufffd".encode())
    return text.replace("\r\n", "\n").removesuffix("\n"), damaged


def answer(chat: Chat, message: str) -> None:
    """Write the reply to one message on stdout, exactly; what else there is to say, on the screen.

    Raises:
        UsageError: the model can read nothing of the message.
        WorkFailedError: the model could not answer.
    """
    chat.ask(message)
    take = chat.take_of_last_message(chat.settings, chat.next_seed())
    margin = ""  # white space at the end is no part of a reply that came to its end
    try:
        for spans in take:
            text = margin + "".join(span.text for span in spans)
            margin = text[len(text.rstrip()) :]
            sys.stdout.write(text.rstrip())
            sys.stdout.flush()
    except ModelError as error:
        raise WorkFailedError(f"the model could not answer: {error}") from error
    sys.stdout.write("\n" if take.finish == "stop" else f"{margin}\n")
    sys.stdout.flush()
    chat.screen.facts(*chat.facts_of(take))
