"""What a path may name: a directory of runs is no run, and the error says which run is meant."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from yocto_train import CheckpointError, Run, Trainer, find_checkpoint


def test_a_directory_of_runs(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """Its newest run is named; a directory with nothing in it is told apart."""
    runs = tmp_path / "runs"
    for name in ("first", "second"):
        run = Run(runs / name)
        run.create()
        with run.lock():
            list(make_trainer(run=run, max_iters=4).run())
    newest = re.escape(str(runs / "second"))
    with pytest.raises(CheckpointError, match=f"holds runs; name one, the newest is {newest}$"):
        find_checkpoint(runs)
    assert find_checkpoint(runs / "first").step == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no checkpoint; train one"):
        find_checkpoint(tmp_path / "empty")
