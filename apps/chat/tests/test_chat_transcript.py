"""/save and /load: exact, private, in the format that training reads, and never fooled."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from yocto_chat import transcript
from yocto_chat.commands import act
from yocto_chat.conversation import Conversation, Reply, Turn
from yocto_chat.transcript import Transcript
from yocto_cli.command import UsageError
from yocto_cli.model_arguments import SamplingArguments
from yocto_data import Message, iter_chats, iter_texts

texts = st.text(min_size=1)
turns = st.builds(Turn, message=texts, reply=st.builds(Reply, text=texts, finish=..., seeds=...))
transcripts = st.builds(
    Transcript,
    conversation=st.builds(Conversation, system=..., turns=st.lists(turns, max_size=4).map(tuple)),
    settings=st.builds(
        SamplingArguments,
        temperature=st.floats(0, 9),
        seed=st.none() | st.integers(0, 2**63 - 1),
        stop=st.lists(texts, max_size=2).map(tuple),
    ),
)


def transcript_of(*turns: Turn, system: str = "") -> Transcript:
    return Transcript(
        conversation=Conversation(system=system, turns=turns), settings=SamplingArguments(),
        run="tiny", step=3, sha256=None,
    )  # fmt: skip


HELLO = transcript_of(Turn(message="a", reply=Reply(text="b", seeds=(7,))))


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transcripts)
def test_what_is_saved_is_loaded(tmp_path: Path, saved: Transcript) -> None:
    """Turns, seeds, settings and model come back exactly, whatever the texts hold."""
    path = tmp_path / "chat.jsonl"
    path.unlink(missing_ok=True)
    transcript.save(path, saved)
    assert saved == transcript.load(path)


def test_a_saved_chat_is_a_training_text(tmp_path: Path) -> None:
    """yocto-prepare reads the file as it is: a line per speaker, a blank line at the end."""
    path = tmp_path / "chat.jsonl"
    answered = Turn(message="What is\n\ntime?", reply=Reply(text="A river.\nAnd a clock."))
    transcript.save(
        path, transcript_of(answered, Turn(message="unanswered"), system="Be\n\n kind.")
    )
    expected = "Be\n kind.\n\nUser: What is time?\nAssistant: A river. And a clock.\n\n"
    assert expected == "".join(iter_texts(path))
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Whatever has the name already keeps it; other refusals are the system's, in one line."""
    (tmp_path / "chat-001.jsonl").write_text("mine")
    (tmp_path / "chat-002.jsonl").mkdir()
    (tmp_path / "chat-003.jsonl").symlink_to(tmp_path / "elsewhere")
    for path in list(tmp_path.iterdir()):
        with pytest.raises(UsageError, match="already exists; give another name"):
            transcript.save(path, HELLO)
    for name in ("no/such/place", "x" * 300, "nul\0"):
        with pytest.raises(UsageError, match="cannot write"):
            transcript.save(tmp_path / name, HELLO)
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "chat-001.jsonl").read_text() == "mine"
    assert transcript.free_name(tmp_path) == tmp_path / "chat-004.jsonl"


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stays free for the next try."""
    write = os.fdopen

    def full(descriptor: int, *mode: Any, **options: Any) -> Any:
        os.close(descriptor)
        return write(os.open("/dev/full", os.O_WRONLY), *mode, **options)

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(UsageError, match="No space left"):
        transcript.save(tmp_path / "chat.jsonl", HELLO)
    assert list(tmp_path.iterdir()) == []


GOOD: dict[str, Any] = HELLO.record()
TURN, SETTINGS = GOOD["turns"][0], GOOD["settings"]


def test_a_file_may_be_edited(tmp_path: Path) -> None:
    """A turn can be corrected by hand: `text` need not follow."""
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({**GOOD, "turns": [{**TURN, "assistant": "better"}]}, indent=None))
    assert transcript.load(path).conversation.turns[0].reply == Reply(text="better", seeds=(7,))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds 0 conversations"),
        (b"{}\n{}\n", "holds 2 conversations"),
        ({}, "'turns' is missing"),
        ({**GOOD, "turns": [{"user": "a"}]}, "'finish' is missing"),
        ({**GOOD, "turns": [{**TURN, "finish": "x"}]}, "'finish' must be one"),
        ({**GOOD, "settings": {"heat": 1}}, "'temperature' is missing"),
        ({**GOOD, "settings": {**SETTINGS, "temperature": -1}}, "temperature must be"),
        ({**GOOD, "format": "other"}, "its 'format' is not what"),
        ({**GOOD, "format_version": 2}, "its 'format_version' is not what"),
        ({**GOOD, "system": 3}, "its 'system' is not what"),
        *[
            ({**GOOD, "turns": [{**TURN, **change}]}, "its 'turns' is not what")
            for change in ({"user": 3}, {"assistant": ""}, {"seeds": [1.5]})
        ],
        *[
            ({**GOOD, "settings": {**SETTINGS, **change}}, "its 'settings' is not what")
            for change in ({"heat": 1}, {"top_k": "3"}, {"stop": [1]}, {"stop": "ab"})
        ],
        *[
            (content, "is not a saved conversation: ")
            for content in (
                b"{",
                b"[]",
                b"[" * 100_000,
                b"\xff\xfe",
                {**GOOD, "turns": {"user": 1}},
                {**GOOD, "turns": [None]},
                {**GOOD, "settings": []},
                {**GOOD, "checkpoint": None},
            )
        ],
    ],
)
def test_other_files_are_refused(
    make_talk: Any, tmp_path: Path, content: bytes | dict[str, Any], reason: str
) -> None:
    """In one line that says what is wrong; the conversation goes on."""
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UsageError) as refused:
        act(make_talk().chat, f"/load {path}")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(path))


def test_only_files_are_read(tmp_path: Path) -> None:
    """A directory, a FIFO, a missing name, a name with NUL and a giant are refused, not read."""
    giant = tmp_path / "giant"
    with giant.open("wb") as file:
        file.truncate(1 << 30)
    os.mkfifo(tmp_path / "fifo")
    for name in ("", "missing", "nul\0", "giant", "fifo"):
        with pytest.raises(UsageError):
            transcript.load(tmp_path / name)


def test_a_loaded_conversation_cannot_drive_the_terminal(make_talk: Any, tmp_path: Path) -> None:
    """It is kept as it was, and everything a terminal would act upon is shown instead."""
    path = tmp_path / "chat.jsonl"
    turn = {**TURN, "user": "\x1b[2J", "assistant": "\x9b\u202e"}
    path.write_text(json.dumps({**GOOD, "turns": [turn]}))
    talk = make_talk()
    talk.do(f"/load {path}")
    assert "> ␛[2J\n<009B><202E>\n" in talk.shown
    assert talk.chat.conversation.turns[0].message == "\x1b[2J"
    assert "saved with another model" in talk.shown


# --- /good: chats to train on --------------------------------------------------------------------


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(transcripts, min_size=1, max_size=3), st.booleans())
def test_good_chats_are_read_by_training(
    tmp_path: Path, kept: list[Transcript], torn: bool
) -> None:
    """Every message comes back, one conversation a line; a reply that was cut is not learned."""
    path = tmp_path / "good.jsonl"
    path.unlink(missing_ok=True)
    expected: list[list[Message]] = []
    for each in kept:
        replies = [turn.reply for turn in each.conversation.turns if turn.reply]
        if not any(reply.finish == "stop" for reply in replies):
            with pytest.raises(UsageError, match="no reply ended by itself"):
                transcript.add_messages(path, each.conversation)
            continue
        said = [turn.message for turn in each.conversation.turns] + [each.conversation.system]
        assume("\r" not in "".join([*said, *(reply.text for reply in replies)]))  # becomes LF
        assume(all(reply.text.strip() for reply in replies))
        transcript.add_messages(path, each.conversation)
        if torn:  # as an editor may leave it
            path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        system = each.conversation.system.strip()
        expected.append([Message("system", system)] if system else [])
        for turn in each.conversation.turns:
            if turn.reply:
                expected[-1] += [
                    Message("user", turn.message),
                    Message("assistant", turn.reply.text, turn.reply.finish == "stop"),
                ]
    if expected:
        assert list(map(tuple, expected)) == list(iter_chats(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_good_says_how_to_train_on_it(
    make_talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice appends twice; what is no file is refused."""
    monkeypatch.chdir(tmp_path)
    talk = make_talk(" One.\n\n")
    talk.do("first", "/good", "/good")
    assert 2 == (tmp_path / "good-chats.jsonl").read_text().count('"One."')
    assert "train: uv run yocto-train --text_path good-chats.jsonl\n" in talk.shown
    os.mkfifo("fifo")
    for name in ("fifo", ".", "none/x", "nul\0"):
        with pytest.raises(UsageError, match=r"give another name|cannot write"):
            talk.do(f"/good {name}")
