"""The package as others meet it: its names, its README, what it does not do."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yocto_data
from yocto_data import DataError, Tokenizer
from yocto_data.errors import show

SOURCES = sorted(Path(yocto_data.__file__).parent.glob("*.py"))

PUBLIC = [
    "BatchSampler",
    "DataError",
    "DataMeta",
    "DecodingError",
    "InUseError",
    "MetaError",
    "MissingMetaError",
    "OptionError",
    "OutputError",
    "RecordError",
    "ShortDataError",
    "SourceChangedError",
    "SourceError",
    "SplitMeta",
    "StateError",
    "TokenDataset",
    "TokenFileError",
    "Tokenizer",
    "TokenizerUseError",
    "WindowIndexError",
    "WorkError",
    "WorkerError",
    "WriteError",
    "compare_splits",
    "evaluation_batches",
    "evaluation_windows",
    "get_batch",
    "import_nanogpt",
    "iter_texts",
    "load_bin",
    "prepare",
    "token_dtype",
]


def test_public_names() -> None:
    """The public names are these; a change of them is a decision, and goes into the changelog."""
    assert PUBLIC == yocto_data.__all__
    assert sorted(PUBLIC) == PUBLIC
    for name in PUBLIC:
        assert getattr(yocto_data, name) is not None


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


def test_public_things_are_documented() -> None:
    """Every public function and class, and every public method of one, says what it does."""
    for name in PUBLIC:
        value = getattr(yocto_data, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and (callable(member) or isinstance(member, property)):
                    assert inspect.getdoc(member), f"{name}.{key}"


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
    (code,) = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    (expected,) = re.findall(r"```text\n(.*?)```", readme(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (expected, "") == (done.stdout, done.stderr)


FORBIDDEN_NAMES = {"print", "input", "eval", "exec", "__import__"}
FORBIDDEN_MODULES = {"pickle", "shelve", "argparse", "subprocess", "urllib", "socketserver", "http"}
# Changes to the disk outside fsops.py would escape the tests that make each of them fail.
WRITING = {
    "unlink",
    "rmdir",
    "mkdir",
    "makedirs",
    "rename",
    "replace",
    "touch",
    "symlink_to",
    "fsync",
    "write_text",
    "write_bytes",
    "rmtree",
    "remove",
    "link_to",
    "hardlink_to",
    "copyfile",
    "move",
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_source_keeps_the_house_rules(source: Path) -> None:
    """No printing, no pickle, no environment, no network; the disk is changed in fsops.py only."""
    tree = ast.parse(source.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        if isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN_NAMES
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"environ", "getenv", "stdout", "stderr"}
            through_fsops = isinstance(node.value, ast.Name) and node.value.id == "fsops"
            of_text = node.attr == "replace" and source.name == "decoding.py"
            if source.name != "fsops.py" and not through_fsops and not of_text:
                assert node.attr not in WRITING, f"{source.name}:{node.lineno}"


def test_files_stay_readable() -> None:
    """No file is longer than 350 lines, no function longer than a screen without its docstring."""
    for source in SOURCES:
        text = source.read_text("utf-8")
        assert len(text.splitlines()) <= 350, source.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{source.name}: {node.name}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("a\nb\x1b[2J\x7f", r"a\nb\x1b[2J\x7f"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("\udcff", r"\udcff"),
        ("x" * 160, "x" * 160),
        ("a" * 200 + "z" * 200, "a" * 107 + "..." + "z" * 50),
    ],
)
def test_names_are_shown_safely(value: str, shown: str) -> None:
    """What cannot be printed is escaped, what is long keeps its two ends."""
    assert shown == show(value)
