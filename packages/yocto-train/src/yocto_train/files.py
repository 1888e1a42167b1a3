"""Durable file operations. Every write of this package goes through this module.

The functions are looked up on the module at each call, so a test can replace one to inject a fault
or to record the order of events.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LOCK_BYTE = 1 << 30  # far behind the text: Windows forbids others to read a byte that is locked


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
            write_all(self._file, data)
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


# --- whole files -----------------------------------------------------------------------------


def write_new(path: Path, write: Callable[[HashingWriter], object]) -> FileFacts:
    """Create a file, let `write` fill it, and force it to the disk.

    Raises:
        OSError: the path exists, or the system refused a write.
    """
    with create(path) as file:
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
    temporary = _temporary_for(path)
    try:
        write_new(temporary, lambda file: file.write(content))
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_file(temporary)
        raise
    fsync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a whole line and hand it to the system; nothing of it stays if that fails.

    Raises:
        OSError: the system refused.
    """
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            write_all(file, (line + "\n").encode())
        except OSError:
            # Half a line would spoil the next one, too.
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), before)
            raise


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, in one step; a one-line file where links fail.

    Raises:
        OSError: neither was possible; the old pointer is unchanged.
    """
    temporary = _temporary_for(link)
    try:
        try:
            symlink(target, temporary)
        except (OSError, NotImplementedError):  # Windows without the privilege, some file systems
            write_new(temporary, lambda file: file.write(f"{target}\n".encode()))
        replace(temporary, link)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_file(temporary)
        raise
    fsync_directory(link.parent)


def _temporary_for(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")


# --- single operations -----------------------------------------------------------------------


def create(path: Path) -> IO[bytes]:
    """Open a new file for writing; its mode is 0666 less the umask."""
    return path.open("xb")


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write all of `data` to an open file; an unbuffered one may take it in parts."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


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


def make_directory(directory: Path, *, parents: bool = False) -> None:
    """Create a directory; with `parents`, those above it too, and being there already is fine."""
    directory.mkdir(parents=parents, exist_ok=parents)


def rename(source: Path, target: Path) -> None:
    """Rename to a name that must not exist."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, f"{target.name} exists")
    source.rename(target)


def replace(source: Path, target: Path) -> None:
    """Rename over whatever is there, in one step."""
    for attempt in range(4):
        try:
            source.replace(target)
        except PermissionError:
            # On Windows a reader that has the target open blocks this, for a moment.
            if os.name != "nt" or attempt == 3:
                raise
            time.sleep(0.05)
        else:
            return


def symlink(target: str, link: Path) -> None:
    """Create a symbolic link."""
    link.symlink_to(target)


def remove_file(path: Path) -> None:
    """Remove a file or a symbolic link."""
    path.unlink()


def remove_tree(directory: Path) -> None:
    """Remove a directory with everything in it."""
    shutil.rmtree(directory)


# --- reading and locking ---------------------------------------------------------------------


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading, never through a symbolic link, and never blocking on a FIFO.

    Raises:
        OSError: it is missing, unreadable, or something else than a regular file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link")
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra))  # noqa: SIM115 - Path.open takes no opener
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


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

    Raises:
        OSError: the file cannot be opened.
    """
    # Unbuffered: what could not be written would be tried again, and fail, when it is closed.
    with path.open("ab+", buffering=0) as file:
        taken = _try_lock(file)
        if taken:
            # What the lock protects does not depend on its text, so a full disk does not matter.
            with contextlib.suppress(OSError):
                file.truncate(0)
                write_all(file, owner.encode())
        yield taken


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt  # noqa: PLC0415 - exists on Windows only

            file.seek(_LOCK_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined] # Windows only
        else:
            import fcntl  # noqa: PLC0415 - does not exist on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
