"""The live screen: what it writes to a terminal, and what keys do."""

import io
import os
import re
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from yocto_cli.screen import display, keyboard
from yocto_cli.screen.curve import History
from yocto_cli.screen.display import LiveDisplay, live_display
from yocto_cli.screen.keyboard import Keyboard, in_foreground, suspendable
from yocto_cli.screen.ladder import Baseline
from yocto_train import Run, Saved, Trainer

BASELINES = (Baseline(name="uniform", loss=3.0),)
SAVED = Saved(step=1, path=Path("s"), is_best=False, notes=("cannot remove \x1b[2J",))


@pytest.fixture
def shown_of(make_trainer: Any) -> Any:
    """Makes a display of a tiny training."""

    def make(history: History | None = None, trainer: Trainer | None = None) -> LiveDisplay:
        trainer = trainer or make_trainer()
        run = trainer.run_directory or Run("r")
        return LiveDisplay(trainer, run, history=history or History(), baselines=BASELINES)

    return make


def plain(text: str) -> list[str]:
    """Lines without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")


def test_a_training_on_the_screen(make_trainer: Any, shown_of: Any, screen: Any) -> None:
    """Its last frame stands there at the end, the cursor is back, and figures are the trainer's."""
    terminal = screen()
    trainer, history = make_trainer(), History()
    trainer.run_directory.create()
    with shown_of(history, trainer) as shown:
        for event in trainer.run():
            history.take(event)
            shown.show(event)
    text = terminal.text()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0
    last = plain(text[text.rfind("yocto-train") :])
    assert "100%  8/8" in last[1]
    assert f"val {trainer.progress.val_loss:.3f}" in last[2]
    assert any("uniform" in line for line in last)
    assert any("sample @8" in line for line in last)
    assert len(last) <= 24


def test_no_color_leaves_no_colours(shown_of: Any, screen: Any) -> None:
    """Bold and faint may stay; colours go, and with them nothing of the meaning."""
    coloured = re.compile(r"\x1b\[(?:[0-9]+;)*3[0-7][;m]")
    for value, expected in (("", True), ("1", False)):
        terminal = screen(no_color=value)
        with shown_of(History(losses=[(1, 2.0), (2, 1.5)], evaluations={2: 1.6})):
            pass
        assert expected == bool(coloured.search(terminal.text()))
        assert "uniform" in terminal.text()


def test_a_resized_window_is_cleared(shown_of: Any, screen: Any) -> None:
    """A terminal that became narrow has broken the lines of the last frame anew."""
    terminal = screen()
    with shown_of() as shown:
        shown._live.refresh()
        assert "\x1b[2J" not in terminal.text()
        shown._console.size = (60, 15)
        shown._live.refresh()
        assert "\x1b[2J" in terminal.text()
    last = plain(terminal.text().rpartition("\x1b[2J")[2])
    assert max(map(len, last)) < 60


def test_notes_are_printed_above_and_a_terminal_that_goes_away_stops_nothing(
    shown_of: Any, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a save has to say does not vanish with the next frame; whatever writing fails with."""
    terminal = screen()
    with shown_of() as shown:
        shown.show(SAVED)
        assert "note: cannot remove \u241b[2J" in plain(terminal.text())
        with monkeypatch.context() as patch:
            patch.setattr(terminal, "write", Mock(side_effect=OSError(5, "Input/output error")))
            shown._live.refresh()
            shown.show(SAVED)


def test_in_the_background_nothing_is_drawn(
    shown_of: Any, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `bg` the shell has the terminal; after `fg` the next report brings the screen back."""
    terminal = screen()
    with shown_of() as shown:
        monkeypatch.setattr(display, "in_foreground", lambda _: False)
        shown.show(SAVED)
        assert not shown._live
        before = terminal.text()
        shown._settle()
        assert before == terminal.text()
        monkeypatch.setattr(display, "in_foreground", lambda _: True)
        shown.show(SAVED)
    assert len(terminal.text()) > len(before)


def test_pipes_dumb_terminals_and_background_jobs_get_lines(
    make_trainer: Any, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen is for the one who looks at it."""
    trainer = make_trainer()

    def made() -> bool:
        return live_display(trainer, Run("r"), history=History()) is not None

    for term in ("dumb", "", "unknown"):
        screen(term=term)
        assert not made()
    screen()
    for foreground in (False, True):
        monkeypatch.setattr(display, "in_foreground", lambda _, answer=foreground: answer)
        assert made() is foreground
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not made()


# --- keys --------------------------------------------------------------------------------------


@pytest.fixture
def pty() -> Any:
    """The two ends of a terminal: a stream of the one, the descriptor of the other."""
    termios = pytest.importorskip("termios")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, encoding="utf-8") as stream:
        yield ours, stream, lambda: termios.tcgetattr(theirs)
    os.close(ours)


def test_keys_are_requests(
    make_trainer: Any, shown_of: Any, pty: Any, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s, e, c and q ask the trainer, others do nothing; the terminal is as before afterwards."""
    screen()
    ours, stream, modes = pty
    monkeypatch.setattr(sys, "stdin", stream)
    trainer = make_trainer()
    asked: list[str] = []
    done = threading.Event()
    for name in ("sample", "evaluation", "save"):
        monkeypatch.setattr(trainer, f"request_{name}", partial(asked.append, name))
    monkeypatch.setattr(trainer, "request_stop", done.set)
    before = modes()
    with shown_of(trainer=trainer) as shown:
        assert modes() != before
        os.write(ours, "sxEc\u00e9q".encode())
        assert done.wait(60)
        assert shown.frame.keys
    assert before == modes()
    assert ["sample", "evaluation", "save"] == asked


def test_a_key_waits_until_its_event(shown_of: Any, screen: Any) -> None:
    """It is marked from the key until what it asked for has happened."""
    screen()
    with shown_of() as shown:
        shown._pressed("c")
        shown._pressed("e")
        assert {"c", "e"} == shown.frame.pending
        shown.show(SAVED)
        assert {"e"} == shown.frame.pending


def test_pipes_and_background_jobs_have_no_keys(pty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read there; changing a terminal's modes from there would stop the process."""
    _, stream, modes = pty
    before = modes()
    monkeypatch.setattr(keyboard, "in_foreground", lambda _: False)
    for keys in (Keyboard(stream, print), Keyboard(io.StringIO("q"), print)):
        keys.open()
        assert keys._thread is None
        assert before == modes()
        keys.close()
    for group, expected in ((os.getpgrp() + 1, False), (os.getpgrp(), True)):
        monkeypatch.setattr(os, "tcgetpgrp", lambda _, group=group: group)
        assert expected == in_foreground(stream)


def test_suspension_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z: leave, stop, after `fg` take it again; the handlers from before come back."""
    before = signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT)
    order: list[str] = []
    monkeypatch.setattr(os, "kill", lambda _, number: order.append(signal.Signals(number).name))
    with suspendable(lambda: order.append("leave"), lambda: order.append("return")):
        signal.raise_signal(signal.SIGTSTP)
        assert ["leave", "SIGTSTP", "return"] == order
        signal.raise_signal(signal.SIGTSTP)  # a second time, too
        signal.raise_signal(signal.SIGCONT)
    assert ["leave", "SIGTSTP", "return"] * 2 + ["return"] == order
    assert before == (signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT))
