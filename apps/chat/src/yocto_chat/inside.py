"""Looking inside: /tokens, how a text splits; /memorised, what may have been learned by heart.

Meters of memorisation often use a suffix array, but building one takes longer than searching
without it: a reply has a few hundred characters, and looking for a stretch of it is one pass over
the text at the speed of memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from yocto_cli.asking import known_part, unknown_characters
from yocto_cli.command import UsageError
from yocto_cli.screen.terminal import counted, one_line
from yocto_cli.train_settings import data_directory_of
from yocto_data import DataError, DataMeta, load_bin
from yocto_tokenizers import Tokenizer

from yocto_chat.chat import Chat
from yocto_chat.conversation import SHORTEST, messages_of
from yocto_chat.generation import ChatModel
from yocto_chat.screen import BOLD, DIM, REVERSE, Piece

_MOST_SHOWN_TOKENS = 4_000
_BOUNDARY = "the model sees what follows"
_MOST_SEARCHED_TOKENS = 100_000_000
_METER_CELLS = 30
_MOST_QUOTED_CHARACTERS = 200


# --- tokens --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokensView:
    """Tokens as text."""

    pieces: list[str]  # the text of each token
    characters: int  # how many characters the tokens stand for
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
        skipped = max(0, len(self.pieces) - _MOST_SHOWN_TOKENS)
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
    conversation, tokenizer = chat.conversation, chat.model.tokenizer
    turns = conversation.turns or (SHORTEST,)
    past = [turn for turn in turns[:-1] if turn.answered]
    ids = chat.layout.parts(messages_of(conversation.system, past, turns[-1])).ids
    n_hidden = chat.prompt(conversation.answered(None)).hidden_turns if past else 0
    seen = chat.layout.parts(messages_of(conversation.system, past[n_hidden:], turns[-1])).ids
    # Both end alike: what is hidden stands in front of that.
    end = next((i for i in range(len(seen)) if seen[-1 - i] != ids[-1 - i]), len(seen))
    hidden = range(len(seen) - end, len(ids) - end)
    return TokensView(
        pieces=_pieces(tokenizer, ids), characters=len(tokenizer.decode(ids)), hidden=hidden
    )


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    return [
        names.get(token) or tokenizer.decode_bytes([token]).decode("utf-8", "replace")
        for token in ids
    ]


# --- memorisation --------------------------------------------------------------------------------


def training_text(model: ChatModel) -> str:
    """The text the model was trained on: the training split that its run's config.toml names.

    Raises:
        UsageError: the run does not say, or the data is gone, or differs.
    """
    if model.run is None:
        raise UsageError(
            "only a run of yocto-train says what its model was trained on, and this is none"
        )
    if (data_dir := data_directory_of(model.run)) is None:
        raise UsageError(f"{model.run}/config.toml does not name the data it was trained on")
    try:
        meta = DataMeta.load(data_dir)
        if meta.tokenizer.fingerprint != model.tokenizer.fingerprint():
            raise UsageError(
                f"{data_dir} holds other data now than this model was trained on; put that back"
            )
        if meta.train.tokens > _MOST_SEARCHED_TOKENS:
            raise UsageError(
                f"the training text is too long to search: {meta.train.tokens:,} tokens"
            )
        ids = load_bin(data_dir / meta.train.file)
    except DataError as error:
        raise UsageError(f"the training text cannot be read: {error}") from error
    return model.tokenizer.decode(ids.numpy())


def longest_stretch(reply: str, text: str) -> tuple[int, int]:
    """Begin and end, in `reply`, of its longest part that also occurs in `text`.

    Each step either lengthens the stretch that has been found or moves on by one character, so
    there are at most `2 * len(reply)` searches.
    """
    best = (0, 0)
    begin = 0
    while begin + (length := best[1] - best[0]) < len(reply):
        end = begin + length + 1
        if reply[begin:end] in text:
            best = (begin, end)
        else:
            begin += 1
    return best


def report(reply: str, text: str, *, unicode: bool) -> list[str]:
    """What the meter says: a bar, numbers, and the stretch itself."""
    begin, end = longest_stretch(reply, text)
    length = end - begin
    full, empty = ("█", "░") if unicode else ("#", ".")
    cells = round(length / max(1, len(reply)) * _METER_CELLS)
    more = "..." if length > _MOST_QUOTED_CHARACTERS else ""
    return [
        f"{full * cells}{empty * (_METER_CELLS - cells)} {length} of {len(reply)} characters",
        "are the longest stretch that the training text holds word for word:",
        f'"{one_line(reply[begin:end][:_MOST_QUOTED_CHARACTERS])}{more}"',
    ]
