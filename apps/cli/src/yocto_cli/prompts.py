"""Where the prompts of yocto-sample come from: a flag, a file, or a pipe."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from yocto_cli.command import UsageError

LIMIT_BYTES = 1 << 20


def read_prompts(prompts: Sequence[str], prompt_file: str | None) -> list[str]:
    r"""The prompts: one empty text where none is given.

    Files and stdin are read as a chat reads a message: line ends become `\n`, and one at the very
    end is dropped, since editors and `echo` add it.

    Raises:
        UsageError: both flags are given, or what was named is not a text of at most 1 MiB.
    """
    if prompts and prompt_file is not None:
        raise UsageError("use only one of --prompt and --prompt_file")
    if prompts:
        return list(prompts)
    if prompt_file is not None:
        return [_text_of(_read_file(prompt_file), f"--prompt_file {prompt_file}")]
    return [_text_of(sys.stdin.buffer.read(LIMIT_BYTES + 1), "stdin") if _stdin_has_text() else ""]


def _stdin_has_text() -> bool:
    """Whether stdin is a pipe or a file; a terminal or the null device is not a prompt."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something without one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_file(path: str) -> bytes:
    try:
        if Path(path).exists() and not Path(path).is_file():  # a FIFO would block
            raise UsageError(f"--prompt_file {path} is not a regular file; name a text")
        with Path(path).open("rb") as file:
            return file.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read --prompt_file {path}: {reason}; check the path") from error


def _text_of(content: bytes, where: str) -> str:
    if len(content) > LIMIT_BYTES:
        raise UsageError(f"{where} holds more than 1 MiB; a prompt is a short text")
    if b"\0" in content:
        raise UsageError(f"{where} is binary, not text; give a text as the prompt")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} (0x{content[error.start]:02X})"
        raise UsageError(f"{where} is not UTF-8 at {byte}; convert it to UTF-8") from error
    return text.replace("\r\n", "\n").removesuffix("\n")
