"""The commit protocol: a fault at any file operation of a save loses nothing.

The counting loop: operation N fails once, or from then on, or the process ends there; N = 1, 2, ...
until a run is untouched. Run as a script, this file is the process that ends.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import load_tokenizer
from yocto_train import (
    Evaluated,
    Run,
    RunError,
    Saved,
    SaveError,
    StepDone,
    TrainConfig,
    Trainer,
    files,
)

Mode = Literal["once", "forever", "exit"]

OPERATIONS = (
    "create", "write_all", "fsync_file", "fsync_directory", "make_directory", "rename", "replace",
    "symlink", "remove_file", "remove_tree",
)  # fmt: skip


def make_trainer(data: Path, run: Run) -> Trainer:
    tokenizer = load_tokenizer(data)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=4, dropout=0.1
    )
    return Trainer(
        GPT(config, generator=torch.Generator().manual_seed(3)),
        TokenDataset(data / "train.bin", 8), TokenDataset(data / "val.bin", 8),
        TrainConfig(
            max_iters=8, batch_size=2, warmup_iters=0, eval_interval=2, keep=2, log_interval=1,
            lr=0.05, seed=11,
        ),
        run=run, tokenizer=tokenizer, device="cpu",
    )  # fmt: skip


def train(data: Path, path: Path, *, until: int) -> list[int]:
    """Begin or go on, up to a step; returns the steps that were reported as saved."""
    run = Run(path)
    saved = []
    run.create()
    with run.lock():
        trainer = make_trainer(data, run)
        if any(path.glob("step-*")):
            trainer.restore(run.latest())
        for event in trainer.run():
            if isinstance(event, StepDone | Evaluated):
                with contextlib.suppress(OSError):
                    run.record("metrics.jsonl", {"step": event.step, "loss": event.loss})
            if isinstance(event, Saved):
                saved.append(event.step)
            if event.step == until:
                trainer.request_stop()
    return saved


@dataclass
class Fault:
    """Counts the file operations and spoils one, or all from one on."""

    at: int
    mode: Mode = "once"
    number: int = errno.EIO
    count: int = 0
    log: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def injected(self) -> Iterator["Fault"]:
        with pytest.MonkeyPatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(files, name, self._wrap(name, getattr(files, name)))
            yield self

    def _wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def spoiled(*args: Any, **options: Any) -> Any:
            self.count += 1
            self.log.append(f"{name} {Path(getattr(args[0], 'name', args[0])).name}")
            due = self.count == self.at or (self.mode == "forever" and self.count > self.at > 0)
            if due and self.mode == "exit":
                os._exit(137)
            if due:
                raise OSError(self.number, os.strerror(self.number))
            return operation(*args, **options)

        return spoiled


def snapshot(directory: Path) -> dict[str, str]:
    """Names and content of all files but the lock; a pointer may be a link or one line.

    Rows count once: an evaluation that is made up for after a stop is made again, and reported
    again, if that resumed run ends before its first save.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"{path.readlink()}"
        elif name in {"latest.pt", "best.pt"}:
            found[name] = path.read_text().strip()
        elif path.suffix == ".jsonl":
            found[name] = "".join(dict.fromkeys(path.read_text().splitlines(keepends=True)))
        elif path.is_file() and path.name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True)
class Stage:
    """A run that stands at step 4, and what it comes to undisturbed."""

    data: Path
    start: Path
    expected: dict[str, str]
    operations: list[str]

    def copy(self, target: Path) -> Path:
        shutil.copytree(self.start, target, symlinks=True)
        return target

    def check(self, path: Path, saved: list[int] | None = None, *, rows: bool = True) -> None:
        """I1, I2 and I4 to I8 of a run directory after a fault; a row that failed stays lost."""
        run = Run(path)
        steps = [step for step in path.iterdir() if step.name.startswith("step-")]
        assert all(len(step.name) == len("step-00000000") for step in steps)  # I4
        newest = run.latest()
        assert () == newest.skipped  # I2: no step directory is half there
        assert newest.step in {4, 6, 8}
        pointed = run.pointed("latest.pt")
        assert pointed is not None  # I1
        assert pointed.name in {f"step-{step:08d}" for step in (newest.step - 2, newest.step)}
        assert run.pointed("best.pt") is not None
        if saved:
            assert newest.step >= max(saved)  # I3: what was reported is there
        train(self.data, path, until=99)  # I5
        left, right = dict(self.expected), snapshot(path)
        if not rows:
            del left["metrics.jsonl"], right["metrics.jsonl"]
        assert left == right  # I6, I8: the same files, to the byte


