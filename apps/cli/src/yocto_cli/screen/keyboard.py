"""Single keys while a command works, and the terminal's state through suspension.

Keys are read only by the foreground job of a terminal: changing the modes of a terminal from the
background stops the process that tries.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self, TextIO

from yocto_cli.screen.terminal import is_terminal

if sys.platform != "win32":
    import termios


def in_foreground(stream: TextIO) -> bool:
    """Whether this process may draw on the stream's terminal and change its modes.

    A terminal that is not the one that controls this process knows no background.
    """
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):
        return True


class Keyboard:
    """Calls back for each key, from a thread of its own, while it is open.

    Args:
        stream: stdin. Where it is no terminal, or on Windows, nothing is ever read.
        pressed: called with each character.
    """

    def __init__(self, stream: TextIO, pressed: Callable[[str], object]) -> None:
        self._stream, self._pressed = stream, pressed
        self._before: list[Any] | None = None
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None

    @property
    def usable(self) -> bool:
        """Whether there are keys to read at all."""
        return sys.platform != "win32" and is_terminal(self._stream)

    def open(self) -> None:
        """Take single keys from the terminal, if it is ours; more than once is fine."""
        if not self.usable or self._thread is not None or not in_foreground(self._stream):
            return
        descriptor = self._stream.fileno()
        try:
            self._before = termios.tcgetattr(descriptor)
            termios.tcsetattr(descriptor, termios.TCSADRAIN, _without_lines(self._before))
        except termios.error:
            self._before = None
            return
        self._wake = os.pipe()
        self._thread = threading.Thread(
            target=self._read, args=(descriptor, self._wake[0]), name="keys", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Leave the terminal as it was found; more than once is fine."""
        if self._thread is None or self._wake is None:
            return
        os.write(self._wake[1], b".")
        self._thread.join()
        for end in self._wake:
            os.close(end)
        if self._before is not None:
            with contextlib.suppress(termios.error):  # the terminal may be gone
                termios.tcsetattr(self._stream.fileno(), termios.TCSADRAIN, self._before)
        self._thread = self._wake = self._before = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, descriptor: int, wake: int) -> None:
        while True:
            ready, _, _ = select.select([descriptor, wake], [], [])
            if wake in ready:
                return
            try:
                content = os.read(descriptor, 64)
            except OSError:
                return
            if not content:
                return
            for key in content.decode(errors="replace"):
                self._pressed(key)


def _without_lines(modes: list[Any]) -> list[Any]:
    """No lines and no echo; Ctrl-C and Ctrl-Z still send their signals (cbreak)."""
    changed = list(modes)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    changed[6] = list(modes[6])
    changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    return changed


@contextlib.contextmanager
def suspendable(leave: Callable[[], object], return_: Callable[[], object]) -> Iterator[None]:
    """Around a block that changes the terminal: give it back for Ctrl-Z, take it again after `fg`.

    Args:
        leave: called before the process stops.
        return_: called when it goes on, in the foreground or not.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if sys.platform == "win32" or not in_main:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # here it stands still
        signal.signal(number, stop)
        return_()

    def go_on(number: int, frame: FrameType | None) -> None:
        del number, frame
        return_()

    before = {
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, stop),
        signal.SIGCONT: signal.signal(signal.SIGCONT, go_on),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
