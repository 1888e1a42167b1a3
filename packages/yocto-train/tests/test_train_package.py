"""The package as a product: its public names, its README, its changelog, and what it never does."""

import ast
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yocto_train

SOURCE = Path(yocto_train.__file__).parent
MODULES = sorted(SOURCE.glob("*.py"))
HERE = Path(__file__).resolve().parent.parent


def test_public_names() -> None:
    """What is exported changes on purpose only."""
    assert [
        "RECIPES", "SIZES", "Candidate", "Checkpoint", "CheckpointError", "Evaluated", "Evaluation",
        "Event", "Muon", "NonFiniteError", "Placement", "Recipe", "Run", "RunError", "Sampled",
        "SaveError", "Saved", "Started", "StepDone", "Stopped", "TrainConfig", "TrainConfigError",
        "TrainError", "Trainer", "World", "Written", "bits_per_byte", "bytes_per_token", "choose",
        "compile_pays", "dropout_for", "evaluate", "find_checkpoint", "joined", "load_checkpoint",
        "lr_factor", "make_optimizers", "measure_precision", "memory_bytes", "orthogonalize",
        "place", "save_checkpoint", "step_of",
    ] == yocto_train.__all__  # fmt: skip
    assert all(hasattr(yocto_train, name) for name in yocto_train.__all__)


def test_one_base_exception() -> None:
    """Whoever catches TrainError catches all of ours; a ValueError is the caller's to change."""
    errors = [getattr(yocto_train, name) for name in yocto_train.__all__ if name.endswith("Error")]
    assert all(issubclass(error, yocto_train.TrainError) for error in errors)
    assert all(
        issubclass(error, ValueError) != issubclass(error, RuntimeError)
        for error in errors
        if error is not yocto_train.TrainError
    )


# --- what the source never does ------------------------------------------------------------------

WRITING = re.compile(
    r"""^(write_text|write_bytes|mkdir|rmdir|unlink|rename|renames|replace|rmtree|symlink_to|symlink
    |hardlink_to|link|touch|truncate|ftruncate|chmod|fsync|remove|removedirs|makedirs|copy|copy2
    |copytree|copyfile|move|mkstemp|mkdtemp|NamedTemporaryFile|TemporaryDirectory)$""",
    re.VERBOSE,
)
FORBIDDEN_IMPORTS = {
    "pickle", "marshal", "shelve", "subprocess", "socket", "urllib", "http", "requests", "argparse",
    "logging", "signal",
}  # fmt: skip
FORBIDDEN_CALLS = {"exec", "eval", "print", "input", "compile", "__import__"}


def calls(tree: ast.AST) -> list[tuple[str | None, str, ast.Call]]:
    """Each call as (what it is looked up on, the function's name, the node)."""
    found: list[tuple[str | None, str, ast.Call]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                owner = node.func.value
                found.append(
                    (owner.id if isinstance(owner, ast.Name) else None, node.func.attr, node)
                )
            elif isinstance(node.func, ast.Name):
                found.append((None, node.func.id, node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_write_goes_through_files(path: Path) -> None:
    """Section 8.1: one module touches the disk.

    No other module writes, renames or removes anything, or opens a file to write, so that injecting
    faults there reaches all there is; and only yocto-model's one function loads a .pt file.
    """
    for owner, name, node in calls(ast.parse(path.read_text(encoding="utf-8"))):
        assert (owner, name) not in {("torch", "save"), ("torch", "load")}
        if path.stem == "files" or owner in {"files", "dataclasses"}:
            continue
        assert not WRITING.match(name), f"{path.name}:{node.lineno} {name}"
        if name == "open" and owner != "Checkpoint":
            pytest.fail(f"{path.name}:{node.lineno} opens a file")


def test_the_scan_finds_writes() -> None:
    """Negative control: the scan sees what it is there for."""
    source = "Path('x').write_text('')\nos.replace(a, b)\nshutil.rmtree(c)\nopen('d', 'w')"
    names = [name for _, name, _ in calls(ast.parse(source))]
    assert 3 == sum(bool(WRITING.match(name)) for name in names)
    assert "open" in names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_what_a_library_does_not_do(path: Path) -> None:
    """No pickle, no code from text, no network, no printing, no command line, no environment.

    No signals.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            assert not FORBIDDEN_IMPORTS & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"environ", "getenv", "argv", "stdout", "stderr"}
    assert not FORBIDDEN_CALLS & {name for owner, name, _ in calls(tree) if owner is None}


# --- what comes with it --------------------------------------------------------------------------


def test_the_example_of_the_readme(data_dir: Path, tmp_path: Path) -> None:
    """The README's example runs as it stands, with its paths replaced, and trains and saves."""
    readme = HERE / "README.md"
    if not readme.is_file():
        pytest.skip("the README is not beside the tests")
    example, *_ = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
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
    changelog = HERE / "CHANGELOG.md"
    if not changelog.is_file():
        pytest.skip("the changelog is not beside the tests")
    headings = re.findall(r"^## (\S+)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert version("yocto-train") == released[0] == yocto_train.__version__
