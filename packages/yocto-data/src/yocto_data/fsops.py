"""Every change that yocto-data makes to the file system goes through this module.

One place to see the order of writes, syncs and renames, and one place where a test can make any of
them fail or end the process. Each function does one call; ``OSError`` passes through untranslated.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from yocto_data.errors import WriteError, reason, show

_BUFFER_BYTES = 1 << 20


def create_file(path: Path) -> BinaryIO:
    """Open a file for writing that must not exist yet."""
    return path.open("xb", buffering=_BUFFER_BYTES)


def write(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``."""
    file.write(data)


def sync(file: BinaryIO) -> None:
    """Bring what was written to the disk: a rename may get there before the data does."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Bring a file that somebody else wrote to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring the entries of a directory to the disk; Windows has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory that must not exist yet."""
    path.mkdir()


def rename(old: Path, new: Path) -> None:
    """Rename to a name that must not exist yet."""
    old.rename(new)


def replace(old: Path, new: Path) -> None:
    """Rename a file over another."""
    old.replace(new)


def remove_file(path: Path) -> None:
    """Remove a file or a symbolic link."""
    path.unlink()


def remove_directory(path: Path) -> None:
    """Remove an empty directory."""
    path.rmdir()


def remove_tree(path: Path) -> None:
    """Remove a directory of ours with all that is in it; links are removed, never followed."""
    for entry in sorted(path.iterdir()):
        if stat.S_ISDIR(entry.lstat().st_mode):
            remove_tree(entry)
        else:
            remove_file(entry)
    remove_directory(path)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``WriteError`` that names ``path``."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {show(path)}: {reason(error)}"
        if error.errno == errno.ENOSPC:
            message += f" ({shutil.disk_usage(path.parent).free} bytes free); make room"
        raise WriteError(message) from error


class HashingFile:
    """A new file that counts and hashes what is written; ``close`` syncs it."""

    def __init__(self, path: Path) -> None:
        self._file = create_file(path)
        self._sha256 = hashlib.sha256()
        self.bytes_written = 0

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        write(self._file, data)
        self._sha256.update(data)
        self.bytes_written += len(data)

    def close(self) -> None:
        """Sync and close."""
        sync(self._file)
        self._file.close()

    def abandon(self) -> None:
        """Close without a promise, after a failure that the caller is about to report."""
        with suppress(OSError):
            self._file.close()

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._sha256.hexdigest()
