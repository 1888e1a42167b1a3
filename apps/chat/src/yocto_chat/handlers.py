"""What each command does; the table is in commands.py."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from yocto_cli.arguments import UsageError
from yocto_cli.fields import float_problem, integer_problem
from yocto_cli.screen.terminal import counted, one_line, visible

from yocto_chat import compare as comparing
from yocto_chat import memorisation, parameters, tokens_view, transcript
from yocto_chat.chat import Chat
from yocto_chat.probabilities import SHADES

if TYPE_CHECKING:
    from yocto_chat.commands import Command

_MOST_COMPARED = 6
_MOST_SHOWN_TOKENS = 4_000


# --- why a command cannot be used ----------------------------------------------------------------


def needs_turn(chat: Chat) -> str | None:
    """A message has been sent."""
    return None if chat.conversation.turns else "there is no message yet"


def needs_reply(chat: Chat) -> str | None:
    """The last message has a reply."""
    turns = chat.conversation.turns
    return None if turns and turns[-1].answered else "there is no reply yet"


def needs_take(chat: Chat) -> str | None:
    """The last reply was drawn here, and the terminal can show its alternatives."""
    if chat.choose is None:
        return "this terminal cannot show it; it needs one that moves its cursor"
    return None if chat.take and chat.take.spans else "there is no reply to step through; /retry"


# --- the session ---------------------------------------------------------------------------------


def help_text(
    chat: Chat, text: str, commands: "Sequence[Command]", find: "Callable[[str], Command]"
) -> None:
    """List the commands, or explain one."""
    if text:
        command = find(text.removeprefix("/"))
        chat.screen.line(f"{command.synopsis}: {command.help}")
        if command.aliases:
            chat.screen.line(f"also /{', /'.join(command.aliases)}", dim=True)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=chat.screen.width >= 50)
    for command in commands:
        table.add_row(command.synopsis, command.help)
    chat.screen.draw(table)
    chat.screen.line(
        'Enter sends; Alt-Enter, a \\ at the end, or """ makes lines. Ctrl-C stops a reply, '
        "Ctrl-R searches, Ctrl-X Ctrl-E opens an editor. // begins a message with a slash.",
        dim=True,
    )


def leave(chat: Chat, text: str) -> None:
    """Leave."""
    _nothing_after("exit", text)
    chat.finished = True


def reset(chat: Chat, text: str) -> None:
    """Forget all turns."""
    _nothing_after("reset", text)
    forgotten = counted(len(chat.conversation.turns), "turn")
    chat.reset()
    chat.screen.notice(f"{forgotten} forgotten")


def system(chat: Chat, text: str) -> None:
    """Show, set or remove the system text."""
    if text:
        chat.set_system("" if text == "-" else text)
    pinned = chat.conversation.system
    chat.screen.line(f"system text: {pinned}" if pinned else "no system text", dim=True)


def set_parameter(chat: Chat, text: str) -> None:
    """Show all parameters, show one, or set one."""
    name, _, value = text.partition(" ")
    if name:
        name = parameters.parameter_named(name)
        if value := value.strip():
            chat.settings = parameters.changed(chat.settings, name, value)
    names = [name] if name else list(parameters.PARAMETERS)
    chat.screen.facts(*(parameters.shown(chat.settings, each) for each in names))


# --- turns ---------------------------------------------------------------------------------------


def retry(chat: Chat, text: str) -> None:
    """Answer again."""
    if not text:
        chat.retry()
        return
    seed = parameters.changed(chat.settings, "seed", text).seed
    chat.retry(seed)


def undo(chat: Chat, text: str) -> None:
    """Take turns back."""
    if text and (problem := integer_problem(text)):
        raise UsageError(f"/undo [n]: n {problem}")
    n_turns, there = int(text or 1), len(chat.conversation.turns)
    if not 1 <= n_turns <= there:
        raise UsageError(f"/undo [n]: n must be from 1 to {there}, not {n_turns}")
    chat.undo(n_turns)
    chat.screen.notice(f"{counted(n_turns, 'turn')} taken back, {there - n_turns} left")


def edit(chat: Chat, text: str) -> None:
    """Offer the last message for editing."""
    _nothing_after("edit", text)
    chat.edit()


def extend(chat: Chat, text: str) -> None:
    """Go on with the last reply."""
    _nothing_after("continue", text)
    chat.extend()


# --- files ---------------------------------------------------------------------------------------


def save(chat: Chat, text: str) -> None:
    """Write the conversation."""
    path = Path(text).expanduser() if text else transcript.free_name(Path())
    transcript.save(path, chat.conversation, chat.settings, chat.model)
    chat.screen.notice(f"saved to {one_line(str(path))}")


