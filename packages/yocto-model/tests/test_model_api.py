"""What this package offers to others: its names, its errors, its README."""

import importlib.metadata
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yocto_model

CONSTANTS = ["ARCHITECTURES", "INFERENCE_KINDS", "InferenceKind"]


def test_every_public_name_is_sorted_there_and_explained() -> None:
    """`__all__` is sorted; each name can be imported and has a docstring, its methods too."""
    assert sorted(yocto_model.__all__) == sorted(set(yocto_model.__all__))
    assert sorted(yocto_model.__all__) == sorted(yocto_model._HOMES)
    assert set(yocto_model.__all__) <= set(dir(yocto_model))
    for name in yocto_model.__all__:
        value = getattr(yocto_model, name)
        assert name in CONSTANTS or inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = yocto_model.Nothing


def test_settings_come_without_torch() -> None:
    """A command line can list its flags before it waits for torch."""
    script = (
        "import sys, yocto_model, yocto_model.config, yocto_model.settings as settings\n"
        "from yocto_model import GPTConfig, ModelConfig, ModelError, SamplingOptions\n"
        "assert GPTConfig is ModelConfig and settings.problems(SamplingOptions()) == []\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_setting_has_help() -> None:
    """One sentence each, from which flags are made."""
    for owner in (yocto_model.GPTConfig, yocto_model.SamplingOptions):
        for field in owner.__dataclass_fields__.values():
            assert 10 < len(field.metadata["help"]) < 100, field.name


def test_the_tree_of_errors_is_as_drawn() -> None:
    """Every error is a ModelError, which is a ValueError, and errors.py draws them all."""
    drawing = inspect.getdoc(inspect.getmodule(yocto_model.ModelError))
    assert drawing is not None
    drawn = re.findall(r"^(?:[├└]── )?(\w+Error)\b", drawing, re.MULTILINE)
    assert sorted(n for n in yocto_model.__all__ if n.endswith("Error")) == sorted(drawn)
    assert yocto_model.ModelError.__base__ is ValueError
    assert all(issubclass(getattr(yocto_model, name), yocto_model.ModelError) for name in drawn)


def test_the_package_says_its_version_and_that_it_is_typed() -> None:
    """Both are in a wheel, too."""
    assert importlib.metadata.version("yocto-model") == yocto_model.__version__
    assert Path(yocto_model.__file__).with_name("py.typed").is_file()


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README shows works as it stands, and leaves the folder it speaks of."""
    beside = Path(__file__).parents[1] / "README.md"
    metadata = importlib.metadata.metadata("yocto-model")
    readme = beside.read_text("utf-8") if beside.is_file() else str(metadata["Description"])
    [example] = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    (tmp_path / "example.py").write_text(example, "utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    assert {"example.py", "my-model"} == {path.name for path in tmp_path.iterdir()}
