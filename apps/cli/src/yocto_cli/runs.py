"""yocto-train --list: the runs, how good they are, and the command to talk to each.

This module is imported after the flags have been parsed: it brings torch in.
"""

import sys
import time
from pathlib import Path

from yocto_train import CheckpointError, Run

from yocto_cli.command import UsageError, next_command
from yocto_cli.screen.history import History
from yocto_cli.screen.terminal import dim, duration, one_line, say, visible

_MARKS = ("config.toml", "metrics.jsonl", "latest")


def print_runs(root: Path) -> int:
    """Print the runs in a directory, the newest first; returns the exit code.

    Raises:
        UsageError: there are none.
    """
    found = sorted(map(described, _runs_in(root)), reverse=True)
    if not found:
        raise UsageError(f"no run in {root}; train one: uv run yocto-train")
    width = max(len(one_line(name)) for _, name, *_ in found)
    for written, name, columns, problem, command in found:
        age = f"{duration(time.time() - written)} ago"
        say(f"{one_line(name):<{width}}  {columns}  {age:>10}")
        if problem:
            say(f"  {problem}")
        if command:
            print(dim(f"  {visible(command)}", sys.stdout))
    return 0


def described(run: Run) -> tuple[float, str, str, str, str]:
    """When a run was written to, its name, its figures, what is wrong, the command to talk to it.

    The figures are the lowest validation loss, the number of parameters and the steps. Nothing in
    the run's files is taken for granted.
    """
    history = History.of(run)
    loss = f"val loss {min(history.evaluations.values()):.4f}" if history.evaluations else ""
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
        is_best = run.pointed("best") in (None, checkpoint.directory)
        ckpt = run.path if is_best else run.path / "best"
        command = next_command("yocto-chat", "--ckpt", str(ckpt))
        if checkpoint.skipped:
            problem = f"broken, and passed over: {'; '.join(checkpoint.skipped)}"
    return written, run.name, f"{loss:<15}  {size:>8}  {steps:>17}", problem, command


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
