"""The package as a product: its names, its README, its changelog, and what importing it brings."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yocto_train

HERE = Path(__file__).resolve().parent.parent


def beside(name: str) -> str:
    path = HERE / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the tests")
    return path.read_text(encoding="utf-8")


def test_public_names() -> None:
    """They are sorted, exist, and say what they are."""
    assert sorted(yocto_train.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)) == (
        yocto_train.__all__
    )
    for name in yocto_train.__all__:
        assert name.isupper() or getattr(yocto_train, name).__doc__
    assert not hasattr(yocto_train, "nothing")


def test_settings_come_without_torch() -> None:
    """A command line shows its help at once: torch takes seconds to import."""
    code = (
        "import sys, yocto_train, yocto_train.config, yocto_train.recipes;"
        "yocto_train.RECIPES, yocto_train.TrainConfig();"
        "sys.exit('torch' in sys.modules)"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_one_base_exception() -> None:
    """Whoever catches TrainError catches all of ours; a ValueError is the caller's to change."""
    for name in yocto_train.__all__:
        if name.endswith("Error") and name != "TrainError":
            error = getattr(yocto_train, name)
            assert issubclass(error, yocto_train.TrainError)
            assert issubclass(error, ValueError) != issubclass(error, RuntimeError)


def test_the_example_of_the_readme(data_dir: Path, tmp_path: Path) -> None:
    """The README's example runs as it stands, with its paths replaced, and trains and saves."""
    example, *_ = re.findall(r"```python\n(.*?)```", beside("README.md"), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 13
    source = example.replace("data/char", str(data_dir)).replace("checkpoints", str(tmp_path))
    source = re.sub(r"\b64\b", "8", source).replace("max_iters=1_000", "max_iters=101")
    names: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), names)  # noqa: S102 - our own example
    run = names["run"]
    assert isinstance(run, yocto_train.Run)
    assert 101 == run.latest().step


def test_the_changelog_and_the_version() -> None:
    """The top entry of the changelog is the installed version."""
    headings = re.findall(r"^## (\S+)", beside("CHANGELOG.md"), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert version("yocto-train") == released[0] == yocto_train.__version__
