"""Run directories: pointers, pruning, the lock, the records, and what a path may mean."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_train import (
    Checkpoint,
    CheckpointError,
    Run,
    RunError,
    Saved,
    SaveError,
    Trainer,
    files,
    find_checkpoint,
    load_checkpoint,
)


@pytest.fixture(scope="module")
def trained(make_trainer: Callable[..., Trainer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the steps 2, 4 and 6, in a directory of runs."""
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    run.create()
    list(make_trainer(run=run, max_iters=6, eval_interval=2, lr=0.05, warmup_iters=0).run())
    run.point("best.pt", run.path / "step-00000004")
    return run.path


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs" / "run", symlinks=True)
    return tmp_path / "runs" / "run"


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


# --- pruning -------------------------------------------------------------------------------------


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.glob("step-????????") if path.is_dir())


@pytest.mark.property
@given(
    present=st.sets(st.integers(1, 9), min_size=1, max_size=7),
    damaged=st.sets(st.integers(1, 9), max_size=3),
    keep=st.integers(1, 5),
    best=st.integers(1, 9),
)
@example(present={1, 2, 3, 4}, damaged=set(), keep=1, best=1)
@example(present={1, 2, 3, 4, 5}, damaged={4, 5}, keep=2, best=9)
def test_pruning(
    present: set[int], damaged: set[int], keep: int, best: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """The newest `keep` sound checkpoints stay, two at least, and the best; of the others all go.

    A damaged one is no checkpoint: it neither counts nor is removed.
    """
    run = Run(tmp_path_factory.mktemp("prune") / "run")
    run.create()
    for step in present:
        directory = run.path / f"step-{step:08d}"
        directory.mkdir()
        (directory / "x").write_text("")
    sound = sorted(present - damaged)
    run._sound_steps = lambda: [run.path / f"step-{step:08d}" for step in sound]  # type: ignore[method-assign] # only names matter here
    run.point("best.pt", run.path / f"step-{best:08d}")
    assert [] == run.prune(keep)
    expected = set(sound[-max(keep, 2) :]) | (present & damaged) | (present & {best})
    assert sorted(expected) == steps(run.path)


def test_only_steps_are_pruned(copied: Path) -> None:
    """C19: what only looks like a step is ignored and never removed.

    A damaged step is kept, and does not count among those that stay.
    """
    for name in ("step-abc", "step-5-backup", "step-00000001.old-12", "step-0000001\u0664"):
        (copied / name).mkdir()
    (copied / "step-00000001").write_text("a file")
    (copied / "step-00000006" / "model.pt").write_bytes(b"x")
    before = {path.name for path in copied.iterdir()}
    run = Run(copied)
    assert [] == run.prune(1)
    assert before == {path.name for path in copied.iterdir()}
    assert 4 == run.latest().step


def test_a_failed_prune_only_warns(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be removed is said in the event of the save, which has succeeded."""
    run = Run(tmp_path / "run")
    run.create()

    def refuse(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "remove_tree", refuse)
    trainer = make_trainer(run=run, max_iters=8, eval_interval=2, keep=2)
    saved = [event for event in trainer.run() if isinstance(event, Saved)]
    assert 8 == saved[-1].step
    notes = [note for event in saved for note in event.notes]
    assert all("cannot remove the old" in note and "Permission denied" in note for note in notes)
    assert notes
    monkeypatch.undo()
    with run.lock():
        assert not list(run.path.glob(".tmp-*"))


# --- the lock ------------------------------------------------------------------------------------

HOLD = (
    "import sys, time\n"
    "from yocto_train import Run\n"
    "with Run(sys.argv[1]).lock():\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(600)\n"
)


def test_one_writer(copied: Path, tied: dict[str, Any]) -> None:
    """K16, K18: a second writer, in this or another process, is refused and told who has the run.

    The kernel frees the lock of a process that was killed, whatever the file still says.
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(copied)], stdout=subprocess.PIPE, text=True, **tied
    )
    assert holder.stdout is not None
    assert "locked\n" == holder.stdout.readline()
    message = rf"in use by pid {holder.pid} on .* since 20"
    with pytest.raises(RunError, match=message), Run(copied).lock():
        pass
    find_checkpoint(copied).load_model()  # readers take no lock
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert f"pid {holder.pid}" in (copied / ".lock").read_text()
    with Run(copied).lock():
        assert f"pid {os.getpid()}" in (copied / ".lock").read_text()
        with pytest.raises(RunError, match=f"pid {os.getpid()}"), Run(copied).lock():
            pass


def test_leftovers_are_cleared_under_the_lock(copied: Path) -> None:
    """Temporary files, directories and links of a crashed writer are removed, never adopted.

    What a link points to stays.
    """
    (copied / ".tmp-step-00000008-abcd").mkdir()
    (copied / ".tmp-step-00000008-abcd" / "model.pt").write_bytes(b"x")
    (copied / ".tmp-latest.pt-abcd").symlink_to("step-00000006/model.pt")
    (copied / ".tmp-link").symlink_to(copied.parent)
    (copied / ".tmp-config.toml-abcd").write_text("x")
    run = Run(copied)
    with run.lock():
        assert not list(copied.glob(".tmp-*"))
    assert 6 == run.latest().step
    assert copied.parent.is_dir()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_lock_on_a_full_disk(copied: Path) -> None:
    """K9: the text in the lock may be lost; the lock is held, and giving it back is no error."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Run(copied).lock():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # as if the disk were full
        try:
            with files.locked(copied / "other", "me") as taken:
                assert taken
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert b"" == (copied / "other").read_bytes()


def test_a_directory_that_cannot_be_listed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K12: clearing up after a crash can wait; that it failed stops no training."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (copied / ".tmp-left").mkdir()
    monkeypatch.setattr(Path, "glob", refuse)
    with Run(copied).lock():
        assert (copied / ".tmp-left").is_dir()
    monkeypatch.undo()
    with Run(copied).lock():
        assert not (copied / ".tmp-left").exists()


@pytest.mark.parametrize("below", ["missing", "a file"])
def test_a_directory_that_cannot_be_locked(below: str, tmp_path: Path) -> None:
    """K12: no directory, no lock: this package's error in one line."""
    (tmp_path / "a file").write_text("")
    with pytest.raises(RunError, match="cannot lock"), Run(tmp_path / below).lock():
        pass


