"""Reading a run directory: what a path may mean, pointers, and reading while it is written."""

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from yocto_train import Checkpoint, CheckpointError, Run, RunError, Trainer
from yocto_train.runs.opening import find_checkpoint, open_model
from yocto_train.runs.run import POINTERS


@pytest.fixture(scope="module")
def trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with step 4 as the best, so that each pointer leads to a step of its own."""
    path = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(trained, path, symlinks=True)
    Run(path).point("best", path / "step-00000004")
    return path


# --- what a path may mean ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("", 6), ("latest", 6), ("best", 4), ("latest.pt", 6), ("best.pt", 4),
        ("step-00000002", 2), ("step-00000002/model.pt", 2), ("step-00000002/model.safetensors", 2),
        ("latest/model.pt", 6),
    ],
)  # fmt: skip
def test_what_a_path_means(path: str, step: int, copied: Path) -> None:
    """Rule 1: a run, a step, latest and best, and the .pt files they once were, mean one step."""
    assert step == find_checkpoint(copied / path).step
    assert step == find_checkpoint(os.path.relpath(copied / path)).step
    opened = open_model(copied / path)
    assert opened.checkpoint
    assert step == opened.checkpoint.step
    assert not opened.model.training
    assert opened.tokenizer is not None


def test_a_model_without_a_tokenizer(make_trainer: Callable[..., Trainer], run: Run) -> None:
    """It opens all the same; who wants to write text with it names one."""
    list(make_trainer(run=run, max_iters=4, with_tokenizer=False).run())
    assert open_model(run.path).tokenizer is None


def test_a_directory_of_runs(copied: Path, tmp_path: Path) -> None:
    """Its newest run is named; a directory with nothing in it is told apart."""
    newest = re.escape(str(copied))
    with pytest.raises(
        CheckpointError, match=f"holds runs; name one, such as the newest, {newest}$"
    ):
        find_checkpoint(copied.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no checkpoint; train one"):
        find_checkpoint(tmp_path / "empty")


def test_no_path_means_the_newest_run(copied: Path, trained: Path) -> None:
    """Without a path, the run that was written last is taken; files and empty runs do not count."""
    root = copied.parent
    shutil.copytree(trained, root / "older", symlinks=True)
    for path in (root / "older").glob("step-*"):
        os.utime(path, (10**9, 10**9))
    (root / "empty").mkdir()
    (root / "a file").write_text("")
    assert copied == Run.newest(root).path
    assert copied / "step-00000006" == find_checkpoint(root=root).directory


@pytest.mark.parametrize(
    "path", ["nothing", "no\x00thing", "x" * 300, "a file/below", "step-00000009", "a file", "loop"]
)
def test_what_is_not_there(path: str, tmp_path: Path) -> None:
    """C1, D17: a missing path, an impossible one, a path below a file: our error in one line."""
    (tmp_path / "a file").write_text("")
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(tmp_path / path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        find_checkpoint(root=tmp_path / path)
    with pytest.raises(RunError):
        Run.newest(tmp_path / path)


TARGETS = [
    "step-00000005", "/etc/passwd", "../run/step-00000004", "best", "latest", "", ".",
    "step-00000004/../step-00000002", "step-00000004\n\n", "step-00000004 ", "step-4",
    "step-0000000\u0664", "step-00000004/model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "target"),
    [(kind, target) for kind in ("file", "link") for target in TARGETS if target or kind == "file"],
)
def test_pointers_that_are_refused(kind: str, target: str, copied: Path) -> None:
    """C20: dangling, absolute, with .., a loop, empty, of two lines, in other digits: not followed.

    The run itself takes its newest sound step, a pointer asked for by name is refused.
    """
    (copied / "latest").unlink()
    (copied / "step-0000000\u0664").mkdir()
    if kind == "link":
        (copied / "latest").symlink_to(target)
    else:
        (copied / "latest").write_text(target, encoding="utf-8")
    run = Run(copied)
    assert None is run.pointed("latest")
    with pytest.raises(CheckpointError, match="does not point to a checkpoint"):
        find_checkpoint(copied / "latest")
    assert 6 == find_checkpoint(copied).step


def test_a_pointer_to_a_linked_step(copied: Path) -> None:
    """Rule 2: the step must be a real directory; no link leads out of the run."""
    (copied / "step-00000006").rename(copied.parent / "elsewhere")
    (copied / "step-00000006").symlink_to(copied.parent / "elsewhere")
    assert None is Run(copied).pointed("latest")
    assert 4 == Run(copied).latest().step


def test_a_pointer_that_became_the_step(copied: Path, tmp_path: Path) -> None:
    """Rule 2: copying may turn a link into what it named, which is a checkpoint by itself."""
    shutil.copytree(copied, tmp_path / "copy")  # which follows links
    assert 6 == find_checkpoint(tmp_path / "copy" / "latest.pt").step
    assert 4 == find_checkpoint(tmp_path / "copy" / "best").step
    assert 6 == find_checkpoint(tmp_path / "copy").step


# --- reading while it is written -----------------------------------------------------------------


def test_reading_writes_nothing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C21: where nothing may be written, everything can be read, and nothing is tried."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("mkdir", "rename", "replace", "symlink", "unlink", "rmdir", "fsync"):
        monkeypatch.setattr(os, call, refuse)
    before = sorted((path, path.lstat().st_mtime_ns) for path in copied.rglob("*"))
    for path in (copied, copied / "best", copied / "step-00000002"):
        open_model(path)
    assert before == sorted((path, path.lstat().st_mtime_ns) for path in copied.rglob("*"))


@pytest.mark.parametrize("at", [Checkpoint.open, Checkpoint.load_model, Checkpoint.load_tokenizer])
def test_pruned_while_it_is_read(
    at: Callable[..., object], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K17: if what was found is gone when it is read, the run is looked at again."""
    name = at.__name__
    call = getattr(Checkpoint, name)
    listed = sorted(copied.glob("step-????????"))

    def call_late(*arguments: object, **options: object) -> object:
        monkeypatch.undo()
        put(listed[-1], copied / "step-00000099", 99)
        for step in listed:
            shutil.rmtree(step)
        return call(*arguments, **options)

    monkeypatch.setattr(Checkpoint, name, call_late)
    found = open_model(copied).checkpoint
    assert found
    assert (99, ()) == (found.step, found.skipped)


