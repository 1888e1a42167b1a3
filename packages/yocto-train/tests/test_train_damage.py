"""Damaged, mixed and foreign checkpoints are refused by name; the one before is used instead."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from yocto_tokenizers import CharTokenizer
from yocto_train import Checkpoint, CheckpointError, Run, Trainer, find_checkpoint
from yocto_train.runs.checkpoint import Manifest

NAMES = (
    "config.json", "model.safetensors", "opt.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "manifest.json",
)  # fmt: skip
FLIPS = 200


def assert_refused(run: Path, step: int = 6) -> str:
    """Opening or verifying the step fails with one line that names it; the run uses another."""
    directory = run / f"step-{step:08d}"
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory).verify()
    text = str(caught.value)
    assert str(directory) in text
    assert "\n" not in text
    newest = Run(run).latest()
    assert step - 2 == newest.step
    assert (text,) == newest.skipped
    return text


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit(name: str, copied: Path) -> None:
    """K24: of 200 single-bit flips in each file of a step, all are noticed, the manifest's too."""
    path = copied / "step-00000006" / name
    sound = path.read_bytes()
    for i in range(FLIPS):  # spread evenly and always the same
        damaged = bytearray(sound)
        damaged[i * len(sound) // FLIPS] ^= 1 << (i * 5) % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Checkpoint.open(path.parent).verify()
    assert_refused(copied)
    path.write_bytes(sound)
    assert 6 == Run(copied).latest().step


@pytest.mark.property
@given(st.binary(max_size=300))
@example(b"")
@example(b"[]")
@example(b"[" * 250)
@example(b'{"format": "yocto-checkpoint", "format_version": true}')
def test_no_content_of_a_manifest_breaks_the_reader(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Whatever manifest.json holds, reading it gives this package's error in one line."""
    directory = tmp_path_factory.mktemp("manifest")
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Manifest.read(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_cut_short(name: str, copied: Path) -> None:
    """K23: a file cut to 0, 1, half or all but one byte is refused, as is one with a byte more."""
    path = copied / "step-00000006" / name
    sound = path.read_bytes()
    for length in (0, 1, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:length])
        assert_refused(copied)
    path.write_bytes(sound + b"\n")
    assert_refused(copied)


@pytest.mark.parametrize("name", NAMES)
def test_missing(name: str, copied: Path) -> None:
    """C1, C14, C18: the message says what is missing; writing text needs no state."""
    (copied / "step-00000006" / name).unlink()
    assert "missing" in assert_refused(copied) or name == "manifest.json"
    expected = {"opt.safetensors": 6}.get(name, 4)
    assert expected == find_checkpoint(copied).step
    if name == "opt.safetensors":
        checkpoint = find_checkpoint(copied / "step-00000006")
        checkpoint.load_model()
        checkpoint.load_tokenizer()
        with pytest.raises(CheckpointError, match=r"opt\.safetensors is missing"):
            checkpoint.load_state()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_step(name: str, copied: Path) -> None:
    """K25: files of step 4 in step 6 are refused, the manifest by its step's number."""
    content = (copied / "step-00000004" / name).read_bytes()
    (copied / "step-00000006" / name).write_bytes(content)
    if name.endswith(".json") and name != "manifest.json":  # equal in every step
        assert 6 == Run(copied).latest().step
    else:
        assert_refused(copied)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_more_files_than_named(kind: str, copied: Path) -> None:
    """C18: what the manifest does not name makes the step refused, but for hidden files."""
    (copied / "step-00000006" / ".DS_Store").write_bytes(b"x")
    assert 6 == Run(copied).latest().step
    extra = copied / "step-00000006" / "extra"
    if kind == "file":
        extra.write_bytes(b"x")
    elif kind == "directory":
        extra.mkdir()
    else:
        extra.symlink_to("model.safetensors")
    assert "extra" in assert_refused(copied)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_no_regular_file(kind: str, name: str, copied: Path) -> None:
    """Rule 2: a link, even to the very file, a FIFO or a directory is refused and never blocks."""
    path = copied / "step-00000006" / name
    outside = copied.parent / name
    path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert_refused(copied)


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and make its own hash right again, as an attacker or a bug would."""
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["sha256"]
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(content, indent=1) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["files"].update({"../model.safetensors": c["files"]["model.safetensors"]}),
        lambda c: c["files"].update({"/etc/passwd": c["files"]["model.safetensors"]}),
        lambda c: c["files"].update({"a\nb.json": c["files"]["model.safetensors"]}),
        lambda c: c["files"].pop("model.safetensors"),
        lambda c: c["files"].update({"model.safetensors": None}),
        lambda c: c["files"]["model.safetensors"].update(bytes="12"),
        lambda c: c.update(step=True),
        lambda c: c.update(step=-1),
        lambda c: c.update(step=10**8),
        lambda c: c.update(val_loss="low"),
        lambda c: c.update(val_loss=True),
        lambda c: c.update(tokenizer=5),
        lambda c: c.update(data=[1]),
        lambda c: c.update(environment={"torch": None}),
        lambda c: c.update(extra=1),
        lambda c: c.pop("data"),
        lambda c: c.update(format_version=True),
        lambda c: c.update(format="yocto-data"),
    ],
)
def test_a_manifest_that_makes_no_sense(
    change: Callable[[dict[str, Any]], object], copied: Path
) -> None:
    """C18, rule 13: paths, wrong types, unknown and missing entries are refused by themselves.

    The manifest's own hash is right.
    """
    rewrite_manifest(copied / "step-00000006", lambda content: None)
    assert 6 == Run(copied).latest().step
    rewrite_manifest(copied / "step-00000006", change)
    assert_refused(copied)


def test_manifests_that_are_not_read_at_all(copied: Path) -> None:
    """Rule 13, C6: one of a later version says so; one of more than a mebibyte is not parsed."""
    rewrite_manifest(copied / "step-00000006", lambda content: content.update(format_version=2))
    assert "upgrade" in assert_refused(copied)
    (copied / "step-00000006" / "manifest.json").write_bytes(b"[" * (2 << 20))
    assert "damaged" in assert_refused(copied)


def put(directory: Path, name: str, content: bytes) -> Checkpoint:
    """Replace a file of a step and let the manifest record it, as an attacker or a bug would."""
    (directory / name).write_bytes(content)
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(directory, lambda manifest: manifest["files"].update({name: record}))
    checkpoint = Checkpoint.open(directory)
    checkpoint.verify()
    return checkpoint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<!DOCTYPE html>", b"\x80\x04}."])
def test_a_foreign_file_with_a_right_hash(content: bytes, copied: Path) -> None:
    """C2, C4, C5: the loader refuses what is not a model, a pickle too, whatever the hashes say."""
    for name, load in (
        ("model.safetensors", Checkpoint.load_model), ("opt.safetensors", Checkpoint.load_state),
        ("config.json", Checkpoint.load_model), ("vocab.json", Checkpoint.load_tokenizer),
    ):  # fmt: skip
        sound = (copied / "step-00000006" / name).read_bytes()
        with pytest.raises(CheckpointError, match="step-00000006") as caught:
            load(put(copied / "step-00000006", name, content))
        assert "\n" not in str(caught.value)
        put(copied / "step-00000006", name, sound)


@pytest.mark.parametrize("metadata", [None, {"yocto": "{"}, {"yocto": "[]"}, {"format": "pt"}])
def test_a_state_that_is_not_ours(metadata: dict[str, str] | None, copied: Path) -> None:
    """C13: tensors without the rest, or with another step's, are not this training's."""
    save_file({"x": torch.zeros(1)}, copied / "other", metadata=metadata)
    for path in (copied / "other", copied / "step-00000004" / "opt.safetensors"):
        with pytest.raises(CheckpointError, match=r"opt\.safetensors (does not hold|belongs)"):
            put(copied / "step-00000006", "opt.safetensors", path.read_bytes()).load_state()


def test_the_tokenizer_of_another_model(copied: Path, tmp_path: Path) -> None:
    """C15, T9: a tokenizer with two ids swapped is refused by its fingerprint."""
    directory = copied / "step-00000006"
    tokenizer = Checkpoint.open(directory).load_tokenizer()
    letters = list(tokenizer.itos)  # type: ignore[attr-defined] # a CharTokenizer
    letters[3], letters[4] = letters[4], letters[3]
    path = CharTokenizer(letters).save(tmp_path / "vocab.json")
    with pytest.raises(CheckpointError, match="does not hold its model's tokenizer"):
        put(directory, "vocab.json", path.read_bytes()).load_tokenizer()


def test_all_steps_damaged(copied: Path) -> None:
    """Nothing sound left: the message names what is wrong with each, and nothing is changed."""
    for step in (2, 4, 6):
        (copied / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no sound checkpoint") as caught:
        Run(copied).latest()
    assert all(f"step-{step:08d}" in str(caught.value) for step in (2, 4, 6))


def test_resuming_after_damage(copied: Path, make_trainer: Callable[..., Trainer]) -> None:
    """Rule 5: training goes on from the newest sound step, by number and not by time.

    The damaged one is put aside, the pointers are right, and the end is the same.
    """
    expected = Manifest.read(copied / "step-00000006").files["model.safetensors"]
    (copied / "step-00000006" / "model.safetensors").write_bytes(b"x")
    for step in (2, 4, 6):
        os.utime(copied / f"step-{step:08d}", (10**9 - step, 10**9 - step))  # K26
    run = Run(copied)
    trainer = make_trainer(run=run, max_iters=6, eval_interval=2, lr=0.05, warmup_iters=0)
    checkpoint = run.latest()
    assert 4 == checkpoint.step
    trainer.restore(checkpoint)
    assert copied / "step-00000004" == run.pointed("latest") == run.pointed("best")
    assert 1 == len(list(copied.glob("step-00000006.old-*")))
    list(trainer.run())
    assert expected == Manifest.read(copied / "step-00000006").files["model.safetensors"]
    assert copied / "step-00000006" == run.pointed("latest") == run.pointed("best")


def test_no_pointer_to_a_best_that_is_gone(copied: Path) -> None:
    """Going back behind a best step whose best was pruned leaves no `best` at all."""
    shutil.rmtree(copied / "step-00000002")
    run = Run(copied)
    assert copied / "step-00000006" == run.pointed("best")
    run.rewind(Checkpoint.open(copied / "step-00000004"), best_step=2)
    assert not os.path.lexists(copied / "best")
    assert copied / "step-00000004" == run.pointed("latest")
