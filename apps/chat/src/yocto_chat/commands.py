"""The commands of the chat: each a function, whose docstring is its help.

`Command` puts it into `COMMANDS`, from which /help, completion and suggestions derive. Names, types
and ranges of the settings are those of the flags: `/set top_p 2` and `--top_p 2` are refused in the
same words.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

from yocto_cli.arguments import Flag, flags_of, suggestion
from yocto_cli.command import UsageError, next_command
from yocto_cli.model_arguments import SamplingArguments
from yocto_cli.screen.terminal import counted

from yocto_chat import inside, transcript
from yocto_chat.chat import Chat
from yocto_chat.screen import BOLD, Writer
from yocto_chat.transcript import Transcript

_MOST_COMPARED = 6
_GOOD = "good-chats.jsonl"
_RANDOM = "random"
#: Every setting that is one value.
SETTINGS = {name: flag for name, flag in flags_of(SamplingArguments).items() if name != "stop"}
#: Commands that set one of them, under its name or, where that is long, a shorter one.
SHORTCUTS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "max": "max_new_tokens",
}
#: What people type before they know about the slash: alone on a line, these words are commands too.
BARE = ("exit", "quit", "help")
#: What /help lists, by what it is for.
_GROUPS = {
    "replies": "retry continue alts compare",
    "turns": "edit undo reset",
    "setup": "set system",
    "files": "save load good",
    "inside": "stats probs tokens memorised",
    "session": "help exit",
}

#: Runs a command; receives what follows its name.
Handler = Callable[[Chat, str], None]
#: Says why a command cannot be used now, or None.
Need = Callable[[Chat], str | None]


# --- the table -----------------------------------------------------------------------------------


def needs_turn(chat: Chat) -> str | None:
    """Needs a message."""
    return None if chat.conversation.turns else "there is no message yet; say something first"


def needs_reply(chat: Chat) -> str | None:
    """Needs a reply to the last message."""
    turns = chat.conversation.turns
    return None if turns and turns[-1].answered else "there is no reply yet; say something first"


def needs_alternatives(chat: Chat) -> str | None:
    """Needs a reply that was drawn here, and a terminal that can show its alternatives."""
    if chat.choose is None:
        return "this terminal cannot show it; it needs one that moves its cursor"
    return None if chat.last and chat.last.text else "there is no reply to step through; use /retry"


COMMANDS: list["Command"] = []


@dataclass
class Command:
    """Makes the function under it a command, whose help is the function's docstring.

    A command without `usage` takes nothing after its name.
    """

    name: str  # without the slash
    aliases: tuple[str, ...] = ()
    _: KW_ONLY
    usage: str = ""  # what may follow the name
    needs: Need = lambda _chat: None
    completions: Sequence[str] = ()  # for the word after the name
    takes_path: bool = False  # whether a file's name follows
    handler: Handler = field(init=False)

    def __call__(self, handler: Handler) -> Handler:
        self.handler = handler
        COMMANDS.append(self)
        return handler

    @property
    def help(self) -> str:
        """The help, in one line."""
        return (self.handler.__doc__ or "").removesuffix(".")

    @property
    def synopsis(self) -> str:
        """`/undo [n]`."""
        return f"/{self.name} {self.usage}".rstrip()


def find(name: str) -> Command:
    """The command of this name, without its slash; the nearest is suggested if there is none."""
    names = {each: command for command in COMMANDS for each in (command.name, *command.aliases)}
    if name in names:
        return names[name]
    hint = suggestion(name, names, "/", shortest=1) or "; /help lists the commands"
    raise UsageError(f"no command is called /{name}{hint}")


def act(chat: Chat, line: str) -> None:
    """Do what a line says: a command, or else a message.

    `//` at the beginning sends a message that begins with a slash. A `UsageError` is shown to the
    user, and the conversation goes on.
    """
    if line.strip() in BARE:
        line = f"/{line.strip()}"
    if not line.startswith("/") or line.startswith("//"):
        chat.send(line.removeprefix("/") if line.startswith("//") else line)
        return
    name, _, rest = line[1:].partition(" ")
    command, rest = find(name.strip()), rest.strip()
    if reason := command.needs(chat):
        raise UsageError(f"/{command.name}: {reason}")
    if rest and not command.usage:
        raise UsageError(f"/{command.name} takes nothing after it; leave that out")
    command.handler(chat, rest)


# --- the session ---------------------------------------------------------------------------------


@Command("help", ("?",), usage="[command]")
def show_help(chat: Chat, text: str) -> None:
    """List the commands, or explain one."""
    if text:
        command = find(text.removeprefix("/"))
        chat.screen.line(f"{command.synopsis}: {command.help}")
        if command.aliases:
            chat.screen.remark(f"also /{', /'.join(command.aliases)}")
        return
    for title, names in _GROUPS.items():
        gap = " " * (max(map(len, _GROUPS)) - len(title) + 2)
        shown = "  ".join(find(name).synopsis for name in names.split())
        chat.screen.styled([(title, BOLD), (gap + shown, "")])
    chat.screen.remark(
        f"/help retry explains a command; {', '.join(BARE)} need no slash. "
        f"/{', /'.join(SHORTCUTS)} are short for /set."
    )
    chat.screen.remark(
        'Enter sends, Tab completes; Alt-Enter, a \\ at the end, or """ begin a new line. '
        "Ctrl-C stops a reply, Ctrl-R searches, Ctrl-X Ctrl-E opens an editor."
    )


