"""While a reply is written: what Ctrl-C, Ctrl-Z and typing ahead do to the terminal.

The keyboard belongs to prompt_toolkit during input and to nobody during a reply. Echo is off then,
or what is typed ahead would land in the middle of the answer; it waits for the next prompt.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from yocto_cli.command import handling
from yocto_cli.screen.keyboard import in_foreground, suspendable
from yocto_cli.screen.terminal import is_terminal

with contextlib.suppress(ModuleNotFoundError):  # not a POSIX system: echo stays as it is
    import termios


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Make Ctrl-C a request: the first press is noted, the second raises KeyboardInterrupt.

    What is typed meanwhile is not shown, and a request forgets it.

    Yields:
        Whether Ctrl-C has been pressed.
    """
    presses = 0

    def press(_number: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt

    with _quiet_keyboard(), handling(("SIGINT",), press):
        try:
            yield lambda: presses > 0
        finally:
            if presses and _terminal_is_ours():
                termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


@contextlib.contextmanager
def _quiet_keyboard() -> Iterator[None]:
    """Switch echo off; Ctrl-Z gives the shell a terminal with echo."""
    if not _terminal_is_ours():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    quiet = [*before]
    # Without NOFLSH the terminal throws away, at Ctrl-C, what we wrote and it has not shown yet.
    quiet[3] = before[3] & ~termios.ECHO | termios.NOFLSH

    def be_loud() -> None:
        with contextlib.suppress(termios.error):  # the terminal may have been closed
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def be_quiet() -> None:
        if _terminal_is_ours():
            termios.tcsetattr(fd, termios.TCSADRAIN, quiet)

    try:
        with suspendable(be_loud, be_quiet):
            be_quiet()
            yield
    finally:
        be_loud()


def _terminal_is_ours() -> bool:
    """Whether we read from a terminal whose modes we may change."""
    return "termios" in sys.modules and is_terminal(sys.stdin) and in_foreground(sys.stdin)
