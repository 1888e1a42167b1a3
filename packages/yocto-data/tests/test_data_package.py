"""The package as others meet it: its names, its README, what it does not do."""

import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yocto_data
from yocto_data import DataError, Tokenizer
from yocto_data.errors import shorten

PUBLIC = yocto_data.__all__


def test_public_names_are_sorted_and_documented() -> None:
    """Every public function and class, and every public method of one, says what it does."""
    assert sorted(PUBLIC) == PUBLIC
    for name in PUBLIC:
        value = getattr(yocto_data, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and (callable(member) or isinstance(member, property)):
                    assert inspect.getdoc(member), f"{name}.{key}"


def test_the_version_is_the_metadata() -> None:
    """One version, stated in pyproject.toml."""
    assert importlib.metadata.version("yocto-data") == yocto_data.__version__


def test_the_tree_of_errors_is_drawn() -> None:
    """Every error derives from DataError, is public, and stands in the base's docstring."""
    errors = [
        value
        for _, value in inspect.getmembers(yocto_data.errors, inspect.isclass)
        if issubclass(value, Exception)
    ]
    drawn = inspect.getdoc(DataError) or ""
    for error in errors:
        assert issubclass(error, DataError)
        assert error.__name__ in PUBLIC
        assert error.__name__ in drawn


def test_any_object_will_do(byte_tokenizer: Tokenizer) -> None:
    """The protocol is structural: three members make a tokenizer."""
    assert isinstance(byte_tokenizer, Tokenizer)
    assert not isinstance(object(), Tokenizer)


def test_importing_does_not_load_torch() -> None:
    """Preparation and its worker processes do without torch."""
    code = "import sys, yocto_data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def readme() -> str:
    """README.md beside the tests, or, where only the wheel is there, from its metadata."""
    beside = Path(__file__).parents[1] / "README.md"
    if beside.exists():
        return beside.read_text("utf-8")
    return str(importlib.metadata.metadata("yocto-data").get_payload())  # type: ignore[attr-defined]


def test_the_readme_example_runs(tmp_path: Path) -> None:
    """The example of the README, run as it stands, prints what the README says."""
    (code,) = re.findall(r"``python\n(.*?)``", readme(), re.DOTALL)
    (expected,) = re.findall(r"``text\n(.*?)``", readme(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (expected, "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\x1b[2J\udcff", "a\nb\x1b[2J\udcff"),  # programs escape, once, where they print
        ("x" * 160, "x" * 160),
        ("a" * 200 + "z" * 200, "a" * 107 + "..." + "z" * 50),
    ],
)
def test_long_values_are_shortened(value: str, shown: str) -> None:
    """A message holds a value as it is; what is long keeps its two ends."""
    assert shown == shorten(value)


def test_the_learners_files_stay_short() -> None:
    """dataset.py and batches.py are read as a lesson: short, and with reasons beside the code."""
    folder = Path(yocto_data.__file__).parent
    for name in ("dataset.py", "batches.py"):
        lines = (folder / name).read_text("utf-8").splitlines()
        assert len(lines) <= 138, name
