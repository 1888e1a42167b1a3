"""Run: one training run on disk.

checkpoints/<run>/
  config.toml  metrics.jsonl  samples.jsonl  report.html  .lock
  step-00001000/ ...
  latest -> step-00001000     best -> step-00000750
"""

import contextlib
import dataclasses
import datetime
import io
import json
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from yocto_data.prep import files

from yocto_train.errors import CheckpointError, RunError, SaveError, reason
from yocto_train.runs.checkpoint import (
    Checkpoint,
    aside,
    failing_as,
    is_directory,
    names_in,
    step_name,
    step_of,
)

Pointer = Literal["latest", "best"]
POINTERS: tuple[Pointer, Pointer] = ("latest", "best")


class Run:
    """A run directory.

    Its methods raise RunError where the directory cannot be used, CheckpointError where no
    checkpoint is sound, SaveError where a pointer cannot be moved, and OSError where a record
    cannot be written.

    Args:
        path: the directory; it need not exist until `create` or `lock`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @classmethod
    def new(cls, root: Path | str, name: str) -> "Run":
        """A run whose directory does not exist yet: `name`, or `name-002`, `name-003`, ..."""
        root = Path(root)
        for number in range(1, 100_000):
            path = root / (name if number == 1 else f"{name}-{number:03d}")
            if not path.exists():
                return cls(path)
        raise RunError(f"{root} is full of runs called {name}; give another name")

    @classmethod
    def newest(cls, root: Path | str) -> "Run":
        """The run with the most recently written checkpoint."""
        root = Path(root)
        candidates = []
        with failing_as(RunError, f"cannot read {root}"):
            for path in root.iterdir() if is_directory(root.resolve()) else ():
                for step in cls(path).steps():
                    with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                        candidates.append((step.stat().st_mtime_ns, path.name, path))
        if not candidates:
            raise RunError(f"no checkpoint in {root}; train one: uv run yocto-train")
        return cls(max(candidates)[2])

    def create(self) -> None:
        """Make the directory and prove that it can be written to."""
        with failing_as(RunError, f"cannot write to {self.path}", "; choose another place"):
            self.path.mkdir(parents=True, exist_ok=True)
            probe = files.temporary_for(self.path / "probe")
            files.replace_file(probe, b"probe")
            files.remove(probe)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's only writer while the block runs, and clear up after a crash."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = f"pid {os.getpid()} on {platform.node()} since {now}"
        with contextlib.ExitStack() as stack:
            with failing_as(RunError, f"cannot lock {self.path}"):
                try:
                    stack.enter_context(files.locked(self.path / ".lock", owner))
                except files.LockedError as error:
                    raise RunError(f"{self.path} is in use by {error}") from error
            self._clear_up()
            yield

    def _clear_up(self) -> None:
        """Remove what a crash left behind; what cannot be removed stays for the next writer."""
        with contextlib.suppress(OSError):
            for leftover in list(self.path.glob(".tmp-*")):
                with contextlib.suppress(OSError):
                    files.remove(leftover)

    # --- checkpoints ---------------------------------------------------------------------------

    def step_directory(self, step: int) -> Path:
        """Where the checkpoint of a step is, if there is one."""
        return self.path / step_name(step)

    def steps(self) -> list[Path]:
        """The directories of all steps, oldest first; anything else in the run is ignored."""
        found = [self.path / name for name in names_in(self.path) if step_of(name) is not None]
        return sorted(filter(is_directory, found))

    def latest(self, *, to_resume: bool = True) -> Checkpoint:
        """The newest sound checkpoint, by step number; its `skipped` says what was passed over.

        Args:
            to_resume: whether opt.safetensors must be sound, too.
        """
        problems: list[str] = []
        for directory in reversed(self.steps()):
            try:
                checkpoint = Checkpoint.open(directory)
                checkpoint.verify(to_resume=to_resume)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                return dataclasses.replace(checkpoint, skipped=tuple(problems))
        if not problems:
            raise CheckpointError(f"{self.path} holds no checkpoint; train one: uv run yocto-train")
        raise CheckpointError(f"no sound checkpoint in {self.path}: {'; '.join(problems[:5])}")

    def pointed(self, pointer: Pointer) -> Path | None:
        """The step directory that `latest` or `best` names, or None if it is not sound.

        A pointer is read before it is followed: nothing but a step of this very run is accepted.
        """
        path = self.path / pointer
        try:
            if path.is_symlink():
                name = str(path.readlink())
            elif path.is_file() and path.stat().st_size < 100:  # the form without symbolic links
                name = path.read_text(encoding="utf-8").removesuffix("\n")
            else:
                return None
        except (OSError, UnicodeDecodeError):
            return None
        directory = self.path / name
        return directory if step_of(name) is not None and is_directory(directory) else None

    def point(self, pointer: Pointer, directory: Path) -> None:
        """Move `latest` or `best` to a step directory, in one step."""
        with failing_as(SaveError, f"cannot write {self.path / pointer}"):
            files.point(self.path / pointer, directory.name)

    def prune(self, keep: int) -> list[str]:
        """Remove old checkpoints, except those that a pointer names and the newest `keep`.

        Only checkpoints that look sound are counted and removed, and at least two stay.

        Returns:
            What could not be removed, and why.
        """
        named = {self.pointed(pointer) for pointer in POINTERS}
        problems = []
        for directory in self._sound_steps()[: -max(keep, 2)]:
            if directory in named:
                continue
            doomed = files.temporary_for(self.path / "prune")
            try:
                # Renamed first: no half-deleted directory keeps a step's name.
                files.rename(directory, doomed)
                files.remove(doomed)
            except OSError as error:
                problems.append(f"cannot remove the old {directory}: {reason(error)}")
        return problems

    def _sound_steps(self) -> list[Path]:
        """Step directories whose manifest and file sizes are right, oldest first."""
        found = []
        for directory in self.steps():
            with contextlib.suppress(CheckpointError, OSError):
                records = Checkpoint.open(directory).manifest.files
                if all((directory / n).stat().st_size == r.bytes for n, r in records.items()):
                    found.append(directory)
        return found

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is one of this run's."""
        return self.path.resolve() == checkpoint.run.resolve()

    def rewind(self, checkpoint: Checkpoint, *, best_step: int | None) -> None:
        """Make the directory what it was when `checkpoint` was saved; the caller holds the lock.

        Later steps, which are damaged or no longer wanted, are renamed to step-N.old-..., so that
        they no longer count as steps. Pointers that a crash left behind are moved, and later rows
        are dropped.

        Args:
            checkpoint: one of this run.
            best_step: the step of the lowest loss until then.
        """
        with failing_as(RunError, f"cannot go on in {self.path}"):
            for directory in self.steps():
                if directory.name > checkpoint.directory.name:
                    aside(directory)
            best = self.step_directory(best_step or 0)
            targets: dict[Pointer, Path] = {"latest": checkpoint.directory}
            if best_step is not None and is_directory(best):
                targets["best"] = best
            elif os.path.lexists(self.path / "best"):
                # It was pruned for a later best, which no longer belongs to the run.
                files.remove(self.path / "best")
            for pointer, target in targets.items():
                if self.pointed(pointer) != self.path / target.name:
                    self.point(pointer, target)
            self.drop_rows_after(checkpoint.step)

    # --- records -------------------------------------------------------------------------------

    def record(self, file: str, row: dict[str, object]) -> None:
        """Append one row to metrics.jsonl or samples.jsonl; what is not finite becomes null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        files.append_line(self.path / file, json.dumps(finite, ensure_ascii=False, allow_nan=False))

    def rows(self, file: str) -> list[dict[str, object]]:
        """The rows of metrics.jsonl or samples.jsonl; a torn line is left out."""
        return [row for line in self._lines(file) if (row := _row(line)) is not None]

    def drop_rows_after(self, step: int) -> None:
        """Forget what was recorded after `step`, which a resumed run will record again.

        A torn last line goes, too; any other line stays as it is, byte for byte.
        """
        for file in ("metrics.jsonl", "samples.jsonl"):
            lines = self._lines(file)
            kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
            if kept != lines:
                files.replace_file(self.path / file, b"".join(kept))

    def _lines(self, file: str) -> list[bytes]:
        """Lines with their ends, split only at line feeds: text may hold other separators."""
        path = self.path / file
        return list(io.BytesIO(path.read_bytes())) if path.is_file() else []

    def write_config(self, text: str) -> None:
        """Write config.toml in one step."""
        files.replace_file(self.path / "config.toml", text.encode())


def _row(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _step_of(line: bytes) -> int:
    """The step of a row; 0, which is never too late, for any other line."""
    step = (_row(line) or {}).get("step")
    return step if isinstance(step, int) else 0
