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

import pytest
from yocto_cli.screen import display, keyboard, live
from yocto_cli.screen.display import LinePrinter, make_display
from yocto_cli.screen.history import History, Sample
from yocto_cli.screen.keyboard import Keyboard, in_foreground, suspendable
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.live import LiveDisplay
from yocto_train import Run, Saved, Trainer

HOSTILE = "\x1b[2J\x9b31m [/x] :smile: [bold] \ud800 \u202e half"


class Terminal(io.TextIOWrapper):
    """A terminal that remembers what it was sent."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._sent = io.BytesIO()
        super().__init__(self._sent, encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return self._sent.getvalue().decode(self.encoding)


def screen(
    monkeypatch: pytest.MonkeyPatch, *, encoding: str = "utf-8", size: tuple[int, int] = (80, 24)
) -> Terminal:
    """Makes stdout a terminal, with nobody at the keyboard."""
    made = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", str(size[0]))
    monkeypatch.setenv("LINES", str(size[1]))
    return made


def shown_of(trainer: Trainer, history: History, **options: Any) -> LiveDisplay:
    return LiveDisplay(trainer, trainer.run_directory or Run("r"), history=history, **options)


def plain(text: str) -> list[str]:
    """Lines without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")


BASELINES = (Baseline(name="uniform", loss=3.0),)


