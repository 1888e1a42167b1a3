"""The content of a tokenizer file: bytes of a regular file, JSON, a fingerprint."""

import hashlib
import json
import stat
from os import PathLike
from pathlib import Path
from typing import Any

from yocto_tokenizers.errors import TokenizerFileError, shown

#: Larger than any tokenizer in use (the largest known tokenizer.json files have about 35 MB).
MAX_FILE_BYTES = 64 << 20


def file_at(path: str | PathLike[str], name: str) -> Path:
    """The path itself, or the file of that name in it, if it is a directory."""
    try:
        return Path(path) / name if Path(path).is_dir() else Path(path)
    except OSError:  # a path that the system refuses: opening it says why
        return Path(path)


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The whole content of a regular file (reading a FIFO would block for ever).

    Raises:
        TokenizerFileError: it is missing, unreadable, not a regular file, or over the limit.
    """
    try:
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise TokenizerFileError(f"cannot read {shown(path)}: {reason}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise TokenizerFileError(f"{shown(path)} is not a regular file; name a tokenizer file")
    raise TokenizerFileError(
        f"{shown(path)} has {status.st_size} bytes, more than any tokenizer ({MAX_FILE_BYTES}); "
        "name a tokenizer file"
    )


def parse_json(content: bytes, source: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        content: the bytes of the file.
        source: what messages call it.

    Raises:
        TokenizerFileError: it is not JSON, or not an object.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerFileError(
            f"{source} is not valid JSON ({error}); restore the file or prepare it again"
        ) from error
    if not isinstance(parsed, dict):
        raise TokenizerFileError(
            f"{source} is not a tokenizer: its JSON is a {type(parsed).__name__}, not an object"
        )
    return parsed


def canonical_sha256(content: dict[str, Any]) -> str:
    """sha256 (hex) of a JSON value in one fixed spelling, so that formatting does not matter."""
    spelled = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(spelled.encode("ascii")).hexdigest()
