"""Durable file operations. Every write of this package goes through this module.

The functions are looked up on the module at each call, so a test can replace one to inject a fault
or to record the order of events.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a manifest records of a file: its size and its sha256 in hex."""

    bytes: int
    sha256: str


class HashingWriter:
    """A binary file to write to, which hashes what passes and remembers the first failure.

    `torch.save` turns a failed write into a RuntimeError without errno; `error` has the original.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of `data`; returns its length.

        Raises:
            OSError: the system refused.
        """
        try:
            self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._sha256.update(data)
        self._bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def facts(self) -> FileFacts:
        """Size and hash of what was written so far."""
        return FileFacts(bytes=self._bytes, sha256=self._sha256.hexdigest())


def write_new(path: Path, write: Callable[[HashingWriter], object]) -> FileFacts:
    """Create a file, let `write` fill it, and force it to the disk.

    Raises:
        OSError: the path exists, or the system refused a write.
    """
    with path.open("xb") as file:
        writer = HashingWriter(file)
        try:
            write(writer)
        except RuntimeError as error:
            raise writer.error or OSError(f"cannot write {path.name}: {error}") from error
        fsync_file(file)
    return writer.facts()


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place in one step: readers see the old content or the new.

    Raises:
        OSError: the system refused; the old file is unchanged.
    """
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        write_new(temporary, lambda file: file.write(content))
        replace(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def append_line(path: Path, line: str) -> None:
    """Append a whole line and hand it to the system.

    Raises:
        OSError: the system refused.
    """
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(line + "\n")


def fsync_file(file: IO[bytes]) -> None:
    """Force a file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_directory(directory: Path) -> None:
    """Force a directory's entries to the disk; Windows cannot, and does without."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename to a name that must not exist."""
    if target.exists():
        raise FileExistsError(f"{target} exists")
    source.rename(target)


def replace(source: Path, target: Path) -> None:
    """Rename over whatever is there, in one step."""
    source.replace(target)


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, in one step; a one-line file where links fail.

    Raises:
        OSError: neither was possible; the old pointer is unchanged.
    """
    temporary = link.with_name(f".tmp-{link.name}-{secrets.token_hex(4)}")
    try:
        symlink(target, temporary)
    except (OSError, NotImplementedError):  # Windows without the privilege, some file systems
        write_new(temporary, lambda file: file.write(f"{target}\n".encode()))
    try:
        replace(temporary, link)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(link.parent)


def symlink(target: str, link: Path) -> None:
    """Create a symbolic link."""
    link.symlink_to(target)


def remove_tree(directory: Path) -> None:
    """Remove a directory with everything in it."""
    shutil.rmtree(directory)


def sha256_of(file: IO[bytes]) -> str:
    """Hash of an open file from its beginning; the position is at the end afterwards."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # any IO works


@contextlib.contextmanager
def locked(path: Path, owner: str) -> Iterator[bool]:
    """Hold an exclusive lock on a file for the time of the block.

    The kernel drops the lock when the process ends, however it ends, so nothing has to be cleaned
    up; the text in the file only says who holds it.

    Yields:
        Whether the lock was taken.
    """
    with path.open("a+", encoding="utf-8") as file:
        taken = _try_lock(file)
        if taken:
            file.seek(0)
            file.truncate()
            file.write(owner)
            file.flush()
        yield taken


def _try_lock(file: IO[str]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt  # noqa: PLC0415 - exists on Windows only

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined] # Windows only
        else:
            import fcntl  # noqa: PLC0415 - does not exist on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
