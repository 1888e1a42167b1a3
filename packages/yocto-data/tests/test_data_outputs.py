"""Rows D11, D12 and D17 of the table "Data preparation", and the lock: where data may be put."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yocto_data import DataError, DataMeta, DecodingError

Refused = Callable[..., str]
Prepare = Callable[..., Any]


def file(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_d11_other_data(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D11: an empty directory is used; data in it is refused without force, replaced with it."""
    source = file(tmp_path, b"some words")
    (tmp_path / "out").mkdir()
    run(source)
    assert "already holds data; use force" in refused(DataError, partial(run, source))
    old = (tmp_path / "out" / "meta.json").read_bytes()
    run(source, val_ratio=0.3, force=True)
    assert old != (tmp_path / "out" / "meta.json").read_bytes()
    assert ["a.txt", "out"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.txt", "input.txt", "meta.pkl", ".git"])
@pytest.mark.parametrize("force", [False, True])
def test_d11_foreign_files(
    tmp_path: Path, run: Prepare, refused: Refused, name: str, force: bool
) -> None:
    """D11: a directory that holds anything of the user's is never replaced, forced or not."""
    (tmp_path / "out").mkdir()
    file(tmp_path / "out", b"mine", name)
    file(tmp_path / "out", b"mine", "train.bin")
    message = refused(DataError, partial(run, file(tmp_path, b"some words"), force=force))
    assert name in message


def test_d11_a_file_in_the_way(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """A file of that name, or above it, is refused."""
    source = file(tmp_path, b"some words")
    file(tmp_path, b"mine", "out")
    assert "not a directory" in refused(DataError, partial(run, source, force=True))
    message = refused(DataError, partial(run, source, out=tmp_path / "out" / "deeper"))
    assert "Not a directory" in message


def test_d12_output_in_the_input(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D12: an output that equals the input, lies in it, or holds it, is refused."""
    (tmp_path / "texts").mkdir()
    source = file(tmp_path / "texts", b"some words")
    (tmp_path / "link").symlink_to("texts")
    for given, out in (
        (tmp_path / "texts", tmp_path / "texts"),
        (tmp_path / "texts", tmp_path / "texts" / "data"),
        (tmp_path / "link", tmp_path / "texts" / "data"),
        (tmp_path / "texts", tmp_path / "link" / "data"),
        (source, tmp_path / "texts"),
        (source, tmp_path),
        (str(tmp_path / "texts" / "*"), tmp_path / "texts"),
    ):
        refused(DataError, partial(run, given, out=out, force=True))
    refused(DataError, partial(run, source, out=source, force=True))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow fewer names")
@pytest.mark.parametrize("name", ["with space", "a\nb", "\x1b[2J", "\udcff", "\u202e", "\u00e9"])
def test_d17_odd_names_work(tmp_path: Path, run: Prepare, refused: Refused, name: str) -> None:
    """D17: any name that the system accepts works, as source and as output."""
    source = file(tmp_path, b"some words", f"{name}.txt")
    meta = run(source, out=tmp_path / name / name)
    assert (
        source.name == meta.sources[0].name == DataMeta.load(tmp_path / name / name).sources[0].name
    )
    refused(DataError, partial(run, source, out=tmp_path / name / name))
    refused(
        DecodingError, partial(run, file(tmp_path, b"a\xff", f"{name}.txt"), out=tmp_path / "o")
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\0"])
def test_d17_impossible_names(tmp_path: Path, run: Prepare, refused: Refused, name: str) -> None:
    """D17: a name that no system accepts is refused, as source and as output; so is no name."""
    refused(DataError, partial(run, tmp_path / name))
    for out in (tmp_path / name, "/", ""):
        refused(DataError, partial(run, file(tmp_path, b"some words"), out=out))


def test_k16_two_at_once(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """K16, K18: a second writer is told who holds the directory; what a dead one left is free."""
    source = file(tmp_path, b"some words")
    (tmp_path / ".out.lock.owner").write_text("pid 1 on nowhere since ever")
    others: list[str] = []

    def progress(done: int, total: int, tokens: int) -> None:
        if done:
            others.append(refused(DataError, partial(run, source)))

    run(source, progress=progress)
    assert others
    assert all(f"out is in use by pid {os.getpid()} on " in message for message in others)
    assert all(" since 2" in message for message in others)
    assert ["a.txt", "out"] == sorted(path.name for path in tmp_path.iterdir())
