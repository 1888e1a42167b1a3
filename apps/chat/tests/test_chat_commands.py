"""The table of commands, each command used rightly and wrongly."""

import re
from pathlib import Path
from typing import Any

import pytest
from yocto_chat.commands import COMMANDS, act
from yocto_chat.conversation import Conversation
from yocto_cli.command import UsageError


@pytest.fixture
def talk(make_talk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Two turns have been had, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    talk = make_talk(" One.\n\n", " Two.\n\n", " Three.\n\n", " Four.\n\n")
    talk.do("first", "second")
    return talk


def test_every_name_stands_for_one_command() -> None:
    """Completion can show what each does, and the README lists them all in the words of /help."""
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    assert len(names) == len(set(names))
    assert all(command.help and "\n" not in command.help for command in COMMANDS)
    readme = Path(__file__).parent.with_name("README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(/.*?)` \| (.*?) \|$", readme, re.MULTILINE)
    assert [(c.synopsis.replace("|", r"\|"), c.help) for c in COMMANDS] == rows


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
        ("/set temprature 1", "no setting is called 'temprature'; did you mean temperature?"),
        ("/set temperature -1", "temperature must be"),
        ("/top_k 2.5", "top_k needs a whole number"),
        ("/max 0", "max_new_tokens must be at least 1"),
        ("/retry seven", "seed needs a whole number"),
        ("/load", "/load needs the name of a file that /save wrote"),
        ("/load missing.jsonl", "cannot read missing.jsonl: No such file"),
        ("/save .", ". already exists"),
        ("/probs maybe", "usage: /probs on|off"),
        ("/probs on", "this terminal cannot show tints"),
        ("/alts", "/alts: this terminal cannot show it"),
        ("/compare 1", "usage: /compare 0.3 0.8 1.2"),
        ("/compare 0.3 warm", "temperature needs a finite number"),
        ("/memorised", "only a run of yocto-train says what its model was trained on"),
        ("/help nothing", "no command is called /nothing"),
        ("/system " + "x" * 600, "shorten it"),
    ],
)
def test_wrong_use_is_one_line_and_changes_nothing(talk: Any, line: str, message: str) -> None:
    """Each command refuses what it cannot do, in one line that says what to do."""
    before = (talk.chat.conversation, talk.chat.settings)
    with pytest.raises(UsageError) as refused:
        talk.do(line)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert before == (talk.chat.conversation, talk.chat.settings)


@pytest.mark.parametrize(
    "line", ["/retry", "/undo", "/edit", "/continue", "/save", "/alts", "/compare 0 1"]
)
def test_what_needs_a_turn_says_so(make_talk: Any, line: str) -> None:
    """Before the first message these commands have nothing to work on."""
    with pytest.raises(UsageError, match=r"^/\w+: (there is no|this terminal)"):
        act(make_talk().chat, line)


@pytest.mark.parametrize("line", ["exit", " quit ", "help"])
def test_some_commands_need_no_slash(talk: Any, line: str) -> None:
    """Alone on a line; whatever stands beside them makes them a message."""
    messages = ("//etc", f"{line} me", f"{line}\n{line}", "bye")
    talk.do(*messages)
    sent = ["first", "second", "/etc", *messages[1:]]
    assert sent == [turn.message for turn in talk.chat.conversation.turns]
    talk.do(line)
    assert len(sent) == len(talk.chat.conversation.turns)
    assert talk.chat.finished == (line != "help")
    assert talk.shown.count("/undo [n]") == (line == "help")


def test_help(talk: Any) -> None:
    """All commands in a list, or one in detail."""
    talk.do("/help")
    assert {f"/{command.name}" for command in COMMANDS} <= {*re.findall(r"/\w+", talk.shown)}
    assert talk.shown.rpartition("tok/s")[2].count("\n") < 24 - 8  # a small window holds it
    talk.do("/? quit")
    assert talk.shown.endswith("/exit: Leave; Ctrl-D does too\nalso /quit, /bye\n")


def test_turns(talk: Any) -> None:
    """/retry replaces, /continue extends, /undo takes back, /edit reopens, /reset forgets."""
    talk.do("/retry 5")
    assert talk.said == ["One.", "Three."]
    assert talk.generator.calls[-1]["seed"] == 5
    talk.do("/continue")
    assert talk.said == ["One.", "Three. Four."]
    talk.do("/edit")
    assert talk.chat.draft == "second"
    talk.do("/undo 1")
    assert talk.shown.endswith("- 1 turn taken back, 0 left -\n")
    talk.do("/system Be brief.", "/temp 0.3", "again", "/new")
    assert talk.chat.conversation == Conversation(system="Be brief.")
    assert talk.chat.settings.temperature == 0.3
    assert talk.chat.context_tokens == len("Be brief.\n\nUser: ?\nAssistant:")
    talk.do("/bye")
    assert talk.chat.finished


