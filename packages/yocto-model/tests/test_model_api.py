"""What this package offers to others: its names, its errors, its README."""

import importlib.metadata
import inspect
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import yocto_model

PUBLIC = [
    "ARCHITECTURES",
    "GPT",
    "INFERENCE_KINDS",
    "ConfigError",
    "Context",
    "GPTConfig",
    "InferenceGPT",
    "InferenceKind",
    "InputError",
    "KVCache",
    "ModelError",
    "ModelFileError",
    "ParameterRoles",
    "SamplingError",
    "SamplingOptions",
    "Step",
    "StopFilter",
    "TextGenerator",
    "TextStream",
    "Token",
    "inference_copy",
    "load_pt",
    "save_pt",
    "stream",
    "window_start",
]

CONSTANTS = ["ARCHITECTURES", "INFERENCE_KINDS", "InferenceKind"]


def test_the_public_names_are_these() -> None:
    """`__all__` is pinned, and complete: a name is public here or not in the package at all."""
    assert PUBLIC == yocto_model.__all__
    present = {
        name
        for name, value in vars(yocto_model).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert present - {"version"} == set(PUBLIC)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in CONSTANTS])
def test_every_public_name_is_explained(name: str) -> None:
    """Each has a docstring, and so has each public method."""
    value = getattr(yocto_model, name)
    assert inspect.getdoc(value)
    for method, function in inspect.getmembers(value, inspect.isfunction):
        if not method.startswith("_") and function.__module__.startswith("yocto_model"):
            assert inspect.getdoc(function), method


def test_the_tree_of_errors_is_as_drawn() -> None:
    """Every error is a ModelError, which is a ValueError, and errors.py draws them all."""
    drawing = inspect.getdoc(inspect.getmodule(yocto_model.ModelError))
    assert drawing is not None
    drawn = re.findall(r"^(?:[├└]── )?(\w+Error)\b", drawing, re.MULTILINE)
    assert sorted(name for name in PUBLIC if name.endswith("Error")) == sorted(drawn)
    assert yocto_model.ModelError.__base__ is ValueError
    assert all(issubclass(getattr(yocto_model, name), yocto_model.ModelError) for name in drawn)


def test_the_version_is_the_installed_one() -> None:
    """It is written once, in the package's metadata."""
    assert importlib.metadata.version("yocto-model") == yocto_model.__version__


def test_the_package_says_that_it_is_typed() -> None:
    """`py.typed` is beside the code, also in a wheel."""
    assert Path(yocto_model.__file__).with_name("py.typed").is_file()


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README shows works as it stands, and leaves the file it speaks of."""
    beside = Path(__file__).parents[1] / "README.md"
    metadata = importlib.metadata.metadata("yocto-model")
    readme = beside.read_text("utf-8") if beside.is_file() else str(metadata["Description"])
    [example] = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    (tmp_path / "example.py").write_text(example, "utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    assert {"example.py", "model.pt"} == {path.name for path in tmp_path.iterdir()}
