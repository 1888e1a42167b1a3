"""Commands as processes: imports, signals, pipes, full disks; and the example of the README."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_cli import eval as evaluation
from yocto_cli import export, prepare, sample, train
from yocto_cli.threads import use_threads

# Buffered, as for a user: some machines that run tests set PYTHONUNBUFFERED.
ENVIRONMENT = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
README = Path(__file__).parent.parent / "README.md"
COMMANDS = {
    "yocto-prepare": prepare.main, "yocto-train": train.main, "yocto-sample": sample.main,
    "yocto-eval": evaluation.main, "yocto-export": export.main,
}  # fmt: skip
LATE = ("torch", "numpy", "sentencepiece", "prompt_toolkit", "rich.live", "yocto_train.trainer")


def code(command: str) -> list[str]:
    """A process that runs a command as its entry point does."""
    program = f"import sys; from yocto_cli.{command} import main; sys.exit(main())"
    return [sys.executable, "-c", program]


def finish(words: Sequence[str | Path], **options: object) -> "subprocess.CompletedProcess[bytes]":
    chosen: dict[str, Any] = {
        "capture_output": True, "stdin": subprocess.DEVNULL, "env": ENVIRONMENT, **options,
    }  # fmt: skip
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run([*map(str, words)], timeout=120, check=False, **chosen)
    return done


@pytest.mark.parametrize(("words", "exit_code"), [
    ("prepare --help", 0), ("prepare bpe --help", 0), ("prepare chr", 2),
    ("prepare char --text_pth x", 2), ("train --help", 0), ("train --max_itrs 5", 2),
    ("sample --help", 0), ("sample --temprature 1", 2), ("sample --config nowhere.toml", 2),
    ("eval --help", 0), ("eval --strid 1", 2),
    ("export --help", 0), ("export a b.bin", 2),
])  # fmt: skip
def test_help_and_typing_errors_import_nothing_heavy(words: str, exit_code: int) -> None:
    """Torch and its like come in only after the words have been understood."""
    command, *rest = words.split()
    program = (
        f"import sys; from yocto_cli.{command} import main\n"
        "try: end = main()\n"
        "except SystemExit as stop: end = stop.code\n"
        f"sys.exit([end or 0, [m for m in {LATE} if m in sys.modules]])"
    )
    done = finish([sys.executable, "-c", program, *rest])
    assert f"[{exit_code}, []]" == done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("words", [
    "train --list", "train --resume", "train --resume nowhere", "sample", "sample --ckpt nowhere",
    "sample --timelapse nowhere", "sample --ckpt hf:no", "sample --ckpt no.gguf --threads -1",
    "eval --ckpt nowhere --text_path {text}", "export nowhere out.gguf",
])  # fmt: skip
def test_a_model_that_does_not_exist_is_refused_without_torch(words: str, poem: Path) -> None:
    """Importing it takes seconds."""
    command, *rest = words.format(text=poem).split()
    program = (
        f"import sys; from yocto_cli.{command} import main; end = main(); "
        "sys.exit(f'{end} {\"torch\" in sys.modules}')"
    )
    done = finish([sys.executable, "-c", program, *rest], cwd=poem.parent)
    assert done.stderr.decode().splitlines()[-1] == "2 False", done.stderr


THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.property
@given(
    st.integers(0, 64),
    st.none() | st.integers(0, 1 << 40),
    st.dictionaries(st.sampled_from(THREADS), st.sampled_from(["1", "3", "active"])),
)
def test_threads(asked: int, n_bytes: int | None, own: dict[str, str]) -> None:
    """What the user's environment says stays, but for a number that a flag names.

    Equal arguments give equal numbers, and nothing is changed once torch has read them.
    """
    environment = dict(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        patch.setitem(sys.modules, "torch", Mock())
        use_threads(0, n_bytes=n_bytes)
        assert environment == own
        patch.delitem(sys.modules, "torch")
        use_threads(asked, n_bytes=n_bytes)
    changed = dict(environment.items() - own.items())
    number = changed.pop("OMP_NUM_THREADS", own.get("OMP_NUM_THREADS"))
    is_small = n_bytes is not None and n_bytes < 16 << 20
    assert number == (str(asked) if asked else own.get(THREADS[0], "1" if is_small else None))
    assert ([*changed] == ["GOMP_SPINCOUNT"]) == (not {*THREADS[1:]} & {*own})


@pytest.fixture
def unread() -> Iterator[dict[str, Any]]:
    """Options for `finish`: stdout is a pipe whose reader is gone for certain."""
    reader, writer = os.pipe()
    os.close(reader)
    yield {"stdout": writer, "stderr": subprocess.PIPE, "capture_output": False}
    os.close(writer)


@pytest.mark.parametrize("command", ["prepare", "train", "sample", "eval", "export"])
def test_help_into_a_closed_pipe_is_quiet(command: str, unread: Any) -> None:
    """As in `yocto-train --help | head -1`."""
    done = finish([*code(command), "--help"], **unread)
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


def test_a_sample_into_a_closed_pipe_or_a_full_disk(runs: Path, unread: Any) -> None:
    """A reader that has gone is no failure; a disk that is full is one, in one line."""
    words = [*code("sample"), f"--ckpt={runs / 'char'}", "--max_new_tokens=9"]
    done = finish(words, **unread)
    assert done.returncode == 0
    assert b"error" not in done.stderr
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            done = finish(words, **{**unread, "stdout": full})
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


# --- what installed commands run first -----------------------------------------------------------

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"


def started(home: Path, content: str) -> Any:
    """A process that starts the module `command` with this content."""
    (home / "command.py").write_text(content)
    (home / "imported.py").write_text(INTERRUPT)
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from yocto_cli import start; start('command', 'yocto-x')"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(home), *sys.path])}
    return finish([sys.executable, "-c", program], env=environment, text=True)


COMMAND = "from yocto_cli.command import run_command\n"
RUN = "def main(): return run_command(work, prog='yocto-x', argv=[])\n"


@pytest.mark.parametrize("content", [
    INTERRUPT,
    f"{COMMAND}def work(_): import imported\n{RUN}",
    f"{COMMAND}def work(_):\n    {INTERRUPT}{RUN}",
    f"{COMMAND}try: import imported\nexcept BaseException: pass\ndef work(_): pass\n{RUN}",
])  # fmt: skip
def test_ctrl_c_is_quiet(content: str, tmp_path: Path) -> None:
    """While the command is imported, while it imports, while it works; nobody can swallow it."""
    done = started(tmp_path, content)
    assert (130, "", "yocto-x: stopped\n") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_is_what_main_returns(code: int, tmp_path: Path) -> None:
    """And a Ctrl-C while Python takes itself apart no longer changes it."""
    late = f"import atexit\natexit.register(lambda: exec({INTERRUPT!r}))\n"
    done = started(tmp_path, f"{late}def main(): return {code}\n")
    assert (code, "") == (done.returncode, done.stderr)


def test_the_commands_are_there() -> None:
    """Each script of the package starts the module of its name."""
    scripts = metadata.distribution("yocto-cli").entry_points
    expected = {(f"yocto_cli.{s.name.removeprefix('yocto-')}", s.name) for s in scripts}
    assert expected == {script.load().args for script in scripts}
    assert 5 == len(expected)


def test_the_example_runs(
    run: Any, poem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands, in order, in an empty directory with a book in it."""
    monkeypatch.chdir(tmp_path)
    poem.rename("book.txt")
    found = re.search(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    said = {}
    for line in found[1].splitlines():
        program, *words = shlex.split(line)
        result = run(COMMANDS[program], words)
        assert result.code == 0, result.err
        said[program] = result.out
    assert said["yocto-sample"].startswith("The soul")
    assert "bits/byte" in said["yocto-eval"]
    assert Path("book.gguf").is_file()
    assert Path("data/book/vocab.json").is_file()
    assert Path("checkpoints/book").is_dir()
