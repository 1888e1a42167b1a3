"""Character level: the vocabulary is the sorted set of the characters of a text.

A neural network computes with numbers, so a text becomes a list of ids, one per character, and the
model's answer, a list of ids too, becomes a text.
"""

from collections.abc import Iterable
from typing import ClassVar, Self

from yocto_tokenizers.fast.characters import CharacterTable, Errors, distinct
from yocto_tokenizers.fast.checks import IdArray, Ids, checked_ids, checked_names, checked_strings
from yocto_tokenizers.formats.vocabulary import VocabularyTokenizer


class CharTokenizer(VocabularyTokenizer):
    """A vocabulary of characters in id order, each one code point; special tokens come after them.

    Where `errors` is an argument, it says what becomes of a character that the vocabulary lacks:
    `"strict"` raises, `"replace"` puts U+FFFD or else `?` in its place, `"ignore"` drops it.

    Raises:
        TokenizerError: a character or a name is repeated or not valid, or there is no character.
    """

    kind: ClassVar[str] = "char"
    file_name: ClassVar[str] = "vocab.json"

    def __init__(self, characters: Iterable[str], *, special_tokens: Iterable[str] = ()):
        letters, names = checked_strings(characters, longest=1), checked_names(special_tokens)
        # itos, "id to string", is the vocabulary: an id is a position in it. stoi is its inverse.
        self.itos = (*letters, *names)
        self.stoi = {string: i for i, string in enumerate(self.itos)}
        # The same two as arrays: NumPy looks up a million characters in about a millisecond.
        self._table = CharacterTable(letters, vocab_size=len(self.itos))
        ids = {name: self.stoi[name] for name in names}
        super().__init__(vocab_size=len(self.itos), special_tokens=ids)

    @classmethod
    def train(cls, texts: str | Iterable[str], *, special_tokens: Iterable[str] = ()) -> Self:
        """The vocabulary of a text, or of several: their distinct characters."""
        # Sorted, so that equal texts give equal ids: a model understands no other numbering than
        # the one that it was trained with.
        return cls(sorted(distinct(texts)), special_tokens=special_tokens)

    def encode(self, text: str, *, errors: Errors = "strict") -> list[int]:
        """The ids of one text, one per character."""
        # What the table does is [self.stoi[character] for character in text]. No single character
        # is a special token, so a text that spells `<|user|>` gives eight ids and forges nothing.
        return self._table.encode(text, errors).tolist()

    def encode_to_numpy(self, text: str, *, errors: Errors = "strict") -> IdArray:
        """The same ids as an array of uint16, or uint32 beyond 65,536 ids; shape `(n,)`."""
        return self._table.encode(text, errors)

    def unknown_characters(self, text: str) -> dict[str, int]:
        """Each distinct character the vocabulary lacks and its first position, in that order."""
        return self._table.unknown_characters(text)

    def decode(self, ids: Ids) -> str:
        """The characters of the ids; special tokens are not text and add nothing."""
        # What the table does is "".join(self.itos[i] for i in ids if i is not a special token's).
        # The ids are checked first, because Python counts -1 from the end and finds a character.
        return self._table.decode(checked_ids(ids, self.vocab_size))
