"""What reaches the terminal: safe, whole, and broken between words."""

import io
import re
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from yocto_chat.screen import SHADES, Screen, Writer
from yocto_cli.screen.terminal import VisibleStream, visible

OURS = re.compile(r"\x1b\[\d+(;\d+)*m")
HOSTILE = (
    "\x1b[2J", "\x1b", "[2J", "[/x]", "[bold]", ":smile:", "\ud83d", "\x9b31m", "\u202e", "\a",
    "\r", "\x1b]0;title\a", "\x1b]52;c;aGk=\a", "\u2066", "a" + "\u0301" * 1000, "\U000e0041",
    "\ufeff", "\u2028", "\x0b", "\x7f", "👩‍👩‍👧", "\x00",
)  # fmt: skip


pieces = st.tuples(st.text(max_size=9), st.sampled_from(["", "31", "4;35"]))


def wrapped(texts: list[tuple[str, str]], width: int, *, ended: bool = True) -> str:
    screen = Screen(out := io.StringIO())
    screen.ansi = True
    with patch.object(Screen, "line_cells", width):
        writer = Writer(screen)
        for text, style in texts:
            writer.put(text, style)
        if ended:
            writer.end()
    return out.getvalue()


@pytest.mark.property
@given(
    st.lists(st.tuples(st.text("abcde \n", max_size=9), st.sampled_from(["", "31"]))),
    st.integers(1, 30),
)
def test_words_are_not_broken(texts: list[tuple[str, str]], width: int) -> None:
    """However text comes in pieces, every word that fits a line stands on one, in order."""
    lines = OURS.sub("", wrapped(texts, width)).split("\n")
    whole = "".join(text for text, _ in texts)
    assert "".join(whole.split()) == "".join("".join(lines).split())
    on_lines = [word for line in lines for word in line.split()]
    assert [word for word in whole.split() if len(word) <= width and word not in on_lines] == []
    assert all(len(line) <= width for line in lines)
    assert whole.count("\n") <= len(lines) - 1


@pytest.mark.property
@given(st.lists(pieces, max_size=20), st.integers(1, 40))
def test_wrapping_changes_nothing_but_white_space(texts: list[tuple[str, str]], width: int) -> None:
    """Wide, combining and unknown characters: all are written in their style, at any width."""
    written = wrapped(texts, width)
    stream = VisibleStream()
    texts = [(stream.push(text), style) for text, style in texts]
    assert "".join("".join(text for text, _ in texts).split()) == "".join(
        OURS.sub("", written).split()
    )
    tinted = "".join(re.findall(r"\x1b\[31m([^\x1b]*)\x1b\[0m", written))
    assert "".join("".join(t for t, style in texts if style == "31").split()) == "".join(
        tinted.split()
    )


def test_a_word_waits_for_its_space() -> None:
    """It then stands on the line it belongs on, in its tints; nothing is ever erased."""
    texts = [("one ", ""), ("tw", "31"), ("ooo", "32")]
    assert wrapped(texts, 7, ended=False) == "one "
    expected = "one \n\x1b[31mtw\x1b[0m\x1b[32mooo\x1b[0m "
    assert expected == wrapped([*texts, (" ", "")], 7, ended=False)


def test_wide_characters_do_not_wait() -> None:
    """Scripts that have them put no spaces between words: a line may end after any of them."""
    texts = [("ab \u65e5\u672c\u8a9e", "")]
    assert wrapped(texts, 7, ended=False) == "ab \u65e5\u672c\n\u8a9e"


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), max_size=12))
def test_no_model_can_drive_the_terminal(
    make_talk: Any, terminal_out: io.StringIO, script: list[str]
) -> None:
    """Whatever a model says, nothing but our own styles reaches the terminal, in any command."""
    talk = make_talk(*[["x", *script, " y"]] * 6, out=terminal_out)
    talk.do("m", "/continue", "/probs on", "/retry", "/tokens", "/compare 0 1", "/stats")
    shown = OURS.sub("", talk.shown)
    assert visible(shown) == shown


@pytest.mark.parametrize("markup", ["[/x]", "[bold]", ":smile:"])
def test_no_markup_is_read(make_talk: Any, markup: str) -> None:
    """What rich would take for a style or an emoji stands there as it was said."""
    talk = make_talk(*[["x ", *markup, " y"]] * 3)
    talk.do("m", "/compare 0 1")
    assert talk.shown.count(markup) == 3


def test_marks_are_capped_across_tokens(make_talk: Any) -> None:
    """Three hundred combining marks, one per token, pile up no higher than eight."""
    talk = make_talk(["a", *["\u0301"] * 300, "b\n\n"], max_new_tokens=400)
    talk.do("m")
    assert talk.shown.startswith("a" + "\u0301" * 8 + "b\n")


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({}, True, (True, True)),
        ({"NO_COLOR": "1"}, True, (True, False)),
        ({"NO_COLOR": ""}, True, (True, True)),
        ({"TERM": "dumb"}, True, (False, False)),
        ({}, False, (False, False)),
    ],
)
def test_what_a_terminal_is_sent(
    monkeypatch: pytest.MonkeyPatch,
    terminal_out: io.StringIO,
    environment: dict[str, str],
    terminal: bool,
    expected: tuple[bool, bool],
) -> None:
    """Escapes only to terminals that obey them, colours only to people who want them."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = terminal_out if terminal else io.StringIO()
    screen = Screen(out)
    assert expected == (screen.ansi, screen.colour)
    screen.styled([("warm", screen.tint(SHADES[-1]))])
    screen.notice("said")
    assert expected == ("\x1b" in out.getvalue(), "31m" in out.getvalue())


def test_ascii_terminals_get_ascii(make_talk: Any) -> None:
    """Dots, rules, bars and borders have plain forms: nothing of ours fails to encode."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    talk = make_talk(*[" fine\n\n"] * 9, out=out, block_size=80, max_new_tokens=20)
    for line in ("a", "b", "c", "/help", "/stats", "/tokens", "/compare 0 1"):
        talk.do(line)
    out.seek(0)
    shown = out.read()
    assert "stop\n" in shown
    assert " - ctx " in shown
    assert "---- the model sees what follows ----" in shown


def test_our_own_lines_are_wrapped_too(terminal_out: io.StringIO) -> None:
    """A line wider than the window breaks between words; in a file it is one line."""
    screen, file = Screen(terminal_out), io.StringIO()
    screen.line("word " * 40)
    Screen(file).line("word " * 40)
    assert file.getvalue() == "word " * 40 + "\n"
    assert all(cell_len(line) < screen.width for line in terminal_out.getvalue().split("\n"))
