"""Reading and writing tokenizer files: the only module that touches the disk.

Reading is capped and takes regular files only (a FIFO would block for ever). Writing is atomic: a
reader sees the old file or the new one, after a crash too.
"""

import contextlib
import os
import secrets
import stat
from os import PathLike
from pathlib import Path

from yocto_tokenizers.errors import TokenizerFileError, TokenizerWriteError, quoted

#: Larger than any tokenizer in use (the largest known tokenizer.json files have about 35 MB).
MAX_FILE_BYTES = 64 << 20


def is_directory(path: str | PathLike[str]) -> bool:
    """Whether the path is a directory. A path the system refuses is none: reading it says why.

    Raises:
        TokenizerFileError: it is no path at all.
    """
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False
    except TypeError as error:
        raise TokenizerFileError(f"{quoted(path)} is no path; name a tokenizer file") from error


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The whole content of a regular file.

    Raises:
        TokenizerFileError: it is missing, unreadable, no regular file, or over the cap.
    """
    name = quoted(path)
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise TokenizerFileError(f"{name} is not a regular file; name a tokenizer file")
        if status.st_size > MAX_FILE_BYTES:
            raise TokenizerFileError(
                f"{name} has {status.st_size} bytes, more than any tokenizer "
                f"({MAX_FILE_BYTES}); name a tokenizer file"
            )
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TokenizerFileError(f"cannot read {name}: {reason}; check the path") from error
    except TokenizerFileError:
        raise
    except ValueError as error:  # a NUL in the path
        raise TokenizerFileError(f"cannot read {name}: it is no valid path; check it") from error


def write_bytes(path: str | PathLike[str], default_name: str, content: bytes) -> Path:
    """Write a file in one step; into a directory under `default_name`. Returns the path written.

    Raises:
        TokenizerWriteError: the system refused; an old file is whole, no temporary one is left.
    """
    try:
        target = Path(path) / default_name if is_directory(path) else Path(path)
        _replace_file(target, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        failure = TokenizerWriteError(
            f"cannot write {quoted(path)}: {reason}; check the path, permissions and free space"
        )
        failure.errno = error.errno
        raise failure from error
    except ValueError as error:  # a NUL in the path
        raise TokenizerWriteError(f"cannot write {quoted(path)}: it is no valid path") from error
    return target


def _replace_file(target: Path, content: bytes) -> None:
    # Beside the target, because a rename is atomic only within one file system.
    temporary = target.with_name(f".tmp-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # less the umask; tempfile would give 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the rename may reach the disk before the data otherwise
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable; Windows cannot, and does without."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
