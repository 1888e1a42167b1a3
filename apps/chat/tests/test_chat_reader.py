"""What keys do, typed into prompt_toolkit's own pipe; and the history of what was typed."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from yocto_chat.commands import COMMANDS
from yocto_chat.reader import (
    CommandCompleter,
    PrivateHistory,
    PromptReader,
    folded,
    goes_on,
    history_path,
    message_of,
    next_line,
    open_history,
    read_plainly,
)

PASTE = "\x1b[200~{}\x1b[201~"


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


@pytest.fixture
def talk(make_talk: Any) -> Any:
    return make_talk()


def read(keyboard: PipeInput, talk: Any, typed: str, *history: str) -> str:
    keyboard.send_text(typed)
    reader = PromptReader(talk.chat.screen, lambda _text: "", InMemoryHistory(history))
    return reader.read(talk.chat.draft, lambda: None)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a\r", "a"),
        ("a\x1b\rb\r", "a\nb"),  # Alt-Enter
        ("a\\\rb\r", "a\nb"),  # a backslash at the end
        ('"""a\rb\r"""\r', "a\nb"),  # three quotes
        ('"""one"""\r', "one"),
        (PASTE.format("x\ny") + "\r", "x\ny"),
        (PASTE.format("x\r\ny\rz") + "\r", "x\ny\nz"),
        (PASTE.format("\x1b[31m\u202e") + "\r", "␛[31m<202E>"),
        ("abc\x03d\r", "d"),  # Ctrl-C clears
        ("abc\x01\x04\r", "bc"),  # Ctrl-D deletes forward
        ("\x1b[A\r", "newest"),  # Up
        ("\x1b[A\x1b[A\r", "older"),
        ("\x12old\r\r", "older"),  # Ctrl-R
        ("/retr\t\r", "/retry"),  # Tab completes
        ("/com\t0.3 0.8\r", "/compare0.3 0.8"),
        ("/ex\t\t\r", "/exit"),
        ("a\tb\r", "ab"),
        ("é\r", "é"),
    ],
)
def test_keys(keyboard: PipeInput, talk: Any, typed: str, expected: str) -> None:
    """Enter sends; three ways make lines; history, search, completion and paste work."""
    assert expected == read(keyboard, talk, typed, "older", "newest")


def test_control_keys_on_an_empty_prompt(keyboard: PipeInput, talk: Any) -> None:
    """Ctrl-C and Ctrl-D are for the loop to answer."""
    with pytest.raises(KeyboardInterrupt):
        read(keyboard, talk, "\x03")
    with pytest.raises(EOFError):
        read(keyboard, talk, "\x04")


def test_a_draft_is_there_to_be_edited(keyboard: PipeInput, talk: Any) -> None:
    """/edit puts the message into the prompt."""
    talk.chat.draft = "Wat is time?"
    assert read(keyboard, talk, "\x01\x1b[Ch" + "\r") == "Wh" + "at is time?"


def test_a_giant_paste_is_one_message_and_capped(
    keyboard: PipeInput, talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All lines of a paste are one message; what is over the cap is cut, and counted."""
    monkeypatch.setattr("yocto_chat.reader.MAX_MESSAGE_CHARACTERS", 1_000)
    assert read(keyboard, talk, PASTE.format("x\n" * 600) + "\r") == "x\n" * 500
    assert "too much was pasted; its end is cut (200 characters)" in talk.shown
    assert "> x\nx\nx\n... 496 more lines ...\nx\n\n" in talk.shown


@pytest.mark.property
@given(st.lists(st.text("ab ", max_size=9), max_size=30), st.integers(1, 9))
def test_only_long_messages_are_folded(lines: list[str], width: int) -> None:
    """A message of ten rows stays; of a longer one remain its beginning and end, and a number."""
    text = "\n".join(lines)
    rows = [
        line[i : i + width] for line in text.split("\n") for i in range(0, len(line) or 1, width)
    ]
    shown = folded(text, width)
    if len(rows) <= 10:
        assert "\n".join(shown) == text
    else:
        assert shown == [*rows[:3], f"... {len(rows) - 5} more lines ...", *rows[-2:]]


def test_what_happens_while_a_message_is_typed(keyboard: PipeInput, talk: Any) -> None:
    """Something is said above it from another thread; an error ends it."""
    reader = PromptReader(talk.chat.screen, lambda _text: "", InMemoryHistory())

    def say() -> None:
        talk.chat.screen.line("the model is here")
        keyboard.send_text("and more\r")

    def start() -> None:
        keyboard.send_text("typed ")
        Thread(target=lambda: reader.above(say)).start()

    assert reader.read("", start) == "typed and more"
    assert talk.shown == "the model is here\n"

    def fail() -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        reader.read("", lambda: Thread(target=lambda: reader.above(fail)).start())


