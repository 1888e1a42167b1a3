"""/tokens: how a text splits into tokens, and where the part begins that the model sees."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from yocto_cli.screen.terminal import counted
from yocto_tokenizers import Tokenizer

from yocto_chat.chat import Chat
from yocto_chat.conversation import known_part, unknown_characters
from yocto_chat.screen import BOLD, DIM, REVERSE
from yocto_chat.wrapping import Piece

_MOST_SHOWN = 4_000
_BOUNDARY = "the model sees what follows"


@dataclass(frozen=True, kw_only=True)
class TokensView:
    """Tokens as text."""

    pieces: list[str]  # the text of each token
    characters: int  # how many the tokens stand for
    unknown: list[str] = field(default_factory=list)  # characters that no token stands for
    hidden: range = range(0)  # indices of pieces that the model no longer sees

    def summary(self) -> list[str]:
        """The view in numbers."""
        count = len(self.pieces)
        found = [counted(count, "token"), f"{self.characters / count:.2f} characters per token"]
        if self.hidden:
            found.append(f"{len(self.hidden):,} no longer visible to the model")
        if self.unknown:
            found.append(f"unknown: {' '.join(map(repr, self.unknown))}")
        return found

    def drawn(self, *, unicode: bool, ansi: bool) -> Iterator[Piece]:
        """The tokens, light and dark in turn, or (not `ansi`) with bars between; the last 4,000."""
        skipped = max(0, len(self.pieces) - _MOST_SHOWN)
        if skipped:
            yield f"... {skipped:,} tokens left out ...\n", DIM
        rule, mark = ("─" * 4, "¶") if unicode else ("-" * 4, "\\n")
        for index in range(skipped, len(self.pieces)):
            if self.hidden and index == self.hidden.stop:
                yield f"\n{rule} {_BOUNDARY} {rule}\n", BOLD
            head, newline, tail = self.pieces[index].partition("\n")
            styles = ["", REVERSE][index % 2], DIM if index in self.hidden else ""
            yield head + mark * bool(newline), ";".join(filter(None, styles))
            yield newline + tail + ("" if ansi or newline else "|"), ""


def of_text(tokenizer: Tokenizer, text: str) -> TokensView:
    """The tokens of a text, and the characters in it that the model does not know."""
    known = known_part(tokenizer, text)
    return TokensView(
        pieces=_pieces(tokenizer, tokenizer.encode(known)),
        characters=len(known),
        unknown=unknown_characters(tokenizer, text),
    )


def of_conversation(chat: Chat) -> TokensView:
    """The tokens of all turns as the model is given them, and of those it no longer sees."""
    conversation, layout, tokenizer = chat.conversation, chat.layout, chat.model.tokenizer
    ids, hidden = layout.opening(conversation.system), range(0)
    if conversation.turns:
        *past, last = conversation.turns
        parts = [layout.past(turn) for turn in past if turn.answered]
        n_hidden = chat.prompt(conversation.answered(None)).hidden_turns
        hidden = range(len(ids), len(ids) + sum(map(len, parts[:n_hidden])))
        ids = [*ids, *(token for part in parts for token in part), *layout.last(last).ids]
    return TokensView(
        pieces=_pieces(tokenizer, ids), characters=len(tokenizer.decode(ids)), hidden=hidden
    )


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    return [
        names.get(token) or tokenizer.decode_bytes([token]).decode("utf-8", "replace")
        for token in ids
    ]
