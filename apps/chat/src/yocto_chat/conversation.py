"""The conversation as a pure object: turns in, the ids of the next prompt out.

Nothing here prints, draws or remembers. A command such as /undo makes a new `Conversation` from the
old one, and what the model sees is computed afresh from it for every reply.

A model is asked as its chat template says. One without a template only continues text; it is given
a dialogue to continue, in the form that data/philosophy.txt has:

    User: What is time?
    Assistant: What the baker has too little of at four in the morning.

one line per speaker, and a blank line where the conversation ends. Characters that a model has
never seen are left out.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from typing import Literal

from yocto_tokenizers import ChatTemplate, Segment, Tokenizer, encode_segments

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


@dataclass(frozen=True, kw_only=True)
class TurnParts:
    """The ids of a prompt in four parts, so that the turn to be answered can be shortened."""

    before: list[int]  # all that was said, and what announces the message; never cut
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


class Layout:
    """How a model is asked: its chat template, and what follows from it.

    Args:
        template: of the model.
        tokenizer: of the model.

    Attributes:
        stops: strings that end a reply.
        end_id: id that ends a reply; None where only strings do, as in plain text.
        default_system: the system text that the template writes where there is none.

    Raises:
        ChatTemplateError: the template cannot be used; its methods raise the same.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self.stops = template.stops(tokenizer)
        self.end_id = template.end_id(tokenizer)
        self.default_system = template.default_system(tokenizer)
        # For every reply, the messages before it are encoded again.
        self._encode = lru_cache(maxsize=1024)(partial(encode_known, tokenizer))
        exchange = [_message("user", "?"), _message("assistant", "!")]
        begins = template.segments(exchange[:1], tokenizer, add_generation_prompt=True)[-1].text
        # A space goes with the word after it: where it is no part of the prompt, the reply has it.
        spoken = template.segments(exchange, tokenizer)[-2].text
        self._lead = " " if spoken.startswith(" ") and not begins.endswith(" ") else ""

    def shown(self, message: str) -> str:
        """A message as the model sees it."""
        segments = self._template.segments([_message("user", message)], self._tokenizer)
        return next(segment.text for segment in segments if segment.message == 0)

    def parts(self, system: str, past: Sequence[Turn], last: Turn) -> TurnParts:
        """The ids of a conversation whose `last` turn is to be answered, or its reply continued."""
        messages = [_message("system", system)] if system.strip() else []
        for turn in past:
            reply = turn.reply.text if turn.reply else ""
            messages += [_message("user", turn.message), _message("assistant", reply)]
        messages.append(_message("user", last.message))
        segments = self._template.segments(messages, self._tokenizer, add_generation_prompt=True)
        at = [segment.message for segment in segments].index(len(messages) - 1)
        if last.answered and last.reply:
            segments.append(Segment(self._lead + last.reply.text, len(messages)))
        else:
            segments.append(Segment("", len(messages)))
        ids = encode_segments(segments, self._tokenizer, encode=self._encode)
        return TurnParts(
            before=[*chain(*ids[:at])],
            message=ids[at],
            between=[*chain(*ids[at + 1 : -1])],
            reply=ids[-1],
        )


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


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
    *past, last = conversation.turns
    past = [turn for turn in past if turn.answered]

    def parts(n_turns: int) -> TurnParts:
        return layout.parts(conversation.system, past[len(past) - n_turns :], last)

    n_seen = len(past)
    if len(parts(n_seen).ids) > budget:
        sizes = range(n_seen)
        n_seen = max(0, bisect_right(sizes, budget, key=lambda n: len(parts(n).ids)) - 1)
    ids, cut_tokens = parts(n_seen).fitted(budget)
    left = window - len(ids)
    return Prompt(
        ids=ids,
        room=min(max_new_tokens, left),
        room_is_window=left <= max_new_tokens,
        hidden_turns=len(past) - n_seen,
        cut_tokens=cut_tokens,
    )


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
