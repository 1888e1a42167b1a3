"""Durable files, in one place: yocto-train saves its checkpoints through this module, too.

What must survive a crash is written under a temporary name, forced to the disk, and renamed: a
reader sees the old content or the new, never half of one. `OSError` passes through untranslated, so
the caller says what could not be done.
"""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

import filelock

# --- reading -------------------------------------------------------------------------------------


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; a directory, FIFO, socket or device is refused at once.

    Raises:
        OSError: the system's, or one whose `strerror` says what the path is instead.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer that may never come.
        opener = lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # noqa: E731
        file = open(path, "rb", opener=opener)  # noqa: SIM115 - Path.open takes no opener
    except ValueError as error:
        raise OSError(errno.EINVAL, "the path holds a NUL character", str(path)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


# How files begin that are neither texts nor tokens.
_MARKS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "a zip archive, as .docx and .epub are",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "parquet",
    b"%PDF-": "a PDF",
    b"\x89PNG": "a picture",
    b"SQLite format 3\0": "a database",
    b"version https://git-lfs": "a Git LFS pointer",
}


def foreign_format(head: bytes) -> str | None:
    """What the first bytes of a file look like; None if they are none of the usual formats."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def sha256_of(file: BufferedReader) -> str:
    """The sha256 (hex) of an open file, from its beginning."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing -------------------------------------------------------------------------------------


def temporary_for(path: Path) -> Path:
    """A name beside `path` that no file has: `.tmp-<name>-<random>`."""
    return path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")


def sync_file(path: Path) -> None:
    """Force a file's content to the disk, whoever wrote it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Force a directory's entries to the disk; Windows cannot, and does without."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name for the block to fill, which then takes the place of `path` in one step."""
    temporary = temporary_for(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Put a whole file in place; if the system refuses, the old one is unchanged."""
    with _replacing(path) as temporary:
        temporary.write_bytes(content)
        sync_file(temporary)


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target` in one step; a one-line file where links fail."""
    with _replacing(link) as temporary:
        try:
            temporary.symlink_to(target)
        except (OSError, NotImplementedError):  # Windows without the privilege, some file systems
            temporary.write_text(f"{target}\n", encoding="utf-8")
            sync_file(temporary)


def append_line(path: Path, line: str) -> None:
    """Append a whole line; if the system refuses, nothing of it stays."""
    data = memoryview(f"{line}\n".encode())
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):  # half a line would spoil the next one, too
                os.ftruncate(file.fileno(), before)
            raise


# --- directories that appear whole or not at all -------------------------------------------------


@contextmanager
def new_directory(temporary: Path) -> Iterator[Path]:
    """Make `temporary` for the block to fill; afterwards all in it is on the disk.

    The caller then gives it its name with `rename`. After an error nothing of it stays.
    """
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.iterdir()):
            sync_file(path)
        sync_directory(temporary)
    except BaseException:
        with suppress(OSError):  # the first failure is what the caller must hear of
            shutil.rmtree(temporary)
        raise


def rename(source: Path, target: Path) -> None:
    """Rename to a name that must not exist, and force that to the disk."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, f"{target.name} already exists", str(target))
    source.rename(target)
    sync_directory(target.parent)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it; links are never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# --- one writer at a time ------------------------------------------------------------------------


class LockedError(Exception):
    """Another process holds the lock; the text says which one, where that is known."""


@contextmanager
def locked(path: Path, owner: str) -> Iterator[None]:
    """Hold the lock file `path` for the block, without waiting.

    The system frees the lock when its holder ends, however it ends: nothing has to be cleaned up.
    A second file, `<path>.owner`, names the holder, only for the message.

    Raises:
        LockedError: another process has it.
        OSError: the file cannot be made.
    """
    note = path.with_name(f"{path.name}.owner")
    try:
        lock = filelock.FileLock(path, timeout=0, is_singleton=False).acquire()
    except filelock.Timeout as error:
        if not path.exists():  # it could not be made, which is no reason to wait
            raise OSError(errno.EACCES, "no lock file can be made there", str(path)) from error
        holder = ""
        with suppress(OSError):
            holder = note.read_text("utf-8", "replace")[:200]
        raise LockedError(holder or "another process") from error
    with lock:
        try:
            with suppress(OSError):  # without room for a note, the work still goes on
                note.write_text(owner, encoding="utf-8")
            yield
        finally:
            with suppress(OSError):
                note.unlink()
