"""The commit protocol: a fault at any system call of a save loses nothing.

The counting loop: call N fails once, or from then on, or is the last one; N = 1, 2, ... until a run
is untouched. Real system calls and kill -9 are the campaign's, in tests/faults.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc import locate
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import load_tokenizer
from yocto_train import Evaluated, Run, RunError, Saved, SaveError, StepDone, TrainConfig, Trainer

# What touches the disk. Two libraries write by themselves, so their functions stand for the calls.
CALLS = (
    "os.mkdir", "os.fsync", "os.rename", "os.replace", "os.symlink", "os.unlink", "os.rmdir",
    "pathlib.Path.write_bytes", "pathlib.Path.write_text", "shutil.rmtree",
    "yocto_model.formats.folder.save_file", "safetensors.torch.save_file",
)  # fmt: skip

Mode = Literal["once", "forever", "dead"]


def train(data: Path, path: Path, *, until: int = -1) -> list[int]:
    """Begin or go on, up to a step; returns the steps that were reported as saved."""
    tokenizer, run, saved = load_tokenizer(data), Run(path), []
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=4, dropout=0.1
    )
    run.create()
    with run.lock():
        trainer = Trainer(
            GPT(config, generator=torch.Generator().manual_seed(3)),
            TokenDataset(data / "train.bin", 8), TokenDataset(data / "val.bin", 8),
            TrainConfig(
                max_iters=8, batch_size=2, warmup_iters=0, eval_interval=2, keep=2, log_interval=1,
                lr=0.05, seed=11,
            ),
            run=run, tokenizer=tokenizer, device="cpu",
        )  # fmt: skip
        if any(path.glob("step-????????")):
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


class EndedError(BaseException):
    """The process would have ended here."""


@dataclass
class Fault:
    """Counts the calls and spoils one, or all from one on."""

    at: int
    mode: Mode = "once"
    number: int = errno.EIO
    log: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def injected(self) -> Iterator["Fault"]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(name, self._spoiled(name, locate(name)))  # type: ignore[arg-type] # a function
            yield self

    def _spoiled(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def spoiled(*args: Any, **options: Any) -> Any:
            subject = _subject(name, args)
            if subject.startswith(".lock"):  # the system frees it, whatever becomes of its file
                return call(*args, **options)
            self.log.append(f"{name.rpartition('.')[2]} {subject}")
            n = len(self.log)
            if self.mode == "dead" and n >= self.at > 0:
                raise EndedError
            if n == self.at or (self.mode == "forever" and n > self.at > 0):
                raise OSError(self.number, os.strerror(self.number))
            return call(*args, **options)

        return spoiled


def _subject(name: str, args: tuple[Any, ...]) -> str:
    """The name of the file that a call is about."""
    path = args[1] if name.endswith(("save_file", "symlink")) else args[0]
    if isinstance(path, int):
        with contextlib.suppress(OSError):
            path = Path(f"/proc/self/fd/{path}").readlink()
    return Path(str(path)).name


def snapshot(directory: Path) -> dict[str, str]:
    """Names and content of all files but the lock's; a pointer may be a link or one line."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"{path.readlink()}"
        elif name in {"latest", "best"}:
            found[name] = path.read_text().strip()
        elif path.suffix == ".jsonl":
            # Rows count once: an evaluation that is made up for after a stop is made again, and
            # reported again, if that resumed run ends before its first save.
            found[name] = "".join(dict.fromkeys(path.read_text().splitlines(keepends=True)))
        elif path.is_file() and not path.name.startswith(".lock"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True)
