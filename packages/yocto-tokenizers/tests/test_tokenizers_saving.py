"""Saving is one step: readers see the old file or the new one, whatever happens in between."""

import os
import stat
import sys
from pathlib import Path

import pytest
from yocto_tokenizers import (
    CharTokenizer,
    SentencePieceTokenizer,
    TokenizerError,
    TokenizerFileError,
    TokenizerWriteError,
    WordLevelTokenizer,
)

CHAR = CharTokenizer("ab?", special_tokens=["<s>"])
WORD = WordLevelTokenizer(["a", " ", "b"], special_tokens=["<s>"])


def test_saving_names_the_file_by_kind(tmp_path: Path) -> None:
    """Into a directory the kind's own name is used, else the name given; the path is returned."""
    bpe = SentencePieceTokenizer.train("a b ab", vocab_size=300, shrink=True)
    assert tmp_path / "vocab.json" == CHAR.save(tmp_path)
    assert tmp_path / "tokenizer.json" == WORD.save(str(tmp_path))
    assert tmp_path / "tokenizer.model" == bpe.save(tmp_path)
    assert tmp_path / "mine" == CHAR.save(tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == CHAR.to_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_saving_respects_the_umask(tmp_path: Path) -> None:
    """A saved file is as readable as any other the user makes, not private like a temporary one."""
    (tmp_path / "other").write_bytes(b"")
    mode = stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert mode == stat.S_IMODE(CHAR.save(tmp_path).stat().st_mode)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failed_save_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fails, the old file stays whole, no temporary is left, the error says why."""
    path = CHAR.save(tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if name == "fsync" else Path, name, fail)
    with pytest.raises(
        TokenizerWriteError, match=r"cannot write .*No space left on device"
    ) as raised:
        CharTokenizer("xyz").save(path)
    assert raised.value.errno == 28
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, TokenizerError)
    assert [path] == list(tmp_path.iterdir())
    assert before == path.read_bytes()


def test_a_save_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content reaches the disk, then the name, then the directory: power loss leaves old or new."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        size = os.fstat(descriptor).st_size
        calls.append("sync directory" if is_directory else f"sync {size}")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        assert self.parent == target.parent
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    path = CHAR.save(tmp_path)
    directory = [] if sys.platform == "win32" else ["sync directory"]
    assert [f"sync {path.stat().st_size}", "rename", *directory] == calls


@pytest.mark.parametrize("path", ["no/such/directory/x", "a\0b", "x" * 300])
def test_unwritable_paths(path: str, tmp_path: Path) -> None:
    """A path that cannot be written is one line."""
    target = path if "\0" in path else tmp_path / path
    with pytest.raises(TokenizerWriteError, match=r"^cannot write '") as raised:
        CHAR.save(target)
    assert str(raised.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_no_path_is_an_error_of_ours() -> None:
    """Something that is no path at all is refused before anything is opened."""
    with pytest.raises(TokenizerWriteError, match="5: it is no valid path"):
        CHAR.save(5)  # type: ignore[arg-type]
    with pytest.raises(TokenizerFileError, match="5 is no path"):
        CharTokenizer.load(5)  # type: ignore[arg-type]
