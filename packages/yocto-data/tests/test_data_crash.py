"""Interruptions: after each there is the old data, or the new, or none, never a mixture."""

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yocto_data import (
    DataError,
    DataMeta,
    Tokenizer,
    WorkError,
    prepare,
    prepare_chats,
    verify_tokens,
)

# What changes the disk, or makes sure of a change; opening for writing, and writing, come on top.
OPERATIONS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk hundreds of times proves nothing here; the order of syncs is a test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """Stands for the end of the process: nothing written after it reaches the disk."""


class Disk:
    """Counts the changes of the disk, and makes one of them fail, maybe all behind it, too."""

    def __init__(
        self, number: int, fault: Callable[[], BaseException], *, for_ever: bool, after: bool
    ) -> None:
        self.calls: list[str] = []
        self.synced: list[int] = []  # inode numbers, None of which a rename changes
        self._number, self._fault = number, fault
        self._for_ever, self._after = for_ever, after

    def do(self, name: str, what: object, call: Callable[[], Any]) -> Any:
        self.calls.append(f"{name} {os.path.basename(str(what))}")  # noqa: PTH119 - or a number
        due = len(self.calls) == self._number
        if (due and not self._after) or (self._for_ever and len(self.calls) > self._number > 0):
            raise self._fault()
        result = call()
        if due:
            if name == "open":
                result.close()
            raise self._fault()
        return result


class WatchedFile:
    """A file open for writing, whose writes and closing count."""

    def __init__(self, file: Any, disk: Disk, path: Path) -> None:
        self._file, self._disk, self._path = file, disk, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def write(self, data: Any) -> Any:
        return self._disk.do("write", self._path, lambda: self._file.write(data))

    def close(self) -> None:
        self._file.close()  # in any case: the end of a process closes it, too
        self._disk.do("close", self._path, lambda: None)


