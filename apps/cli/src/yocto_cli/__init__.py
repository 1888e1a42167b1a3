"""The commands of yocto, and what they run first when installed.

A Ctrl-C is quiet even while modules are imported. Imports can take seconds, and an interrupt in the
middle of one ends in a traceback from somebody else's module, or leaves a module half imported. So
during imports it ends the process at once; anywhere else it is the KeyboardInterrupt that commands
expect. For this the package itself imports next to nothing.
"""

import importlib
import os
import signal
import sys
from functools import partial
from types import FrameType

__all__ = [
    "eval_command", "export_command", "prepare_command", "sample_command", "start", "train_command",
]  # fmt: skip

_STOPPED = 130


def start(module: str, prog: str) -> None:
    """Run the `main` of a module, and exit with what it returns.

    Args:
        module: imported here, so that its imports are covered, too.
        prog: the command's name.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        del number
        if _is_importing(frame):
            # We have not begun anything yet. Python's own way out would run into modules that are
            # half imported.
            os.write(2, f"{prog}: stopped\n".encode())
            os._exit(_STOPPED)
        raise KeyboardInterrupt

    # A background job of a shell without job control ignores Ctrl-C, and should go on doing so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    code = importlib.import_module(module).main()
    # The work is done; Python only has to shut down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


prepare_command = partial(start, "yocto_cli.prepare", "yocto-prepare")
train_command = partial(start, "yocto_cli.train", "yocto-train")
sample_command = partial(start, "yocto_cli.sample", "yocto-sample")
eval_command = partial(start, "yocto_cli.eval", "yocto-eval")
export_command = partial(start, "yocto_cli.export", "yocto-export")
