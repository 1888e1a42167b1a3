"""Run: one training run on disk, and what `--ckpt` may name.

checkpoints/<run>/
  config.toml  metrics.jsonl  samples.jsonl  .lock
  step-00001000/ ...
  latest.pt -> step-00001000/model.pt     best.pt -> step-00000750/model.pt
"""

import contextlib
import datetime
import json
import os
import platform
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from yocto_train import files
from yocto_train.checkpoint import STEP_NAME, Checkpoint, step_directories
from yocto_train.errors import CheckpointError, RunError, SaveError

_POINTER = re.compile(r"(step-\d{8})/model\.pt")
_POINTERS = ("latest.pt", "best.pt")


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
        candidates = [
            (max(step.stat().st_mtime_ns for step in steps), path.name, path)
            for path in (root.iterdir() if root.is_dir() else ())
            if (steps := step_directories(path))
        ]
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
            self.path.mkdir(parents=True, exist_ok=True)
            files.write_new(probe, lambda file: file.write(b"probe"))
            files.replace(probe, probe.with_name(probe.name + "2"))
            probe.with_name(probe.name + "2").unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"cannot write to {self.path}: {reason}; choose another place"
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's only writer for the time of the block, and clear up after a crash.

        Raises:
            RunError: another process is writing to this run.
        """
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        path = self.path / ".lock"
        with files.locked(path, f"pid {os.getpid()} on {platform.node()} since {now}") as taken:
            if not taken:
                with contextlib.suppress(OSError):
                    raise RunError(f"{self.path} is in use by {path.read_text()[:200]}")
                raise RunError(f"{self.path} is in use by another process")
            for leftover in self.path.glob(".tmp-*"):
                with contextlib.suppress(OSError):
                    files.remove_tree(leftover) if leftover.is_dir() else leftover.unlink()
            yield

    # --- checkpoints ---------------------------------------------------------------------------

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is sound, by step number.

        Raises:
            CheckpointError: there is none; the message names what is wrong with each.
        """
        problems = []
        for directory in reversed(step_directories(self.path)):
            try:
                checkpoint = Checkpoint.open(directory)
                checkpoint.verify()
            except CheckpointError as error:
                problems.append(str(error))
            else:
                return checkpoint
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
        match = _POINTER.fullmatch(text)
        if match is None:
            return None
        directory = self.path / match[1]
        return directory if directory.is_dir() and not directory.is_symlink() else None

    def point(self, pointer: str, directory: Path) -> None:
        """Move latest.pt or best.pt to a step directory, in one step.

        Raises:
            SaveError: the system refused; the pointer is unchanged.
        """
        try:
            files.point(self.path / pointer, f"{directory.name}/model.pt")
        except OSError as error:
            raise SaveError(f"cannot write {self.path / pointer}: {error.strerror}") from error

    def prune(self, keep: int) -> None:
        """Remove old checkpoints, but none that a pointer names and never the newest `keep`."""
        named = {self.pointed(pointer) for pointer in _POINTERS}
        for directory in step_directories(self.path)[:-keep]:
            if directory in named:
                continue
            doomed = directory.with_name(f".tmp-prune-{secrets.token_hex(4)}")
            # Renamed first: no half-deleted directory keeps a step's name.
            with contextlib.suppress(OSError):
                files.rename(directory, doomed)
                files.remove_tree(doomed)

    # --- records -------------------------------------------------------------------------------

    def record(self, file: str, row: dict[str, object]) -> None:
        """Append one row to metrics.jsonl or samples.jsonl.

        Raises:
            OSError: the system refused; training can go on without.
        """
        files.append_line(self.path / file, json.dumps(row, ensure_ascii=False))

    def rows(self, file: str) -> list[dict[str, object]]:
        """The rows of metrics.jsonl or samples.jsonl; a torn last line is left out."""
        path = self.path / file
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def drop_rows_after(self, step: int) -> None:
        """Forget what was recorded after `step`, which a resumed run will record again.

        Raises:
            OSError: the system refused.
        """
        for file in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / file).is_file():
                kept = [row for row in self.rows(file) if _step_of(row) <= step]
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
                files.replace_file(self.path / file, lines.encode())

    def write_config(self, text: str) -> None:
        """Write config.toml in one step.

        Raises:
            OSError: the system refused.
        """
        files.replace_file(self.path / "config.toml", text.encode())


def find_checkpoint(
    path: Path | str | None = None, *, root: Path | str = "checkpoints"
) -> Checkpoint:
    """The checkpoint that a user means.

    Args:
        path: a run directory (its newest sound checkpoint), a step directory, or model.pt,
            latest.pt or best.pt; None for the newest run in `root`.
        root: where runs are.

    Raises:
        CheckpointError: there is nothing there, or what is there is not a sound checkpoint.
    """
    if path is None:
        try:
            return Run.newest(root).latest()
        except RunError as error:
            raise CheckpointError(str(error)) from error
    path = Path(path)
    if path.name in _POINTERS and not STEP_NAME.fullmatch(path.parent.name):
        directory = Run(path.parent).pointed(path.name)
        if directory is None:
            raise CheckpointError(f"{path} does not point to a checkpoint; name the run instead")
        return Checkpoint.open(directory)
    if path.name == "model.pt":
        path = path.parent
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; name a run, or train one: uv run yocto-train"
        )
    if (path / "manifest.json").exists():
        return Checkpoint.open(path)
    if path.is_dir():
        return Run(path).latest()
    raise CheckpointError(
        f"{path} is not a checkpoint: name a run, a step or one of their .pt files"
    )


def _step_of(row: dict[str, object]) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else 0
