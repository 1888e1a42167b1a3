"""The commands of the chat: one table, from which help, completion and suggestions derive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yocto_cli.arguments import UsageError
from yocto_cli.fields import suggestion

from yocto_chat import handlers
from yocto_chat.chat import Chat
from yocto_chat.parameters import PARAMETERS, SHORTCUTS


def _always(_chat: Chat) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: without the slash.
        usage: what may follow the name.
        help: what it does, in a line.
        handler: does it; gets what follows the name.
        aliases: other names.
        available: why it cannot be used now, or None.
        words: what the word after the name may be, for completion.
        takes_path: whether a file's name follows.
    """

    name: str
    help: str
    handler: Callable[[Chat, str], None]
    usage: str = ""
    aliases: tuple[str, ...] = ()
    available: Callable[[Chat], str | None] = _always
    words: Sequence[str] = ()
    takes_path: bool = False

    @property
    def synopsis(self) -> str:
        """`/undo [n]`."""
        return f"/{self.name} {self.usage}".rstrip()


def _setter(shortcut: str) -> Command:
    name = SHORTCUTS[shortcut]
    return Command(
        name=shortcut,
        usage="[value]",
        help=f"show or set {name}",
        handler=lambda chat, text: handlers.set_parameter(chat, f"{name} {text}"),
        words=("random",) if name == "seed" else (),
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        name="help",
        aliases=("?",),
        usage="[command]",
        help="list the commands, or explain one",
        handler=lambda chat, text: handlers.help_text(chat, text, COMMANDS, find),
    ),
    Command(
        name="exit", aliases=("quit", "bye"), help="leave; Ctrl-D does too", handler=handlers.leave
    ),
    Command(
        name="reset",
        aliases=("clear", "new"),
        help="forget the turns; system text and settings stay",
        handler=handlers.reset,
    ),
    Command(
        name="system",
        usage="[text]",
        help="show or set the text pinned in front; /system - removes it",
        handler=handlers.system,
        words=("-",),
    ),
    Command(
        name="set",
        usage="[name [value]]",
        help="show or set how replies are drawn",
        handler=handlers.set_parameter,
        words=tuple(PARAMETERS),
    ),
    *(_setter(shortcut) for shortcut in SHORTCUTS),
    Command(
        name="retry",
        usage="[seed]",
        help="answer the last message again, with a new seed",
        handler=handlers.retry,
        available=handlers.needs_turn,
    ),
    Command(
        name="undo",
        usage="[n]",
        help="take back the last turn, or the last n",
        handler=handlers.undo,
        available=handlers.needs_turn,
    ),
    Command(
        name="edit",
        help="take back the last message and change it",
        handler=handlers.edit,
        available=handlers.needs_turn,
    ),
    Command(
        name="continue",
        help="go on with the last reply",
        handler=handlers.extend,
        available=handlers.needs_turn,
    ),
    Command(
        name="save",
        usage="[file]",
        help="write the conversation to a new file that training can read",
        handler=handlers.save,
        available=handlers.needs_reply,
        takes_path=True,
    ),
    Command(
        name="load",
        usage="file",
        help="go on with a conversation that was saved",
        handler=handlers.load,
        takes_path=True,
    ),
    Command(name="stats", help="model, context, speed and settings", handler=handlers.stats),
    Command(
        name="tokens",
        usage="[text]",
        help="how the conversation, or a text, splits into tokens",
        handler=handlers.tokens,
    ),
    Command(
        name="probs",
        usage="[on|off]",
        help="tint replies by how likely each token was",
        handler=handlers.probabilities,
        words=("on", "off"),
    ),
    Command(
        name="alts",
        help="step through the last reply, see what else it might have said, and swap",
        handler=handlers.alternatives,
        available=handlers.needs_take,
    ),
    Command(
        name="compare",
        usage="temperature ...",
        help="answer at several temperatures with one seed, side by side",
        handler=handlers.compare,
        available=handlers.needs_turn,
    ),
    Command(
        name="memorised",
        aliases=("memorized",),
        help="the longest stretch of the last reply that the training text holds word for word",
        handler=handlers.memorised,
        available=handlers.needs_reply,
    ),
)


def find(name: str) -> Command:
    """The command of this name, without its slash.

    Raises:
        UsageError: there is none; the nearest is suggested.
    """
    names = {n: command for command in COMMANDS for n in (command.name, *command.aliases)}
    if name in names:
        return names[name]
    hint = suggestion(name, names, "/", shortest=1) or "; /help lists the commands"
    raise UsageError(f"no command is called /{name}{hint}")


def act(chat: Chat, line: str) -> None:
    """Do what a line says: a command, or else a message.

    `//` at the beginning sends a message that begins with a slash.

    Raises:
        UsageError: it cannot be done; the user is told, and the conversation goes on.
    """
    if not line.startswith("/") or line.startswith("//"):
        chat.send(line.removeprefix("/") if line.startswith("//") else line)
        return
    name, _, rest = line[1:].partition(" ")
    command = find(name.strip())
    if reason := command.available(chat):
        raise UsageError(f"/{command.name}: {reason}")
    command.handler(chat, rest.strip())
