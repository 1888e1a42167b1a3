"""yocto-train --list: the runs, how good they are, and the command to talk to each.

This module is imported after the flags have been parsed: it brings torch in.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from yocto_train import CheckpointError, Run

from yocto_cli.command import next_command
from yocto_cli.errors import UsageError
from yocto_cli.screen.frame import duration
from yocto_cli.screen.history import History
from yocto_cli.screen.terminal import dim, one_line

_MARKS = ("config.toml", "metrics.jsonl", "latest.pt")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run in a list.

    Attributes:
        name: its directory's name.
        written: when its newest checkpoint, or else its directory, was written: seconds since 1970.
        step: the newest sound checkpoint's, or None.
        max_iters: where it was to end, or None.
        n_parameters: of its model, or None.
        best: step and loss of the lowest validation loss, or None.
        ckpt: what to give to --ckpt, or None if there is nothing to talk to.
        problem: what is wrong, in one line, or nothing.
    """

    name: str
    written: float
    step: int | None = None
    max_iters: int | None = None
    n_parameters: int | None = None
    best: tuple[int, float] | None = None
    ckpt: Path | None = None
    problem: str = ""


def print_runs(root: Path) -> int:
    """Print the runs in a directory, the newest first; returns the exit code.

    Raises:
        UsageError: there is none.
    """
    found = sorted(map(facts_of, _runs_in(root)), key=lambda facts: -facts.written)
    if not found:
        raise UsageError(f"no run in {one_line(str(root))}; train one: uv run yocto-train")
    now = time.time()
    width = max(len(one_line(facts.name)) for facts in found)
    for facts in found:
        print(line_of_run(facts, now=now, width=width))
        if facts.problem:
            print(f"  {one_line(facts.problem)}")
        if facts.ckpt is not None:
            print(dim(f"  {next_command('yocto-chat', '--ckpt', str(facts.ckpt))}", sys.stdout))
    return 0


def line_of_run(facts: RunFacts, *, now: float, width: int) -> str:
    """Name, validation loss, size, steps and age, in columns."""
    loss = "" if facts.best is None else f"val loss {facts.best[1]:.4f}"
    size = "" if facts.n_parameters is None else f"{facts.n_parameters / 1e6:.2f}M"
    steps = "no checkpoint"
    if facts.step is not None:
        steps = f"{facts.step}{'' if facts.max_iters is None else f'/{facts.max_iters}'} steps"
    age = f"{duration(now - facts.written)} ago"
    return (
        f"{one_line(facts.name):<{width}}  {loss:<15}  {size:>8}  {steps:>17}  {age:>10}".rstrip()
    )


def facts_of(run: Run) -> RunFacts:
    """What a run's files say; nothing in them is taken for granted."""
    history = History.of(run)
    best = min(history.evaluations.items(), key=lambda item: item[1], default=None)
    written, step, ckpt, problem = run.path.stat().st_mtime, None, None, ""
    try:
        checkpoint = run.latest(to_resume=False)
    except CheckpointError as error:
        # Without any step, its training has just begun, or ended before the first save.
        problem = f"broken: {error}" if _has_steps(run) else ""
    else:
        step, ckpt = checkpoint.step, run.path
        written = checkpoint.directory.stat().st_mtime
        pointed = run.pointed("best.pt")
        if pointed is not None and pointed != checkpoint.directory:
            ckpt = run.path / "best.pt"
        if checkpoint.skipped:
            problem = f"broken, and passed over: {'; '.join(checkpoint.skipped)}"
    return RunFacts(
        name=run.name,
        written=written,
        step=step,
        max_iters=history.max_iters,
        n_parameters=history.n_parameters,
        best=best,
        ckpt=ckpt,
        problem=problem,
    )


def _runs_in(root: Path) -> list[Run]:
    try:
        return [
            Run(path)
            for path in root.iterdir()
            if path.is_dir()
            and (any((path / mark).exists() for mark in _MARKS) or _has_steps(Run(path)))
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {one_line(str(root))}: {error}; check --ckpt_dir") from error


def _has_steps(run: Run) -> bool:
    try:
        return bool(run.steps())
    except CheckpointError:  # nobody may read it
        return False
