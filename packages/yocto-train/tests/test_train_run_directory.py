"""Run directories: pruning, the lock, and places that cannot be written."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_train import Checkpoint, Run, RunError, Saved, SaveError, Trainer, TrainError
from yocto_train.runs.checkpoint import save_checkpoint
from yocto_train.runs.opening import find_checkpoint

ALONE: dict[str, Any] = {"tokenizer": None, "data": {}, "val_loss": None, "environment": {}}


def fail(number: int) -> Callable[..., Any]:
    """A call that the system refuses, to be put in another's place."""
    return Mock(side_effect=OSError(number, os.strerror(number)))


# --- saving ----------------------------------------------------------------------------------


def test_saving_over_a_step(copied: Path) -> None:
    """A name that is taken: an equal checkpoint is kept, another one put aside; never merged."""
    directory = copied / "step-00000006"
    model = Checkpoint.open(directory).load_model()

    def save(val_loss: float) -> Path | None:
        return save_checkpoint(copied, model, {"step": 6}, **{**ALONE, "val_loss": val_loss})

    first = directory.stat().st_ino
    put_aside = save(8.0)
    assert put_aside is not None
    assert first == put_aside.stat().st_ino
    second = directory.stat().st_ino
    assert None is save(8.0)
    assert second == directory.stat().st_ino
    put_aside = save(9.0)
    assert 9.0 == Checkpoint.open(directory).val_loss
    assert put_aside is not None
    assert second == put_aside.stat().st_ino
    assert not list(copied.glob(".tmp-*"))


def test_files_of_a_step_have_one_mode(copied: Path) -> None:
    """Whoever may read a checkpoint's settings may read all of it, as the umask says."""
    (step, *_) = Run(copied).steps()
    assert {(step / "config.json").stat().st_mode} == {p.stat().st_mode for p in step.iterdir()}


def test_a_checkpoint_loads_wherever_it_is_moved(copied: Path, tmp_path: Path) -> None:
    """A step directory stands alone, under any name."""
    (copied / "step-00000006").rename(tmp_path / "my model")
    checkpoint = find_checkpoint(tmp_path / "my model")
    assert 6 == checkpoint.step
    checkpoint.load_model()
    checkpoint.load_tokenizer()


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0])
def test_what_cannot_be_saved_leaves_nothing(value: object, copied: Path) -> None:
    """K22: an object that does not serialise is one error, without a partial file or directory."""
    model, before = Checkpoint.open(copied / "step-00000006").load_model(), names(copied)
    with pytest.raises(TrainError, match="cannot save step 7") as caught:
        save_checkpoint(copied, model, {"step": 7, "x": value}, **ALONE)
    assert "\n" not in str(caught.value)
    assert before == names(copied)


