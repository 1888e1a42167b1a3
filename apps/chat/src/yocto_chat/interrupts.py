"""While a reply is written: what Ctrl-C, Ctrl-Z and typing ahead do to the terminal.

The keyboard belongs to prompt_toolkit during input and to nobody during a reply. Echo is off then,
or what is typed ahead would land in the middle of the answer; it waits for the next prompt.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from yocto_cli.screen.keyboard import suspendable

with contextlib.suppress(ModuleNotFoundError):  # not a POSIX system: echo stays as it is
    import termios


class Interrupts:
    """Ctrl-C as a request: the first press sets a flag, the second raises KeyboardInterrupt.

    A context manager; the handler that was there before comes back at its end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: object = None
        self._installed = False

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type] # what signal() gave

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[Callable[[], None]]:
    """Do not echo what is typed meanwhile; Ctrl-Z gives the shell a terminal that does.

    Yields:
        What to call in order to forget what was typed.
    """
    fd = _terminal_of_ours()
    if fd is None:
        yield lambda: None
        return
    before = termios.tcgetattr(fd)
    quiet = [*before]
    # Without NOFLSH the terminal throws away, at Ctrl-C, what we wrote and it has not shown yet.
    quiet[3] = before[3] & ~termios.ECHO | termios.NOFLSH

    def be_loud() -> None:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def be_quiet() -> None:
        if _terminal_of_ours() is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, quiet)

    try:
        with suspendable(be_loud, be_quiet):
            be_quiet()
            yield lambda: termios.tcflush(fd, termios.TCIFLUSH)
    finally:
        with contextlib.suppress(termios.error):  # the terminal may have been closed
            be_loud()


def _terminal_of_ours() -> int | None:
    """The terminal that we read from, if it is ours to change.

    Changing the modes from a background job would stop the process.
    """
    if "termios" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return None
    try:
        fd = sys.stdin.fileno()
        return fd if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp() else None
    except (OSError, ValueError):  # no descriptor, closed, or not our controlling terminal
        return None