def test_settings_and_system_text(talk: Any) -> None:
    """/set and the shortcuts change, and show, one table; the system text is set and removed."""
    talk.do("/set temperature 0.25", "/top_k 3", "/seed 11", "/max 50", "/set")
    assert "temperature 0.25 · top_k 3 · top_p 1.0" in talk.shown
    assert "seed 11" in talk.shown
    talk.do("/system", "/system Be brief.", "/retry")
    assert "\nno system text\nsystem text: Be brief.\n" in talk.shown
    call = talk.generator.calls[-1]
    assert (call["options"].temperature, call["max"]) == (0.25, 50)
    assert talk.generator.prompts()[-1].startswith("Be brief.\n\nUser: first\n")
    talk.do("/system -", "/seed random", "/temp")
    assert (talk.chat.conversation.system, talk.chat.settings.seed) == ("", None)
    assert talk.shown.endswith("temperature 0.25\n")


def test_save_and_load(talk: Any) -> None:
    """Names count up, nothing is overwritten, and loading goes on where saving was."""
    talk.do("/temp 0.5", "/save", "/save")
    assert sorted(path.name for path in Path().iterdir()) == ["chat-001.jsonl", "chat-002.jsonl"]
    saved = talk.chat.conversation
    talk.do("/reset", "/temp 1", "/load chat-001.jsonl")
    assert saved == talk.chat.conversation
    assert talk.chat.settings.temperature == 0.5
    assert "> first\nOne.\n> second\nTwo.\n- 2 turns and settings loaded -\n" in talk.shown
    talk.do("/continue")
    assert talk.said == ["One.", "Two. Three."]


def test_stats_and_tokens(talk: Any) -> None:
    """Model, context and speed; the text in tokens, unknown characters named."""
    talk.do("/stats")
    assert "test-run step 7" in talk.shown
    talk.do("/tokens a\u263ab")
    assert "2 tokens · 1.00 characters per token · unknown: '☺'\n" in talk.shown
    talk.do("/tokens")
    text = talk.shown.replace("|", "")
    assert "User: first¶\nAssistant: One.¶\nUser: second¶\nAssistant: Two." in text
    assert "\nU|s|e|r|:| |f|i|r|s|t|¶\n" in talk.shown


def test_tokens_before_the_first_message(make_talk: Any) -> None:
    """How a message will be framed, and the system text in front."""
    talk = make_talk(system="Be brief.")
    talk.do("/tokens")
    assert "Be brief.¶\n¶\nUser: ?¶\nAssistant:" in talk.shown.replace("|", "")


def test_tokens_draws_where_sight_begins(make_talk: Any) -> None:
    """Turns that are out of sight stand in front of a line, and are counted."""
    talk = make_talk(*[" reply.\n\n"] * 3, block_size=80, max_new_tokens=20)
    for _ in range(3):
        talk.do("message")
    talk.do("/tokens")
    shown = talk.shown.rpartition("stop\n")[2].replace("|", "")
    hidden, _, seen = shown.partition("\n──── the model sees what follows ────\n")
    assert hidden == "User: message¶\nAssistant: reply.¶\n"
    assert seen.startswith(
        "User: message¶\nAssistant: reply.¶\nUser: message¶\nAssistant: reply.\n"
    )
    assert f" · {len(hidden) - 2} no longer visible to the model\n" in seen


def test_compare(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed, one prompt, a temperature each; nothing is kept; stacked where it is narrow."""
    before = talk.chat.conversation
    talk.do("/compare 0 1.5")
    first, second = talk.generator.calls[-2:]
    assert (first["options"].temperature, second["options"].temperature) == (0.0, 1.5)
    assert first["seed"] == second["seed"]
    assert first["prompt"] == second["prompt"] == talk.generator.calls[1]["prompt"]
    assert before == talk.chat.conversation
    lines = talk.shown.split("\n")
    assert any("temperature 0 " in line and "temperature 1.5" in line for line in lines)
    assert any("Three." in line and "Four." in line for line in lines)
    monkeypatch.setattr(type(talk.chat.screen), "width", 30)
    talk.do("/compare 0 2.5")
    assert "\ntemperature 0\n(no reply)\n\ntemperature 2.5\n(no reply)\n" in talk.shown
