"""Reading a run directory: what a path may mean, pointers, and reading while it is written."""

import dataclasses
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from yocto_train import (
    Checkpoint,
    CheckpointError,
    Run,
    RunError,
    files,
    find_checkpoint,
    load_checkpoint,
)


@pytest.fixture(scope="module")
def trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with step 4 as the best, so that each pointer leads to a step of its own."""
    path = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(trained, path, symlinks=True)
    Run(path).point("best.pt", path / "step-00000004")
    return path


# --- what a path may mean ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("", 6), ("latest.pt", 6), ("best.pt", 4), ("step-00000002", 2),
        ("step-00000002/model.pt", 2), ("step-00000004/opt.pt/..", 4),
    ],
)  # fmt: skip
def test_what_a_path_means(path: str, step: int, copied: Path) -> None:
    """Rule 1: a run, a step, model.pt, latest.pt and best.pt all lead to one step directory."""
    if ".." in path:
        with pytest.raises(CheckpointError):
            find_checkpoint(copied / path)
    else:
        assert step == find_checkpoint(copied / path).step
        assert step == find_checkpoint(os.path.relpath(copied / path)).step


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
    """C1, D17: a missing path, an impossible one, a path below a file.

    One line, this package's error.
    """
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


POINTERS = [
    "step-00000099/model.pt", "/etc/passwd", "../run/step-00000004/model.pt", "latest.pt", "",
    "step-00000004", "step-00000004/../step-00000002/model.pt", "step-00000004/model.pt\n\n",
    "step-00000004/model.pt ", "step-4/model.pt", "step-0000000\u0664/model.pt",
    "step-00000004/opt.pt",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "target"),
    [("file", target) for target in POINTERS] + [("link", target) for target in POINTERS if target],
)
def test_pointers_that_are_refused(kind: str, target: str, copied: Path) -> None:
    """C20: dangling, absolute, with .., a loop, empty, with more than one line, in other digits.

    Never followed; the run itself takes its newest sound step, a pointer asked for by name is
    refused.
    """
    (copied / "latest.pt").unlink()
    (copied / "step-0000000\u0664").mkdir()
    if kind == "link":
        (copied / "latest.pt").symlink_to(target)
    else:
        (copied / "latest.pt").write_text(target, encoding="utf-8")
    run = Run(copied)
    assert None is run.pointed("latest.pt")
    with pytest.raises(CheckpointError, match="does not point to a checkpoint"):
        find_checkpoint(copied / "latest.pt")
    assert 6 == find_checkpoint(copied).step


def test_a_pointer_to_a_linked_step(copied: Path) -> None:
    """Rule 2: the step must be a real directory; no link leads out of the run."""
    (copied / "step-00000006").rename(copied.parent / "elsewhere")
    (copied / "step-00000006").symlink_to(copied.parent / "elsewhere")
    assert None is Run(copied).pointed("latest.pt")
    assert 4 == Run(copied).latest().step


def test_a_pointer_that_became_the_model(copied: Path) -> None:
    """Rule 2: copying may turn a link into the file; it is matched to a step by its hash."""
    for name in ("latest.pt", "best.pt"):
        target = (copied / name).resolve()
        (copied / name).unlink()
        shutil.copy(target, copied / name)
    assert 6 == find_checkpoint(copied / "latest.pt").step
    assert 4 == find_checkpoint(copied / "best.pt").step
    (copied / "best.pt").write_bytes((copied / "best.pt").read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="does not point"):
        find_checkpoint(copied / "best.pt")


# --- reading while it is written -----------------------------------------------------------------


def test_reading_writes_nothing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C21: where nothing may be written, everything can be read, and nothing is tried."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for operation in ("create", "make_directory", "rename", "replace", "symlink", "remove_file"):
        monkeypatch.setattr(files, operation, refuse)
    before = sorted((path, path.lstat().st_mtime_ns) for path in copied.rglob("*"))
    for path in (copied, copied / "best.pt", copied / "step-00000002"):
        load_checkpoint(lambda found: (found.load_model(), found.load_tokenizer()), path)
    assert before == sorted((path, path.lstat().st_mtime_ns) for path in copied.rglob("*"))


def test_all_pruned_before_the_first_is_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K17: if every step that was listed is gone when it is opened, the run is looked at again."""
    opened = Checkpoint.open
    listed = sorted(copied.glob("step-????????"))

    def open_late(directory: Path) -> Checkpoint:
        if listed:
            monkeypatch.undo()
            put(listed[-1], copied / "step-00000099", 99)
            for step in listed:
                shutil.rmtree(step)
        return opened(directory)

    monkeypatch.setattr(Checkpoint, "open", open_late)
    found = Run(copied).latest()
    assert (99, ()) == (found.step, found.skipped)


def test_reading_during_saves_and_pruning(copied: Path) -> None:
    """K17: readers take no lock and never see half a checkpoint.

    While another thread saves and prunes, every load through a run or a pointer is whole. Some
    writes go with each load, however slow one side is: fewer than a reader looks again.
    """
    run = Run(copied)
    source = copied.parent / "source"
    (copied / "step-00000006").rename(source)
    for name in ("step-00000002", "step-00000004"):
        shutil.rmtree(copied / name)
    loads, writes = 30, 6
    together = threading.Barrier(2, timeout=100)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for step in range(1, loads * writes + 1):
                if step % writes == 1:
                    together.wait()
                put(source, copied / f"step-{step:08d}", step)
                run.point("latest.pt", copied / f"step-{step:08d}")
                run.point("best.pt", copied / f"step-{step:08d}")
                run.prune(1)
                if step % writes == 0:
                    together.wait()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)
            together.abort()

    writer = threading.Thread(target=write, daemon=True)
    put(source, copied / "step-00000000", 0)
    for pointer in ("latest.pt", "best.pt"):
        run.point(pointer, copied / "step-00000000")
    writer.start()
    for turn in range(loads):
        path = (copied, copied / "latest.pt", copied / "best.pt")[turn % 3]
        together.wait()
        load_checkpoint(lambda found: (found.load_model(), found.load_tokenizer()), path)
        together.wait()
    writer.join()
    assert [] == failures
    assert loads * writes == run.latest().step


def put(source: Path, target: Path, step: int) -> None:
    """A copy of a step directory under another number, as a save would leave it."""
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.copytree(source, temporary)
    found = Checkpoint.open(source).manifest
    (temporary / "manifest.json").write_bytes(dataclasses.replace(found, step=step).to_bytes())
    temporary.rename(target)
