"""Saving a checkpoint: all of it or nothing, under a name that may be taken, and movable."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from yocto_train import Checkpoint, Trainer, TrainError, files, find_checkpoint, save_checkpoint


def test_saving_over_a_step(copied: Path, make_trainer: Callable[..., Trainer]) -> None:
    """A name that is taken: an equal checkpoint is kept, another one put aside; never merged."""
    checkpoint = Checkpoint.open(copied / "step-00000006")
    state = checkpoint.load_state()
    state = {name: state[name] for name in state if not name.startswith("format")}
    options: dict[str, Any] = {
        "tokenizer": checkpoint.load_tokenizer(), "data": checkpoint.manifest.data,
        "environment": checkpoint.manifest.environment,
    }  # fmt: skip
    first = save_checkpoint(copied, checkpoint.load_model(), state, val_loss=8.0, **options)
    before = first.directory.stat().st_ino
    again = save_checkpoint(copied, checkpoint.load_model(), state, val_loss=8.0, **options)
    assert None is again.put_aside
    assert before == again.directory.stat().st_ino
    other = save_checkpoint(copied, checkpoint.load_model(), state, val_loss=9.0, **options)
    assert 9.0 == Checkpoint.open(other.directory).val_loss
    assert other.put_aside is not None
    assert before == other.put_aside.stat().st_ino
    assert not list(copied.glob(".tmp-*"))


def test_a_checkpoint_loads_wherever_it_is_moved(copied: Path, tmp_path: Path) -> None:
    """A step directory stands alone, under any name."""
    (copied / "step-00000006").rename(tmp_path / "my model")
    checkpoint = find_checkpoint(tmp_path / "my model")
    assert 6 == checkpoint.step
    checkpoint.load_model()
    checkpoint.load_tokenizer()


def test_the_members_are_stored_plainly(copied: Path) -> None:
    """The .pt files are zip archives of uncompressed members, as rule 7 demands."""
    for name in ("model.pt", "opt.pt"):
        with zipfile.ZipFile(copied / "step-00000006" / name) as archive:
            assert {zipfile.ZIP_STORED} == {m.compress_type for m in archive.infolist()}


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0])
def test_what_cannot_be_saved_leaves_nothing(value: object, copied: Path) -> None:
    """K22: an object that does not serialise is one error, without a partial file or directory."""
    checkpoint = Checkpoint.open(copied / "step-00000006")
    before = sorted(path.name for path in copied.iterdir())
    with pytest.raises(TrainError, match="cannot save step 7") as caught:
        save_checkpoint(
            copied, checkpoint.load_model(), {"step": 7, "x": value}, tokenizer=None, data={},
            val_loss=None, environment={},
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert before == sorted(path.name for path in copied.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_save_leaves_nothing(
    error: type[BaseException], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K7, K21: a second Ctrl-C or a lack of memory during a save leaves the old state alone.

    The interrupt stays an interrupt, the lack of memory is a failed save.
    """
    checkpoint = Checkpoint.open(copied / "step-00000006")
    before = sorted(path.name for path in copied.iterdir())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(files, "fsync_file", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else TrainError):
        save_checkpoint(
            copied, checkpoint.load_model(), {"step": 7}, tokenizer=None, data={}, val_loss=None,
            environment={},
        )  # fmt: skip
    assert before == sorted(path.name for path in copied.iterdir())


def test_a_name_that_cannot_be_taken_over(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the new checkpoint cannot get the name, the old one that was put aside gets it back."""
    checkpoint = Checkpoint.open(copied / "step-00000006")
    before = sorted(path.name for path in copied.iterdir())
    rename = files.rename

    def refuse(source: Path, target: Path) -> None:
        if source.name.startswith(".tmp-"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(files, "rename", refuse)
    with pytest.raises(TrainError, match="earlier checkpoints are unchanged"):
        save_checkpoint(
            copied, checkpoint.load_model(), {"step": 6}, tokenizer=None, data={}, val_loss=None,
            environment={},
        )  # fmt: skip
    assert before == sorted(path.name for path in copied.iterdir())
    Checkpoint.open(copied / "step-00000006").verify()
