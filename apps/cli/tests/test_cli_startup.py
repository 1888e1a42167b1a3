"""Commands as processes: what is imported when, and what pipes and full disks do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from yocto_cli import sample

# Buffered, as for a user: some machines that run tests set PYTHONUNBUFFERED.
ENVIRONMENT = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
LATE = ("torch", "numpy", "sentencepiece", "prompt_toolkit", "rich.live", "yocto_train.trainer")


def code(command: str) -> list[str]:
    """A process that runs a command as its entry point does."""
    program = f"import sys; from yocto_cli.{command} import main; sys.exit(main())"
    return [sys.executable, "-c", program]


def finish(words: Sequence[str | Path], **options: object) -> "subprocess.CompletedProcess[bytes]":
    chosen: dict[str, Any] = {
        "capture_output": True,
        "stdin": subprocess.DEVNULL,
        "env": ENVIRONMENT,
        **options,
    }
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run([*map(str, words)], timeout=120, check=False, **chosen)
    return done


@pytest.mark.parametrize(
    ("command", "words", "exit_code"),
    [
        ("prepare", ["--help"], 0),
        ("prepare", ["bpe", "--help"], 0),
        ("prepare", ["chr"], 2),
        ("prepare", ["char", "--text_pth", "x"], 2),
        ("train", ["--help"], 0),
        ("train", ["--max_itrs", "5"], 2),
        ("sample", ["--help"], 0),
        ("sample", ["--temprature", "1"], 2),
        ("sample", ["--config", "nowhere.toml"], 2),
        ("sample", ["--prompt_file", "nowhere.txt"], 2),
    ],
)
def test_help_and_typing_errors_import_nothing_heavy(
    command: str, words: list[str], exit_code: int
) -> None:
    """Torch and its like come in only after the words have been understood."""
    program = (
        f"import sys; from yocto_cli.{command} import main\n"
        "try: end = main()\n"
        "except SystemExit as stop: end = stop.code\n"
        f"sys.exit([end or 0, [m for m in {LATE} if m in sys.modules]])"
    )
    done = finish([sys.executable, "-c", program, *words])
    assert f"[{exit_code}, []]" == done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("command", ["prepare", "train", "sample"])
def test_help_into_a_closed_pipe_is_quiet(command: str) -> None:
    """As in `yocto-train --help | head -1`, but with a reader that is gone for certain."""
    reader, writer = os.pipe()
    os.close(reader)
    done = finish(
        [*code(command), "--help"], stdout=writer, stderr=subprocess.PIPE, capture_output=False
    )
    os.close(writer)
    assert (0, b"") == (done.returncode, done.stderr)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_and_errors_fit_any_encoding(encoding: str) -> None:
    """What an encoding lacks is written as its code, and nothing fails."""
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    done = finish([*code("sample"), "--help"], env=environment)
    assert (0, b"") == (done.returncode, done.stderr)
    done = finish([*code("sample"), "--seed=\u00e9\u2028\U0001f600"], env=environment)
    assert done.returncode == 2
    assert 1 == done.stderr.count(b"\n")


def test_errors_hold_no_colours_even_for_a_terminal(tmp_path: Path) -> None:
    """FORCE_COLOR and the like change the help, never the one line."""
    environment = {**ENVIRONMENT, "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}
    done = finish([*code("sample"), "--lr"], env=environment)
    assert b"yocto-sample: error: unknown flag --lr; see yocto-sample --help\n" == done.stderr


def test_a_sample_into_a_closed_pipe_or_a_full_disk(runs: Path) -> None:
    """A reader that has gone is no failure; a disk that is full is one, in one line."""
    words = [*code("sample"), f"--ckpt={runs / 'char'}", "--max_new_tokens=9"]
    reader, writer = os.pipe()
    os.close(reader)
    done = finish(words, stdout=writer, stderr=subprocess.PIPE, capture_output=False)
    os.close(writer)
    assert done.returncode == 0
    assert b"error" not in done.stderr
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            done = finish(words, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert done.returncode == 1
        assert b"yocto-sample: error: No space left on device" in done.stderr.splitlines()[-1]
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_is_closed_is_missed_by_nobody(closed: int, runs: Path) -> None:
    """As with `yocto-sample >&-`: the command does its work, and what it says elsewhere is seen."""
    words = [*code("sample"), f"--ckpt={runs / 'char'}", "--max_new_tokens=9", "--seed=1"]
    wrapper = f"import os, sys; os.close({closed}); os.execv(sys.argv[1], sys.argv[1:])"
    done = finish([sys.executable, "-c", wrapper, *words])
    assert done.returncode == 0
    assert (b"" == done.stdout) is (closed == 1)
    assert (b"9 tokens" in done.stderr) is (closed != 2)


def test_a_prompt_comes_through_a_real_pipe(runs: Path, run: Any) -> None:
    """`echo we | yocto-sample` continues it."""
    words = [f"--ckpt={runs / 'char'}", "--max_new_tokens=9", "--seed=1"]
    piped = finish([*code("sample"), *words], stdin=None, input=b"we\n")
    assert run(sample.main, [*words, "--prompt=we"]).out == piped.stdout.decode()
    assert piped.stdout.startswith(b"we")


def test_ctrl_c_ends_a_sample_with_its_exit_code(runs: Path) -> None:
    """The text so far is whole lines, and there is no traceback."""
    words = [*code("sample"), f"--ckpt={runs / 'char'}", "--max_new_tokens=100000000"]
    with subprocess.Popen(words, stdout=-1, stderr=-1, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.read(20)  # it is writing now
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_sigterm_leaves_no_half_made_data(tmp_path: Path) -> None:
    """A preparation that is stopped removes what it had begun."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"the wind and the rain, day after day\n" * 400_000)
    out = tmp_path / "out"
    words = [*code("prepare"), "word", f"--text_path={text}", f"--out_dir={out}"]
    with subprocess.Popen(words, stdout=-1, stderr=-1, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob(".tmp-out-*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert ["text.txt"] == [path.name for path in tmp_path.iterdir()]
