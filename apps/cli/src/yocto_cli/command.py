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

from yocto_cli.errors import UsageError, WorkFailedError
from yocto_cli.screen.terminal import one_line

# Errors of the packages are known by name: importing their classes would import torch.
_PACKAGE_ERRORS = {"DataError", "ModelError", "TokenizerError", "TrainError"}
_WORK_ERRORS = {"WorkError"}
_LIMIT_CHARACTERS = 300


def run_command(
    main: Callable[[list[str]], int | None],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    rephrase: Callable[[str], str] | None = None,
) -> int:
    """Run a command and return its exit code; errors end as one line on stderr.

    A reader that closes the pipe is no error. `--debug` among the words adds the traceback.

    Args:
        main: takes the words after the command's name; may return an exit code.
        prog: the command's name, which begins every error.
        argv: the words; None takes those of the process.
        rephrase: puts a package's message, which names arguments, into the command's words.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _never_fail_to_encode()
    try:
        with _exit_when_terminated():
            try:
                code = main(words) or 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            # Here a reader that has gone, or a full disk, still ends as it should.
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_stdout()
        return 0
    except KeyboardInterrupt:
        _say(f"{prog}: stopped")
        return 130
    except Exception as error:  # noqa: BLE001 - the end of the line: it is reported, and we exit
        if "--debug" in words:
            traceback.print_exc()
        code, message = describe_error(error)
        message = rephrase(message) if rephrase else message
        _say(f"{prog}: error: {_shortened(one_line(message))}")
        if isinstance(error, OSError):
            _drop_stdout()  # what is still in its buffer would fail again as Python exits
        return code


def next_command(*words: str) -> str:
    """A command to copy from the screen: `uv run yocto-train --data_dir 'my data'`."""
    return one_line(shlex.join(("uv", "run", *words)))


def describe_error(error: BaseException) -> tuple[int, str]:
    """The exit code and the message, not yet escaped, that an error ends a command with."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, UsageError):
        return 2, str(error)
    if isinstance(error, WorkFailedError):
        return 1, str(error)
    if names & _PACKAGE_ERRORS:
        # Packages say it by what else an error is: something refused is a ValueError.
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


def _shortened(message: str) -> str:
    if len(message) <= _LIMIT_CHARACTERS:
        return message
    # The fix stands at the end, so the middle goes.
    return f"{message[: _LIMIT_CHARACTERS - 120]} ... {message[-100:]}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed as well
        print(line, file=sys.stderr, flush=True)


def _never_fail_to_encode() -> None:
    """On a terminal or locale without a character, show its code instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit is quiet."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


@contextlib.contextmanager
def _exit_when_terminated() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    for name in names:
        signal.signal(getattr(signal, name), lambda *_: sys.exit(143))
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
