"""The seven packages agree with each other and with what they say of themselves."""

import datetime
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def project(path: Path) -> dict[str, object]:
    content: dict[str, object] = tomllib.loads((path / "pyproject.toml").read_text())["project"]
    return content


MEMBERS = {
    str(project(path.parent)["name"]): path.parent
    for path in sorted(ROOT.glob("[ap]*/*/pyproject.toml"))
}


@pytest.fixture(params=list(MEMBERS.values()), ids=list(MEMBERS))
def member(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_seven_members() -> None:
    """Nobody was dropped by a pattern."""
    assert len(MEMBERS) == 7


def test_changelog_begins_with_the_version(member: Path) -> None:
    """The top version of the changelog is the package's."""
    versions = re.findall(r"^## (\d\S*)", (member / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project(member)["version"] == versions[0]


def test_installed_version_is_the_stated_one(member: Path) -> None:
    """What is installed is this version, with its licence and its types."""
    name = str(project(member)["name"])
    assert project(member)["version"] == metadata.version(name)
    editable = (metadata.distribution(name).read_text("direct_url.json") or "").find("editable")
    if editable < 0:
        files = [str(path) for path in metadata.files(name) or ()]
        assert any(path.endswith("py.typed") for path in files)
        assert any(path.endswith("licenses/LICENSE") for path in files)
        assert not any("test" in path for path in files)


def test_licence_is_the_same_everywhere(member: Path) -> None:
    """A package's copy of the licence is the root's."""
    assert (ROOT / "LICENSE").read_text() == (member / "LICENSE").read_text()


def test_every_dependency_has_a_floor(member: Path) -> None:
    """A dependency without a lower bound may be resolved to something ancient."""
    dependencies = project(member)["dependencies"]
    assert isinstance(dependencies, list)
    assert [] == [d for d in dependencies if ">=" not in d]


def test_siblings_accept_each_other(member: Path) -> None:
    """A sibling's range admits its present version, and ends before the next breaking one."""
    dependencies = project(member)["dependencies"]
    assert isinstance(dependencies, list)
    for dependency in dependencies:
        match = re.fullmatch(r"(yocto-\w+)>=(\d+)\.(\d+),<(\d+)\.(\d+)", dependency)
        assert bool(match) == dependency.startswith("yocto-"), dependency
        if match:
            version = str(project(MEMBERS[match[1]])["version"])
            major, minor = (int(part) for part in version.split(".")[:2])
            assert (int(match[2]), int(match[3])) <= (major, minor) < (int(match[4]), int(match[5]))


def test_torch_comes_with_numpy(member: Path) -> None:
    """Torch without numpy warns at import, so whoever needs torch declares numpy as well."""
    dependencies = str(project(member)["dependencies"])
    assert "torch>=" not in dependencies or "numpy>=" in dependencies


def test_resolution_is_fixed() -> None:
    """exclude-newer is a moment, not a duration, and no member brings an index of its own."""
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    moment = datetime.datetime.fromisoformat(root["tool"]["uv"]["exclude-newer"])
    assert moment.tzinfo is not None
    for member in MEMBERS.values():
        assert "tool" not in tomllib.loads((member / "pyproject.toml").read_text())
    assert "uv.lock" in (ROOT / ".gitignore").read_text().splitlines()
