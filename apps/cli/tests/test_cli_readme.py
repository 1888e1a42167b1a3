"""The README's example and its claims."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from yocto_cli import prepare, sample, train

README = Path(__file__).parent.parent / "README.md"
COMMANDS = {
    "yocto-prepare": prepare.main,
    "yocto-sample": sample.main,
}


def test_the_example_runs(
    run: Any, poem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands, in order, in an empty directory with a book in it."""
    monkeypatch.chdir(tmp_path)
    poem.rename("book.txt")
    found = re.search(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for line in found[1].splitlines():
        program, *words = shlex.split(line)
        if program == "yocto-train":
            assert train.run(words) == 0
        else:
            result = run(COMMANDS[program], words)
            assert result.code == 0, result.err
    assert result.out.startswith("The soul")
    assert Path("data/book/vocab.json").is_file()
    assert Path("checkpoints/book").is_dir()
