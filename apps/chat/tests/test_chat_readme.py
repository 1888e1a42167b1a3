"""The README: its example runs, and its table is the program's."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from yocto_chat.commands import COMMANDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_example_runs(checkpoints: Path, tmp_path: Path) -> None:
    """As it stands there, in a directory with checkpoints: a reply on stdout."""
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    found = re.search(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    echo, _, command = found[1].strip().partition(" | ")
    words = shlex.split(command)
    assert words[0] == "yocto-chat"
    program = "import sys; from yocto_chat.app import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *words[1:]],
        input=f"{shlex.split(echo)[1]}\n", cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 1 < len(done.stdout) <= 61
    assert "seed 7" in done.stderr


def test_the_table_lists_the_commands() -> None:
    """All of them, in order, in the words of /help."""
    rows = re.findall(
        r"^\| `(/.*?)` \| (.*?) \|$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    expected = [(c.synopsis.replace("|", r"\|"), c.help) for c in COMMANDS]
    assert expected == rows


def test_the_version_is_told_once() -> None:
    """pyproject.toml, the top of the changelog, and what is installed agree."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## (\S+)$", changelog, re.MULTILINE)
    assert top
    assert top[1] == version("yocto-chat")
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert stated["project"]["version"] == top[1]
