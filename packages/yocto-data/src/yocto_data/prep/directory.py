"""A data directory that appears whole or not at all.

Everything is written into `.tmp-<name>-<random>` beside the target, synced, and renamed at the
end. Replacing an old directory moves it aside to `.old-<name>-<random>` first and removes it
last. After a crash at any point the next run puts back what was moved aside and clears the rest.
"""

import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from yocto_data.errors import DataError, reason, shorten, usable, writing
from yocto_data.prep import files
from yocto_data.prep.meta import META_NAME, TEMPLATE_NAME, DataMeta

# Only these may be in a directory that is replaced, and a tokenizer's file of another name.
OUR_FILES = frozenset(
    {
        *(META_NAME, TEMPLATE_NAME, "train.bin", "val.bin"),
        *("vocab.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
        *("train.mask", "val.mask", "train.starts", "val.starts"),
    }
)


def resolve_target(out_dir: str | os.PathLike[str]) -> Path:
    """The directory to make, links followed."""
    text = os.fspath(out_dir)
    if "\0" in text:
        raise DataError(f"cannot write {shorten(text)}: the path holds a NUL character")
    if text.startswith("~"):
        raise DataError(f"the shell did not expand {shorten(text)}; write $HOME instead of ~")
    target = Path(os.path.realpath(text))
    if not text or not target.name:
        raise DataError(f"cannot write data to '{text}'; name a new directory")
    return target


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it is empty, or `force` is set and all files are ours."""
    try:
        if not stat.S_ISDIR(target.lstat().st_mode):
            raise DataError(
                f"{shorten(target)} already exists and is not a directory; name another"
            )
        entries = sorted(entry.name for entry in os.scandir(target))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot write {shorten(target)}: {reason(error)}") from error
    known = set(OUR_FILES)
    with suppress(DataError):  # the tokenizer's file may have any name; the old meta.json knows it
        known.add(str(DataMeta.load(target).tokenizer.file))
    if foreign := [name for name in entries if name not in known]:
        raise DataError(
            f"{shorten(target)} holds '{shorten(foreign[0])}', which does not belong to prepared "
            "data and is never replaced; name another directory"
        )
    if entries and not force:
        raise DataError(
            f"{shorten(target)} already holds data; use force to replace it, or name another "
            "directory"
        )


def remove_data(target: Path) -> None:
    """Remove a data directory that nobody is writing.

    Raises:
        DataError: it holds something else, or it is in use.
        WorkError: the system refused.
    """
    with _alone(target), writing(target):
        check_target(target, force=True)
        _remove_aside(target, target)


@contextmanager
def staged_directory(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new directory to fill; when the block ends without an error it becomes `target`.

    Raises:
        DataError: the target cannot be used, or another process is writing it.
        WorkError: the system refused a write; nothing of it stays.
    """
    missing: list[Path] = []
    try:
        with usable(target, "write"):
            parents = target.parents
            missing += [folder for folder in parents if not folder.exists()]  # innermost first
            target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            with writing(target):
                _recover(target)
            check_target(target, force=force)
            # An OSError of the block is passed on; one of ours becomes a WorkError.
            with ExitStack() as stack:
                temporary = files.temporary_for(target)
                with writing(target):
                    stack.enter_context(files.new_directory(temporary))
                yield temporary
                with writing(target):
                    stack.close()
            with writing(target):
                _commit(temporary, target)
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a target; the lock file is removed afterwards."""
    path = target.with_name(f".{target.name}.lock")
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    owner = f"pid {os.getpid()} on {socket.gethostname()} since {since}"
    with ExitStack() as stack:
        try:
            with usable(target, "write"):
                stack.enter_context(files.locked(path, owner))
        except files.LockedError as error:
            raise DataError(
                f"{shorten(target)} is in use by {shorten(str(error))}; wait, or write elsewhere"
            ) from error
        try:
            yield
        finally:
            # Removed while it is held. Windows cannot remove an open file; a free one does no harm.
            with suppress(OSError):
                path.unlink()


def _commit(temporary: Path, target: Path) -> None:
    aside = None
    try:
        if target.exists():
            aside = target.with_name(f".old-{target.name}-{secrets.token_hex(4)}")
            target.rename(aside)
        files.rename(temporary, target)
    except BaseException:
        if aside is not None and not target.exists():
            with suppress(OSError):  # the next run puts it back
                aside.rename(target)
        with suppress(OSError):
            files.remove(temporary)
        raise
    if aside is not None:
        # The new data set is in place, so this is a success; the next run removes leftovers.
        with suppress(OSError):
            _remove_aside(aside, target)


def _recover(target: Path) -> None:
    """Put back or clear away what a run that was killed has left."""
    left = re.compile(rf"\.(tmp|old)-{re.escape(target.name)}-[0-9a-f]{{8}}")
    for entry in sorted(target.parent.iterdir()):
        if not (match := left.fullmatch(entry.name)):
            continue
        if match[1] == "tmp":
            files.remove(entry)
        elif target.exists():
            _remove_aside(entry, target)
        else:
            files.rename(entry, target)


def _remove_aside(aside: Path, target: Path) -> None:
    """Rename it first, to a name that is never put back: what is half removed must not return."""
    doomed = files.temporary_for(target)
    aside.rename(doomed)
    files.remove(doomed)
