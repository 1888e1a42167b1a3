"""Every command and every snippet of the README works, in the order of the page."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

Command = Callable[..., subprocess.CompletedProcess[str]]

# The README's commands train for minutes; here they are made small, and nothing else is changed.
SMALL = {
    "yocto-train": ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--block_size", "128",
                    "--max_iters", "6", "--batch_size", "4"],
    "yocto-chat": ["--max_new_tokens", "20"],
    "yocto-sample": ["--max_new_tokens", "20"],
}  # fmt: skip


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def small(words: list[str]) -> list[str]:
    """The words of a command, with the flags of SMALL in place of what they set."""
    extra = SMALL.get(words[0], [])
    replaced = {extra[i]: extra[i + 1] for i in range(0, len(extra), 2)}
    kept, index = words[:1], 1
    while index < len(words):
        if words[index] in replaced or words[index] == "--minutes":
            index += 2
            continue
        kept.append(words[index])
        index += 1
    return kept + extra


def test_commands(root: Path, tmp_path: Path, command: Command) -> None:
    """Each `uv run yocto-...` of the README ends with exit code 0."""
    text = (root / "data" / "philosophy.txt").read_text()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "philosophy.txt").write_text(text[:20_000])
    (tmp_path / "my.txt").write_text(text[20_000:40_000] + "Once\n")
    lines = [line for block in blocks(root, "sh") for line in block.splitlines()]
    ours = [shlex.split(line)[2:] for line in lines if line.startswith("uv run yocto-")]
    assert len(ours) >= 8
    for words in ours:
        name, *arguments = small(words)
        stdin = "Hello!" if name == "yocto-chat" else None
        done = command(name, *arguments, cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, (words, done.stderr)


def test_test_command_is_what_ci_runs(root: Path) -> None:
    """The README's test command and CI's are one."""
    assert "uv run nox\n" in blocks(root, "sh")[-1]
    assert (root / ".ci" / "run").read_text().rstrip().endswith("uv run nox")


def test_snippets(root: Path, tmp_path: Path) -> None:
    """Each Python block runs, and the shapes in its comments are the true ones."""
    for snippet in blocks(root, "python"):
        checked = re.sub(
            r"^(\w+) = (.*?)  # (\(.*\))$",
            r"\1 = \2\nassert tuple(\1.shape) == \3",
            snippet,
            flags=re.MULTILINE,
        )
        assert "assert" in checked
        done = subprocess.run(
            [sys.executable, "-c", checked],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_tree_names_what_is_there(root: Path) -> None:
    """Every link to a place in the repository leads somewhere, and no package is missing."""
    readme = (root / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    assert [link for link in links if not (root / link).exists()] == []
    members = {str(path.parent.relative_to(root)) for path in root.glob("[ap]*/*/pyproject.toml")}
    assert members <= set(links)