@Command("exit", ("quit", "bye"))
def leave(chat: Chat, _text: str) -> None:
    """Leave; Ctrl-D does too."""
    chat.finished = True


@Command("reset", ("clear", "new"))
def reset(chat: Chat, _text: str) -> None:
    """Forget the turns; system text and settings stay."""
    forgotten = counted(len(chat.conversation.turns), "turn")
    chat.resume(replace(chat.conversation, turns=()))
    chat.screen.notice(f"{forgotten} forgotten")


@Command("system", usage="[text]", completions=("-",))
def system(chat: Chat, text: str) -> None:
    """Show or set the text pinned in front; /system - removes it."""
    if text:
        chat.set_system("" if text == "-" else text)
    pinned = chat.conversation.system
    default = chat.layout.default_system
    own = f"; the template adds: {default}" if default else ""
    chat.screen.line(f"system text: {pinned}" if pinned else f"no system text{own}", dim=True)


# --- settings ------------------------------------------------------------------------------------


@Command("set", usage="[name [value]]", completions=tuple(SETTINGS))
def set_setting(chat: Chat, text: str) -> None:
    """Show or set how replies are drawn."""
    name, _, value = text.partition(" ")
    if name:
        name = _setting_named(name)
        if value := value.strip():
            chat.settings = changed(chat.settings, name, value)
    chat.screen.summary(*_shown(chat.settings, [name] if name else SETTINGS))


def _setter(shortcut: str, name: str) -> None:
    def handler(chat: Chat, text: str) -> None:
        set_setting(chat, f"{name} {text}")

    handler.__doc__ = f"Show or set {name}."
    completions = (_RANDOM,) if name == "seed" else ()
    Command(shortcut, usage="[value]", completions=completions)(handler)


for _shortcut, _name in SHORTCUTS.items():
    _setter(_shortcut, _name)


def _setting_named(name: str) -> str:
    plain = name.replace("-", "_")
    full = SHORTCUTS.get(plain, plain)
    if full in SETTINGS:
        return full
    hint = suggestion(plain, [*SETTINGS, *SHORTCUTS]) or f"; choose {', '.join(SETTINGS)}"
    raise UsageError(f"no setting is called {name!r}{hint}")


def changed(settings: SamplingArguments, name: str, text: str) -> SamplingArguments:
    """The settings with a value as it was typed; the seed may be `random`, new for every reply."""
    value: Any = None if (name, text) == ("seed", _RANDOM) else SETTINGS[name].parse(text)
    new = replace(settings, **{name: value})
    if problems := new.problems():
        raise UsageError("; ".join(problem.removeprefix("--") for problem in problems))
    return new


def _shown(settings: SamplingArguments, names: Iterable[str]) -> list[str]:
    """Settings and their values, as they would be typed."""
    values = ((name, getattr(settings, name)) for name in names)
    return [f"{name} {_RANDOM if value is None else value}" for name, value in values]


# --- turns ---------------------------------------------------------------------------------------


@Command("retry", usage="[seed]", needs=needs_turn)
def retry(chat: Chat, text: str) -> None:
    """Answer the last message again, with a new seed."""
    chat.retry(changed(chat.settings, "seed", text).seed if text else None)


@Command("undo", usage="[n]", needs=needs_turn)
def undo(chat: Chat, text: str) -> None:
    """Take back the last turn, or the last n."""
    n_turns = Flag(name="/undo [n]: n", type=int).parse(text or "1")
    n_before = len(chat.conversation.turns)
    if not 1 <= n_turns <= n_before:
        raise UsageError(f"/undo [n]: n must be from 1 to {n_before}, not {n_turns}")
    chat.resume(chat.conversation.without_last(n_turns))
    chat.screen.notice(f"{counted(n_turns, 'turn')} taken back, {n_before - n_turns} left")


@Command("edit", needs=needs_turn)
def edit(chat: Chat, _text: str) -> None:
    """Take back the last message and change it."""
    chat.draft = chat.conversation.turns[-1].message
    chat.resume(chat.conversation.without_last())


@Command("continue", needs=needs_turn)
def extend(chat: Chat, _text: str) -> None:
    """Go on with the last reply."""
    chat.extend()


# --- files ---------------------------------------------------------------------------------------


@Command("save", usage="[file]", needs=needs_reply, takes_path=True)
def save(chat: Chat, text: str) -> None:
    """Write the conversation to a file that training can read."""
    path = Path(text).expanduser() if text else transcript.free_name(Path())
    model = chat.model
    transcript.save(
        path, Transcript(chat.conversation, chat.settings, model.name, model.step, model.sha256)
    )
    chat.screen.notice(f"saved to {path}")