@pytest.mark.parametrize("path", ["a file", "a file/run", "x" * 300, "n\x00l"])
def test_places_that_cannot_be_written(path: str, tmp_path: Path) -> None:
    """K12: found before step 0, with the system's reason."""
    (tmp_path / "a file").write_text("")
    with pytest.raises(RunError, match="cannot write to") as caught:
        Run(tmp_path / path).create()
    assert "\n" not in str(caught.value).replace("n\x00l", "")


@pytest.mark.parametrize("name", ["EACCES", "EROFS", "EDQUOT", "ENOSPC", "EIO"])
@pytest.mark.parametrize("operation", ["create", "fsync_file", "replace", "make_directory"])
def test_the_probe(
    operation: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K12: creating, writing, syncing and renaming are all tried, and nothing of it stays."""
    number = getattr(errno, name)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    Run(tmp_path / "good").create()
    assert [] == list((tmp_path / "good").iterdir())
    monkeypatch.setattr(files, operation, refuse)
    with pytest.raises(RunError, match=os.strerror(number)):
        Run(tmp_path / "bad").create()


def test_names_count_up(tmp_path: Path) -> None:
    """A new run takes a name that is free: run, run-002, run-003."""
    for expected in ("run", "run-002", "run-003"):
        run = Run.new(tmp_path, "run")
        assert expected == run.name
        run.create()


def test_a_run_directory_that_is_gone(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """K13: deleted or moved while training, the next save fails and no half tree appears."""
    run = Run(tmp_path / "run")
    run.create()
    trainer = make_trainer(run=run, max_iters=6, eval_interval=2)
    events = trainer.run()
    while not isinstance(next(events), Saved):
        pass
    run.path.rename(tmp_path / "moved")
    with pytest.raises(SaveError, match="cannot save step 4"):
        list(events)
    assert ["moved"] == [path.name for path in tmp_path.iterdir()]
    assert 2 == Run(tmp_path / "moved").latest().step


# --- the records ---------------------------------------------------------------------------------


@pytest.mark.property
@given(
    rows=st.lists(
        st.fixed_dictionaries({"step": st.integers(0, 9), "text": st.text()}), max_size=6
    ),
    step=st.integers(0, 9),
    torn=st.integers(0, 40),
)
@example(rows=[{"step": 1, "text": "a\u2028b\x85c\nd\x1e"}], step=1, torn=0)
@example(rows=[{"step": 1, "text": ""}, {"step": 2, "text": "x"}], step=1, torn=5)
def test_rows(
    rows: list[dict[str, object]], step: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any text comes back as it was, line separators included.

    Dropping keeps exactly the whole rows up to the step, and doing it twice is doing it once.
    """
    run = Run(tmp_path_factory.mktemp("rows"))
    for row in rows:
        run.record("metrics.jsonl", row)
    assert rows == run.rows("metrics.jsonl")
    path = run.path / "metrics.jsonl"
    if rows and torn:
        cut = len(json.dumps(rows[-1], ensure_ascii=False).encode())
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 1 - min(torn, cut - 1)])
        rows = rows[:-1]
    for _ in range(2):
        run.drop_rows_after(step)
        assert [row for row in rows if int(str(row["step"])) <= step] == run.rows("metrics.jsonl")
    run.record("metrics.jsonl", {"step": 99})
    assert {"step": 99} == run.rows("metrics.jsonl")[-1]


def test_lines_that_are_no_rows_stay(tmp_path: Path) -> None:
    """What somebody else wrote is skipped when read, and not removed."""
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"step": 5}\n{"st')
    assert [{"step": 1}, {"step": 5}] == run.rows("metrics.jsonl")
    run.drop_rows_after(1)
    assert b'{"step": 1}\n\xff\xfe\n[1]\n' == (tmp_path / "metrics.jsonl").read_bytes()


def test_half_a_row_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K10: after a full disk, the next row is not glued to the half that still fitted."""
    run = Run(tmp_path)
    run.record("metrics.jsonl", {"step": 1})
    whole = files.write_all

    def half(file: object, data: bytes) -> None:
        whole(file, data[: len(data) // 2])  # type: ignore[arg-type] # what append_line passes
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", half)
    with pytest.raises(OSError, match="No space"):
        run.record("metrics.jsonl", {"step": 2})
    monkeypatch.undo()
    run.record("metrics.jsonl", {"step": 3})
    assert [{"step": 1}, {"step": 3}] == run.rows("metrics.jsonl")


def test_config_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves the old config.toml and no temporary file."""
    run = Run(tmp_path)
    run.write_config("a = 1\n")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for operation in ("fsync_file", "replace"):
        monkeypatch.setattr(files, operation, refuse)
        with pytest.raises(OSError, match="Input/output"):
            run.write_config("a = 2\n")
        monkeypatch.undo()
    assert ["config.toml"] == [path.name for path in tmp_path.iterdir()]
    assert "a = 1\n" == (tmp_path / "config.toml").read_text()


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