def test_reading_during_saves_and_pruning(copied: Path) -> None:
    """K17: readers take no lock and never see half a checkpoint.

    While another thread saves and prunes, every load through a run or a pointer is whole. Some
    writes go with each load, however slow one side is: few enough that looking again once helps.
    """
    run = Run(copied)
    source = copied.parent / "source"
    (copied / "step-00000006").rename(source)
    for name in ("step-00000002", "step-00000004"):
        shutil.rmtree(copied / name)
    loads, writes = 30, 3

    def write(step: int) -> None:
        put(source, copied / f"step-{step:08d}", step)
        for pointer in POINTERS:
            run.point(pointer, copied / f"step-{step:08d}")

    def write_some(first: int) -> None:
        for step in range(first, first + writes):
            write(step)
            run.prune(1)

    write(0)
    with ThreadPoolExecutor(1) as writer:
        for turn in range(loads):
            written = writer.submit(write_some, turn * writes + 1)
            open_model((copied, copied / "latest", copied / "best")[turn % 3])
            written.result(timeout=100)
    assert loads * writes == run.latest().step


def put(source: Path, target: Path, step: int) -> None:
    """A copy of a step directory under another number, as a save would leave it."""
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.copytree(source, temporary)
    found = Checkpoint.open(source).manifest
    (temporary / "manifest.json").write_bytes(dataclasses.replace(found, step=step).to_bytes())
    temporary.rename(target)
