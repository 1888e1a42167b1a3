"""The conversation as a pure object: turns in, the ids of the next prompt out.

Nothing here prints, draws or remembers. A command such as /undo makes a new `Conversation` from the
old one, and what the model sees is computed afresh from it for every reply.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from yocto_cli.asking import Layout, Message, TurnParts, message, n_hidden

#: Why a reply ended: the model ended it; the limit of new tokens; no room left (in older files);
#: the user.
Finish = Literal["stop", "limit", "window", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said."""

    text: str  # exactly what was shown
    finish: Finish = "stop"
    seeds: tuple[int, ...] = ()  # the one it was drawn with, and one more for each /continue


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message, and the reply to it once there is one."""

    message: str
    reply: Reply | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a reply that is not empty: only then do later prompts show the turn."""
        return self.reply is not None and self.reply.text != ""


#: Stands for a turn that nobody has thought of yet; some templates leave out an empty one.
SHORTEST = Turn(message="?")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A system text, which stays, and the turns so far."""

    system: str = ""
    turns: tuple[Turn, ...] = ()

    def asked(self, message: str) -> "Conversation":
        """With one more message, not answered yet."""
        return replace(self, turns=(*self.turns, Turn(message=message)))

    def answered(self, reply: Reply | None) -> "Conversation":
        """With this reply to the last message instead of the one it had; None removes it."""
        return replace(self, turns=(*self.turns[:-1], replace(self.turns[-1], reply=reply)))

    def without_last(self, n_turns: int = 1) -> "Conversation":
        """Without the last turns."""
        return replace(self, turns=self.turns[: max(0, len(self.turns) - n_turns)])


# --- what the model is given ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is given, and what is left out."""

    ids: list[int]  # the tokens to continue
    room: int  # how many tokens the reply may take
    hidden_turns: int  # how many turns with a reply are left out, the oldest ones
    cut_tokens: int  # how many were cut from the beginning of the last turn


def messages_of(system: str, past: Sequence[Turn], last: Turn) -> list[Message]:
    """A conversation whose `last` turn is to be answered, or its reply continued."""
    messages = [message("system", system)] if system.strip() else []
    for turn in past:
        reply = turn.reply.text if turn.reply else ""
        messages += [message("user", turn.message), message("assistant", reply)]
    messages.append(message("user", last.message))
    if last.reply and last.answered:
        messages.append(message("assistant", last.reply.text))
    return messages


def build_prompt(
    conversation: Conversation, layout: Layout, *, window: int, max_new_tokens: int
) -> Prompt:
    """The prompt for a reply to the last turn of `conversation`, or for the rest of that reply.

    The system text stays. The last turn is always there, preceded by as many whole turns as fit
    beside the room reserved for the reply. If the last turn alone is too long, it keeps its end.
    Prompt and reply together take at most `window` tokens.
    """
    budget = window - min(max_new_tokens, window // 2)  # at most half is reserved
    *past, last = conversation.turns
    past = [turn for turn in past if turn.answered]

    def parts(hidden: int) -> TurnParts:
        return layout.parts(messages_of(conversation.system, past[hidden:], last))

    hidden = n_hidden(len(past), lambda n: len(parts(n).ids), budget)
    ids, cut_tokens = parts(hidden).fitted(budget)
    return Prompt(
        ids=ids,
        room=min(max_new_tokens, window - len(ids)),
        hidden_turns=hidden,
        cut_tokens=cut_tokens,
    )


def joined_lines(text: str) -> str:
    """The lines of a text, joined by single spaces; empty lines are dropped."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