@pytest.fixture(scope="module")
def stage(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("commit")
    train(data_dir, root / "start", until=4)
    shutil.copytree(root / "start", root / "whole", symlinks=True)
    with Fault(at=0).injected() as fault:
        train(data_dir, root / "whole", until=99)
    return Stage(data_dir, root / "start", snapshot(root / "whole"), fault.log)


def sampled(operations: list[str]) -> list[int]:
    """Numbers of the operations.

    Of a row of equal ones, as writes to one file are, the first, the second and the last.
    """
    chosen = []
    for i, name in enumerate(operations):
        inner = 0 < i < len(operations) - 1 and operations[i - 1] == name == operations[i + 1]
        if not inner or (i > 1 and operations[i - 2] != name):
            chosen.append(i + 1)
    return chosen


def test_the_order_of_a_save(stage: Stage) -> None:
    """Section 2.1: the order of operations is what makes a save durable.

    Every file is synced before the directory is, that before it gets its name, the name before the
    pointers move, and those before anything old goes; the manifest is the last file written.
    """
    rows = [name for name in stage.operations if "metrics" not in name]
    save = [name for i, name in enumerate(rows) if i == 0 or rows[i - 1] != name]
    first = next(i for i, name in enumerate(save) if name.startswith("make_directory .tmp-step"))
    temporary = save[first].split()[1]
    assert [
        f"make_directory {temporary}",
        "create model.pt", "write_all model.pt", "fsync_file model.pt",
        "create opt.pt", "write_all opt.pt", "fsync_file opt.pt",
        "create manifest.json", "write_all manifest.json", "fsync_file manifest.json",
        f"fsync_directory {temporary}",
        f"rename {temporary}", f"fsync_directory {stage.start.name.replace('start', 'whole')}",
    ] == save[first : first + 13]  # fmt: skip
    kinds = [name.split()[0] for name in save[first + 13 : first + 21]]
    pointer = ["symlink", "replace", "fsync_directory"]
    assert [*pointer, *pointer, "rename", "remove_tree"] == kinds


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("once", errno.EIO),
        ("forever", errno.EIO),
        ("forever", errno.ENOSPC),
        ("once", errno.EACCES),
    ],
)
def test_an_operation_fails(mode: Mode, number: int, stage: Stage, tmp_path: Path) -> None:
    """K9, K11, K12, K29: an operation that the system refuses loses nothing.

    Whichever operation fails, once or from then on, the run ends with one line from this package or
    goes on, nothing is lost, and the next run makes everything good.
    """
    chosen = sampled(stage.operations)
    chosen = (
        chosen[::2] if (number, mode) == (errno.EIO, "once") else chosen[1 :: len(chosen) // 12]
    )
    survived = 0
    for n in chosen:
        path = stage.copy(tmp_path / f"run-{n}")
        saved: list[int] = []
        with Fault(at=n, mode=mode, number=number).injected() as fault:
            try:
                saved = train(stage.data, path, until=99)
            except (SaveError, RunError) as error:
                text = str(error)
                assert os.strerror(number) in text, (n, fault.log[n - 1])
                assert "\n" not in text
                if number == errno.ENOSPC and isinstance(error, SaveError) and "step" in text:
                    assert "bytes" in text or "cannot write" in text
        assert fault.count >= n
        stage.check(path, saved, rows=False)
        shutil.rmtree(path)
        survived += 1
    assert len(chosen) == survived


@pytest.mark.slow
def test_the_process_ends(stage: Stage, tmp_path: Path, tied: dict[str, Any]) -> None:
    """K1, K3, K4: the process ends at the operation, without any clearing up.

    The next run finds the old state or the new one and finishes what the undisturbed run is, byte
    for byte.
    """
    chosen = sampled(stage.operations)
    for n in chosen:
        stage.copy(tmp_path / f"run-{n}")
    numbers = ",".join(map(str, chosen))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(stage.data), str(tmp_path), numbers]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=300, **tied
    )
    assert [f"{n} 137" for n in chosen] == result.stdout.split("\n")[:-1]
    for n in chosen:
        stage.check(tmp_path / f"run-{n}")
        shutil.rmtree(tmp_path / f"run-{n}")