@contextmanager
def failing_at(
    number: int, fault: Callable[[], BaseException], *, for_ever: bool, after: bool = False
) -> Iterator[Disk]:
    """Make the change of this number fail, before or after its effect."""
    disk = Disk(number, fault, for_ever=for_ever, after=after)
    opened = Path.open

    def wrapped(name: str, original: Any) -> Any:
        def call(what: Any, *arguments: Any, **options: Any) -> Any:
            if name == "fsync":
                disk.synced.append(os.fstat(what).st_ino)
            return disk.do(name, what, lambda: original(what, *arguments, **options))

        return call

    def watched(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode in {"r", "rb"}:
            return opened(path, mode, *arguments, **options)
        file = disk.do("open", path, lambda: opened(path, mode, *arguments, **options))
        return WatchedFile(file, disk, path)

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        patch.setattr(Path, "open", watched)
        yield disk


def whole(folder: Path) -> str | None:
    """The fingerprint of the data in a directory, fully verified; None where there is none."""
    if not folder.exists():
        return None
    for name in ("train", "val"):
        verify_tokens(folder / f"{name}.bin")
    meta = DataMeta.load(folder)
    ours = ("train.mask", "train.starts", "val.mask", "val.starts", "chat_template.jinja")
    beside = set() if meta.chats is None else set(ours)
    expected = {"meta.json", "tokenizer.json", "train.bin", "val.bin", *beside}
    assert expected == {path.name for path in folder.iterdir()}
    return meta.fingerprint


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Case:
    """A directory with a source, maybe with data prepared earlier, and a new preparation.

    With chats the earlier data are of texts, and the new ones of chats.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, *, earlier: bool, chats: bool = False
    ) -> None:
        self.folder = folder
        self.source = folder / "a.txt"
        self.out = folder / "out"
        self.source.write_text("User: some words\nAssistant: and more\n\n" * 3)
        self.tokenizer = tokenizer
        self.chats = False
        if earlier:
            self.run(0.5)
        self.old = whole(self.out)
        self.chats = chats

    def run(self, val_ratio: float = 0.3, *, force: bool = True) -> str:
        make: Callable[..., DataMeta] = prepare
        if self.chats:
            make = partial(
                prepare_chats, encode=lambda chat: ([1, 2], [False, True]), template="{{ a }}"
            )
        meta = make(
            self.source, self.out, tokenizer=self.tokenizer, val_ratio=val_ratio, force=force
        )
        return meta.fingerprint

    def runs_to_its_end(self, expected: str) -> None:
        """The next run makes the new data, and leaves no lock and no temporary directory."""
        assert expected == self.run()
        assert expected == whole(self.out)
        assert ["a.txt", "out"] == names_in(self.folder)


@pytest.fixture(params=["fresh", "replacing", "chats"])
def make_case(
    request: pytest.FixtureRequest,
    new_directory: Callable[[], Path],
    byte_tokenizer: Tokenizer,
) -> Callable[[], Case]:
    kind = request.param
    return lambda: Case(
        new_directory(), byte_tokenizer, earlier=kind != "fresh", chats=kind == "chats"
    )


def calls_of(case: Case) -> list[str]:
    with failing_at(0, Killed, for_ever=False) as disk:
        case.run()
    return disk.calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_k1_killed_at_every_step(make_case: Callable[[], Case], after: bool) -> None:
    """D10, K1, K5: killed at any operation, the next run finds old or new data whole, and works."""
    expected = make_case().run()
    for number in range(1, len(calls_of(make_case())) + 1):
        case = make_case()
        with (
            failing_at(number, Killed, for_ever=True, after=after),
            pytest.raises(Killed),
        ):
            case.run()
        left = whole(case.out)
        assert left in {None, case.old, expected}
        if left is None and case.old is not None:  # moved aside: the next run puts it back
            with pytest.raises(DataError, match="already holds data"):
                case.run(force=False)
            assert case.old == whole(case.out)
        case.runs_to_its_end(expected)


def test_k5_killed_while_recovering(make_case: Callable[[], Case]) -> None:
    """K5: a second kill, at any operation of the run after a first, loses nothing either."""
    expected = make_case().run()
    number = len(calls_of(make_case()))
    for first in (number // 3, *range(number - 14, number, 2)):
        for second in range(1, 13, 2):
            case = make_case()
            for number in (first, second):
                with failing_at(number, Killed, for_ever=True), suppress(Killed):
                    case.run()
            if case.old is not None and not case.out.exists():
                with pytest.raises(DataError, match="already holds data"):
                    case.run(force=False)
            assert whole(case.out) in {None, case.old, expected}
            assert case.old is None or whole(case.out) is not None
            case.runs_to_its_end(expected)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_k9_k11_one_call_fails(make_case: Callable[[], Case], code: int) -> None:
    """K9, K11: a failed write or sync is reported, and the old data stay.

    Nothing is left over but what could not be removed, and the next run clears that.
    """
    expected = make_case().run()
    outcomes = set()
    for number in range(1, len(calls_of(make_case())) + 1):
        case = make_case()
        failed = False
        with failing_at(number, lambda: OSError(code, os.strerror(code)), for_ever=False) as disk:
            try:
                case.run()
            except WorkError:
                failed = True
        left = whole(case.out)
        assert left in {case.old, expected}, disk.calls[number - 1]
        assert failed or left == expected, disk.calls[number - 1]
        outcomes.add(left)
        leftovers = [name for name in names_in(case.folder) if name not in {"a.txt", "out"}]
        ours = re.compile(r"\.(tmp|old)-out-[0-9a-f]{8}|\.out\.lock(\.owner)?")
        assert all(ours.fullmatch(name) for name in leftovers), leftovers
        case.runs_to_its_end(expected)
    assert len(outcomes) == 2


def test_k9_a_full_disk(make_case: Callable[[], Case]) -> None:
    """K9: the message says in one line what is full, and how much room there is."""
    number = calls_of(make_case()).index("write train.bin") + 1
    case = make_case()
    with (
        failing_at(number, lambda: OSError(errno.ENOSPC, "No space left"), for_ever=False),
        pytest.raises(WorkError, match=r"train.bin: No space left \(\d+ bytes free\)"),
    ):
        case.run()
    assert case.old == whole(case.out)


def test_the_order_of_a_commit(make_case: Callable[[], Case]) -> None:
    """Every file and their directory are synced before the rename, the parent after it.

    A kill does not show a missing sync, since the page cache outlives it; losing power would.
    """
    case = make_case()
    with failing_at(0, Killed, for_ever=False) as disk:
        case.run()
    # With data to replace, the first rename moves them aside.
    renames = [index for index, name in enumerate(disk.calls) if name.startswith("rename ")]
    commit = renames[0 if case.old is None else 1]
    before = [name for name in disk.calls[:commit] if name.startswith("fsync ")]
    synced = set(disk.synced[: len(before)])
    assert {path.stat().st_ino for path in (case.out, *case.out.iterdir())} <= synced
    assert disk.calls[commit + 1].startswith("fsync ")
    assert case.folder.stat().st_ino == disk.synced[len(before)]


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
    assert any(name.startswith(".tmp-out-") for name in names_in(tmp_path))
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer)
    assert whole(tmp_path / "out") is not None
    assert ["a.txt", "log", "out", "slow.py"] == names_in(tmp_path)


def test_other_leftovers_are_not_ours(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """Only names of exactly our form are cleared; a neighbour's, or a user's, stay."""
    (tmp_path / "a.txt").write_text("some words")
    mine = [".tmp-out-1234567", ".tmp-out-123456789", ".tmp-out-1234567G", ".tmp-out2-12345678"]
    mine += [".tmp-xout-12345678", "tmp-out-12345678", ".new-out-12345678"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-out-12345678" / "deep").mkdir(parents=True)
    (tmp_path / ".tmp-out-12345678" / "link").symlink_to(tmp_path / "a.txt")
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer=byte_tokenizer, val_ratio=0.5)
    assert sorted([*mine, "a.txt", "out"]) == names_in(tmp_path)
