"""One writer at a time: a lock that the kernel frees when its holder dies."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from yocto_data import fsops
from yocto_data.errors import InUseError, OutputError, reason, show

_SHOWN_BYTES = 200


@contextmanager
def exclusive_lock(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while writing ``what``; never waits.

    The file's text is for the message alone. What a killed process left behind is free and is
    taken over.

    Raises:
        InUseError: another process holds it; says which.
        OutputError: the file cannot be made.
    """
    descriptor = _acquire(path, what)
    try:
        with suppress(OSError):  # no room for a message is no reason to stop
            _sign(descriptor)
        yield
    finally:
        try:
            # A lock file that cannot be removed does no harm; on Windows no open file can be.
            if sys.platform != "win32":
                with suppress(OSError):
                    fsops.remove_file(path)
        finally:
            os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Say who holds the lock, for the message that another process shows."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {started}".encode())


def _acquire(path: Path, what: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise OutputError(f"cannot lock {show(what)}: {reason(error)}") from error
        try:
            _lock(descriptor)
            # Its holder removes the file before it lets go; a lock on a removed file is none.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            holder = show(os.read(descriptor, _SHOWN_BYTES).decode("utf-8", "replace"))
            os.close(descriptor)
            raise InUseError(
                f"{show(what)} is in use by {holder or 'another process'}; wait, or write elsewhere"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise OutputError(f"cannot lock {show(what)}: {reason(error)}") from error
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock or raise BlockingIOError."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - exists there only

        # A byte far behind the text, which others may then still read.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl  # noqa: PLC0415 - does not exist on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
