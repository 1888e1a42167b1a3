"""Releasing a package: version, changelog, ranges and tags stay in step."""

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load()
NUMBERS = st.tuples(*[st.integers(0, 99)] * 3)
CHANGES = "## Unreleased\n\n- A change.\n\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A repository with the seven packages' metadata, and a change of yocto-model to release."""
    for path in ROOT.glob("[ap]*/*/pyproject.toml"):
        folder = tmp_path / path.parent.relative_to(ROOT)
        folder.mkdir(parents=True)
        shutil.copy(path, folder)
        text = (path.parent / "CHANGELOG.md").read_text()
        text = re.sub(r"## Unreleased\n.*?(?=## )", "", text, flags=re.DOTALL)
        changes = CHANGES if folder.name == "yocto-model" else ""
        (folder / "CHANGELOG.md").write_text(text.replace("## ", f"{changes}## ", 1))
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", root, *words], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", root, *who, "commit", "-qm", "a"], check=True)


def version(root: Path) -> str:
    path = root / "packages" / "yocto-model" / "pyproject.toml"
    content: str = tomllib.loads(path.read_text())["project"]["version"]
    return content


@pytest.mark.property
@given(NUMBERS, st.sampled_from(["major", "minor", "patch"]))
def test_bumping_raises_one_number(numbers: tuple[int, int, int], part: str) -> None:
    """The next version is larger, equal before the part, and zero after it."""
    at = ["major", "minor", "patch"].index(part)
    new = [int(n) for n in release.bumped(".".join(map(str, numbers)), part).split(".")]
    assert list(numbers[:at]) == new[:at]
    assert numbers[at] + 1 == new[at]
    assert [0] * (2 - at) == new[at + 1 :]


@pytest.mark.property
@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_range_holds_what_lies_in_it(
    low: tuple[int, int, int], middle: tuple[int, int, int], high: tuple[int, int, int]
) -> None:
    """The floor belongs to a range, its end does not."""
    texts = [".".join(map(str, numbers)) for numbers in (low, middle, high)]
    expected = low <= middle < high
    assert expected == release.admits(f"yocto-model>={texts[0]},<{texts[2]}", texts[1])


def test_a_release_moves_version_and_changelog_together(workspace: Path) -> None:
    """The changes stand under the new version, which is the top one, and nothing else moves."""
    old = version(workspace)
    folder = workspace / "packages" / "yocto-model"
    before = (folder / "CHANGELOG.md").read_text()
    new = release.release(workspace, "yocto-model", "patch")
    assert release.bumped(old, "patch") == new == version(workspace)
    expected = before.replace("## Unreleased", f"## {new}", 1)
    assert expected == (folder / "CHANGELOG.md").read_text()
    changed = release.git(workspace, "status", "--porcelain").split()
    files = ["packages/yocto-model/CHANGELOG.md", "packages/yocto-model/pyproject.toml"]
    assert files == changed[1::2]


def test_nothing_is_written_when_refused(workspace: Path) -> None:
    """No such package, a range, a taken tag, no changes, an unclean tree: one line each."""
    before = release.git(workspace, "rev-parse", "HEAD")

    def refused(message: str, name: str = "yocto-model", part: str = "patch") -> None:
        with pytest.raises(release.ReleaseError, match=message) as caught:
            release.release(workspace, name, part)
        assert "\n" not in str(caught.value)

    refused("give yocto-chat", name="yocto-nothing")
    refused(r"major\|minor\|patch", part="huge")
    refused("yocto-.* requires yocto-model.*widen it first", part="major")
    refused('nothing is under "## Unreleased"', name="yocto-data")
    new = release.bumped(version(workspace), "patch")
    release.git(workspace, "tag", f"yocto-model-v{new}")
    refused("tag yocto-model-v.* already exists")
    assert before == release.git(workspace, "rev-parse", "HEAD")
    assert release.git(workspace, "status", "--porcelain") == ""
    (workspace / "new").write_text("")
    refused("uncommitted changes")
