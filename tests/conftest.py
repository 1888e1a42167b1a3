"""What the tests that cross packages share: the repository's root, and running our commands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def command() -> Command:
    """Run a command of ours as a user would, in a directory, and return what it did."""

    def run(
        name: str, *arguments: str, cwd: Path, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        # One thread: these processes share two cores with each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        return subprocess.run(
            [Path(sys.executable).parent / name, *arguments],
            cwd=cwd,
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env=environment,
        )

    return run