def completions(text: str) -> list[str]:
    found = CommandCompleter().get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands by any name, with their help; then what may follow; never inside a message."""
    (tmp_path / "chat-001.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert completions("/load ch") == ["at-001.jsonl"]
    assert [f"/{command.name}" for command in COMMANDS] == completions("/")
    assert completions("/ex") == ["/exit"]
    assert completions("/qui") == ["/exit"]
    assert completions("/probs o") == ["on", "off"]
    assert completions("/set min") == ["min_p"]
    assert "retry" in completions("/help r")
    assert completions("/nonsense x") == completions("//ex") == completions("ex") == []
    assert completions("/ex\n") == []


def test_the_toolbar_shows_the_context(make_talk: Any) -> None:
    """How full the window is, and whose it is; what a message has too much, before it is sent."""
    chat = make_talk(block_size=64).chat
    assert chat.status_of("") == ["ctx 18/64", "test-run", "/help"]
    assert chat.status_of("/retry") == chat.status_of("")
    for length in range(12, 20):
        said = chat.status_of("x" * length)[0]
        cut = chat.prompt(chat.conversation.asked("x" * length)).cut_tokens
        assert said.startswith(f"{cut} token") == (cut > 0)


def test_plain_input_has_lines_too(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a prompt that can be drawn, a backslash and quotes still make lines."""
    lines = iter(["a\\", "b", '"""x', "y", '"""'])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(lines))
    assert read_plainly(talk.chat.screen, "", lambda: None) == "a\nb"
    assert read_plainly(talk.chat.screen, "", lambda: None) == "x\ny"
    monkeypatch.setattr("builtins.input", lambda _prompt: "half \udce9")
    assert read_plainly(talk.chat.screen, "old", lambda: None) == "half \ufffd"
    assert "the message was: old" in talk.shown


@pytest.mark.property
@given(st.lists(st.text('ab"\\ ', max_size=6), min_size=1, max_size=4))
def test_typing_ends(lines: list[str]) -> None:
    """What is sent holds every line that was typed, and quotes always can be closed."""
    text = lines[0]
    for line in lines[1:]:
        if not goes_on(text):
            break
        text = next_line(text) + line
    if goes_on(text):
        text = next_line(text) + ('"""' if text.startswith('"""') else "")
    assert not goes_on(text)
    assert message_of(text) in text


@pytest.mark.property
@given(st.text(st.characters(codec=None, categories=None)))
def test_messages_can_be_written_as_utf8(text: str) -> None:
    """Half characters become U+FFFD; everything else stays, a pair of halves as the whole."""
    whole = re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"),
        "x" + text,
    )
    assert re.sub("[\ud800-\udfff]", "\ufffd", whole) == message_of("x" + text)


# --- what was typed before: private, bounded, and never a reason to stop -------------------------


def opened(path: Path) -> tuple[PrivateHistory, list[str]]:
    warnings: list[str] = []
    history = open_history(path, warn=warnings.append)
    assert isinstance(history, PrivateHistory), warnings
    return history, warnings


def test_entries_come_back_newest_first(tmp_path: Path) -> None:
    """Several lines, quotes and half characters survive; ESC comes back visible."""
    path = tmp_path / "state" / "yocto" / "history"
    history, warnings = opened(path)
    for entry in ("one", "two\nlines", "\x1b[2J", "half \ud83d"):
        history.store_string(entry)
    again, _ = opened(path)
    expected = ["half ?", "␛[2J", "two\nlines", "one"]
    assert expected == list(again.load_history_strings())
    assert warnings == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_it(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, and whatever mode an older file has."""
    before = os.umask(umask)
    try:
        new, old = tmp_path / "new", tmp_path / "old"
        old.write_text("")
        old.chmod(0o666)
        opened(new)
        opened(old)
    finally:
        os.umask(before)
    assert 0o600 == stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(old.stat().st_mode)


def test_a_long_history_loses_its_oldest_entries(tmp_path: Path) -> None:
    """Above a mebibyte the newest half stays, whole entries only, and the file stays private."""
    path = tmp_path / "history"
    history, _ = opened(path)
    for number in range(12):
        history.store_string(f"{number} " + "x" * 100_000)
    again, _ = opened(path)
    entries = list(again.load_history_strings())
    assert path.stat().st_size <= 1 << 19
    assert [entry.partition(" ")[0] for entry in entries] == ["11", "10", "9", "8", "7"]
    assert all(len(entry) > 100_000 for entry in entries)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["history"]


def test_a_damaged_history_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Bytes that are no entries do no harm, and new entries are kept."""
    path = tmp_path / "history"
    path.write_bytes(b"\xff\x00\x1b[2J\n+whole\n" + bytes(range(256)))
    history, _ = opened(path)
    history.store_string("new")
    entries = list(opened(path)[0].load_history_strings())
    assert entries[0] == "new"
    assert all("\x1b" not in entry for entry in entries)


def test_a_history_that_cannot_be_used_is_said_once(tmp_path: Path) -> None:
    """The chat goes on with one that lasts as long as the process; nothing is followed or made."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for name in ("link", "directory", "fifo", "file/below"):
        warnings: list[str] = []
        assert isinstance(open_history(tmp_path / name, warn=warnings.append), InMemoryHistory)
        assert len(warnings) == 1
        assert warnings[0].startswith(f"history is not kept: {tmp_path / name}: ")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    """An entry that cannot be stored is no error: two of them are one warning."""
    path = tmp_path / "history"
    history, warnings = opened(path)
    path.unlink()
    path.mkdir()
    history.store_string("a")
    history.store_string("b")
    assert len(warnings) == 1


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_STATE_HOME, unless it is relative, which that specification says to ignore."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert history_path() == Path("/home/me/.local/state/yocto/history")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_path() == Path("/home/me/.local/state/yocto/history")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/yocto/history")
