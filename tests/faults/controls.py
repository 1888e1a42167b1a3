"""Negative controls: with a promise broken on purpose, the campaign must find something lost."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from yocto_data.prep import files
from yocto_train import Checkpoint
from yocto_train.scale import machine

from .damage import NEWEST, flip
from .kills import kill
from .ledger import Ledger
from .syscalls import disturbed, judge
from .victim import Stage, train


def silent(stage: Stage, root: Path, *, with_strace: bool) -> list[str]:
    """The names of the controls that nothing noticed."""
    controls: dict[str, Callable[[Stage, Path], int]] = {
        "files that are not verified": unverified,
        "dropout that depends on the process": another_dropout,
    }
    if with_strace:
        controls["a step directory that is copied instead of renamed"] = copied
    return [name for name, losses in controls.items() if losses(stage, root) == 0]


def unverified(stage: Stage, root: Path) -> int:
    """Losses without the check of hashes, when bits flip in model.safetensors."""
    path, ledger = root / "unverified", Ledger()
    train(stage.data, path)
    with mock.patch.object(Checkpoint, "verify", return_value=None):
        flip(path, path / NEWEST / "model.safetensors", ledger, 3)
    return ledger.total_lost


def another_dropout(stage: Stage, root: Path) -> int:
    """Losses of kill -9 if dropout is seeded anew in each process."""
    (root / "dropout").mkdir()
    ledger = Ledger()
    with mock.patch.object(machine, "mixed_seed", lambda *numbers: os.getpid() + sum(numbers)):
        kill(stage, root / "dropout", ledger, rounds=2)
    return ledger.total_lost


def copied(stage: Stage, root: Path) -> int:
    """Losses of SIGKILL if a checkpoint gets its name while it is still being written."""

    def copy(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        shutil.rmtree(source)

    ledger = Ledger()
    with mock.patch.object(files, "rename", copy):
        for n in itertools.count(1):
            outcome, path = disturbed(stage, root, "save", "openat", f"signal=KILL:when={n}")
            if not outcome.touched:
                return ledger.total_lost
            ledger.count("copied", judge(stage, path, outcome, call="openat", kills=True))
    raise AssertionError("unreachable")
