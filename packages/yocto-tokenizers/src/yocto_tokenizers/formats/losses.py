"""What a tokenizer makes of a text that it was not made for, in numbers."""

from collections import Counter
from dataclasses import dataclass

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.char import CharTokenizer
from yocto_tokenizers.errors import UnknownCharacterError
from yocto_tokenizers.fast.checks import checked_unicode


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """A text before encoding and after decoding.

    Attributes:
        exact: whether the text came back; one more space in front, which some tokenizers put
            there, is no loss. Bits per byte compare with those of others only if it did.
        characters: length of the text.
        ids: how many it became.
        unknown_ids: how many of them stand for something that the vocabulary lacks.
        lost_characters: how many characters did not come back, the following two included.
        lost_line_ends: how many carriage returns and newlines did not.
        lost_case: how many letters came back in the other case.
    """

    exact: bool
    characters: int
    ids: int
    unknown_ids: int
    lost_characters: int
    lost_line_ends: int
    lost_case: int

    def summary(self) -> str:
        """One sentence, with a period: "every character comes back." or what does not."""
        if self.exact:
            return f"all {self.characters:,} characters come back."
        share = self.unknown_ids / max(self.ids, 1)
        losses = [
            f"{self.lost_characters:,} of {self.characters:,} characters do not come back",
            *([f"{self.lost_line_ends:,} line ends among them"] * (self.lost_line_ends > 0)),
            *([f"{self.lost_case:,} letters change case"] * (self.lost_case > 0)),
            f"{share:.2%} of {self.ids:,} ids are unknown",
        ]
        return ", ".join(losses) + "."


def round_trip(tokenizer: BaseTokenizer, text: str) -> RoundTrip:
    """What is lost when a text is encoded and decoded.

    Characters are counted, not aligned, so a text of any length takes one pass; a tokenizer that
    only changes their order is not exact and loses none.

    Args:
        tokenizer: any.
        text: a sample, as long as the figures should be sure.

    Raises:
        TokenizerError: the text is not a `str`, or holds a lone surrogate.
    """
    unencodable = 0
    try:
        ids = tokenizer.encode(checked_unicode(text))
    except UnknownCharacterError as error:
        assert isinstance(tokenizer, CharTokenizer)  # noqa: S101 - the only one that raises it
        unencodable = error.total
        ids = tokenizer.encode(text, errors="ignore")
    known = [token_id for token_id in ids if token_id != tokenizer.unk_id]
    back = tokenizer.decode(known)
    before, after = Counter(text), Counter(back)
    lost, new = before - after, after - before
    return RoundTrip(
        exact=not unencodable and len(known) == len(ids) and back in (text, f" {text}"),
        characters=len(text),
        ids=len(ids) + unencodable,
        unknown_ids=len(ids) - len(known) + unencodable,
        lost_characters=lost.total(),
        lost_line_ends=lost["\r"] + lost["\n"],
        lost_case=sum(min(n, new[character.swapcase()]) for character, n in lost.items()),
    )
