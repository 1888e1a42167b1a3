"""The counting loop: the N-th call of a system call fails once, or from then on, or is the last.

N = 1, 2, ... until a process is untouched. strace does it, so what is tested is the real thing:
Python, torch and the kernel.
"""

import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import SECONDS, Child, Work
from .ledger import Ledger
from .victim import Stage, train, up_to_the_save

CALLS = ("openat", "write", "fsync", "rename", "unlink", "unlinkat", "mkdir", "symlink")
WAYS = {
    "fails once (ENOSPC)": "error=ENOSPC:when={n}",
    "fails once (EIO)": "error=EIO:when={n}",
    "fails for ever (ENOSPC)": "error=ENOSPC:when={n}+",
    "fails for ever (EIO)": "error=EIO:when={n}+",
    "SIGKILL": "signal=KILL:when={n}",
}

Scene = Callable[[Stage, Path, Callable[[], None], Callable[[int], None]], None]


def whole_run(
    stage: Stage, path: Path, wait: Callable[[], None], saved: Callable[[int], None]
) -> None:
    """From taking the lock to the end: resume, evaluate, sample, save twice, prune."""
    wait()
    train(stage.data, path, resume=True, saved=saved)


def one_save(
    stage: Stage, path: Path, wait: Callable[[], None], saved: Callable[[int], None]
) -> None:
    """One checkpoint alone: write, rename, point, prune."""
    events = up_to_the_save(stage.data, path)
    next(events)
    wait()
    saved(next(events).step)


SCENES: dict[str, Scene] = {"save": one_save, "run": whole_run}


@dataclass(frozen=True)
class Outcome:
    """How a traced process ended.

    Attributes:
        code: exit code, negative for a signal, None for one that hung.
        touched: whether the fault came to be.
        told: what the process reported.
    """

    code: int | None
    touched: bool
    told: dict[str, Any]


def obstacle() -> str | None:
    """Why the loop cannot run here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"

    def work(wait: Callable[[], None], saved: Callable[[int], None]) -> None:
        wait()
        Path("/").mkdir()

    outcome = traced(work, "mkdir", "error=EIO:when=1")
    return None if outcome.touched else "strace cannot attach to a process here"


def traced(work: Work, call: str, fault: str) -> Outcome:
    """Let a child do its work from `wait` on under strace, with a fault in a system call."""
    with tempfile.NamedTemporaryFile("r") as log:
        child = Child(work)
        child.until_ready()
        command = [
            "strace", "-f", "-qq", "-o", log.name, "-e", f"trace={call}",
            "-e", f"inject={call}:{fault}", "-p", str(child.pid),
        ]  # fmt: skip
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not _is_traced(child.pid) and tracer.poll() is None:
            time.sleep(0.001)
        child.go()
        code = child.wait()
        tracer.wait(SECONDS)
        killed = "signal=KILL" in fault and code == -9
        return Outcome(code, killed or "(INJECTED)" in log.read(), child.told)


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def inject(stage: Stage, root: Path, ledger: Ledger, *, every: int) -> None:
    """The whole campaign of system calls.

    Args:
        stage: what is disturbed.
        root: where the copies go.
        ledger: what it counts in.
        every: 1 for each call, 2 for every second one, and so on.
    """
    for scene, way, call in itertools.product(SCENES, WAYS, CALLS):
        print(f"{scene}: {call} {way}", file=sys.stderr, flush=True)  # it takes minutes
        for n in itertools.count(1, every):
            outcome, path = disturbed(stage, root, scene, call, WAYS[way].format(n=n))
            if not outcome.touched and outcome.code is not None:
                break
            problem = judge(stage, path, outcome, call=call, kills=way == "SIGKILL")
            named = None if problem is None else f"call {n}: {problem}"
            ledger.count(f"{scene}: {call} {way}", named)


def disturbed(stage: Stage, root: Path, scene: str, call: str, fault: str) -> tuple[Outcome, Path]:
    """A scene in a copy of the run, with a fault; how it ended, and the copy."""
    path = root / "disturbed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(stage.start, path, symlinks=True)
    work = SCENES[scene]
    return traced(lambda wait, saved: work(stage, path, wait, saved), call, fault), path


def judge(stage: Stage, path: Path, outcome: Outcome, *, call: str, kills: bool) -> str | None:
    """What is wrong with the end of a disturbed process and with what it left behind, or None."""
    error = outcome.told.get("error")
    if outcome.code is None:
        return "it hung"
    if outcome.code != (-9 if kills else int(error is not None)):
        return f"it ended with {outcome.code}"
    if error and (not outcome.told["ours"] or "\n" in error):
        return f"not an error of ours: {error}"
    try:
        return stage.problem(
            path, outcome.told["saved"], rows=kills, may_put_aside=call == "openat"
        )
    except Exception as failure:  # noqa: BLE001 - whatever recovering fails with is a loss
        return f"cannot be recovered: {type(failure).__name__}: {failure}"