def load(chat: Chat, text: str) -> None:
    """Read a conversation."""
    if not text:
        raise UsageError("usage: /load file")
    found = transcript.load(Path(text).expanduser())
    chat.resume(found.conversation)
    chat.settings = found.settings
    for turn in chat.conversation.turns:
        chat.screen.line(f"> {turn.message}", dim=True)
        chat.screen.line(turn.reply.text if turn.reply else "")
    chat.screen.notice(f"{counted(len(found.conversation.turns), 'turn')} and settings loaded")
    if found.checkpoint != chat.model.sha256:
        chat.screen.notice("another model said this: seeds will not give the same replies")


# --- looking inside ------------------------------------------------------------------------------


def stats(chat: Chat, text: str) -> None:
    """Model, context, speed and settings."""
    _nothing_after("stats", text)
    model, take = chat.model, chat.take
    table = Table.grid(padding=(0, 2))
    rows = [
        ("model", f"{model.name} step {model.step}, {model.n_parameters:,} parameters"),
        ("context", f"{chat.context_tokens} of {chat.window} tokens"),
        ("turns", f"{len(chat.conversation.turns)}, {counted(chat.tokens_drawn, 'token')} drawn"),
    ]
    if take:
        first = take.seconds_to_first
        begun = "" if first is None else f", the first character after {1000 * first:.0f} ms"
        rows.append(
            ("last reply", f"{counted(take.n_drawn, 'token')} in {take.seconds:.2f} s{begun}")
        )
    shown = (parameters.shown(chat.settings, name) for name in parameters.PARAMETERS)
    rows.append(("settings", ", ".join(shown)))
    for name, value in rows:
        table.add_row(name, Text(visible(value)))
    chat.screen.draw(table)


def tokens(chat: Chat, text: str) -> None:
    """How text splits."""
    view = (
        tokens_view.of_text(chat.model.tokenizer, text)
        if text
        else tokens_view.of_conversation(chat)
    )
    if not view.pieces:
        raise UsageError("there is nothing to split yet; /tokens text splits a text")
    screen = chat.screen
    screen.draw(
        tokens_view.drawn(view, most=_MOST_SHOWN_TOKENS, unicode=screen.unicode, ansi=screen.ansi)
    )
    chat.screen.facts(*view.facts())


def probabilities(chat: Chat, text: str) -> None:
    """Switch tinting, and show the last reply with it."""
    if text not in ("", "on", "off"):
        raise UsageError("usage: /probs on|off")
    if text and text == "on" and not chat.screen.ansi:
        raise UsageError("this terminal cannot show tints")
    chat.tinted = chat.tinted if not text else text == "on"
    chat.screen.notice(f"probabilities are {'on' if chat.tinted else 'off'}")
    if not chat.tinted:
        return
    legend = Text()
    for shade in SHADES:
        style = shade.style if chat.screen.colour else shade.plain_style
        legend.append(shade.name, style=style).append("  ")
    chat.screen.draw(legend)
    if chat.take and chat.take.spans:
        writer = chat.screen.reply(tinted=True)
        writer.write(chat.take.spans)
        writer.end()


def alternatives(chat: Chat, text: str) -> None:
    """Step through the last reply."""
    _nothing_after("alts", text)
    assert chat.choose is not None  # noqa: S101 - `needs_take` has seen to both
    assert chat.take is not None  # noqa: S101
    choice = chat.choose(chat.take)
    if choice is not None:
        chat.swap(*choice)


def compare(chat: Chat, text: str) -> None:
    """Answer at several temperatures."""
    words = text.split()
    if not 1 < len(words) <= _MOST_COMPARED:
        raise UsageError(f"usage: /compare 0.3 0.8 1.2, with two to {_MOST_COMPARED} temperatures")
    for word in words:
        if problem := float_problem(word):
            raise UsageError(f"/compare: a temperature {problem}")
    settings = [parameters.changed(chat.settings, "temperature", word) for word in words]
    takes = comparing.takes(chat, settings)
    if takes:
        chat.screen.draw(comparing.side_by_side(takes, chat.screen.width))
        chat.screen.facts(f"seed {takes[0].seed}", "nothing of this is kept")


def memorised(chat: Chat, text: str) -> None:
    """How much of the last reply stands in the training text."""
    _nothing_after("memorised", text)
    reply = chat.conversation.turns[-1].reply
    assert reply is not None  # noqa: S101 - `needs_reply` has seen to it
    training_text = memorisation.training_text(chat.model)
    for line in memorisation.report(reply.text, training_text, unicode=chat.screen.unicode):
        chat.screen.line(line)


def _nothing_after(name: str, text: str) -> None:
    if text:
        raise UsageError(f"/{name} takes nothing after it")
