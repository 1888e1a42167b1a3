"""What was typed before: private, bounded, and never a reason to stop."""

import os
import stat
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from yocto_chat.history import PrivateHistory, history_path, open_history


def opened(path: Path) -> tuple[PrivateHistory, list[str]]:
    warnings: list[str] = []
    history = open_history(path, warn=warnings.append)
    assert isinstance(history, PrivateHistory), warnings
    return history, warnings


def test_entries_come_back_newest_first(tmp_path: Path) -> None:
    """Several lines, quotes and half characters survive; ESC comes back visible."""
    path = tmp_path / "state" / "yocto" / "history"
    history, warnings = opened(path)
    for entry in ("one", "two\nlines", "\x1b[2J", "half \ud83d"):
        history.store_string(entry)
    again, _ = opened(path)
    expected = ["half ?", "␛[2J", "two\nlines", "one"]
    assert expected == list(again.load_history_strings())
    assert warnings == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_it(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, and whatever mode an older file has."""
    before = os.umask(umask)
    try:
        new, old = tmp_path / "new", tmp_path / "old"
        old.write_text("")
        old.chmod(0o666)
        opened(new)
        opened(old)
    finally:
        os.umask(before)
    assert 0o600 == stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(old.stat().st_mode)


def test_a_long_history_loses_its_oldest_entries(tmp_path: Path) -> None:
    """Above a mebibyte the newest half stays, whole entries only, and the file stays private."""
    path = tmp_path / "history"
    history, _ = opened(path)
    for number in range(12):
        history.store_string(f"{number} " + "x" * 100_000)
    again, _ = opened(path)
    entries = list(again.load_history_strings())
    assert path.stat().st_size <= 1 << 19
    assert [entry.partition(" ")[0] for entry in entries] == ["11", "10", "9", "8", "7"]
    assert all(len(entry) > 100_000 for entry in entries)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["history"]


def test_a_damaged_history_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Bytes that are no entries do no harm, and new entries are kept."""
    path = tmp_path / "history"
    path.write_bytes(b"\xff\x00\x1b[2J\n+whole\n" + bytes(range(256)))
    history, _ = opened(path)
    history.store_string("new")
    entries = list(opened(path)[0].load_history_strings())
    assert entries[0] == "new"
    assert all("\x1b" not in entry for entry in entries)


def test_a_history_that_cannot_be_used_is_said_once(tmp_path: Path) -> None:
    """The chat goes on with one that lasts as long as the process; nothing is followed or made."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for name in ("link", "directory", "fifo", "file/below"):
        warnings: list[str] = []
        assert isinstance(open_history(tmp_path / name, warn=warnings.append), InMemoryHistory)
        assert len(warnings) == 1
        assert warnings[0].startswith(f"history is not kept: {tmp_path / name}: ")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    """An entry that cannot be stored is no error: two of them are one warning."""
    path = tmp_path / "history"
    history, warnings = opened(path)
    path.unlink()
    path.mkdir()
    history.store_string("a")
    history.store_string("b")
    assert len(warnings) == 1


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_STATE_HOME, unless it is relative, which that specification says to ignore."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert history_path() == Path("/home/me/.local/state/yocto/history")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_path() == Path("/home/me/.local/state/yocto/history")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/yocto/history")