def test_a_name_that_cannot_be_taken_over(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the new checkpoint cannot get the name, the old one that was put aside gets it back."""
    model, before = Checkpoint.open(copied / "step-00000006").load_model(), names(copied)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if source.name.startswith(".tmp-"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(TrainError, match="earlier checkpoints are unchanged"):
        save_checkpoint(copied, model, {"step": 6}, **ALONE)
    assert before == names(copied)
    Checkpoint.open(copied / "step-00000006").verify()


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
    """The newest `keep` sound checkpoints stay, two at least, the best, and what is damaged."""
    run = Run(tmp_path_factory.mktemp("prune") / "run")
    run.create()
    for step in present:
        directory = run.path / f"step-{step:08d}"
        directory.mkdir()
        (directory / "x").write_text("")
    sound = sorted(present - damaged)
    run._sound_steps = lambda: [run.path / f"step-{step:08d}" for step in sound]  # type: ignore[method-assign] # only names matter here
    run.point("best", run.path / f"step-{best:08d}")
    assert [] == run.prune(keep)
    expected = set(sound[-max(keep, 2) :]) | (present & damaged) | (present & {best})
    assert sorted(expected) == steps(run.path)


def test_only_steps_are_pruned(copied: Path) -> None:
    """C19: what only looks like a step, and a damaged one, neither counts nor is removed."""
    for name in ("step-abc", "step-5-backup", "step-00000001.old-12", "step-0000001\u0664"):
        (copied / name).mkdir()
    (copied / "step-00000001").write_text("a file")
    (copied / "step-00000006" / "model.safetensors").write_bytes(b"x")
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
    monkeypatch.setattr(shutil, "rmtree", fail(errno.EACCES))
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


HOLD = """\
import sys, time
from yocto_train import Run
with Run(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


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
    ours = f"pid {os.getpid()}"
    with Run(copied).lock(), pytest.raises(RunError, match=ours), Run(copied).lock():
        pass


def test_leftovers_are_cleared_under_the_lock(copied: Path) -> None:
    """Temporary files, directories and links of a crashed writer go; a link's target stays."""
    (copied / ".tmp-step-00000008-abcd").mkdir()
    (copied / ".tmp-step-00000008-abcd" / "model.safetensors").write_bytes(b"x")
    (copied / ".tmp-latest-abcd").symlink_to("step-00000006")
    (copied / ".tmp-link").symlink_to(copied.parent)
    (copied / ".tmp-config.toml-abcd").write_text("x")
    run = Run(copied)
    with run.lock():
        assert not list(copied.glob(".tmp-*"))
    assert 6 == run.latest().step
    assert copied.parent.is_dir()


def test_a_directory_that_cannot_be_listed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K12: clearing up after a crash can wait; that it failed stops no training."""
    (copied / ".tmp-left").mkdir()
    monkeypatch.setattr(Path, "glob", fail(errno.EIO))
    with Run(copied).lock():
        assert (copied / ".tmp-left").is_dir()
    monkeypatch.undo()
    with Run(copied).lock():
        assert not (copied / ".tmp-left").exists()


@pytest.mark.parametrize("path", ["a file", "a file/run", "x" * 300, "n\x00l"])
def test_places_that_cannot_be_written(path: str, tmp_path: Path) -> None:
    """K12: found before step 0, with the system's reason, in one line; and no lock is given."""
    (tmp_path / "a file").write_text("")
    with pytest.raises(RunError, match=r"^cannot write to .*; choose another place$"):
        Run(tmp_path / path).create()
    with pytest.raises(RunError, match=r"^cannot lock .*$"), Run(tmp_path / path).lock():
        pass


@pytest.mark.parametrize("name", ["EACCES", "EROFS", "EDQUOT", "ENOSPC", "EIO"])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.mkdir", "pathlib.Path.write_bytes"])
def test_the_probe(call: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K12: creating, writing, syncing and renaming are all tried, and nothing of it stays."""
    number = getattr(errno, name)
    Run(tmp_path / "good").create()
    assert [] == list((tmp_path / "good").iterdir())
    monkeypatch.setattr(call, fail(number))
    with pytest.raises(RunError, match=os.strerror(number)):
        Run(tmp_path / "bad").create()


def test_names_count_up(tmp_path: Path) -> None:
    """A new run takes a name that is free: run, run-002, run-003."""
    for expected in ("run", "run-002", "run-003"):
        run = Run.new(tmp_path, "run")
        assert expected == run.name
        run.create()


def test_a_run_directory_that_is_gone(
    make_trainer: Callable[..., Trainer], run: Run, tmp_path: Path
) -> None:
    """K13: deleted or moved while training, the next save fails and no half tree appears."""
    events = make_trainer(run=run, max_iters=6, eval_interval=2).run()
    next(event for event in events if isinstance(event, Saved))
    run.path.rename(tmp_path / "moved")
    with pytest.raises(SaveError, match="cannot save step 4"):
        list(events)
    assert ["moved"] == [path.name for path in tmp_path.iterdir()]
    assert 2 == Run(tmp_path / "moved").latest().step


# --- records --------------------------------------------------------------------------------------


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
    """Any text comes back, line separators included; dropping keeps the whole rows up to a step."""
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


def test_half_a_row_is_taken_back(tmp_path: Path) -> None:
    """K10: after a full disk, the next row is not glued to the half that still fitted."""
    run = Run(tmp_path)
    run.record("metrics.jsonl", {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match="too large"):
            run.record("metrics.jsonl", {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.record("metrics.jsonl", {"step": 3})
    assert [{"step": 1}, {"step": 3}] == run.rows("metrics.jsonl")


def test_config_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves the old config.toml and no temporary file."""
    run = Run(tmp_path)
    run.write_config("a = 1\n")
    for call in ("fsync", "replace"):
        monkeypatch.setattr(os, call, fail(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            run.write_config("a = 2\n")
        monkeypatch.undo()
    assert ["config.toml"] == [path.name for path in tmp_path.iterdir()]
    assert "a = 1\n" == (tmp_path / "config.toml").read_text()