class Stage:
    """A run that stands at step 4, and what it comes to undisturbed."""

    data: Path
    start: Path
    expected: dict[str, str]
    calls: list[str]

    def copy(self, target: Path) -> Path:
        shutil.copytree(self.start, target, symlinks=True)
        return target

    def sampled(self) -> list[int]:
        """Numbers of the calls; of a row of equal ones only the first, the second and the last."""
        calls, chosen = self.calls, []
        for i, name in enumerate(calls):
            inner = 0 < i < len(calls) - 1 and calls[i - 1] == name == calls[i + 1]
            if not inner or (i > 1 and calls[i - 2] != name):
                chosen.append(i + 1)
        return chosen

    def check(self, path: Path, saved: list[int] | None = None, *, rows: bool = True) -> None:
        """I1, I2 and I4 to I8 of a run directory after a fault; a row that failed stays lost."""
        run = Run(path)
        steps = [step for step in path.iterdir() if step.name.startswith("step-")]
        assert all(len(step.name) == len("step-00000000") for step in steps)  # I4
        newest = run.latest()
        assert () == newest.skipped  # I2: no step directory is half there
        assert newest.step in {4, 6, 8}
        pointed = run.pointed("latest")
        assert pointed is not None  # I1
        assert pointed.name in {f"step-{step:08d}" for step in (newest.step - 2, newest.step)}
        assert run.pointed("best") is not None
        if saved:
            assert newest.step >= max(saved)  # I3: what was reported is there
        train(self.data, path)  # I5
        left, right = dict(self.expected), snapshot(path)
        if not rows:
            del left["metrics.jsonl"], right["metrics.jsonl"]
        assert left == right  # I6, I8: the same files, to the byte
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def stage(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("commit")
    train(data_dir, root / "start", until=4)
    shutil.copytree(root / "start", root / "whole", symlinks=True)
    with Fault(at=0).injected() as fault:
        train(data_dir, root / "whole")
    return Stage(data_dir, root / "start", snapshot(root / "whole"), fault.log)


def test_the_order_of_a_save(stage: Stage) -> None:
    """Section 2.1: the order of calls is what makes a save durable.

    Every file is forced to the disk before the manifest is written, that before the directory is,
    that before it gets its name, the name before the pointers move, and those before anything old
    goes.
    """
    first = next(i for i, call in enumerate(stage.calls) if call.startswith("mkdir .tmp-step"))
    temporary = stage.calls[first].split()[1]
    save = stage.calls[first : stage.calls.index(f"rename {temporary}", first)]
    files = [
        "config.json", "model.safetensors", "opt.safetensors", "tokenizer.json",
        "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    written = [call.split()[1] for call in save if call.startswith(("save_file", "write"))]
    assert sorted([*files, "manifest.json"]) == sorted(written)
    manifest = save.index("write_bytes manifest.json")
    for name in files:
        assert f"fsync {name}" in save[:manifest]
        assert not any(call.endswith(name) and "fsync" not in call for call in save[manifest:])
    assert f"fsync {temporary}" == save[-1]
    assert "fsync manifest.json" in save[manifest:]
    after = [call.split()[0] for call in stage.calls[first + len(save) :]]
    pointer = ["symlink", "replace", "fsync"]
    assert ["rename", "fsync", *pointer, *pointer, "rename", "fsync", "rmtree"] == after[:11]


@pytest.mark.parametrize(
    ("mode", "number", "share"),
    [
        ("once", errno.EIO, 4), ("once", errno.EACCES, 7),
        ("forever", errno.EIO, 7), ("forever", errno.ENOSPC, 7),
    ],
)  # fmt: skip
def test_a_call_fails(mode: Mode, number: int, share: int, stage: Stage, tmp_path: Path) -> None:
    """K9, K11, K12, K29: whichever call the system refuses, once or from then on, nothing is lost.

    The run goes on or ends with one line from this package, and the next one makes all good.
    """
    for n in stage.sampled()[share // 2 :: share]:
        path = stage.copy(tmp_path / f"run-{n}")
        saved: list[int] = []
        with Fault(at=n, mode=mode, number=number).injected() as fault:
            try:
                saved = train(stage.data, path)
            except (SaveError, RunError) as error:
                text = str(error)
                assert os.strerror(number) in text, (n, fault.log[n - 1])
                assert "\n" not in text
                if number == errno.ENOSPC and "cannot save step" in text:
                    assert "bytes" in text
        assert len(fault.log) >= n
        stage.check(path, saved, rows=False)


def end_at(n: int, data: Path, path: Path) -> list[str]:
    """Go on in a run and end at call n, after which nothing touches the disk any more."""
    with Fault(at=n, mode="dead").injected() as fault, contextlib.suppress(EndedError):
        train(data, path)
    return fault.log


def test_nothing_is_written_any_more(stage: Stage, tmp_path: Path) -> None:
    """K1, K3, K4: from some call on nothing reaches the disk, clearing up neither.

    The next run finds the old state or the new one, and ends as the undisturbed run, byte for byte.
    """
    for n in stage.sampled()[::3]:
        path = stage.copy(tmp_path / "run")
        assert len(end_at(n, stage.data, path)) >= n
        stage.check(path)


@pytest.mark.parametrize("before", ["rename", "symlink", "rmtree"])
def test_ended_again_while_recovering(before: str, stage: Stage, tmp_path: Path) -> None:
    """K5: nor does an end at any call of the recovery from an end lose anything.

    The first was between rename and pointer, between the pointers, or while pruning.
    """
    names = [call.split()[0] for call in stage.calls]
    begun = next(i for i, call in enumerate(stage.calls) if call.startswith("mkdir .tmp-step"))
    n = names.index(before, begun) + 1 + (before == "rename")
    broken = stage.copy(tmp_path / "broken")
    end_at(n, stage.data, broken)
    for second in range(1, 15, 2):
        path = tmp_path / f"again-{second}"
        shutil.copytree(broken, path, symlinks=True)
        end_at(second, stage.data, path)
        stage.check(path)


def test_symbolic_links_are_not_needed(stage: Stage, tmp_path: Path) -> None:
    """K31: where they are refused, pointers are one-line files, and all goes as with links."""
    path = stage.copy(tmp_path / "run")
    with mock.patch("os.symlink", side_effect=PermissionError(errno.EPERM, "refused")):
        train(stage.data, path)
        assert "step-00000008\n" == (path / "latest").read_text()
        assert path / "step-00000008" == Run(path).pointed("latest")
        for n in stage.sampled()[::8]:
            broken = shutil.copytree(stage.start, tmp_path / f"run-{n}")
            for pointer in ("latest", "best"):
                shutil.rmtree(broken / pointer)  # what copying made out of the link
                (broken / pointer).write_text("step-00000004\n")
            end_at(n, stage.data, broken)
            train(stage.data, broken)
            assert 8 == Run(broken).latest().step
            assert broken / "step-00000008" == Run(broken).pointed("latest")


def test_nothing_outside_changes(stage: Stage, tmp_path: Path) -> None:
    """I7: neither the data nor anything beside the run directory is touched."""
    (tmp_path / "beside").write_text("x")
    before = snapshot(stage.data)
    train(stage.data, stage.copy(tmp_path / "run"))
    assert before == snapshot(stage.data)
    assert {"beside", "run"} == {path.name for path in tmp_path.iterdir()}
