"""The chat on a real terminal: tmux draws it, presses keys, and shows what stands there.

Nothing here depends on how fast anything is: each step waits for a text to appear.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
DRIVER = Path(__file__).with_name("chat_driver.py")
_PATIENCE_SECONDS = 60


class Terminal:
    """A tmux of its own with one pane, in which a shell has started the chat."""

    def __init__(self, directory: Path, **environment: str) -> None:
        # Not in `directory`: the path of a socket may have 107 bytes, and a test's can have more.
        self._socket = tempfile.TemporaryDirectory(prefix="yocto-", dir="/tmp")
        self._tmux = ("tmux", "-S", f"{self._socket.name}/socket", "-f", "/dev/null")
        settings = {
            "XDG_STATE_HOME": str(directory / "state"), "PS1": "$ ", "OMP_NUM_THREADS": "1",
            "NO_COLOR": "", "CHAT": f"{sys.executable} {DRIVER}", **environment,
        }  # fmt: skip
        assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        shell = f"cd {shlex.quote(str(directory))} && {assigned} exec bash --norc --noprofile -i"
        self._run("new-session", "-d", "-x", "80", "-y", "24", shell)
        self.wait("$")
        self.type("clear; $CHAT; echo exit=$?")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=30
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Press keys: names of tmux, or texts."""
        self._run("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text, and press Enter."""
        self._run("send-keys", "-l", text)
        self.keys("Enter")

    def screen(self) -> str:
        """What stands in the window."""
        return self._run("capture-pane", "-p")

    def wait(self, *texts: str) -> str:
        """The screen as soon as all texts stand on it."""
        return self.wait_until(lambda screen: all(text in screen for text in texts), str(texts))

    def wait_until(self, holds: Callable[[str], bool], what: str) -> str:
        """The screen as soon as something holds of it."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not holds(screen := self.screen()):
            assert time.monotonic() < end, f"waited for {what}; there stood:\n{screen}"
            time.sleep(0.05)
        return screen

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        """End it and everything in it."""
        self._run("kill-server")
        self._socket.cleanup()


def started(directory: Path) -> Iterator[Terminal]:
    terminal = Terminal(directory, TERM="screen-256color")
    try:
        terminal.wait("ctx 0/2000")
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    yield from started(tmp_path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def shared(directory: Path) -> Iterator[Terminal]:
    """For tests that leave the chat running: starting one takes seconds."""
    yield from started(directory)


def test_a_conversation(terminal: Terminal) -> None:
    """Reply, stop and continue, completion, edit, alternatives, history, and a clean end."""
    terminal.type("hello")
    terminal.wait("You said hello.", "ctx 38/2000 · stop")

    terminal.type("count")
    terminal.wait("1 2 3 4 ")
    terminal.keys("C-c")
    terminal.wait("(stopped)", "stopped: /continue")
    terminal.keys("/cont", "Tab")
    terminal.wait("> /continue")
    terminal.keys("Enter")
    terminal.wait("> /continue\n1 2 3 ")
    terminal.keys("C-c")
    screen = terminal.wait_until(lambda screen: screen.count("(stopped)") == 2, "a second stop")
    counted = screen.partition("> /continue\n")[2].partition(" (stopped)")[0].split()
    assert [str(number + 1) for number in range(len(counted))] == counted

    terminal.type("/undo")
    terminal.wait("1 turn taken back, 1 left")
    terminal.type("/edit")
    terminal.wait("> /edit\n\n> hello")
    terminal.keys("C-a", "C-d", "j")
    terminal.keys("Enter")
    terminal.wait("You said jello.")

    terminal.type("/alts")
    terminal.wait("token 1 of 15", "Enter swaps")
    terminal.keys("Right", "Right", "Down")
    terminal.wait("token 3 of 15")
    terminal.keys("Enter")
    terminal.wait_until(lambda screen: screen.count("seed ") >= 3, "the swapped reply")

    terminal.keys("C-c")
    terminal.wait("Ctrl-D or /exit leaves")
    terminal.keys("Up")
    terminal.wait("> /alts")
    terminal.keys("C-c")
    terminal.wait_until(lambda screen: screen.count("> /alts") == 1, "a cleared line")
    terminal.keys("C-d")
    terminal.wait("exit=0")
    terminal.type("stty -a | grep -o -e '-*echo ' -e '-*icanon'")
    terminal.wait("\necho", "\nicanon")


def test_typing_ahead_and_stopping_at_once(shared: Terminal, directory: Path) -> None:
    """What is typed during a reply waits for the next prompt; Ctrl-C twice does not wait at all."""
    shared.type("slow")
    shared.wait("\nbegun")
    shared.keys("ahead")
    (directory / "go").touch()
    screen = shared.wait("begun and done", "> ahead")
    assert screen.count("ahead") == 1
    (directory / "go").unlink()
    shared.keys("C-c")
    shared.type("slow")
    shared.wait_until(lambda screen: screen.count("\nbegun") == 2, "the second reply")
    shared.keys("lost")

    def press_on(screen: str) -> bool:
        # Presses that follow each other faster than the handler runs count as one.
        if "(stopped)" not in screen:
            shared.keys("C-c")
            return False
        return True

    assert "lost" not in shared.wait_until(press_on, "the stop")
    shared.type("next")
    shared.wait("You said next.")
    shared.type("/reset")
    shared.wait("ctx 0/2000")


def test_a_hostile_model_and_a_narrow_window(shared: Terminal) -> None:
    """Nothing a model says acts on the terminal; lines are broken between words at any width."""
    shared.type("hostile")
    screen = shared.wait("␛[2J␛]0;pwned␇[/x]:smile:<D83D><202E>␍ end")
    assert "> hostile" in screen
    assert "pwned" not in shared._run("display-message", "-p", "#{pane_title}")
    shared.resize(24, 40)
    shared.type("long")
    screen = shared.wait("word59")
    words = [f"word{number}" for number in range(60)]
    assert words == [word for line in screen.split("\n") for word in line.split() if word in words]
    shared.resize(1, 24)
    shared.type("/reset")
    shared.resize(80, 24)
    shared.wait("ctx 0/2000")
    shared.type("fine")
    shared.wait("ctx 36/2000")  # it has answered


def test_suspending_and_being_terminated(terminal: Terminal, tmp_path: Path) -> None:
    """Ctrl-Z gives the shell a terminal that echoes; SIGTERM ends with 143 and one too."""
    terminal.type("slow")
    terminal.wait("\nbegun")
    terminal.keys("C-z")
    terminal.wait("Stopped")
    terminal.type("stty -a | grep -o -e '-*echo '")
    terminal.wait("\necho")
    terminal.keys("clear", "Enter")
    terminal.wait_until(lambda screen: "Stopped" not in screen, "a clear screen")
    terminal.type("fg")
    (tmp_path / "go").touch()
    terminal.wait("and done")
    (tmp_path / "go").unlink()
    terminal.type("slow")
    terminal.wait("\nbegun")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    terminal.type("clear; stty -a | grep -o -e '-*echo '; echo over")
    terminal.wait("\nover")
    assert "-echo" not in terminal.screen()


def test_a_dumb_terminal(tmp_path: Path) -> None:
    """TERM=dumb: plain input, plain text, no escape sequence at all."""
    terminal = Terminal(tmp_path, TERM="dumb")
    try:
        terminal.wait("\n>")
        terminal.type("two\\")
        terminal.type("lines")
        terminal.wait("You said two lines.", "· stop")
        terminal.type("/alts")
        terminal.wait("this terminal cannot show it")
        terminal.keys("C-c")
        terminal.wait("Ctrl-D or /exit leaves")
        terminal.type("/exit")
        terminal.wait("exit=0")
    finally:
        terminal.close()
