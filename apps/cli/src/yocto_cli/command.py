"""How a command starts and ends: exit codes and errors of one line, the same for all of them.

0 done; 2 the user must change something; 1 the work failed; 130 and 143 stopped by a signal.
"""

import contextlib
import errno
import io
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from yocto_cli.screen.terminal import drop_stdout, one_line


class UsageError(Exception):
    """The user must change something; found before work starts. The command exits with 2."""


class WorkFailedError(Exception):
    """The work itself failed, through no fault of the arguments. The command exits with 1."""


# Errors of the packages are known by name: importing their classes would import torch.
_PACKAGE_ERRORS = {"DataError", "ModelError", "TokenizerError", "TrainError"}
_WORK_ERRORS = {"WorkError", "SamplingError"}
_LIMIT_CHARACTERS = 300


def run_command(
    main: Callable[[list[str]], int | None],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    rephrase: Callable[[str], str] | None = None,
) -> int:
    """Run a command and return its exit code; errors end as one line on stderr.

    A reader that closes the pipe is not an error. `--debug` among the arguments adds the traceback.

    Args:
        main: receives the arguments after the command's name; may return an exit code.
        prog: the command's name, which begins every error.
        argv: the arguments; None for those of the process.
        rephrase: turns a package's message, which names arguments, into one that names flags.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        # SIGTERM unwinds the stack, so that temporary files are removed.
        with handling(("SIGTERM", "SIGHUP"), lambda *_: sys.exit(143)):
            try:
                code = main(arguments) or 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            # A closed pipe or a full disk shows here, where it can still be handled.
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        drop_stdout()
        return 0
    except KeyboardInterrupt:
        _say(f"{prog}: stopped")
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost handler: it is reported, and we exit
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = describe_error(error)
        message = one_line(rephrase(message) if rephrase else message)
        if len(message) > _LIMIT_CHARACTERS:  # the fix is at the end, so the middle is cut
            message = f"{message[: _LIMIT_CHARACTERS - 120]} ... {message[-100:]}"
        _say(f"{prog}: error: {message}")
        if isinstance(error, OSError):
            drop_stdout()  # what is still in its buffer would fail again as Python exits
        return code


def next_command(*arguments: str) -> str:
    """A command to copy from the screen: `uv run yocto-train --data_dir 'my data'`."""
    return shlex.join(("uv", "run", *arguments))


def describe_error(error: BaseException) -> tuple[int, str]:
    """The exit code of a command that an error ends, and the message, not yet escaped."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, UsageError | WorkFailedError):
        return (2 if isinstance(error, UsageError) else 1), str(error)
    if names & _PACKAGE_ERRORS:
        # The second base class tells: a ValueError is a refusal, an OSError is failed work.
        failed = isinstance(error, OSError | RuntimeError) or names & _WORK_ERRORS
        return (1 if failed else 2), str(error)
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch
    if no_memory or isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return 1, "out of memory; try a smaller --batch_size, --block_size or model"
    if isinstance(error, OSError):
        where = "" if error.filename is None else f" ({error.filename})"
        hint = "; make room and run it again" if error.errno == errno.ENOSPC else ""
        return 1, f"{error.strerror or error}{where}{hint}"
    kind = type(error).__name__
    return 1, f"unexpected {kind}: {error}; run it again with --debug to see where"


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed as well
        print(line, file=sys.stderr, flush=True)


def _prepare_streams() -> None:
    """Make streams never fail to encode: a character that they cannot show becomes its code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as in `yocto-train >&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def handling(
    names: Sequence[str], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle the signals that the system has; afterwards the earlier handlers are back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
