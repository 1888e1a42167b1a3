"""How turns become ids: between tokens of their own, or as the plain text of a written dialogue.

A model that was trained on chats knows tokens that begin a message and a reply. Any other model
only continues text; it is given a dialogue to continue, in the form that data/philosophy.txt has:

    User: What is time?
    Assistant: What the baker has too little of at four in the morning.

one line per speaker, and a blank line where the conversation ends.
"""

from dataclasses import replace
from typing import Protocol

from yocto_tokenizers import Tokenizer

from yocto_chat.characters import encode_known
from yocto_chat.conversation import OpenTurn, Turn


class ChatLayout(Protocol):
    """What the chat needs to know of a layout beyond the ids.

    Attributes:
        stops: strings that end a reply.
        has_turn_tokens: whether the model was given tokens for turns.
    """

    stops: tuple[str, ...]
    has_turn_tokens: bool

    def shown(self, message: str) -> str:
        """A message as the model gets to see it."""
        ...

    def opening(self, system: str) -> list[int]:
        """The ids in front of the first turn."""
        ...

    def past(self, turn: Turn) -> list[int]:
        """The ids of a turn that is over."""
        ...

    def last(self, turn: Turn) -> OpenTurn:
        """The ids of the turn whose reply comes next."""
        ...


class TurnTokens:
    """`[bos] system, then [user] message [assistant] reply [eos]` for each turn."""

    stops: tuple[str, ...] = ()
    has_turn_tokens = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def shown(self, message: str) -> str:
        """The message itself."""
        return message

    def opening(self, system: str) -> list[int]:
        """The first token, if there is one, and the system text."""
        return _one(self._tokenizer.bos_id) + encode_known(self._tokenizer, system)

    def past(self, turn: Turn) -> list[int]:
        """Message, reply and the token that ends it."""
        ids = self.last(turn)
        end = _one(self._tokenizer.eos_id)
        return ids.before + ids.message + ids.between + ids.reply + end

    def last(self, turn: Turn) -> OpenTurn:
        """Message and the beginning of the reply."""
        reply = turn.reply.text if turn.reply else ""
        return OpenTurn(
            before=_one(self._tokenizer.user_id),
            message=encode_known(self._tokenizer, turn.message),
            between=_one(self._tokenizer.assistant_id),
            reply=encode_known(self._tokenizer, reply),
        )


class PlainText:
    """`User: message` and `Assistant: reply`, a line each.

    A message is put on one line, and a reply that holds one of the stop strings too (a loaded one
    may): nobody's text can end the dialogue, or speak in somebody else's name.
    """

    # A blank line ends the conversation, and a name says that somebody else is speaking. A single
    # line break ends nothing: a model of verse may answer in several lines.
    stops: tuple[str, ...] = ("\n\n", "\nUser:", "\nAssistant:")
    has_turn_tokens = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def shown(self, message: str) -> str:
        """The message on one line."""
        return joined_lines(message)

    def opening(self, system: str) -> list[int]:
        """The system text as a paragraph of its own."""
        return encode_known(self._tokenizer, f"{system}\n\n") if system else []

    def past(self, turn: Turn) -> list[int]:
        """The two lines of a turn."""
        if turn.reply is not None and turn.reply.text.endswith("\n"):
            # With the break that ends its line, it would make the blank line that ends a dialogue.
            turn = replace(turn, reply=replace(turn.reply, text=turn.reply.text.rstrip("\n")))
        ids = self.last(turn)
        end = encode_known(self._tokenizer, "\n")
        return ids.before + ids.message + ids.between + ids.reply + end

    def last(self, turn: Turn) -> OpenTurn:
        """The message's line, and the reply's as far as it goes."""
        reply = turn.reply.text if turn.reply else ""
        if any(stop in reply for stop in self.stops):
            reply = joined_lines(reply)
        # A space goes with the word after it: so do tokenizers that learn words have it.
        return OpenTurn(
            before=encode_known(self._tokenizer, "User:"),
            message=encode_known(self._tokenizer, f" {self.shown(turn.message)}"),
            between=encode_known(self._tokenizer, "\nAssistant:"),
            reply=encode_known(self._tokenizer, f" {reply}") if reply else [],
        )


def layout_for(tokenizer: Tokenizer) -> ChatLayout:
    """The layout of a model with this tokenizer."""
    if tokenizer.user_id is not None and tokenizer.assistant_id is not None:
        return TurnTokens(tokenizer)
    return PlainText(tokenizer)


def frame_tokens(layout: ChatLayout) -> int:
    """How many tokens a turn takes beside its texts."""
    return len(layout.past(Turn(message="")))


def joined_lines(text: str) -> str:
    """The lines of a text, joined by single spaces; empty ones leave no trace."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def _one(token: int | None) -> list[int]:
    return [] if token is None else [token]
