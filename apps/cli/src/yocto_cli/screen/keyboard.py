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
from typing import Any, TextIO

from yocto_cli.screen.terminal import is_terminal

if sys.platform != "win32":
    import termios
    import tty


def in_foreground(stream: TextIO) -> bool:
    """Whether this process may draw on the stream's terminal and change its modes.

    There is no background on a terminal that does not control this process.
    """
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):
        return True


class Keyboard:
    """Calls back for each key, from a thread of its own, between `open` and `close`.

    Nothing is ever read on Windows, or from a stream that is not a terminal.
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
        """Read single keys from the terminal, if it is ours; it may be called twice."""
        if not self.usable or self._thread is not None or not in_foreground(self._stream):
            return
        descriptor = self._stream.fileno()
        try:
            self._before = termios.tcgetattr(descriptor)
            # No lines and no echo; Ctrl-C and Ctrl-Z still send their signals.
            tty.setcbreak(descriptor, termios.TCSADRAIN)
        except termios.error:
            return
        self._wake = os.pipe()
        self._thread = threading.Thread(
            target=self._read, args=(descriptor, self._wake[0]), name="keys", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Leave the terminal as it was found; it may be called twice."""
        if self._thread is None or self._wake is None or self._before is None:
            return
        os.write(self._wake[1], b".")
        self._thread.join()
        for end in self._wake:
            os.close(end)
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(self._stream.fileno(), termios.TCSADRAIN, self._before)
        self._thread = self._wake = self._before = None

    def _read(self, descriptor: int, wake: int) -> None:
        while True:
            ready, _, _ = select.select([descriptor, wake], [], [])
            if wake in ready:
                return
            content = b""
            with contextlib.suppress(OSError):  # the terminal may be gone
                content = os.read(descriptor, 64)
            if not content:
                return
            for key in content.decode(errors="replace"):
                self._pressed(key)


@contextlib.contextmanager
def suspendable(leave: Callable[[], object], return_: Callable[[], object]) -> Iterator[None]:
    """Around a block that changes the terminal: give it back for Ctrl-Z, take it again after `fg`.

    `leave` is called before the process stops, `return_` when it goes on, in the foreground or not.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # the process stops here
        signal.signal(number, stop)
        return_()

    stopped = signal.signal(signal.SIGTSTP, stop)
    continued = signal.signal(signal.SIGCONT, lambda *_: return_())
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, stopped)
        signal.signal(signal.SIGCONT, continued)
