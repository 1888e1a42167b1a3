"""What reaches a terminal is text: nothing in it acts."""

import io
import re
import subprocess
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli.screen import terminal
from yocto_cli.screen.terminal import (
    ProgressBar,
    VisibleStream,
    dim,
    duration,
    has_colour,
    one_line,
    visible,
)

BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
TAGS = {chr(code) for code in range(0xE0000, 0xE0080)}


def acts(character: str) -> bool:
    """Whether a terminal may act upon a character, written down independently of the code."""
    return (
        (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
        or character in BIDI
        or character in TAGS
        or character in "\u2028\u2029\ufeff"
    )


@pytest.mark.property
@given(st.text() | st.text(alphabet="\x1b[2J\x07\r\x9b\u202e\u2066\U000e0041\ufeff\ud800a\n"))
@example("".join(map(chr, range(0x300))))
@example("".join(map(chr, range(0x2000, 0x2070))))
def test_nothing_visible_acts(text: str) -> None:
    """No C0, C1, surrogate, bidirectional control or tag remains, but newline and tab do."""
    shown = visible(text)
    assert not [c for c in shown if acts(c)]
    assert text.count("\n") == shown.count("\n")
    assert text.count("\t") == shown.count("\t")


@pytest.mark.property
@given(st.text())
def test_harmless_text_is_left_alone(text: str) -> None:
    """What holds no control and few marks comes out as it went in; twice is once."""
    if not any(acts(c) or unicodedata.category(c) in ("Mn", "Me") for c in text):
        assert text == visible(text)
    assert visible(text) == visible(visible(text))


@pytest.mark.property
@given(st.lists(st.text(st.sampled_from("ae\u0301\u0489\u200d\ufe0f\x1b\x85 \n\u2066"))))
@example(["a" + "\u0301" * 8, "b", "\u0301"])
@example(["a" + "\u0301" * 8, "\u0301"])
def test_pieces_show_what_the_whole_shows(pieces: list[str]) -> None:
    """Cutting a text anywhere changes nothing: an escape, or a pile of marks, in two tokens."""
    stream = VisibleStream()
    assert visible("".join(pieces)) == "".join(map(stream.push, pieces))


@pytest.mark.parametrize(("text", "expected"), [
    ("\x1b[2J", "\u241b[2J"), ("\x00\x07\x08\r\x7f", "\u2400\u2407\u2408\u240d\u2421"),
    ("\x9b31m", "<009B>31m"), ("a\u202eb", "a<202E>b"), ("\U000e0041", "<E0041>"),
    ("\ud800", "<D800>"), ("\u2028\ufeff", "<2028><FEFF>"), ("", ""),
    ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"), ("[/x] :smile: [bold]", "[/x] :smile: [bold]"),
    ("a" + "\u0301" * 1000 + "b\u0301", "a" + "\u0301" * 8 + "b\u0301"),
    ("a" + "\u0301\u200d" * 1000, "a" + "\u0301\u200d" * 8 + "\u200d" * 992),
])  # fmt: skip
def test_each_kind_has_its_picture(text: str, expected: str) -> None:
    """Control pictures where Unicode has them, code points elsewhere; markup is only text."""
    assert expected == visible(text)


@pytest.mark.property
@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    """No line of an error can be broken by what it quotes."""
    assert len(one_line(text).splitlines()) <= 1
    assert not re.search(r"[\n\t\x1b]", one_line(text))


def test_colour_is_for_terminals_that_want_it(screen: Any) -> None:
    """NO_COLOR counts when it is not empty, a dumb terminal has none, a file never does."""
    for no_color, term, expected in (
        ("", "xterm", True), ("1", "xterm", False), ("", "dumb", False),
    ):  # fmt: skip
        stream = screen(no_color, term)
        assert expected == has_colour(stream)
        assert ("\x1b[2mx\x1b[22m" if expected else "x") == dim("x", stream)
        assert "x" == dim("x", io.StringIO())


def test_a_closed_stream_is_not_a_terminal(screen: Any) -> None:
    """Asking must not fail."""
    stream = screen()
    stream.close()
    assert not any(map(terminal.is_terminal, (stream, None)))


def test_what_is_said_is_visible(capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes are shown, lines stay lines."""
    terminal.say("one\x1b[2J\ntwo\x9b")
    assert "one\u241b[2J\ntwo<009B>\n" == capsys.readouterr().out


@pytest.mark.parametrize("where", [">&-", ">/dev/full", "| true; exit ${PIPESTATUS[0]}"])
def test_a_stdout_that_fails_does_not_stop_the_work(where: str) -> None:
    """Closed, a full disk, or a pipe without a reader: the command ends well, and quietly."""
    code = "import time; from yocto_cli.screen import terminal as t; time.sleep(0.1)"
    words = ["bash", "-c", f'"$0" -c "$1; t.say(str(1)); t.say(str(2))" {where}']
    done = subprocess.run([*words, sys.executable, code], capture_output=True, check=False)
    assert (0, b"", b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("seconds", "expected"), [
    (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (114, "1m54s"), (7500, "2h05m"), (273600, "3d04h"),
    (-3, "0s"),
])  # fmt: skip
def test_durations(seconds: float, expected: str) -> None:
    """Two units at most."""
    assert expected == duration(seconds)


def test_progress_is_lines_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most one in some seconds, without escapes or carriage returns."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("yocto_cli.screen.terminal.time.monotonic", lambda: float(next(clock)))
    with ProgressBar() as progress:
        for done in range(0, 10_000_000, 1_000_000):
            progress.update("encoding", done, 10_000_000)
        progress.update("learning", 5, 0)
    err = capsys.readouterr().err
    assert 2 <= err.count("\n") <= 5
    assert re.fullmatch(r"((encoding: \d+%|learning:) \d+\.\d MB\n)+", err)