@Command("good", usage="[file]", needs=needs_reply, takes_path=True)
def keep(chat: Chat, text: str) -> None:
    """Add the conversation to a file of chats to train on."""
    path = Path(text or _GOOD).expanduser()
    transcript.add_messages(path, chat.conversation)
    chat.screen.notice(f"added to {path}")
    chat.screen.remark(f"train: {next_command('yocto-train', '--text_path', str(path))}")


@Command("load", usage="file", takes_path=True)
def load(chat: Chat, text: str) -> None:
    """Go on with a conversation that was saved."""
    if not text:
        raise UsageError(
            "/load needs the name of a file that /save wrote, as in /load chat-001.jsonl"
        )
    found = transcript.load(Path(text).expanduser())
    chat.resume(found.conversation)
    chat.settings = found.settings
    for turn in chat.conversation.turns:
        chat.screen.line(f"> {turn.message}", dim=True)
        chat.screen.line(turn.reply.text if turn.reply else "")
    chat.screen.notice(f"{counted(len(found.conversation.turns), 'turn')} and settings loaded")
    if found.sha256 != chat.model.sha256:
        chat.screen.notice("saved with another model: seeds will not give the same replies")


# --- looking inside ------------------------------------------------------------------------------


@Command("stats")
def stats(chat: Chat, _text: str) -> None:
    """Model, context, speed and settings."""
    model, last = chat.model, chat.last
    drawn = counted(chat.tokens_drawn, "token")
    rows = [
        ("model", model.line),
        ("asked by", model.template.name),
        ("context", f"{chat.context_tokens} of {chat.window} tokens"),
        ("turns", f"{len(chat.conversation.turns)}, {drawn} drawn"),
    ]
    if last:
        first = last.seconds_to_first
        begun = "" if first is None else f", the first character after {1000 * first:.0f} ms"
        took = f"{counted(last.n_drawn, 'token')} in {last.seconds:.2f} s{begun}"
        rows.append(("last reply", took))
    chat.screen.rows([*rows, ("settings", ", ".join(_shown(chat.settings, SETTINGS)))])


@Command("tokens", usage="[text]")
def tokens(chat: Chat, text: str) -> None:
    """Show how the conversation, or a text, splits into tokens."""
    tokenizer = chat.model.tokenizer
    view = inside.of_text(tokenizer, text) if text else inside.of_conversation(chat)
    if not view.pieces:
        raise UsageError("there is nothing to split yet; give a text, as in /tokens text")
    chat.screen.styled(view.drawn(unicode=chat.screen.unicode, ansi=chat.screen.ansi))
    chat.screen.summary(*view.summary())


@Command("probs", usage="on|off", completions=("on", "off"))
def probabilities(chat: Chat, text: str) -> None:
    """Tint replies by how likely each token was."""
    if text not in ("", "on", "off"):
        raise UsageError("usage: /probs on|off")
    if text == "on" and not chat.screen.ansi:
        raise UsageError(
            "this terminal cannot show tints; it needs one that obeys escape sequences"
        )
    chat.tinted = text == "on" if text else chat.tinted
    chat.screen.notice(f"probabilities are {'on' if chat.tinted else 'off'}")
    if not chat.tinted:
        return
    chat.screen.legend()
    if chat.last:
        writer = Writer(chat.screen, tinted=True)
        for token in chat.last.shown:
            writer.token(token)
        writer.end()


@Command("alts", needs=needs_alternatives)
def alternatives(chat: Chat, _text: str) -> None:
    """See what else the last reply might have said, and swap."""
    # `needs_alternatives` has checked both.
    if chat.choose and chat.last and (choice := chat.choose(chat.last)):
        chat.swap(*choice)


@Command("compare", usage="t1 t2", needs=needs_turn)
def compare(chat: Chat, text: str) -> None:
    """Answer at several temperatures, side by side."""
    values = text.split()
    if not 1 < len(values) <= _MOST_COMPARED:
        raise UsageError(f"usage: /compare 0.3 0.8 1.2, with two to {_MOST_COMPARED} temperatures")
    seed, replies = chat.next_seed(), []
    for settings in [changed(chat.settings, "temperature", value) for value in values]:
        reply = chat.fresh_reply(settings, seed)
        if problem := chat.run(reply, lambda _token: None):
            raise UsageError(f"the model could not go on: {problem}")
        replies.append((f"temperature {settings.temperature:g}", reply.text or "(no reply)"))
        if reply.finish == "stopped":
            break
    chat.screen.columns(replies)
    chat.screen.summary(f"seed {seed}", "none of this is kept")


@Command("memorised", ("memorized",), needs=needs_reply)
def memorised(chat: Chat, _text: str) -> None:
    """Show how much of the last reply is learned by heart."""
    reply = chat.conversation.turns[-1].reply
    assert reply is not None  # noqa: S101 - `needs_reply` has checked it
    text = inside.training_text(chat.model)
    for line in inside.report(reply.text, text, unicode=chat.screen.unicode):
        chat.screen.line(line)
