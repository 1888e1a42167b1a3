"""How commands end: exit codes, one line on stderr, nothing on a broken pipe."""

import errno
import sys
from collections.abc import Callable
from typing import Any

import pytest
from yocto_cli.command import UsageError, WorkFailedError, next_command, run_command
from yocto_data import DataError, WorkError
from yocto_model import ModelFileError, SamplingError
from yocto_tokenizers import TokenizerError
from yocto_train import CheckpointError, SaveError


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def main_that_raises(error: BaseException) -> Callable[..., int]:
    def fail(_: list[str]) -> int:
        raise error

    return lambda argv: run_command(fail, prog="x", argv=argv)


@pytest.mark.parametrize(("error", "code", "line"), [
    (UsageError("bad flag; drop it"), 2, "bad flag; drop it"),
    (WorkFailedError("broke"), 1, "broke"),
    (TokenizerError("unknown word"), 2, "unknown word"),
    (DataError("not UTF-8"), 2, "not UTF-8"),
    (ModelFileError("no config.json"), 2, "no config.json"),
    (SamplingError("not finite"), 1, "not finite"),
    (WorkError("source changed"), 1, "source changed"),
    (CheckpointError("damaged"), 2, "damaged"),
    (SaveError("disk"), 1, "disk"),
    (OutOfMemoryError("CUDA: 2 GiB"), 1, "out of memory; try"),
    (MemoryError(), 1, "out of memory; try"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB"), 1, "out of memory; try"),
    (RuntimeError("shapes do not fit"), 1, "unexpected RuntimeError: shapes do not fit; run"),
    (PermissionError(errno.EACCES, "Permission denied", "/x\ny"), 1, "denied (/x\u240ay)"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "device; make room"),
    (KeyError("k"), 1, "unexpected KeyError: 'k'; run it again with --debug"),
    (UsageError("two\nlines \x1b[2J"), 2, "two\u240alines \u241b[2J"),
])  # fmt: skip
def test_errors_have_their_exit_code_and_their_line(
    error: BaseException, code: int, line: str, run: Any
) -> None:
    """2 where the user must change something, 1 where the work failed; always one safe line."""
    result = run(main_that_raises(error), [])
    assert code == result.code
    assert result.err.startswith("x: error: ")
    assert line in result.err
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err


def test_a_long_message_keeps_its_two_ends(run: Any) -> None:
    """A line of an error has at most about 300 characters, and still says what to do."""
    result = run(main_that_raises(UsageError(f"begin {'x' * 5000}; the fix")), [])
    assert len(result.err) < 320
    assert "begin" in result.err
    assert result.err.endswith("; the fix\n")


def test_debug_adds_the_traceback(run: Any) -> None:
    """And the line of the error is still the last one."""
    result = run(main_that_raises(UsageError("bad")), ["--debug"])
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1] == "x: error: bad"


@pytest.mark.parametrize(("main", "code"), [
    (lambda _: None, 0),
    (lambda _: 0, 0),
    (lambda _: 130, 130),
    (sys.exit, 1),
    (lambda _: sys.exit(), 0),
])  # fmt: skip
def test_an_exit_code_is_passed_on(main: Any, code: int) -> None:
    """What a command returns, or leaves with, is its exit code."""
    assert code == run_command(main, prog="x", argv=["words"])


def test_the_next_command_can_be_copied() -> None:
    """Words a shell would split are quoted."""
    command = next_command("yocto-train", "--data_dir", "my data")
    assert command == "uv run yocto-train --data_dir 'my data'"
