"""Release a package: `uv run nox -s release -- yocto-model minor`.

Raises the version in its pyproject.toml and moves what is under "Unreleased" in its changelog to
the new version. Refuses before anything is written; committing and tagging are left to you.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PARTS = ("major", "minor", "patch")


class ReleaseError(Exception):
    """The release cannot be made; one line says why."""


def bumped(version: str, part: str) -> str:
    """The next version: "0.1.3" and "minor" give "0.2.0"."""
    numbers = [int(number) for number in version.split(".")]
    at = PARTS.index(part)
    return ".".join(map(str, [*numbers[:at], numbers[at] + 1, *[0] * (2 - at)]))


def moved(changelog: str, version: str) -> str:
    """The changelog with the unreleased changes under `version`.

    Raises:
        ReleaseError: there are none.
    """
    match = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if match is None or not match[1].strip():
        raise ReleaseError('nothing is under "## Unreleased" in the changelog; write it first')
    section = f"## {version}\n\n{match[1].strip()}\n\n"
    return changelog[: match.start()] + section + changelog[match.end() :]


def admits(requirement: str, version: str) -> bool:
    """Whether a range such as "yocto-model>=0.1,<0.2" holds the version."""
    floor, ceiling = re.findall(r"[<>]=?([\d.]+)", requirement)

    def parts(text: str) -> list[int]:
        return [*map(int, text.split(".")), 0, 0][:3]

    return parts(floor) <= parts(version) < parts(ceiling)


def members(root: Path) -> dict[str, Path]:
    """Name and folder of each package of the workspace."""
    paths = sorted(root.glob("[ap]*/*/pyproject.toml"))
    return {tomllib.loads(path.read_text())["project"]["name"]: path.parent for path in paths}


def release(root: Path, name: str, part: str) -> str:
    """Raise a package's version; returns the new one.

    Args:
        root: the repository.
        name: the package, such as "yocto-model".
        part: "major", "minor" or "patch".

    Raises:
        ReleaseError: unknown package or part, uncommitted changes, a tag that exists, an empty
            changelog, or a sibling whose range does not hold the new version.
    """
    packages = members(root)
    if name not in packages or part not in PARTS:
        known = f"{'|'.join(packages)} {'|'.join(PARTS)}"
        raise ReleaseError(f"cannot release {name!r} {part!r}; give {known}")
    if git(root, "status", "--porcelain"):
        raise ReleaseError("there are uncommitted changes; commit them first")
    folder = packages[name]
    pyproject = (folder / "pyproject.toml").read_text()
    old = tomllib.loads(pyproject)["project"]["version"]
    new = bumped(old, part)
    if git(root, "tag", "--list", f"{name}-v{new}"):
        raise ReleaseError(f"the tag {name}-v{new} already exists")
    for sibling, path in packages.items():
        for requirement in tomllib.loads((path / "pyproject.toml").read_text())["project"][
            "dependencies"
        ]:
            if re.match(rf"{name}\b(?!-)", requirement) and not admits(requirement, new):
                raise ReleaseError(
                    f"{sibling} requires {requirement}, which excludes {new}; widen it first"
                )
    changelog = moved((folder / "CHANGELOG.md").read_text(), new)
    line = f'version = "{old}"'
    (folder / "CHANGELOG.md").write_text(changelog)
    (folder / "pyproject.toml").write_text(pyproject.replace(line, f'version = "{new}"', 1))
    return new


def git(root: Path, *words: str) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        package, *rest = sys.argv[1:] or ["", ""]
        version = release(Path(__file__).parent, package, " ".join(rest))
    except ReleaseError as error:
        sys.exit(f"release: error: {error}")
    print(f"{package} {version}: look at it, run nox, then")
    print(f"git commit -am '{package} {version}' && git tag {package}-v{version}")
