"""Interruptions: after each there is the old data, or the new, or none, never a mixture."""

import errno
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from yocto_data import DataMeta, OutputError, TokenDataset, Tokenizer, WriteError, fsops, prepare

# Every function of fsops that changes the disk, or makes sure of a change.
OPERATIONS = (
    "create_file",
    "write",
    "sync",
    "sync_path",
    "sync_directory",
    "make_directory",
    "rename",
    "replace",
    "remove_file",
    "remove_directory",
)


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk hundreds of times proves nothing here; the order of syncs is a test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """Stands for the end of the process: nothing written after it reaches the disk."""


@contextmanager
def failing_at(
    number: int, fault: Callable[[], BaseException], *, for_ever: bool, after: bool = False
) -> Iterator[list[str]]:
    """Make call ``number`` of fsops fail, before or after its effect; maybe all calls behind it."""
    calls: list[str] = []
    originals = {name: getattr(fsops, name) for name in OPERATIONS}

    def wrap(name: str, *arguments: Any) -> Any:
        calls.append(name)
        due = len(calls) == number or (for_ever and len(calls) > number)
        if due and not (after and len(calls) == number):
            raise fault()
        result = originals[name](*arguments)
        if due:
            if name == "create_file":
                result.close()
            raise fault()
        return result

    for name in OPERATIONS:
        setattr(fsops, name, functools.partial(wrap, name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(fsops, name, original)


def whole(folder: Path) -> str | None:
    """The fingerprint of the data in a directory, fully verified; None where there is none."""
    if not folder.exists():
        return None
    meta = DataMeta.load(folder)
    for name in ("train", "val"):
        TokenDataset(folder / f"{name}.bin", 1).verify()
    expected = {"meta.json", "tokenizer.json", "train.bin", "val.bin"}
    assert expected == {path.name for path in folder.iterdir()}
    return meta.fingerprint


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Case:
    """A directory with a source, maybe with data prepared earlier, and a new preparation."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, earlier: bool) -> None:
        self.folder = folder
        self.source = folder / "a.txt"
        self.out = folder / "out"
        self.source.write_text("some words and more")
        self.tokenizer = tokenizer
        if earlier:
            self.run(0.5)
        self.old = whole(self.out)

    def run(self, val_ratio: float = 0.3, *, force: bool = True) -> str:
        meta = prepare(
            self.source, self.out, tokenizer=self.tokenizer, val_ratio=val_ratio, force=force
        )
        return meta.fingerprint


@pytest.fixture(params=[False, True], ids=["fresh", "replacing"])
def make_case(
    request: pytest.FixtureRequest,
    new_directory: Callable[[], Path],
    byte_tokenizer: Tokenizer,
) -> Callable[[], Case]:
    return lambda: Case(new_directory(), byte_tokenizer, earlier=request.param)


def counting(make_case: Callable[[], Case], fault: Any, **how: Any) -> Iterator[tuple[Case, bool]]:
    """Cases whose fault hit call 1, 2, ... until a run goes through untouched."""
    for number in range(1, 100):
        case = make_case()
        failed = False
        with failing_at(number, fault, **how) as calls:
            try:
                case.run()
            except (Killed, WriteError, OutputError):
                failed = True
        if len(calls) < number:
            assert number > 15
            return
        yield case, failed
    raise AssertionError


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_k1_killed_at_every_step(make_case: Callable[[], Case], after: bool) -> None:
    """D10, K1, K5: killed at any operation, the next run finds old or new data whole, and works.

    What it leaves is the new data and nothing else: no lock, no temporary directory.
    """
    expected = make_case().run()
    for case, _ in counting(make_case, Killed, for_ever=True, after=after):
        left = whole(case.out)
        assert left in {None, case.old, expected}
        if left is None and case.old is not None:  # moved aside: the next run puts it back
            with pytest.raises(OutputError, match="already holds data"):
                case.run(force=False)
            assert case.old == whole(case.out)
        assert expected == case.run()
        assert expected == whole(case.out)
        assert ["a.txt", "out"] == names_in(case.folder)


def test_k5_killed_while_recovering(make_case: Callable[[], Case]) -> None:
    """K5: a second kill, at any operation of the run after a first, loses nothing either."""
    expected = make_case().run()
    for first in (6, 15, 16, 17, 18, 19, 20):
        for second in range(1, 9):
            case = make_case()
            for number in (first, second):
                with failing_at(number, Killed, for_ever=True), suppress(Killed):
                    case.run()
            if case.old is not None and not case.out.exists():
                with pytest.raises(OutputError, match="already holds data"):
                    case.run(force=False)
            assert whole(case.out) in {None, case.old, expected}
            assert case.old is None or whole(case.out) is not None
            case.run()
            assert expected == whole(case.out)
            assert ["a.txt", "out"] == names_in(case.folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_k9_k11_one_call_fails(make_case: Callable[[], Case], code: int) -> None:
    """K9, K11: a failed write or sync is reported, and the old data stay.

    Nothing is left over but what could not be removed, and the next run clears that.
    """
    expected = make_case().run()
    outcomes = set()
    for case, failed in counting(
        make_case, lambda: OSError(code, os.strerror(code)), for_ever=False
    ):
        left = whole(case.out)
        assert left in {case.old, expected}
        assert failed or left == expected
        outcomes.add(left)
        leftovers = [name for name in names_in(case.folder) if name not in {"a.txt", "out"}]
        assert all(
            re.fullmatch(r"\.out\.(tmp-[0-9a-f]{8}|lock|old-.*)", name) for name in leftovers
        )
        case.run()
        assert expected == whole(case.out)
        assert ["a.txt", "out"] == names_in(case.folder)
    assert len(outcomes) == 2


def test_k9_a_full_disk(make_case: Callable[[], Case]) -> None:
    """K9: the message says in one line what is full, and how much room there is."""
    case = make_case()
    with (
        failing_at(3, lambda: OSError(errno.ENOSPC, "No space left on device"), for_ever=False),
        pytest.raises(WriteError, match=r"No space left on device \(\d+ bytes free\)") as caught,
    ):
        case.run()
    assert str(caught.value).isprintable()
    assert case.old == whole(case.out)


def test_the_order_of_a_commit(make_case: Callable[[], Case]) -> None:
    """Every file is synced before meta.json, all of it before the rename, the parent after it.

    A kill does not show a missing sync, since the page cache outlives it; losing power would.
    """
    case = make_case()
    with failing_at(0, Killed, for_ever=False) as calls:
        case.run()
    # With data to replace, the first rename moves them aside.
    renames = [index for index, name in enumerate(calls) if name == "rename"]
    commit = renames[0 if case.old is None else 1]
    before = calls[:commit]
    # Token files, the tokenizer's file, then meta.json into place, then the directory itself.
    order = [name for name in before if name in {"sync", "sync_path", "replace", "sync_directory"}]
    expected = ["sync", "sync", "sync_path", "sync", "replace", "sync_directory", "sync_directory"]
    assert expected == order
    assert "sync_directory" == calls[commit + 1]


SCRIPT = """
import os, sys, time
from pathlib import Path
from yocto_data import prepare

class Slow:
    vocab_size = 256
    def __init__(self, log): self.log = log
    def encode(self, text):
        with open(self.log, "a") as file: file.write(f"{os.getpid()}\\n")
        time.sleep(0.05)
        return list(text.encode())
    def decode(self, ids): return bytes(ids).decode()

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    prepare(folder / "a.txt", folder / "out", tokenizer=Slow(str(folder / "log")),
            workers=int(sys.argv[2]), chunk_chars=10)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll for a minute, then fail; how long it takes is no part of the law."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_for_real(tmp_path: Path, byte_tokenizer: Tokenizer, workers: int) -> None:
    """D10: SIGKILL in the middle leaves no data directory and no worker; the next run succeeds."""
    (tmp_path / "a.txt").write_text("some words and more of them " * 500)
    (tmp_path / "slow.py").write_text(SCRIPT)
    log = tmp_path / "log"
    command = [sys.executable, str(tmp_path / "slow.py"), str(tmp_path), str(workers)]
    with subprocess.Popen(command) as process:
        wait_for(lambda: log.exists() and len(set(log.read_text().split())) == workers)
        process.kill()
    pids = {int(pid) for pid in log.read_text().split()}
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert not (tmp_path / "out").exists()
    assert any(name.startswith(".out.tmp-") for name in names_in(tmp_path))
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer)
    assert whole(tmp_path / "out") is not None
    assert ["a.txt", "log", "out", "slow.py"] == names_in(tmp_path)


def test_other_leftovers_are_not_ours(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """Only names of exactly our form are cleared; a neighbour's, or a user's, stay."""
    (tmp_path / "a.txt").write_text("some words")
    mine = [".out.tmp-1234567", ".out.tmp-123456789", ".out.tmp-1234567G", ".out2.tmp-12345678"]
    mine += [".xout.tmp-12345678", "out.tmp-12345678", ".out.new-12345678"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.tmp-12345678" / "deep").mkdir(parents=True)
    (tmp_path / ".out.tmp-12345678" / "link").symlink_to(tmp_path / "a.txt")
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer, val_ratio=0.5)
    assert sorted([*mine, "a.txt", "out"]) == names_in(tmp_path)