class _EndedError(BaseException):
    """The process would have ended here."""


def end_at(n: int, data: Path, path: Path) -> list[str]:
    """Go on in a run and end at operation n, after which nothing touches the disk any more."""
    log: list[str] = []

    def dead(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            log.append(name)
            if len(log) >= n:
                raise _EndedError
            return operation(*args, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_EndedError):
        for name in OPERATIONS:
            patch.setattr(files, name, dead(name, getattr(files, name)))
        train(data, path, until=99)
    return log


def test_nothing_is_written_any_more(stage: Stage, tmp_path: Path) -> None:
    """K1 within one process: from some operation on nothing reaches the disk, clearing up neither.

    What a file's buffer held is written here, and lost in the real end of a process above.
    """
    chosen = sampled(stage.operations)[::2]
    for n in chosen:
        path = stage.copy(tmp_path / "run")
        assert len(end_at(n, stage.data, path)) >= n
        stage.check(path)
        shutil.rmtree(path)


@pytest.mark.parametrize("before", ["rename", "symlink", "remove_tree"])
def test_ended_again_while_recovering(before: str, stage: Stage, tmp_path: Path) -> None:
    """K5: ending again while recovering loses nothing.

    After an end between rename and pointer, between the pointers, or while pruning, another end at
    any operation of the recovery loses nothing either.
    """
    names = [operation.split()[0] for operation in stage.operations]
    n = names.index(before) + 1 + (before == "rename")
    broken = stage.copy(tmp_path / "broken")
    end_at(n, stage.data, broken)
    for second in range(1, 15):
        path = tmp_path / f"again-{second}"
        shutil.copytree(broken, path, symlinks=True)
        end_at(second, stage.data, path)
        stage.check(path)


def test_symbolic_links_are_not_needed(stage: Stage, tmp_path: Path) -> None:
    """K31: where they are refused, pointers are one-line files.

    Resuming and ending in the middle go as well as with links.
    """
    path = stage.copy(tmp_path / "run")

    def refuse(target: str, link: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "symlink", refuse)
        train(stage.data, path, until=99)
        assert "step-00000008/model.pt\n" == (path / "latest.pt").read_text()
        assert path / "step-00000008" == Run(path).pointed("latest.pt")
        for n in sampled(stage.operations)[::5]:
            broken = stage.copy(tmp_path / f"run-{n}")
            end_at(n, stage.data, broken)
            train(stage.data, broken, until=99)
            assert 8 == Run(broken).latest().step
            assert path / "step-00000008" == Run(path).pointed("latest.pt")


def test_nothing_outside_changes(stage: Stage, tmp_path: Path) -> None:
    """I7: neither the data nor anything beside the run directory is touched."""
    (tmp_path / "beside").write_text("x")
    before = snapshot(stage.data)
    train(stage.data, stage.copy(tmp_path / "run"), until=99)
    assert before == snapshot(stage.data)
    assert {"beside", "run"} == {path.name for path in tmp_path.iterdir()}


def main() -> None:
    """For each number: fork, and end at that operation; say how it ended."""
    torch.set_num_threads(1)
    data, root, numbers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    train(data, root / "warm", until=1)  # what torch loads on first use, no child has to
    for n in map(int, numbers.split(",")):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # whatever happens to the process that waits for it
            with Fault(at=n, mode="exit").injected():
                train(data, root / f"run-{n}", until=99)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(n, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
