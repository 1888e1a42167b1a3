"""Every command and every snippet of the README and of docs/ works, in the order of its page."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

Command = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EVERY_PAGE = sorted({*ROOT.glob("*.md"), *ROOT.glob("[adp]*/*.md"), *ROOT.glob("[ap]*/*/*.md")})

# The pages' commands train for minutes; here they are made small, and nothing else is changed.
SMALL = {
    "yocto-train": ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--block_size", "128",
                    "--max_iters", "6", "--batch_size", "4"],
    "yocto-chat": ["--max_new_tokens", "20"],
    "yocto-sample": ["--max_new_tokens", "20"],
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of each of our commands on the page."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("uv run yocto-")]


def small(words: list[str]) -> list[str]:
    """The words of a command, with the flags of SMALL in place of what they set."""
    extra = [] if "--resume" in words else SMALL.get(words[0], [])
    if "--init_from" in words:  # the model has its size
        extra = ["--max_iters", "6"]
    replaced = {extra[i]: extra[i + 1] for i in range(0, len(extra), 2)}
    kept, index = words[:1], 1
    while index < len(words):
        if words[index] in replaced or words[index] == "--minutes":
            index += 2
            continue
        kept.append(words[index])
        index += 1
    return kept + extra


WITH_COMMANDS = [page for page in PAGES if commands(page)]
WITH_SNIPPETS = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands(page: Path, tmp_path: Path, command: Command) -> None:
    """Each `uv run yocto-...` of the page ends with exit code 0."""
    chats, prose = ((ROOT / "data" / f"{n}.txt").read_text() for n in ("philosophy", "essays"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "philosophy.txt").write_text(chats[:20_000])
    (tmp_path / "my.txt").write_text(prose[:20_000] + "1 plus 1? It is 2: Once\n")
    chat = '{"prompt": "What is 1 plus 1?", "completion": "It is 2."}\n'
    (tmp_path / "chats.jsonl").write_text(chat * 99)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text(prose[20_000:40_000] + "Once\n")
    for words in commands(page):
        name, *arguments = small(words)
        stdin = "Hello!" if name == "yocto-chat" else None
        done = command(name, *arguments, cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, (words, done.stderr)


def test_the_pages_have_commands_and_snippets() -> None:
    """The README's two commands and its snippet are among what is run, and docs/ has more."""
    assert [["yocto-train"], ["yocto-chat"]] == commands(ROOT / "README.md")[:2]
    assert len(commands(ROOT / "README.md")) >= 5
    assert ROOT / "README.md" in WITH_SNIPPETS
    assert {"tour.md", "extending.md"} <= {page.name for page in WITH_SNIPPETS}
    assert "own_text.md" in {page.name for page in WITH_COMMANDS}


def test_test_command_is_what_ci_runs() -> None:
    """The README's test command and CI's are one."""
    assert "uv run nox\n" in blocks(ROOT / "README.md", "sh")[-1]
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("uv run nox")


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.name)
def test_snippets(page: Path, tmp_path: Path) -> None:
    """The Python blocks run one after the other, and shapes in their comments are the true ones."""
    snippets = "\n".join(blocks(page, "python"))
    checked = re.sub(
        r"^(\w+) = (.*?)  # ([^(\n]*)(\([\d, ]+\))$",
        r"\1 = \2\nassert tuple(\1.shape) == \4",
        snippets,
        flags=re.MULTILINE,
    )
    assert "assert" in checked
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "essays.txt", tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", checked],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a place in the repository names what is there."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert [] == [link for link in inside if not (page.parent / link).exists()]


def test_no_package_is_missing_in_the_tree() -> None:
    """The README's table links every member."""
    links = set(re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()))
    members = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("[ap]*/*/pyproject.toml")}
    assert members <= links
