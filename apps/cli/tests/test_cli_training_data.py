"""What yocto-train does with a text: prepared once, again when it is asked for otherwise."""

from pathlib import Path

import pytest
from yocto_cli.command import UsageError
from yocto_cli.train_settings import DataFlags
from yocto_cli.training import data_directory, open_data
from yocto_data import DataMeta

TEXT = "A lamp was asked what it is for.\nFor going round, said the lamp.\n" * 60


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("lamp.txt").write_text(TEXT, encoding="utf-8")
    return "lamp.txt"


def validation_tokens(directory: Path) -> int:
    return DataMeta.load(directory).val.tokens


def test_what_is_prepared_is_used_again_and_never_replaced(text: str) -> None:
    """Another text of that name, or another part for validation, gets a directory of its own."""
    first = data_directory(DataFlags(text_path=text))
    assert first == Path("data/lamp-char")
    before = {path: path.read_bytes() for path in first.iterdir()}
    more = data_directory(DataFlags(text_path=text, val_ratio=0.3))
    assert validation_tokens(more) > 2 * validation_tokens(first)
    Path("other").mkdir()
    Path("other/lamp.txt").write_text(TEXT[::-1], encoding="utf-8")
    other = data_directory(DataFlags(text_path="other/lamp.txt"))
    assert [more, other] == [Path("data/lamp-char-002"), Path("data/lamp-char-003")]
    assert first == data_directory(DataFlags(text_path=text))
    assert more == data_directory(DataFlags(text_path=text, val_ratio=0.3))
    assert other == data_directory(DataFlags(text_path="other/lamp.txt"))
    assert before == {path: path.read_bytes() for path in first.iterdir()}


def test_several_files_are_prepared_once(text: str) -> None:
    """A directory or a glob means the same files each time; no name of ours holds a star."""
    Path("texts").mkdir()
    for name in ("a.txt", "b.txt"):
        Path("texts", name).write_text(TEXT + name)
    for named, expected in (("texts", "data/texts-char"), ("texts/*.txt", "data/texts-char")):
        assert data_directory(DataFlags(text_path=named)) == Path(expected)
    assert ["texts-char"] == [path.name for path in Path("data").iterdir()]


@pytest.mark.parametrize(
    ("made", "what"),
    [(None, "does not exist"), ("file", "is a file"), ("directory", "holds no meta.json")],
)
def test_data_that_is_not_prepared_is_said_to_be_so(
    made: str | None, what: str, tmp_path: Path
) -> None:
    """The commonest mistake, a text as --data_dir, is told with the flag for texts."""
    path = tmp_path / "here"
    if made == "file":
        path.write_text(TEXT)
    elif made:
        path.mkdir()
    with pytest.raises(UsageError, match=f"--data_dir .*{what}.*give it as --text_path"):
        open_data(DataFlags(data_dir=str(path)), path)


def test_data_of_another_text_is_not_replaced(text: str) -> None:
    """In a directory that was named; the error says both ways out."""
    directory = data_directory(DataFlags(text_path=text, data_dir="mine"))
    before = (directory / "meta.json").read_bytes()
    Path("other.txt").write_text(TEXT[::-1], encoding="utf-8")
    for flags in (
        DataFlags(text_path="other.txt", data_dir="mine"),
        DataFlags(text_path=text, data_dir="mine", val_ratio=0.3),
    ):
        with pytest.raises(UsageError, match=r"^mine was not prepared from .*another --data_dir"):
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
