"""Each package as others meet it: its names, its errors, what importing it costs."""

import importlib
import inspect
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

LIBRARIES = ["yocto_tokenizers", "yocto_data", "yocto_model", "yocto_train"]


@pytest.fixture(params=LIBRARIES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_public_names_are_there(package: ModuleType) -> None:
    """Each name of `__all__`, which ruff keeps sorted, can be imported."""
    assert [] == [name for name in package.__all__ if not hasattr(package, name)]


def test_public_things_say_what_they_are(package: ModuleType) -> None:
    """Every public class and function has a docstring of its own."""
    things = {name: getattr(package, name) for name in package.__all__}
    bare = [
        name
        for name, thing in things.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not thing.__doc__
    ]
    assert [] == bare


def test_the_version_is_the_metadatas(package: ModuleType) -> None:
    """One version, stated in pyproject.toml."""
    assert metadata.version(package.__name__.replace("_", "-")) == package.__version__


def test_errors_have_one_base(package: ModuleType) -> None:
    """Every error is public, derives from the package's one base, and stands in its drawn tree."""
    errors = importlib.import_module(f"{package.__name__}.errors")
    classes = [
        thing
        for _, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, Exception) and thing.__module__ == errors.__name__
    ]
    (base,) = (cls for cls in classes if not set(cls.__mro__[1:]) & set(classes))
    tree = f"{errors.__doc__}{base.__doc__}"
    for cls in classes:
        assert issubclass(cls, base)
        assert cls.__name__ in package.__all__
        assert cls.__name__ in tree


@pytest.mark.parametrize("name", LIBRARIES)
def test_importing_is_quick(name: str) -> None:
    """Importing a package does not bring torch in, which would cost every command two seconds."""
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
