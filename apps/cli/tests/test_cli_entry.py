"""What installed commands run first: Ctrl-C at any moment is one line and 130."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from yocto_cli import entry

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"


def started(home: Path, content: str) -> "subprocess.CompletedProcess[str]":
    """A process that starts the module `command` with this content."""
    (home / "command.py").write_text(content)
    (home / "imported.py").write_text(INTERRUPT)
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from yocto_cli.entry import start; start('command', 'yocto-x')"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(home), *sys.path])},
    )


COMMAND = "from yocto_cli.command import run_command\n"
RUN = "def main(): return run_command(work, prog='yocto-x', argv=[])\n"


@pytest.mark.parametrize(
    "content",
    [
        INTERRUPT,
        f"{COMMAND}def work(_): import imported\n{RUN}",
        f"{COMMAND}def work(_):\n    {INTERRUPT}{RUN}",
        f"{COMMAND}try: import imported\nexcept BaseException: pass\ndef work(_): pass\n{RUN}",
    ],
)
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


def test_the_commands_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script of the package starts the module of its name."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(entry, "start", lambda *words: calls.append(words))
    for command in (entry.prepare, entry.train, entry.sample):
        command()
    expected = [(f"yocto_cli.{name}", f"yocto-{name}") for name in ("prepare", "train", "sample")]
    assert expected == calls
