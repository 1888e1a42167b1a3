"""Where the prompt of yocto-sample comes from: a flag, a file, or a pipe."""

import os
import stat
import sys
from pathlib import Path

from yocto_cli.errors import UsageError
from yocto_cli.screen.terminal import one_line

LIMIT_BYTES = 1 << 20


def read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt, or an empty text where nobody gave one.

    One line end at the very end of a file or of stdin is dropped, since editors and `echo` add it.

    Raises:
        UsageError: both flags are given, or what was named is no text of at most 1 MiB.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt_file contradict each other; give one of them")
    if prompt is not None:
        return prompt
    if prompt_file is not None:
        return _text_of(_read_file(prompt_file), f"--prompt_file {one_line(prompt_file)}")
    if not _stdin_has_text():
        return ""
    return _text_of(sys.stdin.buffer.read(LIMIT_BYTES + 1), "stdin")


def _stdin_has_text() -> bool:
    """Whether stdin is a pipe or a file; a terminal or the null device is no prompt."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something without one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_file(path: str) -> bytes:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UsageError(f"--prompt_file {one_line(path)} is not a regular file; name a text")
        with Path(path).open("rb") as file:
            return file.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read --prompt_file {one_line(path)}: {reason}; check the path"
        ) from error


def _text_of(content: bytes, where: str) -> str:
    if len(content) > LIMIT_BYTES:
        raise UsageError(f"{where} holds more than 1 MiB; a prompt is a short text")
    if b"\0" in content:
        raise UsageError(f"{where} is binary, not text; give a text as the prompt")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not UTF-8 at byte {error.start} (0x{content[error.start]:02X}); "
            "convert it to UTF-8"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")
