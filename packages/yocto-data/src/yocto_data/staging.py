"""A directory that appears whole or not at all.

Everything is written into ``.<name>.tmp-<random>`` beside the target, synced, and renamed at the
end. Replacing an old directory moves it aside to ``.<name>.old-<random>`` first and removes it
last. After a crash at any point the next run puts back what was moved aside and clears the rest.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yocto_data import fsops
from yocto_data.errors import MetaError, OutputError, reason, show
from yocto_data.lock import exclusive_lock
from yocto_data.meta import META_NAME, DataMeta

# All that may lie in a directory that is replaced, besides a tokenizer's file of another name.
OUR_FILES = frozenset(
    {META_NAME, "train.bin", "val.bin", "vocab.json", "tokenizer.json", "tokenizer.model"}
)


def resolve_target(out_dir: str | os.PathLike[str]) -> Path:
    """The directory to make, links followed.

    Raises:
        OutputError: the path has no name of its own (``/``), or no system call takes it.
    """
    text = os.fspath(out_dir)
    if "\0" in text:
        raise OutputError(f"cannot write {show(text)}: the path holds a NUL character")
    target = Path(os.path.realpath(text))
    if not text or not target.name:
        raise OutputError(f"cannot write {show(text) or 'to no name'}; name a new directory")
    return target


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it is empty, or ``force`` is set and all in it is ours.

    Raises:
        OutputError: says what is there.
    """
    try:
        mode = target.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{show(target)} exists and is no directory; name another")
        entries = sorted(entry.name for entry in os.scandir(target))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {show(target)}: {reason(error)}") from error
    known = OUR_FILES | _recorded_names(target)
    foreign = [name for name in entries if name not in known]
    if foreign:
        raise OutputError(
            f"{show(target)} holds '{show(foreign[0])}', which is no prepared data, and is never "
            "replaced; name another directory"
        )
    if entries and not force:
        raise OutputError(
            f"{show(target)} already holds data; use force to replace it, or name another directory"
        )


def _recorded_names(target: Path) -> frozenset[str]:
    """The tokenizer's file may have any name; the old meta.json knows it."""
    try:
        file = DataMeta.load(target).tokenizer.file
    except MetaError:
        return frozenset()
    return frozenset() if file is None else frozenset({file})


@contextmanager
def staged_directory(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new directory to fill; when the block ends without an error it becomes ``target``.

    Args:
        target: as ``resolve_target`` returns it.
        force: whether a directory of ours that is there may be replaced.

    Raises:
        OutputError: the target cannot be used.
        InUseError: another process is writing it.
        WriteError: the system refused a write; nothing of it stays.
    """
    made = _make_parents(target.parent)
    try:
        with exclusive_lock(target.with_name(f".{target.name}.lock"), target):
            with fsops.translated(target):
                _recover(target)
            check_target(target, force=force)
            temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
            with fsops.translated(target):
                fsops.make_directory(temporary)
            try:
                yield temporary
                with fsops.translated(target):
                    _commit(temporary, target)
            except BaseException:
                # The failure is what the caller must hear of; leftovers go next time.
                with suppress(OSError):
                    fsops.remove_tree(temporary)
                raise
    except BaseException:
        for parent in made:
            with suppress(OSError):  # not empty
                fsops.remove_directory(parent)
        raise


def _commit(temporary: Path, target: Path) -> None:
    fsops.sync_directory(temporary)
    aside = None
    if target.exists():
        aside = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        fsops.rename(target, aside)
    try:
        fsops.rename(temporary, target)
    except BaseException:
        if aside is not None:
            fsops.rename(aside, target)
        raise
    fsops.sync_directory(target.parent)
    if aside is not None:
        # The new data set stands, which is what the caller is told; leftovers go next time.
        with suppress(OSError):
            _remove_aside(aside)


def _recover(target: Path) -> None:
    """Put back or clear away what a run that was killed has left."""
    name = re.escape(target.name)
    left = re.compile(rf"\.{name}\.(tmp|old)-[0-9a-f]{{8}}")
    for entry in sorted(target.parent.iterdir()):
        if not (match := left.fullmatch(entry.name)):
            continue
        if match[1] == "old" and not target.exists():
            fsops.rename(entry, target)
            fsops.sync_directory(target.parent)
        elif match[1] == "old":
            _remove_aside(entry)
        else:
            fsops.remove_tree(entry)


def _remove_aside(aside: Path) -> None:
    """Under a name that is never put back first: what is half removed must not return."""
    doomed = aside.with_name(aside.name[: -len("old-12345678")] + f"tmp-{secrets.token_hex(4)}")
    fsops.rename(aside, doomed)
    fsops.remove_tree(doomed)


def _make_parents(parent: Path) -> list[Path]:
    """Make the missing directories above the target; the ones made, innermost first."""
    made: list[Path] = []
    try:
        missing = []
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for directory in reversed(missing):
            with suppress(FileExistsError):  # another process may have been quicker
                fsops.make_directory(directory)
                made.insert(0, directory)
    except OSError as error:
        for directory in made:
            with suppress(OSError):
                fsops.remove_directory(directory)
        raise OutputError(f"cannot make {show(parent)}: {reason(error)}") from error
    return made
