"""Which checkpoint a path means: a run, a step, or one of their .pt files."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from yocto_train import files, manifest
from yocto_train.checkpoint import Checkpoint, is_directory, step_of
from yocto_train.errors import CheckpointError, RunError, reason
from yocto_train.run_directory import POINTERS, Run

T = TypeVar("T")

_ATTEMPTS = 20


def find_checkpoint(
    path: Path | str | None = None, *, root: Path | str = "checkpoints"
) -> Checkpoint:
    """The checkpoint that a user means, to write text with.

    Args:
        path: a run directory (its newest sound checkpoint), a step directory, or model.pt,
            latest.pt or best.pt; None for the newest run in `root`.
        root: where runs are.

    Raises:
        CheckpointError: there is nothing there, or what is there is not a sound checkpoint.
    """
    return load_checkpoint(lambda checkpoint: checkpoint, path, root=root)


def load_checkpoint(
    load: Callable[[Checkpoint], T],
    path: Path | str | None = None,
    *,
    root: Path | str = "checkpoints",
) -> T:
    """Call `load` with the checkpoint that a user means; `path` and `root` as in `find_checkpoint`.

    A training that is under way may prune a checkpoint while it is read. Then the pointer or run
    names another one by now, which is taken instead.

    Raises:
        CheckpointError: there is nothing there, or what is there is not a sound checkpoint.
    """
    for attempt in range(_ATTEMPTS):
        checkpoint = None
        try:
            checkpoint = _find(path, root)
            return load(checkpoint)
        except CheckpointError as error:
            if checkpoint is None and not isinstance(error, _VanishedError):
                raise
            vanished = checkpoint is None or not is_directory(checkpoint.directory)
            if not vanished or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


class _VanishedError(CheckpointError):
    """A pointer's target is not there any more."""


def _find(path: Path | str | None, root: Path | str) -> Checkpoint:
    try:
        if path is None:
            return Run.newest(root).latest(to_resume=False)
        return _find_named(Path(path))
    except RunError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error


def _find_named(path: Path) -> Checkpoint:
    if path.name in POINTERS and step_of(path.parent.name) is None:
        return _behind_pointer(path)
    if path.name == "model.pt":
        path = path.parent
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; name a run, or train one: uv run yocto-train"
        )
    if step_of(path.resolve().name) is not None or (path / manifest.NAME).exists():
        return Checkpoint.open(path)
    if path.is_dir():
        run = Run(path)
        if not run.steps():
            with contextlib.suppress(RunError):  # then it is no directory of runs either
                newest = Run.newest(path).path
                raise CheckpointError(f"{path} holds runs; name one, the newest is {newest}")
        return run.latest(to_resume=False)
    raise CheckpointError(
        f"{path} is not a checkpoint: name a run, a step or one of their .pt files"
    )


def _behind_pointer(path: Path) -> Checkpoint:
    run = Run(path.parent)
    directory = run.pointed(path.name)
    if directory is not None:
        try:
            return Checkpoint.open(directory)
        except CheckpointError as error:
            if is_directory(directory):
                raise
            raise _VanishedError(str(error)) from error
    if path.is_file() and not path.is_symlink():
        # Copying may have turned the pointer into the model itself.
        with files.open_regular(path) as file:
            found = files.sha256_of(file)
        for step in reversed(run.steps()):
            with contextlib.suppress(CheckpointError):
                checkpoint = Checkpoint.open(step)
                if checkpoint.manifest.files["model.pt"].sha256 == found:
                    return checkpoint
    raise CheckpointError(f"{path} does not point to a checkpoint; name the run instead")
