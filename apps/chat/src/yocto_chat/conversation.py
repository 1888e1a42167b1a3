"""The conversation as a pure object: turns in, the ids of the next prompt out.

Nothing here prints, draws or remembers. A command such as /undo makes a new `Conversation` from the
old one, and what the model gets to see is computed afresh from it for every reply.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

#: Why a reply ended: the model ended it; the limit of new tokens; no room left; the user.
Finish = Literal["stop", "limit", "window", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said.

    Attributes:
        text: exactly what was shown.
        finish: why it ended.
        seeds: the seed it was drawn with, and one more for each /continue.
    """

    text: str
    finish: Finish = "stop"
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message and the reply to it; None as long as there is none."""

    message: str
    reply: Reply | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a reply that is not empty: only then do later prompts show the turn."""
        return self.reply is not None and self.reply.text != ""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A system text, which stays, and the turns so far."""

    system: str = ""
    turns: tuple[Turn, ...] = ()

    def asked(self, message: str) -> "Conversation":
        """With one more message, not answered yet."""
        return replace(self, turns=(*self.turns, Turn(message=message)))

    def answered(self, reply: Reply | None) -> "Conversation":
        """With this reply to the last message instead of the one it had; None takes it away."""
        return replace(self, turns=(*self.turns[:-1], replace(self.turns[-1], reply=reply)))

    def without_last(self, n_turns: int = 1) -> "Conversation":
        """Without the last turns."""
        return replace(self, turns=self.turns[: max(0, len(self.turns) - n_turns)])


@dataclass(frozen=True, kw_only=True)
class OpenTurn:
    """The ids of the turn that is to be answered, in four parts, so that it can be shortened.

    Attributes:
        before: what announces the message; never cut.
        message: the message; loses its beginning first.
        between: what announces the reply; never cut.
        reply: the part of the reply that is there already; loses its beginning last.
    """

    before: list[int]
    message: list[int]
    between: list[int]
    reply: list[int]

    def fitted(self, n_tokens: int) -> tuple[list[int], int]:
        """The ids in at most `n_tokens`, as far as the frame allows, and how many were cut."""
        excess = len(self.before + self.message + self.between + self.reply) - n_tokens
        from_message = min(max(0, excess), len(self.message))
        from_reply = min(max(0, excess - from_message), len(self.reply))
        ids = self.before + self.message[from_message:] + self.between + self.reply[from_reply:]
        return ids, from_message + from_reply


class Layout(Protocol):
    """How turns become ids; see layout.py for the two that there are."""

    def opening(self, system: str) -> list[int]:
        """The ids in front of the first turn."""
        ...

    def past(self, turn: Turn) -> list[int]:
        """The ids of a turn that is over."""
        ...

    def last(self, turn: Turn) -> OpenTurn:
        """The ids of the turn whose reply comes next."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is given, and what it is not.

    Attributes:
        ids: the tokens to continue.
        room: how many tokens the reply may take.
        room_is_window: whether the window, and not the limit of new tokens, set `room`.
        first_turn: index of the oldest turn that is in `ids`.
        hidden_turns: how many turns with a reply came before that one.
        cut_tokens: how many were cut from the beginning of the last turn.
    """

    ids: list[int]
    room: int
    room_is_window: bool
    first_turn: int
    hidden_turns: int
    cut_tokens: int


def reserved_tokens(window: int, max_new_tokens: int) -> int:
    """How much of the window is kept free for the reply: what it may take, at most half."""
    return min(max_new_tokens, window // 2)


def build_prompt(
    conversation: Conversation, layout: Layout, *, window: int, max_new_tokens: int
) -> Prompt:
    """The prompt for a reply to the last turn of `conversation`, or for the rest of that reply.

    The system text stays. Of the turns, the last one is always there, and before it as many whole
    ones as fit beside the room that is reserved for the reply. If the last turn alone is too long,
    it keeps its end.

    Args:
        conversation: at least one turn.
        layout: how turns become ids.
        window: how many tokens prompt and reply may take together.
        max_new_tokens: how many the reply may take.
    """
    budget = window - reserved_tokens(window, max_new_tokens)
    head = layout.opening(conversation.system)
    *past, last = conversation.turns
    tail, cut_tokens = layout.last(last).fitted(budget - len(head))
    kept: list[list[int]] = []
    first = len(past)
    free = budget - len(head) - len(tail)
    for index, ids in _newest_first(past, layout):
        free -= len(ids)
        if free < 0:
            break
        first = index
        kept.append(ids)
    ids = head + [token for part in reversed(kept) for token in part] + tail
    left = window - len(ids)
    return Prompt(
        ids=ids,
        room=min(max_new_tokens, left),
        room_is_window=left <= max_new_tokens,
        first_turn=first,
        hidden_turns=sum(turn.answered for turn in past[:first]),
        cut_tokens=cut_tokens,
    )


def _newest_first(turns: list[Turn], layout: Layout) -> Iterator[tuple[int, list[int]]]:
    """Index and ids of each answered turn; lazily, so that a long past costs nothing."""
    for index in range(len(turns) - 1, -1, -1):
        if turns[index].answered:
            yield index, layout.past(turns[index])
