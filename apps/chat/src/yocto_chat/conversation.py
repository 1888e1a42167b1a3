"""The conversation as a pure object: turns in, the ids of the next prompt out.

Nothing here prints, draws or remembers. A command such as /undo makes a new `Conversation` from the
old one, and what the model sees is computed afresh from it for every reply.

A model that was trained on chats knows tokens that begin a message and a reply. Any other model
only continues text; it is given a dialogue to continue, in the form that data/philosophy.txt has:

    User: What is time?
    Assistant: What the baker has too little of at four in the morning.

one line per speaker, and a blank line where the conversation ends. Characters that a model has
never seen are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from yocto_tokenizers import Tokenizer

#: Why a reply ended: the model ended it; the limit of new tokens; no room left; the user.
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


@dataclass(frozen=True, kw_only=True)
class TurnParts:
    """The ids of the turn to be answered, in four parts, so that it can be shortened."""

    before: list[int]  # announces the message; never cut
    message: list[int]  # loses its beginning first
    between: list[int]  # announces the reply; never cut
    reply: list[int]  # as far as it goes; loses its beginning last

    @property
    def ids(self) -> list[int]:
        return self.before + self.message + self.between + self.reply

    def fitted(self, n_tokens: int) -> tuple[list[int], int]:
        """The ids in at most `n_tokens`, as far as the frame allows, and how many were cut."""
        excess = len(self.ids) - n_tokens
        from_message = min(max(0, excess), len(self.message))
        from_reply = min(max(0, excess - from_message), len(self.reply))
        ids = self.before + self.message[from_message:] + self.between + self.reply[from_reply:]
        return ids, from_message + from_reply


# --- how turns become ids ------------------------------------------------------------------------


class TurnTokens:
    """`[bos] system, then [user] message [assistant] reply [eos]` for each turn."""

    stops: tuple[str, ...] = ()
    has_turn_tokens = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def shown(self, message: str) -> str:
        """A message as the model sees it."""
        return message

    def opening(self, system: str) -> list[int]:
        """The ids in front of the first turn."""
        return _one(self._tokenizer.bos_id) + encode_known(self._tokenizer, system)

    def past(self, turn: Turn) -> list[int]:
        """The ids of a turn that is over."""
        return self.last(turn).ids + _one(self._tokenizer.eos_id)

    def last(self, turn: Turn) -> TurnParts:
        """The ids of the turn whose reply comes next."""
        return TurnParts(
            before=_one(self._tokenizer.user_id),
            message=encode_known(self._tokenizer, turn.message),
            between=_one(self._tokenizer.assistant_id),
            reply=encode_known(self._tokenizer, turn.reply.text if turn.reply else ""),
        )


class PlainText:
    """`User: message` and `Assistant: reply`, a line each.

    A message is put on one line, and so is a reply that holds a stop string (a loaded one may):
    nobody's text can end the dialogue, or speak in somebody else's name.
    """

    # A blank line ends the conversation, and a name says that somebody else is speaking. A single
    # line break ends nothing: a model of verse may answer in several lines.
    stops: tuple[str, ...] = ("\n\n", "\nUser:", "\nAssistant:")
    has_turn_tokens = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def shown(self, message: str) -> str:
        return joined_lines(message)

    def opening(self, system: str) -> list[int]:
        return encode_known(self._tokenizer, f"{system}\n\n") if system else []

    def past(self, turn: Turn) -> list[int]:
        if turn.reply is not None and turn.reply.text.endswith("\n"):
            # With the break that ends its line, it would make the blank line that ends a dialogue.
            turn = replace(turn, reply=replace(turn.reply, text=turn.reply.text.rstrip("\n")))
        return self.last(turn).ids + encode_known(self._tokenizer, "\n")

    def last(self, turn: Turn) -> TurnParts:
        reply = turn.reply.text if turn.reply else ""
        if any(stop in reply for stop in self.stops):
            reply = joined_lines(reply)
        # A space goes with the word after it, as in tokenizers that learn words.
        return TurnParts(
            before=encode_known(self._tokenizer, "User:"),
            message=encode_known(self._tokenizer, f" {self.shown(turn.message)}"),
            between=encode_known(self._tokenizer, "\nAssistant:"),
            reply=encode_known(self._tokenizer, f" {reply}") if reply else [],
        )


Layout = TurnTokens | PlainText


def layout_for(tokenizer: Tokenizer) -> Layout:
    """The layout of a model with this tokenizer."""
    if tokenizer.user_id is not None and tokenizer.assistant_id is not None:
        return TurnTokens(tokenizer)
    return PlainText(tokenizer)


# --- what the model is given ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is given, and what is left out."""

    ids: list[int]  # the tokens to continue
    room: int  # how many tokens the reply may take
    room_is_window: bool  # whether the window, and not the limit of new tokens, set `room`
    hidden_turns: int  # how many turns with a reply are left out, the oldest ones
    cut_tokens: int  # how many were cut from the beginning of the last turn


def build_prompt(
    conversation: Conversation, layout: Layout, *, window: int, max_new_tokens: int
) -> Prompt:
    """The prompt for a reply to the last turn of `conversation`, or for the rest of that reply.

    The system text stays. The last turn is always there, preceded by as many whole turns as fit
    beside the room reserved for the reply. If the last turn alone is too long, it keeps its end.
    Prompt and reply together take at most `window` tokens.
    """
    budget = window - min(max_new_tokens, window // 2)  # at most half is reserved
    head = layout.opening(conversation.system)
    *past, last = conversation.turns
    tail, cut_tokens = layout.last(last).fitted(budget - len(head))
    seen = seen_turns(past, layout, budget - len(head) - len(tail))
    ids = head + [token for part in seen for token in part] + tail
    left = window - len(ids)
    return Prompt(
        ids=ids,
        room=min(max_new_tokens, left),
        room_is_window=left <= max_new_tokens,
        hidden_turns=sum(turn.answered for turn in past) - len(seen),
        cut_tokens=cut_tokens,
    )


def seen_turns(turns: Sequence[Turn], layout: Layout, n_tokens: int) -> list[list[int]]:
    """The ids of the newest whole turns that fit into `n_tokens`, in order."""
    seen: list[list[int]] = []
    # From the newest backwards, and no further than needed: a long past costs nothing.
    for turn in reversed(turns):
        if turn.answered:
            ids = layout.past(turn)
            n_tokens -= len(ids)
            if n_tokens < 0:
                break
            seen.insert(0, ids)
    return seen


def joined_lines(text: str) -> str:
    """The lines of a text, joined by single spaces; empty lines are dropped."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def unknown_characters(tokenizer: Tokenizer, text: str) -> list[str]:
    """The distinct characters of `text` that cannot be encoded, in order of appearance."""
    if find := getattr(tokenizer, "unknown_characters", None):
        return list(find(text))
    # A tokenizer that accepts every character still cannot encode half a surrogate pair.
    return list(dict.fromkeys(c for c in text if "\ud800" <= c <= "\udfff"))


def known_part(tokenizer: Tokenizer, text: str) -> str:
    """`text` without the characters that the tokenizer cannot encode."""
    unknown = unknown_characters(tokenizer, text)
    return text.translate({ord(character): None for character in unknown}) if unknown else text


def encode_known(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of everything in `text` that can be encoded."""
    return tokenizer.encode(known_part(tokenizer, text))


def _one(token: int | None) -> list[int]:
    return [] if token is None else [token]
