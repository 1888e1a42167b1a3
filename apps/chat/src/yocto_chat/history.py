"""What was typed before, kept between conversations: private, bounded, never in the way.

Messages are private: the file is readable by its owner alone, and --no_history keeps none at all.
A history that cannot be used is said once, and the chat goes on without it.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from yocto_cli.screen.terminal import one_line, visible

_MAX_BYTES = 1 << 20
_KEPT_BYTES = 1 << 19


class PrivateHistory(FileHistory):
    """A FileHistory that survives a full disk and what others wrote into its file.

    Args:
        path: a regular file that exists.
        warn: called with one line when an entry cannot be kept; once.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None]) -> None:
        super().__init__(path)
        self._warn: Callable[[str], None] | None = warn

    def load_history_strings(self) -> Iterable[str]:
        """The entries, newest first, safe to show."""
        return [visible(entry) for entry in super().load_history_strings()]

    def store_string(self, string: str) -> None:
        """Append an entry."""
        try:
            super().store_string(string.encode("utf-8", "replace").decode())
        except OSError as error:
            if self._warn:
                self._warn(f"history is not kept: {error.strerror}")
                self._warn = None


def history_path() -> Path:
    """Where the history is: `$XDG_STATE_HOME/yocto/history`, by default in `~/.local/state`."""
    # A relative path there is to be ignored, says the XDG Base Directory Specification.
    base = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    if not base.is_absolute():
        base = Path("~/.local/state").expanduser()
    return base / "yocto" / "history"


def open_history(path: Path, *, warn: Callable[[str], None]) -> History:
    """The history at `path`; one that lasts as long as the process if that cannot be used.

    Args:
        path: of the file; it and its directory are made if they are not there.
        warn: called with one line about what is wrong.
    """
    try:
        _prepare(path)
    except OSError as error:
        reason = error.strerror or str(error)
        warn(f"history is not kept: {one_line(str(path))}: {reason}")
        return InMemoryHistory()
    return PrivateHistory(path, warn=warn)


def _prepare(path: Path) -> None:
    """Make the file, or make the one that is there private and short.

    Raises:
        OSError: it cannot be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags, 0o600), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        path.chmod(0o600)
        if status.st_size > _MAX_BYTES:
            file.seek(-_KEPT_BYTES, os.SEEK_END)
            _replace(path, file.read())


def _replace(path: Path, tail: bytes) -> None:
    """Keep the newest entries only, in one step."""
    # An entry begins with a line "# time", after an empty one; what precedes the first is cut.
    tail = tail[max(0, tail.find(b"\n# ")) :]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as file:
            file.write(tail)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
