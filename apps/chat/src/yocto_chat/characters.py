"""What to do with characters that a model has never seen: leave them out, and name them."""

from typing import Protocol, runtime_checkable

from yocto_tokenizers import Tokenizer


@runtime_checkable
class _KnowsItsCharacters(Protocol):
    def unknown_characters(self, text: str, /) -> dict[str, int]:
        """Each distinct character that is not in the vocabulary, and its first position."""
        ...


def unknown_characters(tokenizer: Tokenizer, text: str) -> list[str]:
    """The distinct characters of `text` that cannot be encoded, in order of appearance."""
    if isinstance(tokenizer, _KnowsItsCharacters):
        return list(tokenizer.unknown_characters(text))
    # A tokenizer that takes every character still cannot take half a surrogate pair.
    return list(dict.fromkeys(c for c in text if "\ud800" <= c <= "\udfff"))


def known_part(tokenizer: Tokenizer, text: str) -> str:
    """`text` without the characters that the tokenizer cannot encode."""
    unknown = unknown_characters(tokenizer, text)
    return text.translate({ord(character): None for character in unknown}) if unknown else text


def encode_known(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of what can be encoded of `text`."""
    return tokenizer.encode(known_part(tokenizer, text))
