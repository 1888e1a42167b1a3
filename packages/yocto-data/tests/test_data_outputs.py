"""Rows D11, D12 and D17 of the table "Data preparation", and the lock: where data may be put."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yocto_data import DecodingError, InUseError, OutputError, SourceError
from yocto_data.lock import exclusive_lock

Refused = Callable[..., str]
Prepare = Callable[..., Any]


def file(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_d11_other_data(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D11: data that is there is refused without force, replaced whole with it."""
    source = file(tmp_path, b"some words")
    run(source)
    assert "already holds data; use force" in refused(OutputError, partial(run, source))
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
    message = refused(OutputError, partial(run, file(tmp_path, b"some words"), force=force))
    assert name in message


def test_d11_an_empty_directory_is_welcome(tmp_path: Path, run: Prepare) -> None:
    """A directory made for the purpose is used."""
    (tmp_path / "out").mkdir()
    run(file(tmp_path, b"some words"))
    assert (tmp_path / "out" / "meta.json").is_file()


def test_d11_a_file_in_the_way(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """A file of that name, or above it, is refused."""
    source = file(tmp_path, b"some words")
    file(tmp_path, b"mine", "out")
    assert "no directory" in refused(OutputError, partial(run, source, force=True))
    message = refused(OutputError, partial(run, source, out=tmp_path / "out" / "deeper"))
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
        refused(OutputError, partial(run, given, out=out, force=True))
    refused(OutputError, partial(run, source, out=source, force=True))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow fewer names")
@pytest.mark.parametrize("name", ["with space", "a\nb", "\x1b[2J", "\udcff", "\u202e", "\u00e9"])
def test_d17_odd_names_work(tmp_path: Path, run: Prepare, refused: Refused, name: str) -> None:
    """D17: any name that the system takes works, as source and as output, and is shown safely."""
    source = file(tmp_path, b"some words", f"{name}.txt")
    meta = run(source, out=tmp_path / name / name)
    assert meta.sources[0].name.isprintable()
    refused(OutputError, partial(run, source, out=tmp_path / name / name))
    refused(
        DecodingError, partial(run, file(tmp_path, b"a\xff", f"{name}.txt"), out=tmp_path / "o")
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\0"])
def test_d17_impossible_names(tmp_path: Path, run: Prepare, refused: Refused, name: str) -> None:
    """D17: a name that no system takes is one line, as source and as output."""
    refused(SourceError, partial(run, tmp_path / name))
    refused(OutputError, partial(run, file(tmp_path, b"some words"), out=tmp_path / name))


def test_output_needs_a_name(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """The root, and nothing at all, are no output."""
    source = file(tmp_path, b"some words")
    for out in ("/", ""):
        refused(OutputError, partial(run, source, out=out))


def test_k16_two_at_once(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """K16: the second writer is told who holds the directory, since when; freed, it works."""
    source = file(tmp_path, b"some words")
    with exclusive_lock(tmp_path / ".out.lock", tmp_path / "out"):
        message = refused(InUseError, partial(run, source))
        assert f"in use by pid {os.getpid()} on " in message
        assert " since 2" in message
    run(source)
    assert ["a.txt", "out"] == sorted(path.name for path in tmp_path.iterdir())


def test_k18_a_lock_left_behind(tmp_path: Path, run: Prepare) -> None:
    """K18: the text that a killed process left in its lock file holds nobody up."""
    (tmp_path / ".out.lock").write_text("pid 1 on nowhere since ever")
    run(file(tmp_path, b"some words"))
    assert ["a.txt", "out"] == sorted(path.name for path in tmp_path.iterdir())
