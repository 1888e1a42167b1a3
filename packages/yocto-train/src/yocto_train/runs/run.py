"""Run: one training run on disk, and what a user means by a path.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from yocto_data.prep import files
from yocto_model import GPT
from yocto_tokenizers import Tokenizer

from yocto_train.errors import CheckpointError, RunError, SaveError, reason
from yocto_train.runs.checkpoint import (
    MANIFEST,
    Checkpoint,
    aside,
    failing_as,
    is_directory,
    names_in,
    reading,
    step_name,
    step_of,
)

Pointer = Literal["latest", "best"]
POINTERS: tuple[Pointer, Pointer] = ("latest", "best")
T = TypeVar("T")


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


# --- what a user means ---------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint that has been read."""

    checkpoint: Checkpoint  # where it is, and what is known about it
    model: GPT  # in evaluation mode
    tokenizer: Tokenizer | None  # what it was trained with; None if the checkpoint holds none


def open_model(
    source: str | Path | None = None,
    *,
    root: str | Path = "checkpoints",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> OpenedModel:
    """Read the model that a user means, with its tokenizer.

    Args:
        source: as for `find_checkpoint`.
        root: where runs are.
        device: where the weights go.
        dtype: convert the weights; None keeps them as they were saved.

    Raises:
        CheckpointError: nothing exists there, or it is not a sound checkpoint.
    """

    def read() -> OpenedModel:
        checkpoint = _find(source, root)
        has_tokenizer = checkpoint.manifest.tokenizer is not None
        tokenizer = checkpoint.load_tokenizer() if has_tokenizer else None
        return OpenedModel(checkpoint, checkpoint.load_model(device=device, dtype=dtype), tokenizer)

    return _again(read)


def find_checkpoint(
    path: str | Path | None = None, *, root: str | Path = "checkpoints"
) -> Checkpoint:
    """The checkpoint that a user means, to write text with.

    Args:
        path: a run (its newest sound checkpoint), a step directory, `latest` or `best` in a run;
            `latest.pt`, `best.pt` and a step's `model.pt` mean the same. None for the newest run
            in `root`.
        root: where runs are.

    Raises:
        CheckpointError: nothing exists there, or it is not a sound checkpoint.
    """
    return _again(lambda: _find(path, root))


def _again(read: Callable[[], T]) -> T:
    """Read, and once more if that fails: a training that goes on may prune what is being read."""
    with contextlib.suppress(CheckpointError):
        return read()
    return read()


def _find(path: str | Path | None, root: str | Path) -> Checkpoint:
    if path is not None:
        with reading(path):
            return _find_named(Path(path))
    try:
        return Run.newest(root).latest(to_resume=False)
    except RunError as error:
        raise CheckpointError(str(error)) from error


def _find_named(path: Path) -> Checkpoint:
    if path.name in ("model.pt", "model.safetensors"):
        path = path.parent
    for pointer in POINTERS:
        if path.name in (pointer, f"{pointer}.pt") and step_of(path.parent.name) is None:
            path = path.with_name(pointer)
            if is_directory(path):  # a copy of the step that the link named, or a run of that name
                break
            if directory := Run(path.parent).pointed(pointer):
                return Checkpoint.open(directory)
            raise CheckpointError(f"{path} does not point to a checkpoint; name the run instead")
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; name a run, or train one: uv run yocto-train"
        )
    if step_of(path.resolve().name) is not None or (path / MANIFEST).exists():
        return Checkpoint.open(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a checkpoint: name a run, or a step of one")
    run = Run(path)
    if not run.steps():
        with contextlib.suppress(RunError):  # then it is not a directory of runs either
            newest = Run.newest(path).path
            raise CheckpointError(f"{path} holds runs; name one, such as the newest, {newest}")
    return run.latest(to_resume=False)
