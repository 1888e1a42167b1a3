"""What reaches the terminal: safe, whole, and broken between words."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from yocto_chat.screen import Screen
from yocto_chat.wrapping import WordWrap

MakeTalk = Callable[..., Any]
OURS = re.compile(r"\x1b\[(\d+(;\d+)*m|\d+D|K)")
DANGEROUS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
HOSTILE = (
    "\x1b[2J", "\x1b", "[2J", "[/x]", "[bold]", ":smile:", "\ud83d", "\x9b31m", "\u202e", "\a",
    "\r", "\x1b]0;title\a", "\x1b]52;c;aGk=\a", "\u2066", "a" + "\u0301" * 1000, "\U000e0041",
    "\ufeff", "\u2028", "\x0b", "\x7f", "👩‍👩‍👧", "\x00",
)  # fmt: skip


def emulated(written: str, width: int) -> list[str]:
    """The lines of a terminal with as many cells: understands what we write, and no more."""
    lines, column = [[" "] * width], 0
    for part in re.finditer(r"\x1b\[(\d+)D|\x1b\[K|\x1b\[[\d;]*m|[^\x1b]", written):
        if part[0] == "\n":
            lines.append([" "] * width)
            column = 0
        elif part[1]:
            column = max(0, column - int(part[1]))
        elif part[0] == "\x1b[K":
            lines[-1][column:] = [" "] * (width - column)
        elif not part[0].startswith("\x1b"):
            assert column < width, "the terminal would have broken the line itself"
            lines[-1][column] = part[0]
            column += 1
    return ["".join(line).rstrip() for line in lines]


@pytest.mark.property
@given(
    st.lists(st.tuples(st.text("abcde \n", max_size=9), st.sampled_from(["", "\x1b[31m"]))),
    st.integers(2, 30),
)
def test_words_are_not_broken(pieces: list[tuple[str, str]], width: int) -> None:
    """However text comes in pieces, every word that fits a line stands on one, in order."""
    wrap = WordWrap(movable=True)
    written = "".join(wrap.push(text, width=width, style=style) for text, style in pieces)
    lines = emulated(written, width)
    whole = "".join(text for text, _ in pieces)
    assert "".join(whole.split()) == "".join("".join(lines).split())
    expected = [word for word in whole.split() if len(word) < width]
    on_lines = [word for line in lines for word in line.split()]
    assert [word for word in expected if word not in on_lines] == []
    assert all(len(line) < width for line in lines)
    assert whole.count("\n") <= len(lines) - 1


@pytest.mark.property
@given(st.lists(st.text(max_size=5), max_size=20), st.integers(1, 40))
def test_wrapping_changes_nothing_but_white_space(pieces: list[str], width: int) -> None:
    """Wide, combining and unknown characters: all are written, whatever the width."""
    wrap = WordWrap(movable=True)
    pieces = [piece.replace("\x1b", "") for piece in pieces]
    written = "".join(wrap.push(piece, width=width) for piece in pieces)
    moved = re.sub(r"\x1b\[(\d+)D\x1b\[K\n", lambda m: f"\x1b{m[1]}\x1b", written)
    while match := re.search(r"\x1b(\d+)\x1b", moved):
        moved = moved[: match.start() - int(match[1])] + moved[match.end() :]
    assert "".join("".join(pieces).split()) == "".join(moved.split())


def test_a_word_moves_with_its_styles() -> None:
    """What was written in two tints is erased and written again in the same two."""
    wrap = WordWrap(movable=True)
    written = wrap.push("one ", width=8)
    written += wrap.push("tw", width=8, style="\x1b[31m")
    written += wrap.push("ooo", width=8, style="\x1b[32m")
    assert emulated(written, 8) == ["one", "twooo"]
    moved = written.partition("\x1b[K\n")[2]
    assert moved == "\x1b[0m\x1b[31mtw\x1b[0m\x1b[32moooo\x1b[0m".replace("oooo", "ooo")


def test_a_word_of_wide_characters_is_not_moved() -> None:
    """How many cells it has is for the terminal to say: it is broken, and nothing is erased."""
    wrap = WordWrap(movable=True)
    assert wrap.push("ab \u65e5\u672c\u8a9e", width=8) == "ab \u65e5\u672c\n\u8a9e"


def test_without_a_cursor_nothing_is_moved() -> None:
    """On a dumb terminal the text goes out as it is, and the column is known."""
    wrap = WordWrap(movable=False)
    assert wrap.push("a long line\nof words", width=4) == "a long line\nof words"
    assert wrap.column == 8


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), max_size=12),
    tinted=st.booleans(),
)
def test_no_model_can_drive_the_terminal(
    make_talk: MakeTalk, terminal_out: io.StringIO, script: list[str], tinted: bool
) -> None:
    """Whatever a model says, nothing but our own styles and moves reaches the terminal."""
    terminal_out.seek(0)
    terminal_out.truncate()
    talk = make_talk(script, out=terminal_out)
    talk.chat.tinted = tinted
    talk.chat.send("m")
    assert DANGEROUS.search(OURS.sub("", talk.shown)) is None


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_replies_pass_through_every_command(
    make_talk: MakeTalk, terminal_out: io.StringIO, hostile: str
) -> None:
    """/probs, /tokens, /compare, /stats and /continue show it, and obey none of it."""
    from yocto_chat.commands import act

    script = list(hostile) if len(hostile) < 20 else [hostile]
    talk = make_talk(*[["x", *script, " y"]] * 5, out=terminal_out)
    for line in ("m", "/continue", "/probs on", "/tokens", "/compare 0 1", "/stats"):
        act(talk.chat, line)
        assert DANGEROUS.search(OURS.sub("", talk.shown)) is None
    if hostile.startswith("["):
        assert hostile in OURS.sub("", talk.shown)  # no markup was read


def test_marks_are_capped_across_tokens(make_talk: MakeTalk) -> None:
    """Three hundred combining marks, one per token, pile up no higher than eight."""
    talk = make_talk(["a", *["\u0301"] * 300, "b\n\n"], max_new_tokens=400)
    talk.chat.send("m")
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
    screen.draw(Text("warm", style="red"))
    screen.notice("said")
    assert expected == ("\x1b" in out.getvalue(), "\x1b[31m" in out.getvalue())


def test_ascii_terminals_get_ascii(make_talk: MakeTalk) -> None:
    """Dots, rules, bars and borders have plain forms: nothing of ours fails to encode."""
    from yocto_chat.commands import act

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    talk = make_talk(*[" fine\n\n"] * 9, out=out, block_size=80, max_new_tokens=20)
    for line in ("a", "b", "c", "/help", "/stats", "/tokens", "/compare 0 1"):
        act(talk.chat, line)
    out.seek(0)
    shown = out.read()
    assert "stop\n" in shown
    assert " - ctx " in shown
    assert "---- the model sees what follows ----" in shown


def test_our_own_lines_are_wrapped_too(terminal_out: io.StringIO) -> None:
    """A notice wider than the window breaks between words."""
    screen = Screen(terminal_out)
    screen.line("word " * 40)
    assert all(cell_len(line) < screen.width for line in terminal_out.getvalue().split("\n"))
