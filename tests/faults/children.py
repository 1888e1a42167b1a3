"""Forked processes of one that has imported torch already: they begin in milliseconds."""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from yocto_data import DataError
from yocto_model import ModelError
from yocto_tokenizers import TokenizerError
from yocto_train import TrainError

Work = Callable[[Callable[[], None], Callable[[int], None]], object]
SECONDS = 60  # after which a child is taken to hang
OURS = (TrainError, DataError, ModelError, TokenizerError)
_PR_SET_PDEATHSIG, _PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 1, 0x59616D61, -1


class Child:
    """A process that waits for `go`, does its work, and tells of it through shared memory.

    Neither waiting nor telling makes system calls of the kinds that are counted.

    Args:
        work: called in the child with `wait` and `tell`: the first blocks until `go`, the second
            takes a step that was reported as saved.
    """

    def __init__(self, work: Work) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)  # all zeros
        self._code: int | None = None
        reading, self._gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            self._work(work, reading)
        os.close(reading)

    def until_ready(self) -> None:
        """Return when it waits for `go`; RuntimeError if it never does."""
        self._until(lambda: self._memory[0] != 0)

    def until_saved(self, count: int) -> None:
        """Return when it has reported so many saved steps; RuntimeError if it never does."""
        self._until(lambda: self._memory[-5] >= count)

    @property
    def last_saved(self) -> int:
        """The last step that it reported as saved; also while it runs, and after a kill."""
        return int.from_bytes(self._memory[-4:], "little")

    def _until(self, is_so: Callable[[], bool]) -> None:
        ends = time.monotonic() + SECONDS
        while not is_so():
            if self._has_ended() or time.monotonic() > ends:
                raise RuntimeError(f"a child does not come to where it was expected: {self.told}")
            time.sleep(0.001)

    def go(self) -> None:
        """Let it begin."""
        os.close(self._gate)

    def wait(self) -> int | None:
        """Its exit code, negative for a signal; None if it hung and had to be killed."""
        ends = time.monotonic() + SECONDS
        while not self._has_ended():
            if time.monotonic() > ends:
                self.kill()
                os.waitpid(self.pid, 0)
                return None
            time.sleep(0.001)
        return self._code

    def _has_ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def told(self) -> dict[str, Any]:
        """The steps that were "saved", and the "error" it ended with: whether it is "ours"."""
        text = self._memory[:-5].rstrip(b"\0")
        return json.loads(text) if text else {"saved": []}

    def _work(self, work: Work, gate: int) -> NoReturn:
        follow_the_parent()
        told: dict[str, Any] = {"saved": []}

        def tell(**entries: object) -> None:
            told.update(entries)
            text = json.dumps(told).encode()
            self._memory[: len(text)] = text

        def saved(step: int) -> None:
            tell(saved=[*told["saved"], step])
            self._memory[-4:] = step.to_bytes(4, "little")
            self._memory[-5] = min(255, len(told["saved"]))

        def wait() -> None:
            tell()
            os.read(gate, 1)  # until the other end is closed

        code = 0
        try:
            work(wait, saved)
        except BaseException as error:  # noqa: BLE001 - a child ends here, whatever happened
            tell(error=f"{type(error).__name__}: {error}", ours=isinstance(error, OURS))
            code = 1
        os._exit(code)


def follow_the_parent() -> None:
    """Die with the parent, and let strace attach where only parents may be traced."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_PTRACER, ctypes.c_long(_PR_SET_PTRACER_ANY))
