"""The package as its users meet it: names, README, optional parts, and what importing costs."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import yocto_tokenizers as package


def test_public_names() -> None:
    """The public names are sorted, exist, and are documented with all their public members."""
    order = sorted(package.__all__, key=lambda name: (not name.isupper(), name))
    assert order == package.__all__  # constants first, as ruff sorts
    for name in package.__all__:
        item = getattr(package, name)
        if not inspect.isclass(item) and not callable(item):
            continue
        assert inspect.getdoc(item)
        for member, value in inspect.getmembers(item):
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"
    assert package.CharVocab is package.CharTokenizer
    assert package.Tokenizer is package.BaseTokenizer
    assert version("yocto-tokenizers") == package.__version__


def test_every_error_has_the_one_base() -> None:
    """Every error class is a TokenizerError, is public, and stands in the tree of errors.py."""
    from yocto_tokenizers import errors

    for name, item in inspect.getmembers(errors, inspect.isclass):
        if issubclass(item, Exception):
            assert issubclass(item, package.TokenizerError)
            assert name in package.__all__
            assert name in (errors.__doc__ or "")


def readme() -> str:
    """The README beside the tests, or the one that the installed wheel carries."""
    path = Path(__file__).parents[1] / "README.md"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return str(metadata("yocto-tokenizers").get_payload())  # type: ignore[attr-defined]


def run_quietly(code: str, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_readme_example_runs(tmp_path: Path) -> None:
    """The Python block of the README runs by itself, without printing."""
    (block,) = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert len(block.strip().splitlines()) <= 12
    run_quietly(block, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]
    for name in re.findall(r"`([A-Z]\w+Tokenizer\w*)`", readme()):
        assert name in package.__all__


def test_importing_is_light(tmp_path: Path) -> None:
    """Importing loads no optional library, torch or protobuf, writes nothing, prints nothing."""
    run_quietly(
        "import sys, yocto_tokenizers as y; y.CharTokenizer.train('ab').encode('ab');"
        "assert not {'tokenizers', 'torch', 'google.protobuf'} & set(sys.modules)",
        tmp_path,
    )
    assert list(tmp_path.iterdir()) == []
