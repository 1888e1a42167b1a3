"""/save and /load: exact, private, in the format that training reads, and never fooled."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yocto_chat import transcript
from yocto_chat.conversation import Conversation, Finish, Reply, Turn
from yocto_cli.arguments import UsageError
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_cli.screen.terminal import visible
from yocto_data import iter_texts

MakeTalk = Callable[..., Any]

texts = st.text(min_size=1).filter(str.strip)
finishes: st.SearchStrategy[Finish] = st.sampled_from(["stop", "limit", "window", "stopped"])
replies = st.builds(
    Reply,
    text=texts,
    finish=finishes,
    seeds=st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
)
conversations = st.builds(
    Conversation,
    system=st.text(),
    turns=st.lists(st.builds(Turn, message=texts, reply=replies), max_size=4).map(tuple),
)
samplings = st.builds(
    SamplingArguments,
    temperature=st.floats(0, 9),
    top_k=st.integers(0, 99),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1), max_size=2).map(tuple),
)


@pytest.fixture
def model(make_talk: MakeTalk) -> Any:
    return make_talk().chat.model


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=conversations, sampling=samplings)
def test_what_is_saved_is_loaded(
    tmp_path: Path, model: Any, conversation: Conversation, sampling: SamplingArguments
) -> None:
    """Turns, seeds and settings come back; characters that a terminal obeys come back visible."""
    path = tmp_path / "chat.jsonl"
    path.unlink(missing_ok=True)
    transcript.save(path, conversation, sampling, model)
    found = transcript.load(path)
    assert sampling == found.settings
    assert model.sha256 == found.checkpoint
    assert visible(conversation.system) == found.conversation.system
    for before, after in zip(conversation.turns, found.conversation.turns, strict=True):
        assert before.reply is not None
        assert after.reply is not None
        assert visible(before.message) == after.message
        assert visible(before.reply.text) == after.reply.text
        assert (before.reply.finish, before.reply.seeds) == (after.reply.finish, after.reply.seeds)


def test_a_saved_chat_is_a_training_text(tmp_path: Path, model: Any) -> None:
    """yocto-prepare reads the file as it is: a line per speaker, a blank line at the end."""
    turns = (
        Turn(message="What is\n\ntime?", reply=Reply(text="A river.\nAnd a clock.")),
        Turn(message="unanswered"),
    )
    path = tmp_path / "chat.jsonl"
    transcript.save(path, Conversation(system="Be kind.", turns=turns), SamplingArguments(), model)
    expected = "Be kind.\n\nUser: What is time?\nAssistant: A river. And a clock.\n\n"
    assert expected == "".join(iter_texts(path))
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, model: Any, kind: str) -> None:
    """Whatever has the name already keeps it."""
    path = tmp_path / "taken"
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is there already; give another name"):
        transcript.save(path, Conversation(), SamplingArguments(), model)
    assert not (tmp_path / "elsewhere").exists()
    assert kind != "file" or path.read_text() == "mine"


def test_a_name_that_cannot_be_written_is_one_line(tmp_path: Path, model: Any) -> None:
    """The system's reason, with the name made visible."""
    for name in ("no/such/place", "x" * 300, "nul\0"):
        with pytest.raises(UsageError, match="cannot write") as refused:
            transcript.save(tmp_path / name, Conversation(), SamplingArguments(), model)
        assert "\0" not in str(refused.value)


def test_names_count_up(tmp_path: Path) -> None:
    """The first name that nothing has, links to nowhere included."""
    (tmp_path / "chat-001.jsonl").symlink_to("nowhere")
    assert transcript.free_name(tmp_path) == tmp_path / "chat-002.jsonl"


GOOD: dict[str, Any] = {
    "format": "yocto-chat",
    "format_version": 1,
    "turns": [{"user": "a", "assistant": "b"}],
}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds 0 conversations"),
        (b"{}\n{}\n", "holds 2 conversations"),
        (b"{", "not valid JSON"),
        (b"[]", "not an object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        ({**GOOD, "format": "other"}, "its format is not yocto-chat"),
        ({**GOOD, "format_version": 2}, "newer than this program"),
        ({**GOOD, "format_version": True}, "must be a whole number"),
        ({**GOOD, "turns": {}}, "turns must be a list"),
        ({**GOOD, "turns": [None]}, "turn 1 is not an object"),
        ({**GOOD, "turns": [{"user": "a"}]}, "turn 1: assistant must be a text"),
        ({**GOOD, "turns": [{"user": " ", "assistant": "b"}]}, "turn 1: user is empty"),
        ({**GOOD, "turns": [{"user": "a", "assistant": ""}]}, "turn 1: assistant is empty"),
        ({**GOOD, "turns": [{**GOOD["turns"][0], "finish": "x"}]}, "turn 1: finish must be one"),
        ({**GOOD, "turns": [{**GOOD["turns"][0], "seeds": [1.5]}]}, "turn 1: seeds must be"),
        ({**GOOD, "system": 3}, "system must be a text"),
        ({**GOOD, "settings": []}, "settings must be an object"),
        ({**GOOD, "settings": {"heat": 1}}, "settings must be an object of sampling parameters"),
        ({**GOOD, "settings": {"top_k": "3"}}, "settings: top_k has the wrong type"),
        ({**GOOD, "settings": {"top_k": True}}, "settings: top_k has the wrong type"),
        ({**GOOD, "settings": {"stop": [1]}}, "settings: stop must be a list of texts"),
        ({**GOOD, "settings": {"stop": 5}}, "settings: stop must be a list of texts"),
        ({**GOOD, "settings": {"stop": "User:"}}, "settings: stop must be a list of texts"),
        ({**GOOD, "settings": {"temperature": -1}}, "settings: temperature must be"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(
    tmp_path: Path, content: bytes | dict[str, Any], reason: str
) -> None:
    """In one line that says what is wrong and where."""
    path = tmp_path / "chat\x1b.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UsageError) as refused:
        transcript.load(path)
    assert reason in str(refused.value)
    assert str(refused.value).isprintable()


def test_only_files_are_read(tmp_path: Path) -> None:
    """A directory, a missing name, a name with NUL and a giant are refused, not read."""
    giant = tmp_path / "giant"
    with giant.open("wb") as file:
        file.truncate(1 << 30)
    for path in (tmp_path, tmp_path / "missing", tmp_path / "nul\0", giant):
        with pytest.raises(UsageError):
            transcript.load(path)


def test_a_loaded_conversation_cannot_drive_the_terminal(
    make_talk: MakeTalk, tmp_path: Path
) -> None:
    """What /load shows, and what it keeps, is safe."""
    from yocto_chat.commands import act

    path = tmp_path / "chat.jsonl"
    record = {**GOOD, "turns": [{"user": "\x1b[2J", "assistant": "\x9b\u202e"}]}
    path.write_text(json.dumps(record))
    talk = make_talk()
    act(talk.chat, f"/load {path}")
    assert "> ␛[2J\n<009B><202E>\n" in talk.shown
    assert talk.chat.conversation.turns[0].message == "␛[2J"
    assert "another model said this" in talk.shown
