"""The table of commands, each command used rightly and wrongly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from yocto_chat.commands import COMMANDS, act, find
from yocto_cli.arguments import UsageError

MakeTalk = Callable[..., Any]


@pytest.fixture
def talk(make_talk: MakeTalk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Two turns have been had, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    talk = make_talk(" One.\n\n", " Two.\n\n", " Three.\n\n", " Four.\n\n")
    act(talk.chat, "first")
    act(talk.chat, "second")
    return talk


def said(talk: Any) -> list[str]:
    return [turn.reply.text for turn in talk.chat.conversation.turns]


def test_no_name_is_taken_twice() -> None:
    """Each name and alias stands for one command, and completion can show what it does."""
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    assert len(names) == len(set(names))
    assert all(command.help and "\n" not in command.help for command in COMMANDS)
    assert all(find(name) in COMMANDS for name in names)


def test_the_guides_commands_are_all_there() -> None:
    """The names that the guide promises."""
    promised = (
        "help ? exit quit bye reset clear new system set temp top_k top_p min_p seed max retry "
        "undo edit continue save load stats tokens probs alts compare"
    )
    assert {find(name).name for name in promised.split()}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/retyr", "no command is called /retyr; did you mean /retry?"),
        ("/con", "did you mean /continue?"),
        ("/xyzzy", "/help lists the commands"),
        ("/", "no command is called /; /help lists the commands"),
        ("/undo 0", "n must be from 1 to 2, not 0"),
        ("/undo 3", "n must be from 1 to 2, not 3"),
        ("/undo x", "n needs a whole number"),
        ("/edit now", "/edit takes nothing after it"),
        ("/exit now", "/exit takes nothing after it"),
        ("/set temprature 1", "no parameter is called 'temprature'; did you mean temperature?"),
        ("/set temperature -1", "temperature must be"),
        ("/temp hot", "temperature needs a number"),
        ("/top_p 2", "top_p must be"),
        ("/top_k 2.5", "top_k needs a whole number"),
        ("/seed -1", "seed must be from 0"),
        ("/max 0", "max_new_tokens must be at least 1"),
        ("/retry seven", "seed needs a whole number"),
        ("/load", "usage: /load file"),
        ("/load missing.jsonl", "missing.jsonl is not a file"),
        ("/save .", ". is there already"),
        ("/probs maybe", "usage: /probs on|off"),
        ("/probs on", "this terminal cannot show tints"),
        ("/alts", "/alts: this terminal cannot show it"),
        ("/compare 1", "usage: /compare 0.3 0.8 1.2"),
        ("/compare 0.3 warm", "/compare: a temperature needs a number"),
        ("/compare 0.3 -1", "temperature must be"),
        ("/memorised", "this model does not say what it was trained on"),
        ("/help nothing", "no command is called /nothing"),
        ("/system " + "x" * 600, "shorten it"),
    ],
)
def test_wrong_use_is_one_line_and_changes_nothing(talk: Any, line: str, message: str) -> None:
    """Each command refuses what it cannot do, in one line that says what to do."""
    before = (talk.chat.conversation, talk.chat.settings)
    with pytest.raises(UsageError) as refused:
        act(talk.chat, line)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert before == (talk.chat.conversation, talk.chat.settings)


@pytest.mark.parametrize(
    "line", ["/retry", "/undo", "/edit", "/continue", "/save", "/alts", "/compare 0 1"]
)
def test_what_needs_a_turn_says_so(make_talk: MakeTalk, line: str) -> None:
    """Before the first message these commands have nothing to work on."""
    with pytest.raises(UsageError, match=r"^/\w+: (there is no|this terminal)"):
        act(make_talk().chat, line)


def test_slashes_can_be_sent(talk: Any) -> None:
    """Two slashes send a message that begins with one; no bare word is a command."""
    act(talk.chat, "//etc")
    act(talk.chat, "exit")
    assert [turn.message for turn in talk.chat.conversation.turns[2:]] == ["/etc", "exit"]
    assert not talk.chat.finished


def test_help(talk: Any) -> None:
    """All commands in a list, or one in detail."""
    act(talk.chat, "/help")
    assert all(f"{command.synopsis} " in talk.shown for command in COMMANDS)
    act(talk.chat, "/? quit")
    assert talk.shown.endswith("/exit: leave; Ctrl-D does too\nalso /quit, /bye\n")


def test_turns(talk: Any) -> None:
    """/retry replaces, /continue extends, /undo takes back, /edit reopens, /reset forgets."""
    act(talk.chat, "/retry 5")
    assert said(talk) == ["One.", "Three."]
    assert talk.speaker.calls[-1]["seed"] == 5
    act(talk.chat, "/continue")
    assert said(talk) == ["One.", "Three. Four."]
    act(talk.chat, "/edit")
    assert talk.chat.draft == "second"
    act(talk.chat, "/undo 1")
    assert talk.shown.endswith("- 1 turn taken back, 0 left -\n")
    act(talk.chat, "again")
    act(talk.chat, "/new")
    assert talk.chat.conversation.turns == ()
    act(talk.chat, "/bye")
    assert talk.chat.finished


def test_settings(talk: Any) -> None:
    """/set and the shortcuts change, and show, one table."""
    act(talk.chat, "/set temperature 0.25")
    act(talk.chat, "/top_k 3")
    act(talk.chat, "/seed 11")
    act(talk.chat, "/max 50")
    act(talk.chat, "/set")
    assert "temperature 0.25 · top_k 3 · top_p 1.0" in talk.shown
    assert "seed 11" in talk.shown
    act(talk.chat, "/retry")
    assert talk.speaker.calls[-1]["options"].temperature == 0.25
    assert talk.speaker.calls[-1]["max"] == 50
    act(talk.chat, "/seed random")
    assert talk.chat.settings.seed is None
    act(talk.chat, "/temp")
    assert talk.shown.endswith("temperature 0.25\n")


def test_system_text(talk: Any) -> None:
    """Shown, set, removed."""
    act(talk.chat, "/system")
    assert talk.shown.endswith("no system text\n")
    act(talk.chat, "/system Be brief.")
    act(talk.chat, "/retry")
    assert talk.speaker.prompts()[-1].startswith("Be brief.\n\nUser: first\n")
    act(talk.chat, "/system -")
    assert talk.chat.conversation.system == ""


def test_save_and_load(talk: Any) -> None:
    """Names count up, nothing is overwritten, and loading goes on where saving was."""
    act(talk.chat, "/temp 0.5")
    act(talk.chat, "/save")
    act(talk.chat, "/save")
    assert sorted(path.name for path in Path().iterdir()) == ["chat-001.jsonl", "chat-002.jsonl"]
    saved = talk.chat.conversation
    with pytest.raises(UsageError, match="is there already"):
        act(talk.chat, "/save chat-001.jsonl")
    act(talk.chat, "/reset")
    act(talk.chat, "/temp 1")
    act(talk.chat, "/load chat-001.jsonl")
    assert saved == talk.chat.conversation
    assert talk.chat.settings.temperature == 0.5
    assert "> first\nOne.\n> second\nTwo.\n- 2 turns and settings loaded -\n" in talk.shown
    act(talk.chat, "/continue")
    assert said(talk) == ["One.", "Two. Three."]


def test_stats_and_tokens(talk: Any) -> None:
    """Model, context and speed; the text in tokens, unknown characters named."""
    act(talk.chat, "/stats")
    assert "test-run step 7, 1,234 parameters" in talk.shown
    act(talk.chat, "/tokens a\u263ab")
    assert "2 tokens · 1.00 characters per token · unknown: '☺'\n" in talk.shown
    act(talk.chat, "/tokens")
    text = talk.shown.replace("|", "")
    assert "User: first¶\nAssistant: One.¶\nUser: second¶\nAssistant: Two." in text
    assert "\nU|s|e|r|:| |f|i|r|s|t|¶\n" in talk.shown


def test_tokens_draws_where_sight_begins(make_talk: MakeTalk) -> None:
    """Turns that are out of sight stand in front of a line, and are counted."""
    talk = make_talk(*[" reply.\n\n"] * 3, block_size=80, max_new_tokens=20)
    for _ in range(3):
        act(talk.chat, "message")
    act(talk.chat, "/tokens")
    shown = talk.shown.rpartition("stop\n")[2].replace("|", "")
    hidden, _, seen = shown.partition("\n──── the model sees what follows ────\n")
    assert hidden == "User: message¶\nAssistant: reply.¶\n"
    assert seen.startswith(
        "User: message¶\nAssistant: reply.¶\nUser: message¶\nAssistant: reply.\n"
    )
    assert f" · {len(hidden) - 2} out of sight\n" in seen


def test_compare_keeps_nothing(talk: Any) -> None:
    """One seed, one prompt, a temperature each; the conversation stays as it was."""
    before = talk.chat.conversation
    act(talk.chat, "/compare 0 1.5")
    last = talk.speaker.calls[-2:]
    assert [call["options"].temperature for call in last] == [0.0, 1.5]
    assert last[0]["seed"] == last[1]["seed"]
    assert last[0]["prompt"] == last[1]["prompt"] == talk.speaker.calls[1]["prompt"]
    assert before == talk.chat.conversation
    assert "temperature 0" in talk.shown
    assert "temperature 1.5" in talk.shown
    assert "Three." in talk.shown
    assert "Four." in talk.shown


def test_compare_stacks_what_is_too_narrow(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side where there is room, one below the other where there is none."""
    act(talk.chat, "/compare 0 1.5")
    assert any("temperature 0 " in line and "1.5" in line for line in talk.shown.split("\n"))
    monkeypatch.setattr(type(talk.chat.screen), "width", 30)
    act(talk.chat, "/compare 0 2.5")
    assert "\ntemperature 0\n(no reply)\n\ntemperature 2.5\n(no reply)\n" in talk.shown
