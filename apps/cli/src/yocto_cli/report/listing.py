"""yocto-train --list: the runs in a directory, and prepared data that belongs to none of them.

Without torch, so that it is there at once.
"""

import contextlib
import sys
import time
from pathlib import Path

from yocto_data import DataError, DataMeta
from yocto_data.prep.directory import remove_data
from yocto_train.errors import CheckpointError
from yocto_train.runs.checkpoint import Manifest
from yocto_train.runs.run import Run

from yocto_cli.command import UsageError, next_command
from yocto_cli.screen.curve import History
from yocto_cli.screen.terminal import dim, duration, one_line, say, visible
from yocto_cli.train_settings import data_directory_of

_MARKS = ("config.toml", "metrics.jsonl", "latest")  # every run has at least one of these
_DATA = Path("data")  # where yocto-train prepares texts
_REMOVE = "--remove_unused_data"


def print_runs(root: Path, *, remove: bool = False) -> int:
    """Print the runs in a directory, the newest first, and unused data; returns the exit code.

    Args:
        root: where runs are.
        remove: whether to remove the data that no run uses, instead.

    Raises:
        UsageError: there is neither, or it cannot be told which data runs use.
        DataError: data cannot be removed.
    """
    runs = _runs_in(root)
    unused, silent = _unused_data(runs)
    if remove:
        if silent is not None:
            raise UsageError(f"nothing is removed: {silent}; move that run elsewhere first")
        for directory in unused:
            remove_data(directory)
            say(f"removed {directory}")
        if not unused:
            say(f"every data directory in {_DATA} is used by a run in {root}")
        return 0
    found = sorted(map(described, runs), reverse=True)
    if not found and not unused:
        raise UsageError(f"no run in {root}; train one: uv run yocto-train")
    width = max((len(one_line(name)) for _, name, *_ in found), default=0)
    for written, name, columns, problem, command in found:
        age = f"{duration(time.time() - written)} ago"
        say(f"{one_line(name):<{width}}  {columns}  {age:>10}")
        if problem:
            say(f"  {problem}")
        if command:
            print(dim(f"  {visible(command)}", sys.stdout))
    for directory in unused:
        size = sum(path.stat().st_size for path in directory.iterdir())
        say(f"{one_line(str(directory))}: {size / 1e6:.1f} MB of data that no run in {root} uses")
    if silent is not None:
        say(f"which data is unused cannot be told: {silent}")
    if unused:
        print(dim(f"  {next_command('yocto-train', _REMOVE, '--ckpt_dir', str(root))}", sys.stdout))
    return 0


def described(run: Run) -> tuple[float, str, str, str, str]:
    """When a run was written to, its name, its figures, what is wrong, the command to talk to it.

    The figures are the lowest validation loss, the number of parameters and the steps. Nothing in
    the run's files is taken for granted.
    """
    history = History.of(run)
    loss = f"val {min(history.evaluations.values()):.3f}" if history.evaluations else ""
    size = "" if history.n_parameters is None else f"{history.n_parameters / 1e6:.2f}M"
    written, steps, problem, command = run.path.stat().st_mtime, "no checkpoint", "", ""
    try:
        checkpoint = run.latest(to_resume=False)
    except CheckpointError as error:
        # Without any step, its training has just begun, or ended before the first save.
        problem = f"broken: {error}" if _has_steps(run) else ""
    else:
        written = checkpoint.directory.stat().st_mtime
        steps = f"{checkpoint.step}{'' if history.max_iters is None else f'/{history.max_iters}'}"
        steps += " steps"
        command = next_command("yocto-chat", "--ckpt", str(run.path))
        if checkpoint.skipped:
            problem = f"broken, and passed over: {'; '.join(checkpoint.skipped)}"
    return written, run.name, f"{loss:<9}  {size:>6}  {steps:>13}", problem, command


def _runs_in(root: Path) -> list[Run]:
    try:
        found = [Run(path) for path in root.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {root}: {error}; check --ckpt_dir") from error
    return [
        run
        for run in found
        if any((run.path / mark).exists() for mark in _MARKS) or _has_steps(run)
    ]


def _has_steps(run: Run) -> bool:
    try:
        return bool(run.steps())
    except CheckpointError:  # it cannot be read
        return False


# --- data ----------------------------------------------------------------------------------------


def _unused_data(runs: list[Run]) -> tuple[list[Path], str | None]:
    """Data that yocto-train prepared, and on which no run was trained: told by content.

    A run that has saved nothing yet, or whose files are damaged, names its data by the path. Where
    one does not even do that, no data is known to be unused; what is wrong is returned instead.
    """
    directories, used = [path.parent for path in _DATA.glob("*/meta.json")], set[str | Path]()
    for run in runs if directories else ():
        if not (own := _data_of(run)):
            return [], f"{run.path} does not say what it was trained on"
        used |= own
    found = []
    for directory in sorted(directories):
        with contextlib.suppress(DataError):
            if not used & {DataMeta.load(directory).train.sha256, directory.resolve()}:
                found.append(directory)
    return found, None


def _data_of(run: Run) -> set[str | Path]:
    """The hashes and the path by which a run's files name its data."""
    found = set[str | Path]()
    for step in run.steps() if _has_steps(run) else ():
        with contextlib.suppress(CheckpointError):
            found.update(Manifest.read(step).data.values())
    if directory := data_directory_of(run.path):
        found.add(directory.resolve())
    return found
