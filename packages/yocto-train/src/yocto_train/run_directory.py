"""Run: one training run on disk. `finding.py` says which checkpoint a path means.

checkpoints/<run>/
  config.toml  metrics.jsonl  samples.jsonl  .lock
  step-00001000/ ...
  latest.pt -> step-00001000/model.pt     best.pt -> step-00000750/model.pt
"""

import contextlib
import dataclasses
import datetime
import io
import json
import math
import os
import platform
import secrets
from collections.abc import Iterator
from pathlib import Path

from yocto_train import files
from yocto_train.checkpoint import Checkpoint, is_directory, names_in, step_name, step_of
from yocto_train.errors import CheckpointError, RunError, SaveError, reason
from yocto_train.saving import aside

POINTERS = ("latest.pt", "best.pt")
_ATTEMPTS = 20


class Run:
    """A run directory.

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
        """The run with the most recently written checkpoint.

        Raises:
            RunError: there is no run with a checkpoint in `root`.
        """
        root = Path(root)
        candidates = []
        try:
            for path in root.iterdir() if is_directory(root.resolve()) else ():
                for step in cls(path).steps():
                    with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                        candidates.append((step.stat().st_mtime_ns, path.name, path))
        except (OSError, RuntimeError, ValueError) as error:
            raise RunError(f"cannot read {root}: {reason(error)}") from error
        if not candidates:
            raise RunError(f"no checkpoint in {root}; train one first: uv run yocto-train")
        return cls(max(candidates)[2])

    def create(self) -> None:
        """Make the directory and prove that it can be written to.

        Raises:
            RunError: it cannot, and why.
        """
        probe = self.path / f".tmp-probe-{secrets.token_hex(4)}"
        try:
            files.make_directory(self.path, parents=True)
            files.write_new(probe, lambda file: file.write(b"probe"))
            files.replace(probe, probe.with_name(probe.name + "2"))
            files.remove_file(probe.with_name(probe.name + "2"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot write to {self.path}: {reason(error)}; choose another place"
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's only writer for the time of the block, and clear up after a crash.

        Raises:
            RunError: another process is writing to this run, or the directory cannot be used.
        """
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        path = self.path / ".lock"
        with contextlib.ExitStack() as stack:
            owner = f"pid {os.getpid()} on {platform.node()} since {now}"
            try:
                taken = stack.enter_context(files.locked(path, owner))
                holder = path.read_bytes()[:200].decode(errors="replace")
            except OSError as error:
                raise RunError(f"cannot lock {self.path}: {reason(error)}") from error
            if not taken:
                raise RunError(f"{self.path} is in use by {holder or 'another process'}")
            self._clear_up()
            yield

    def _clear_up(self) -> None:
        """Remove what a crash left behind; what cannot be removed stays for the next writer."""
        leftovers: list[Path] = []
        with contextlib.suppress(OSError):
            leftovers = list(self.path.glob(".tmp-*"))
        for leftover in leftovers:
            with contextlib.suppress(OSError):
                if is_directory(leftover):
                    files.remove_tree(leftover)
                else:
                    files.remove_file(leftover)

    # --- checkpoints ---------------------------------------------------------------------------

    def step_directory(self, step: int) -> Path:
        """Where the checkpoint of a step is, if there is one."""
        return self.path / step_name(step)

    def steps(self) -> list[Path]:
        """The directories of all steps, oldest first; anything else in the run is ignored.

        Raises:
            CheckpointError: the run cannot be read.
        """
        found = [self.path / name for name in names_in(self.path) if step_of(name) is not None]
        return sorted(filter(is_directory, found))

    def latest(self, *, to_resume: bool = True) -> Checkpoint:
        """The newest checkpoint that is sound, by step number; it tells which it passed over.

        Args:
            to_resume: whether opt.pt must be sound, too.

        Raises:
            CheckpointError: there is none; the message names what is wrong with each.
        """
        problems: list[str] = []
        for _ in range(_ATTEMPTS):
            problems.clear()
            listed = self.steps()
            for directory in reversed(listed):
                try:
                    checkpoint = Checkpoint.open(directory)
                    checkpoint.verify(to_resume=to_resume)
                except CheckpointError as error:
                    problems.append(str(error))
                else:
                    return dataclasses.replace(checkpoint, skipped=tuple(problems))
            # While a training goes on, all that were listed may be pruned before they are read.
            if self.steps() == listed:
                break
        if not problems:
            raise CheckpointError(f"{self.path} holds no checkpoint; train one: uv run yocto-train")
        raise CheckpointError(f"no sound checkpoint in {self.path}: {'; '.join(problems[:5])}")

    def best(self) -> Checkpoint | None:
        """The checkpoint that best.pt points to, or None."""
        directory = self.pointed("best.pt")
        return None if directory is None else Checkpoint.open(directory)

    def pointed(self, pointer: str) -> Path | None:
        """The step directory that latest.pt or best.pt names, or None if it is not sound.

        A pointer is read before it is followed: nothing but a step of this very run is accepted.
        """
        path = self.path / pointer
        try:
            if path.is_symlink():
                text = str(path.readlink())
            elif path.is_file() and path.stat().st_size < 100:  # the form without symbolic links
                text = path.read_text(encoding="utf-8").removesuffix("\n")
            else:
                return None
        except (OSError, UnicodeDecodeError):
            return None
        name, _, file = text.partition("/")
        if step_of(name) is None or file != "model.pt":
            return None
        directory = self.path / name
        return directory if is_directory(directory) else None

    def point(self, pointer: str, directory: Path) -> None:
        """Move latest.pt or best.pt to a step directory, in one step.

        Raises:
            SaveError: the system refused; the pointer is unchanged.
        """
        try:
            files.point(self.path / pointer, f"{directory.name}/model.pt")
        except OSError as error:
            raise SaveError(f"cannot write {self.path / pointer}: {error.strerror}") from error

    def prune(self, keep: int) -> list[str]:
        """Remove old checkpoints, but none that a pointer names and never the newest `keep`.

        Only checkpoints that look sound count and are removed, and two at least stay.

        Returns:
            What could not be removed, and why.
        """
        named = {self.pointed(pointer) for pointer in POINTERS}
        problems = []
        for directory in self._sound_steps()[: -max(keep, 2)]:
            if directory in named:
                continue
            doomed = directory.with_name(f".tmp-prune-{secrets.token_hex(4)}")
            try:
                # Renamed first: no half-deleted directory keeps a step's name.
                files.rename(directory, doomed)
                files.remove_tree(doomed)
            except OSError as error:
                problems.append(f"cannot remove the old {directory}: {reason(error)}")
        return problems

    def _sound_steps(self) -> list[Path]:
        """Step directories whose manifest and file sizes are right, oldest first."""
        found = []
        for directory in self.steps():
            with contextlib.suppress(CheckpointError, OSError):
                for name, facts in Checkpoint.open(directory).manifest.files.items():
                    if (directory / name).stat().st_size != facts.bytes:
                        raise CheckpointError(f"{name} is damaged")
                found.append(directory)
        return found

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is one of this run's."""
        return self.path.resolve() == checkpoint.run.resolve()

    def rewind(self, checkpoint: Checkpoint, *, best_step: int | None) -> None:
        """Make the directory what it was when `checkpoint` was saved; the caller holds the lock.

        Later steps, which are damaged or no longer wanted, are renamed to step-N.old-..., so that
        they are no step's any more. Pointers that a crash left behind are moved, and later rows
        dropped.

        Args:
            checkpoint: one of this run.
            best_step: the step of the lowest loss until then.

        Raises:
            RunError: the system refused.
        """
        try:
            for directory in self.steps():
                if directory.name > checkpoint.directory.name:
                    aside(directory)
            best = self.step_directory(best_step or 0)
            targets = {"latest.pt": checkpoint.directory}
            if best_step is not None and is_directory(best):
                targets["best.pt"] = best
            elif (self.path / "best.pt").is_symlink() or (self.path / "best.pt").is_file():
                # It was pruned for a later best, which is no step of the run any more.
                files.remove_file(self.path / "best.pt")
            for pointer, target in targets.items():
                if self.pointed(pointer) != self.path / target.name:
                    self.point(pointer, target)
            self.drop_rows_after(checkpoint.step)
        except (OSError, SaveError) as error:
            raise RunError(f"cannot go on in {self.path}: {reason(error)}") from error

    # --- records -------------------------------------------------------------------------------

    def record(self, file: str, row: dict[str, object]) -> None:
        """Append one row to metrics.jsonl or samples.jsonl; what is not finite becomes null.

        Raises:
            OSError: the system refused; training can go on without.
        """
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        files.append_line(self.path / file, json.dumps(finite, ensure_ascii=False, allow_nan=False))

    def rows(self, file: str) -> list[dict[str, object]]:
        """The rows of metrics.jsonl or samples.jsonl; a torn line is left out.

        Raises:
            OSError: the file cannot be read.
        """
        return [row for line in self._lines(file) if (row := _row(line)) is not None]

    def drop_rows_after(self, step: int) -> None:
        """Forget what was recorded after `step`, which a resumed run will record again.

        A torn last line goes, too; any other line stays as it is, byte for byte.

        Raises:
            OSError: the system refused.
        """
        for file in ("metrics.jsonl", "samples.jsonl"):
            lines = self._lines(file)
            kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
            if kept != lines:
                files.replace_file(self.path / file, b"".join(kept))

    def _lines(self, file: str) -> list[bytes]:
        """Lines with their ends, parted at line feeds alone: text may hold other separators."""
        path = self.path / file
        return list(io.BytesIO(path.read_bytes())) if path.is_file() else []

    def write_config(self, text: str) -> None:
        """Write config.toml in one step.

        Raises:
            OSError: the system refused.
        """
        files.replace_file(self.path / "config.toml", text.encode())


def _row(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _step_of(line: bytes) -> int:
    """The step of a row; 0, hence never too late, for what is no row."""
    step = (_row(line) or {}).get("step")
    return step if isinstance(step, int) else 0
