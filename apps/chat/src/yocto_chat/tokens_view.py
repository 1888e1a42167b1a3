"""/tokens: how a text splits into tokens, and where the model's sight begins."""

from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

from rich.text import Text
from yocto_cli.screen.terminal import counted, visible
from yocto_tokenizers import Tokenizer

from yocto_chat.characters import known_part, unknown_characters
from yocto_chat.conversation import build_prompt

if TYPE_CHECKING:
    from yocto_chat.chat import Chat

_STYLES = ("reverse", "")  # reverse video is no colour
_BOUNDARY = "the model sees what follows"


@dataclass(frozen=True, kw_only=True)
class TokensView:
    """Tokens as text.

    Attributes:
        pieces: the text of each token.
        unknown: characters that no token stands for.
        hidden: indices of pieces that the model does not see any more.
        characters: how many characters the tokens stand for.
    """

    pieces: list[str]
    unknown: list[str] = field(default_factory=list)
    hidden: range = range(0)
    characters: int = 0

    def facts(self) -> list[str]:
        """What there is to say about it, in a few words each."""
        count = len(self.pieces)
        found = [
            counted(count, "token"),
            f"{self.characters / count:.2f} characters per token",
        ]
        if self.hidden:
            found.append(f"{len(self.hidden):,} out of sight")
        if self.unknown:
            found.append(f"unknown: {' '.join(map(repr, self.unknown))}")
        return found


def of_text(tokenizer: Tokenizer, text: str) -> TokensView:
    """The tokens of a text, and the characters in it that the model does not know."""
    known, unknown = known_part(tokenizer, text), unknown_characters(tokenizer, text)
    pieces = _pieces(tokenizer, tokenizer.encode(known))
    return TokensView(pieces=pieces, unknown=unknown, characters=len(known))


def of_conversation(chat: "Chat") -> TokensView:
    """The tokens of all turns as the model is given them, with those that it is not."""
    conversation, layout, tokenizer = chat.conversation, chat.layout, chat.model.tokenizer
    head = layout.opening(conversation.system)
    if not conversation.turns:
        return TokensView(pieces=_pieces(tokenizer, head), characters=len(conversation.system))
    prompt = build_prompt(
        conversation.answered(None), layout,
        window=chat.window, max_new_tokens=chat.settings.max_new_tokens,
    )  # fmt: skip
    parts = [layout.past(turn) for turn in conversation.turns[:-1] if turn.answered]
    seen = sum(turn.answered for turn in conversation.turns[prompt.first_turn : -1])
    last = layout.last(conversation.turns[-1])
    hidden = sum(len(part) for part in parts[: len(parts) - seen])
    ids = [*head, *(token for part in parts for token in part)]
    ids += [*last.before, *last.message, *last.between, *last.reply]
    return TokensView(
        pieces=_pieces(tokenizer, ids),
        hidden=range(len(head), len(head) + hidden),
        characters=len(tokenizer.decode(ids)),
    )


def drawn(view: TokensView, *, most: int, unicode: bool, ansi: bool) -> Text:
    """The view as text.

    Args:
        view: what to draw.
        most: how many tokens at most, from the end.
        unicode: whether the terminal shows signs beyond ASCII.
        ansi: whether tokens can be light and dark in turn; without that, bars stand between them.
    """
    text = Text()
    skipped = max(0, len(view.pieces) - most)
    if skipped:
        text.append(f"... {skipped:,} tokens left out ...\n", style="dim")
    rule, mark = ("─", "¶") if unicode else ("-", "\\n")
    for index, (piece, style) in enumerate(zip(view.pieces, cycle(_STYLES), strict=False)):
        if index < skipped:
            continue
        if view.hidden and index == view.hidden.stop:
            text.append(f"\n{rule * 4} {_BOUNDARY} {rule * 4}\n", style="bold")
        head, newline, tail = piece.partition("\n")
        shade = f"{style} dim" if index in view.hidden else style
        text.append(head + mark * bool(newline), style=shade)
        text.append(newline + tail + ("" if ansi or newline else "|"))
    return text


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    return [
        visible(names.get(token) or tokenizer.decode_bytes([token]).decode("utf-8", "replace"))
        for token in ids
    ]
