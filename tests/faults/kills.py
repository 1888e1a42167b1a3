"""kill -9 at random moments: resumed each time, a run ends where one that was let alone ends."""

import random
import time
from pathlib import Path

import torch
from yocto_train import Run

from .children import Child
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
    steps = 60 + 10 * rounds
    begun = time.perf_counter()
    straight = train(stage.data, root / "straight", max_iters=steps, save_interval=1)
    each = (time.perf_counter() - begun) / steps
    path, newest = root / "killed", 0
    moments = random.Random(rounds)  # noqa: S311 - no secret
    for turn in range(rounds + 1):
        child = Child(lambda wait, saved: train(stage.data, path, max_iters=steps, save_interval=1))
        if turn < rounds:
            # Some steps each at most, so that no round comes to the end by itself.
            time.sleep(moments.uniform(0.0, 10 * each))
            child.kill()
        code = child.wait()
        if turn < rounds and code == 0:
            continue  # it had ended already: no fault
        problem, newest = _look(path, code, newest, killed=turn < rounds)
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
        return f"step {before} was there before, step {newest.step} is the newest now", newest.step
    return None, newest.step