def test_a_training_on_the_screen(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last frame stands there at the end, the cursor is back, and figures are the trainer's."""
    terminal = screen(monkeypatch)
    trainer: Trainer = make_trainer()
    history = History()
    assert trainer.run_directory is not None
    trainer.run_directory.create()
    shown = shown_of(trainer, history, baselines=BASELINES)
    with shown:
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


@pytest.mark.parametrize("size", [(80, 24), (60, 15), (200, 50), (30, 5)])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_frames_fit_the_screen_in_any_encoding(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, encoding: str, size: tuple[int, int]
) -> None:
    """Also where a model's text is hostile: nothing acts, nothing is markup, nothing fails."""
    made = screen(monkeypatch, encoding=encoding, size=size)
    history = History(samples=[Sample(step=4, seed=1, prompt=HOSTILE, text=HOSTILE)])
    with shown_of(make_trainer(), history, baselines=BASELINES):
        pass
    text = made.text()
    assert "\x1b[2J" not in text
    assert "\x9b" not in text
    rows = plain(text[text.rfind(" yocto-train") :])
    assert len(rows) <= size[1]
    assert max(map(len, rows)) < size[0]
    if size[1] > 10:
        body = "".join(rows)
        assert "[/x] :smile: [bold]" in body
        assert ("\u241b[2J" if encoding == "utf-8" else "\\u241b[2J") in body


def test_no_color_leaves_no_colours(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bold and faint may stay; colours go, and with them nothing of the meaning."""
    terminal = screen(monkeypatch)
    coloured = re.compile(r"\x1b\[(?:[0-9]+;)*3[0-7][;m]")
    history = History(losses=[(1, 2.0), (2, 1.5)], evaluations={2: 1.6})
    with shown_of(make_trainer(), history, baselines=BASELINES):
        pass
    assert coloured.search(terminal.text())
    made = screen(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with shown_of(make_trainer(), history, baselines=BASELINES):
        pass
    assert not coloured.search(made.text())
    assert "uniform" in made.text()


def test_a_resized_window_is_cleared(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that became narrow has broken the lines of the last frame anew."""
    terminal = screen(monkeypatch)
    shown = shown_of(make_trainer(), History())
    with shown:
        assert shown._live is not None
        shown._live.refresh()
        assert "\x1b[2J" not in terminal.text()
        shown._console.size = (60, 15)
        shown._live.refresh()
        assert "\x1b[2J" in terminal.text()
    last = plain(terminal.text().rpartition("\x1b[2J")[2])
    assert max(map(len, last)) < 60


def test_notes_of_a_checkpoint_are_printed_above(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a save has to say does not vanish with the next frame."""
    terminal = screen(monkeypatch)
    shown = shown_of(make_trainer(), History())
    with shown:
        shown.show(Saved(step=1, path=Path("s"), is_best=False, notes=("cannot remove \x1b[2J",)))
    assert "note: cannot remove \u241b[2J" in "\n".join(plain(terminal.text()))


def test_a_terminal_that_goes_away_does_not_stop_the_training(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever writing fails with, the loop goes on."""
    terminal = screen(monkeypatch)
    shown = shown_of(make_trainer(), History())

    def gone(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with shown:
        assert shown._live is not None
        monkeypatch.setattr(terminal, "write", gone)
        shown._live.refresh()
        shown.show(Saved(step=1, path=Path("s"), is_best=False, notes=("n",)))
    monkeypatch.undo()


def test_overfitting_is_said(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three evaluations without a new best, while training still improves; not before."""
    screen(monkeypatch)
    trainer: Trainer = make_trainer()
    history = History(losses=[(2, 2.0), (8, 1.0)])
    progress = trainer.progress
    progress.best_step, progress.best_loss, progress.stale_evaluations = 2, 2.1, 3
    assert "best was step 2" in shown_of(trainer, history).facts().advice
    assert "best.pt" in shown_of(trainer, history).facts().advice
    progress.stale_evaluations = 2
    assert shown_of(trainer, history).facts().advice == ""
    progress.stale_evaluations, history.losses = 3, [(2, 2.0), (8, 2.5)]
    assert shown_of(trainer, history).facts().advice == ""


# --- which display ---------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["dumb", "", "unknown"])
def test_a_dumb_terminal_gets_lines(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    """As does a pipe, and a job in the background."""
    screen(monkeypatch)
    history = History()
    assert isinstance(make_display(make_trainer(), Run("r"), history=history), LiveDisplay)
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_display(make_trainer(), Run("r"), history=history), LinePrinter)


def test_pipes_and_background_jobs_get_lines(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen is for the one who looks at it."""
    screen(monkeypatch)
    monkeypatch.setattr(display, "in_foreground", lambda _: False)
    assert isinstance(make_display(make_trainer(), Run("r"), history=History()), LinePrinter)
    monkeypatch.setattr(display, "in_foreground", lambda _: True)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(make_display(make_trainer(), Run("r"), history=History()), LinePrinter)


# --- keys --------------------------------------------------------------------------------------


@pytest.fixture
def pty() -> Any:
    """The two ends of a terminal: a stream of the one, the descriptor of the other."""
    termios = pytest.importorskip("termios")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, encoding="utf-8") as stream:
        yield ours, stream, lambda: termios.tcgetattr(theirs)
    os.close(ours)


def test_keys_are_requests(make_trainer: Any, pty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """s, e, c and q ask the trainer, others do nothing; the terminal is as before afterwards."""
    screen(monkeypatch)
    ours, stream, modes = pty
    monkeypatch.setattr(sys, "stdin", stream)
    trainer: Trainer = make_trainer()
    asked: list[str] = []
    done = threading.Event()

    def ask(name: str) -> None:
        asked.append(name)
        if name == "stop":
            done.set()

    for name in ("sample", "evaluation", "save", "stop"):
        monkeypatch.setattr(trainer, f"request_{name}", partial(ask, name))
    before = modes()
    with shown_of(trainer, History()) as shown:
        assert modes() != before
        os.write(ours, "sxEc\u00e9q".encode())
        assert done.wait(60)
        assert shown.facts().keys
    assert before == modes()
    assert ["sample", "evaluation", "save", "stop"] == asked


def test_a_key_waits_until_its_event(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is marked from the key until what it asked for has happened."""
    screen(monkeypatch)
    shown = shown_of(make_trainer(), History())
    shown._pressed("c")
    shown._pressed("e")
    assert {"c", "e"} == shown.facts().pending
    with shown:
        shown.show(Saved(step=1, path=Path("s"), is_best=False))
    assert {"e"} == shown.facts().pending


def test_keys_at_once_save_sample_and_stop(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the step: an evaluation, a sample, a checkpoint, and the end."""
    screen(monkeypatch)
    trainer: Trainer = make_trainer(max_iters=100, eval_interval=100, sample_interval=0)
    assert trainer.run_directory is not None
    trainer.run_directory.create()
    shown = shown_of(trainer, History())
    kinds = []
    for event in trainer.run():
        kinds.append(type(event).__name__)
        if kinds[-1] == "StepDone":
            for key in "sec":
                shown._pressed(key)
            break
    kinds += [type(event).__name__ for event, _ in zip(trainer.run(), range(4), strict=False)]
    assert ["Started", "StepDone", "Started", "Evaluated", "Sampled", "Saved"] == kinds


def test_a_pipe_has_no_keys() -> None:
    """Nothing is read from what is no terminal, and nothing of it is changed."""
    reader, writer = os.pipe()
    os.write(writer, b"q")
    pressed: list[str] = []
    with os.fdopen(reader) as stream, Keyboard(stream, pressed.append) as keys:
        assert not keys.usable
    os.close(writer)
    assert [] == pressed


def test_a_background_job_leaves_the_terminal_alone(
    pty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing its modes from there would stop the process."""
    _, stream, modes = pty
    before = modes()
    monkeypatch.setattr(keyboard, "in_foreground", lambda _: False)
    with Keyboard(stream, print):
        assert before == modes()
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    assert not in_foreground(stream)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    assert in_foreground(stream)


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


def test_in_the_background_nothing_is_drawn(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `bg` the shell has the terminal; after `fg` the next report brings the screen back."""
    terminal = screen(monkeypatch)
    shown = shown_of(make_trainer(), History())
    event = Saved(step=1, path=Path("s"), is_best=False)
    with shown:
        monkeypatch.setattr(live, "in_foreground", lambda _: False)
        shown.show(event)
        assert not shown._live
        before = terminal.text()
        shown.show(event)
        assert before == terminal.text()
        monkeypatch.setattr(live, "in_foreground", lambda _: True)
        shown.show(event)
    assert len(terminal.text()) > len(before)
