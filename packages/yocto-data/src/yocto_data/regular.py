"""Opening a regular file, and nothing but a regular file, without ever blocking."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path


def open_regular(path: Path) -> FileIO:
    """Open for reading, unbuffered; directories, FIFOs, sockets and devices are refused at once.

    Raises:
        OSError: the system's, or one whose ``strerror`` is "not a regular file". A path that no
            system call takes, since it holds NUL, is reported the same way.
    """
    try:
        _require_regular(path, path.stat().st_mode)
        # What the name stands for may change after the check: never block, and look again.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = FileIO(os.open(path, flags))
    except ValueError as error:
        raise OSError(errno.EINVAL, "the path holds a NUL character") from error
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "not a regular file, but a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
