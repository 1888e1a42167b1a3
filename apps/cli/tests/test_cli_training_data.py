"""What yocto-train does with a text: prepared once, again when it is asked for otherwise."""

from pathlib import Path

import pytest
from yocto_cli.errors import UsageError
from yocto_cli.train_arguments import DataFlags
from yocto_cli.training_data import data_directory
from yocto_data import DataMeta

TEXT = "A lamp was asked what it is for.\nFor going round, said the lamp.\n" * 60


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("lamp.txt").write_text(TEXT, encoding="utf-8")
    return "lamp.txt"


def validation_tokens(directory: Path) -> int:
    return DataMeta.load(directory).val.tokens


def test_another_part_for_validation_prepares_again(text: str) -> None:
    """Asked for, it is never ignored; not asked for, what is there stays."""
    directory = data_directory(DataFlags(text_path=text))
    tenth = validation_tokens(directory)
    assert data_directory(DataFlags(text_path=text, val_ratio=0.3)) == directory
    assert validation_tokens(directory) > 2 * tenth
    before = (directory / "meta.json").stat().st_mtime_ns
    data_directory(DataFlags(text_path=text))
    assert before == (directory / "meta.json").stat().st_mtime_ns


def test_data_of_another_text_is_not_replaced(text: str) -> None:
    """In a directory that was named; the error says both ways out."""
    directory = data_directory(DataFlags(text_path=text, data_dir="mine"))
    before = (directory / "meta.json").read_bytes()
    Path("other.txt").write_text(TEXT[::-1], encoding="utf-8")
    for flags in (
        DataFlags(text_path="other.txt", data_dir="mine"),
        DataFlags(text_path=text, data_dir="mine", val_ratio=0.3),
    ):
        with pytest.raises(UsageError, match=r"^mine holds something else .*another --data_dir"):
            data_directory(flags)
    assert before == (directory / "meta.json").read_bytes()


def test_another_encoding_is_told_with_the_command_for_it(text: str) -> None:
    """Only flags that the named command has."""
    Path(text).write_bytes(TEXT.replace("lamp", "lämp").encode("latin-1"))
    with pytest.raises(
        UsageError,
        match=r"^lamp\.txt is not UTF-8 .*; prepare it .*yocto-prepare char --text_path lamp\.txt "
        r"--out_dir data/lamp-char --encoding latin-1, then give --data_dir data/lamp-char$",
    ):
        data_directory(DataFlags(text_path=text))
