"""The chat on a real terminal: tmux draws it, presses keys, and shows what stands there.

Nothing here depends on how fast anything is: each step waits for a text to appear.
"""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
DRIVER = Path(__file__).with_name("chat_driver.py")
_PATIENCE_SECONDS = 60
_SECONDS_TO_GIVE_UP = 2.5  # prompt_toolkit waits two seconds for an answer


class Terminal:
    """A tmux of its own with one pane, in which a shell has started the chat."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.go = directory / "go"  # what a reply to "slow" waits for
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
        self.type("clear; $CHAT")

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

    def everything(self) -> str:
        """The same below what has scrolled out of it since it was cleared."""
        return self._run("capture-pane", "-p", "-S", "-")

    def wait(self, *texts: str) -> str:
        """The screen as soon as all texts stand on it."""
        return self.wait_until(lambda screen: all(text in screen for text in texts))

    def wait_until(self, holds: Callable[[str], bool]) -> str:
        """The screen as soon as something holds of it."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not holds(screen := self.screen()):
            assert time.monotonic() < end, f"waited in vain; there stood:\n{screen}"
            time.sleep(0.05)
        return screen

    def press_until(self, key: str, holds: Callable[[str], bool]) -> str:
        """The screen as soon as a key, pressed again and again, has made something hold of it.

        The key has to be repeated: one that comes too early may get lost, and presses that follow
        each other faster than a handler runs count as one.
        """

        def pressed(screen: str) -> bool:
            if not (done := holds(screen)):
                self.keys(key)
            return done

        return self.wait_until(pressed)

    def has_ended(self, code: int) -> None:
        """The shell has the terminal again, with echo and whole lines, and got an exit code."""
        self.wait_until(lambda screen: screen.rstrip().endswith("$"))
        self.type("echo exit=$?; stty -a")
        self.wait_until(lambda screen: {f"exit={code}", "icanon", "echo"} <= set(screen.split()))

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        """End it and everything in it."""
        self._run("kill-server")
        self._socket.cleanup()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A chat for several tests: starting one takes seconds."""
    with closing(Terminal(tmp_path_factory.mktemp("shared"), TERM="screen-256color")) as terminal:
        terminal.wait("ctx 18/2000")
        yield terminal


@pytest.fixture
def terminal(shared: Terminal) -> Terminal:
    """An empty window, and nothing said yet."""
    shared.type("/reset")
    shared.press_until("C-l", lambda screen: "/reset" not in screen)
    shared.wait("ctx 18/2000")
    return shared


def test_typing_ahead_and_stopping_at_once(terminal: Terminal) -> None:
    """What is typed during a reply waits for the next prompt; Ctrl-C twice does not wait at all."""
    terminal.type("slow")
    terminal.wait("\nbegun")
    terminal.keys("ahead")
    terminal.go.touch()
    screen = terminal.wait("begun and done", "> ahead")
    assert screen.count("ahead") == 1
    terminal.go.unlink()
    terminal.keys("C-c")
    terminal.type("slow")
    terminal.wait_until(lambda screen: screen.count("\nbegun") == 2)
    terminal.keys("lost")
    assert "lost" not in terminal.press_until("C-c", lambda screen: "(stopped)" in screen)
    terminal.type("next")
    terminal.wait("You said next.")


def test_a_hostile_model_and_a_narrow_window(terminal: Terminal) -> None:
    """Nothing a model says acts on the terminal; lines are broken between words at any width."""
    terminal.type("hostile")
    screen = terminal.wait("␛[2J␛]0;pwned␇[/x]:smile:<D83D><202E>␍ end")
    assert "> hostile" in screen
    assert "pwned" not in terminal._run("display-message", "-p", "#{pane_title}")
    terminal.resize(24, 40)
    terminal.type("long")
    screen = terminal.wait("word59")
    words = [f"word{number}" for number in range(60)]
    assert words == [word for line in screen.split("\n") for word in line.split() if word in words]
    terminal.resize(1, 24)
    terminal.type("/reset")
    terminal.resize(80, 24)
    terminal.wait("ctx 18/2000")
    terminal.type("fine")
    terminal.wait("ctx 36/2000")  # it has answered


def test_suspending(terminal: Terminal) -> None:
    """Ctrl-Z gives the shell a terminal that echoes; the reply goes on in the foreground."""
    terminal.type("slow")
    terminal.wait("\nbegun")
    terminal.keys("C-z")
    terminal.wait("Stopped")
    terminal.type("stty -a")
    terminal.wait_until(lambda screen: {"icanon", "echo"} <= set(screen.split()))
    terminal.keys("clear", "Enter")
    terminal.wait_until(lambda screen: "Stopped" not in screen)
    terminal.type("fg")
    terminal.go.touch()
    terminal.wait("ctx 23/2000")
    # The new prompt may take the whole window: where it begins is not what this is about.
    assert "and done" in terminal.everything()
    terminal.go.unlink()


def test_a_dumb_terminal_and_being_terminated(tmp_path: Path) -> None:
    """TERM=dumb: plain input, plain text; SIGTERM ends with 143 and a terminal that echoes."""
    with closing(Terminal(tmp_path, TERM="dumb")) as terminal:
        terminal.wait("\n>")
        terminal.type("two\\")
        terminal.type("lines")
        terminal.wait("You said two lines.", "· stop")
        terminal.type("/alts")
        terminal.wait("this terminal cannot show it")
        terminal.keys("C-c")
        terminal.wait("Ctrl-D or /exit leaves")
        terminal.type("slow")
        terminal.wait("\nbegun")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        terminal.has_ended(143)


def test_a_conversation(terminal: Terminal) -> None:
    """Reply, stop and continue, completion, edit, alternatives, history, and a clean end.

    It ends the chat that is shared, and so must stay the last one.
    """
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
    screen = terminal.wait_until(lambda screen: screen.count("(stopped)") == 2)
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
    terminal.wait_until(lambda screen: screen.count("seed ") >= 3)

    terminal.keys("C-c")
    terminal.wait("Ctrl-D or /exit leaves")
    terminal.keys("Up")
    terminal.wait("> /alts")
    terminal.keys("C-c")
    terminal.wait_until(lambda screen: screen.count("> /alts") == 1)
    terminal.keys("C-d")
    terminal.has_ended(0)


def test_a_terminal_that_does_not_say_where_its_cursor_is(tmp_path: Path) -> None:
    """It is answered all the same, and nothing is printed about it: neither a wait nor a word."""
    terminal, its_end = os.openpty()
    own = {"TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(DRIVER)], cwd=tmp_path, env={**os.environ, **own},
        stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True,
    )  # fmt: skip
    shown = ""

    def wait(text: str) -> None:
        nonlocal shown
        while text not in shown:  # the test's own time limit ends it
            assert select.select([terminal], [], [], _PATIENCE_SECONDS)[0], shown
            shown += os.read(terminal, 1 << 16).decode(errors="replace")

    with process:
        wait("\x1b[6n")  # asks for the cursor's position
        os.write(terminal, b"hello\r")
        wait("You said hello.")
        os.write(terminal, b"/alts\r")
        wait("q leaves")
        time.sleep(_SECONDS_TO_GIVE_UP)
        os.write(terminal, b"qagain\r")
        wait("You said again.")
        os.write(terminal, b"exit\r")
        assert process.wait(_PATIENCE_SECONDS) == 0
    os.close(terminal)
    os.close(its_end)
    assert "WARNING" not in shown
