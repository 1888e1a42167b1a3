"""The errors of yocto-data, and the checks of arguments that raise them."""

import errno
import operator
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np


class DataError(ValueError):
    """Base of every error that yocto-data raises on purpose.

    ::

        DataError (ValueError)      the input or an argument must change
        |- DecodingError            the bytes of a text are not in the named encoding
        |- MissingMetaError         there is no meta.json to say what a token file holds
        |- ShortDataError           a split holds too few tokens for the context
        `- WorkError                the input was fine; the disk, a worker or a source was not

    The message is one line that says what, where, and what to do. It holds paths as they are: a
    program that prints it escapes what a terminal must not see.
    """


class DecodingError(DataError):
    """The bytes of a source are not in the named encoding."""


class MissingMetaError(DataError):
    """There is no meta.json, so nothing says what the token files hold."""


class ShortDataError(DataError):
    """A split holds too few tokens for the context."""


class WorkError(DataError):
    """The input was fine and the work failed: a full disk, a dead worker, a source that changed."""


def shorten(value: str | os.PathLike[str], limit: int = 160) -> str:
    """A path or a quoted text for a message; a long one loses its middle."""
    text = os.fspath(value)
    return text if len(text) <= limit else f"{text[: limit - 53]}...{text[-50:]}"


def reason(error: OSError) -> str:
    """What the system says about an `OSError`, without numbers and paths."""
    return error.strerror or type(error).__name__


@contextmanager
def usable(path: str | os.PathLike[str], verb: Literal["read", "write"] = "read") -> Iterator[None]:
    """Turn an `OSError` of the block into a `DataError`: the caller must name another `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot {verb} {shorten(path)}: {reason(error)}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `WorkError` that names `path`."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {shorten(path)}: {reason(error)}"
        if error.errno == errno.ENOSPC:
            message += f" ({shutil.disk_usage(path.parent).free} bytes free); make room"
        raise WorkError(message) from error


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """An argument as an int, NumPy's integers included; `True` and `1.0` raise `DataError`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"{name} must be an integer {bounds}, found {shorten(repr(value))}")
    return number


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse an argument that is not one of a few words, with a `DataError`."""
    if value not in allowed:
        raise DataError(f"{name} must be one of {', '.join(allowed)}, found {shorten(repr(value))}")


def require_starts(starts: np.ndarray) -> None:
    """Refuse what is no row of numbers of windows."""
    if starts.dtype != np.int64 or starts.ndim != 1 or not len(starts):
        raise DataError(
            f"starts must be int64 of shape (n,), found {starts.dtype} of shape {starts.shape}"
        )
