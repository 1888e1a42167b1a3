"""What was typed before, kept between conversations: private, bounded, never in the way.

Messages are private: the file is readable by its owner alone, and --no_history keeps none at all.
A history that cannot be used is reported once, and the chat goes on without it.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from yocto_cli.screen.terminal import visible
from yocto_data.prep.files import open_regular, replace_file

_MAX_BYTES = 1 << 20
_KEPT_BYTES = 1 << 19


class PrivateHistory(FileHistory):
    """A FileHistory that survives a full disk and whatever others wrote into its file."""

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
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    base = base if base.is_absolute() else Path("~/.local/state").expanduser()
    return base / "yocto" / "history"


def open_history(path: Path | None, *, warn: Callable[[str], None]) -> History:
    """The history at `path`; without one that can be used, it lasts as long as the process."""
    if path is None:
        return InMemoryHistory()
    try:
        _prepare(path)
    except OSError as error:
        warn(f"history is not kept: {path}: {error.strerror or error}")
        return InMemoryHistory()
    return PrivateHistory(path, warn=warn)


def _prepare(path: Path) -> None:
    """Make the file, or make the existing one private and short."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    umask = os.umask(0o077)  # nothing that is made here is ever readable by others
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, flags))
        path.chmod(0o600)
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size <= _MAX_BYTES:
                return
            file.seek(-_KEPT_BYTES, os.SEEK_END)
            tail = file.read()
        # An entry begins with a line "# time", after an empty one; what precedes the first is cut.
        replace_file(path, tail[max(0, tail.find(b"\n# ")) :])
    finally:
        os.umask(umask)
