"""kill -9 at random moments: resumed each time, a run ends where one that was let alone ends."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from yocto_train import Run

from .children import Child, Work
from .ledger import Ledger
from .victim import Stage, snapshot, train

KIND = "kill -9 at a random moment"


def kill(stage: Stage, root: Path, ledger: Ledger, *, rounds: int) -> None:
    """Kill a training again and again, some steps further each time; then let it end.

    Args:
        stage: its data is trained on.
        root: where the runs go.
        ledger: what it counts in.
        rounds: how often it is killed.
    """
    steps = 20 + 13 * rounds
    begun = time.perf_counter()
    straight = train(stage.data, root / "straight", max_iters=steps, save_interval=1)
    each = (time.perf_counter() - begun) / steps
    path, newest = root / "killed", 0
    moments = random.Random(rounds)  # noqa: S311 - no secret
    for turn in range(rounds + 1):
        saves = moments.randrange(9)
        child = Child(_until(saves + 4 if turn < rounds else steps + 1, stage, path, steps))
        if turn < rounds:
            child.until_saved(saves)
            time.sleep(moments.uniform(0.0, each))
            child.kill()
        code = child.wait()
        problem, newest = _look(path, code, max(newest, child.last_saved), killed=turn < rounds)
        ledger.count(KIND if turn < rounds else "the run after all kills", problem)
    run = Run(path)
    weights = run.latest().load_model().state_dict()
    expected = straight.model.state_dict()
    if not all(torch.equal(expected[name], weights[name]) for name in expected):
        ledger.count("its final weights", "they are not the undisturbed run's")
    elif snapshot(root / "straight") != snapshot(path):
        ledger.count("its final weights", "the run directories differ")
    else:
        ledger.count("its final weights", None)


def _until(most: int, stage: Stage, path: Path, steps: int) -> Work:
    """Train, but wait for the end after so many saves: the killer may be late on a busy machine."""

    def work(wait: Callable[[], None], saved: Callable[[int], None]) -> None:
        left = most

        def save(step: int) -> None:
            nonlocal left
            saved(step)
            left -= 1
            if left == 0:
                signal.pause()

        train(stage.data, path, max_iters=steps, save_interval=1, saved=save)

    return work


def _look(path: Path, code: int | None, before: int, *, killed: bool) -> tuple[str | None, int]:
    """What is wrong after a round, or None; and the newest step."""
    if code != (-9 if killed else 0):
        return f"it ended with {code}", before
    if not any(path.glob("step-????????")):
        return (None if before == 0 else "every checkpoint is gone"), before
    newest = Run(path).latest()
    if newest.skipped:
        return f"half a checkpoint: {newest.skipped[0]}", newest.step
    if newest.step < before:
        return f"step {before} was saved before, step {newest.step} is the newest now", newest.step
    return None, newest.step
