"""Character level: one id per code point.

Encoding and decoding go through NumPy tables instead of Python dictionaries: the text as UTF-32 is
already an array of code points, so one gather turns it into ids, and one gather turns ids back.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.errors import (
    TextError,
    TokenizerFileError,
    UnknownCharacterError,
    VocabularyError,
    character_name,
    quoted,
)
from yocto_tokenizers.ids import IdArray, Ids, checked_ids, id_dtype
from yocto_tokenizers.special_tokens import checked_names
from yocto_tokenizers.texts import checked_text, checked_texts, each_text
from yocto_tokenizers.vocabulary import Vocabulary, vocabulary_from_json

Errors: TypeAlias = Literal["strict", "replace", "ignore"]

_CODE_POINTS = 0x110000
# Long texts go through in slices, so that the UTF-32 copy stays in the cache and memory flat.
_SLICE_CHARACTERS = 1 << 16


class CharTokenizer(BaseTokenizer):
    """A vocabulary of characters; special tokens come after them.

    What `encode` does with a character it does not know is said by its argument `errors`:
    `"strict"` raises, `"replace"` puts U+FFFD in its place, or `?` if the vocabulary has only that,
    and `"ignore"` drops it. Lone surrogates count as unknown.

    Args:
        characters: the characters, in id order.
        special_tokens: names of special tokens, at least two characters each.

    Raises:
        VocabularyError: no character, one twice, an entry that is not one character, a surrogate.
        SpecialTokenError: a name is unfit or doubled.
    """

    kind: ClassVar[str] = "char"
    file_name: ClassVar[str] = "vocab.json"

    def __init__(self, characters: Iterable[str], *, special_tokens: Iterable[str] = ()):
        letters = _checked_characters(characters)
        names = checked_names(special_tokens)
        self._character_count = len(letters)
        self._itos = (*letters, *names)
        self._stoi = {string: i for i, string in enumerate(self._itos)}
        self._id_table: IdArray | None = None
        super().__init__(
            vocab_size=len(self._itos), special_tokens={name: self._stoi[name] for name in names}
        )
        self._code_points = np.array([ord(letter) for letter in letters], dtype="<u4")
        # One byte per character where each has one in Latin-1, else four: both are plain arrays of
        # code points to Python.
        self._codec = "latin-1" if self._code_points.max() < 256 else "utf-32-le"
        self._decoding = self._code_points.astype(np.uint8 if self._codec == "latin-1" else "<u4")
        # Ids of characters are below the vocabulary size, so that the largest value of the table's
        # type is free to mean "unknown" up to a size of 65535.
        self._table_dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype(
            np.uint16 if self.vocab_size <= 65535 else np.uint32
        )
        self._unknown = int(np.iinfo(self._table_dtype).max)
        self._replacement_id = self._stoi.get("\ufffd", self._stoi.get("?"))

    @classmethod
    def train(cls, texts: str | Iterable[str], *, special_tokens: Iterable[str] = ()) -> Self:
        """The vocabulary of a text, or of several: its distinct characters, sorted by code point.

        Raises:
            TextError: an item is no `str`, or holds a lone surrogate.
            VocabularyError: the texts are empty.
            SpecialTokenError: a name is unfit or doubled.
        """
        names = checked_names(special_tokens)
        seen = np.zeros(_CODE_POINTS, dtype=np.bool_)
        for text in each_text(texts):
            for part in _slices(text):
                seen[_as_code_points(part)] = True
        if not seen.any():
            raise VocabularyError("the text is empty; a vocabulary needs at least one character")
        return cls(map(chr, np.flatnonzero(seen).tolist()), special_tokens=names)

    @property
    def itos(self) -> tuple[str, ...]:
        """The string of each id: characters, then the names of special tokens."""
        return self._itos

    @property
    def stoi(self) -> Mapping[str, int]:
        """The id of each character and special token name: the inverse of `itos`."""
        return MappingProxyType(self._stoi)

    def encode(self, text: str, *, errors: Errors = "strict") -> list[int]:
        """The ids of one text, one per character.

        Raises:
            TextError: the text is no `str`.
            UnknownCharacterError: `errors` is `"strict"` and the text holds unknown characters, or
                `"replace"` and the vocabulary has neither U+FFFD nor `?`.
        """
        return self.encode_to_numpy(text, errors=errors).tolist()  # type: ignore[no-any-return]

    def encode_to_numpy(self, text: str, *, errors: Errors = "strict") -> IdArray:
        """The same ids: uint16 if `vocab_size <= 65536`, else uint32; shape `(n,)`."""
        if errors not in ("strict", "replace", "ignore"):
            raise TextError(f"errors is {quoted(errors)}; use 'strict', 'replace' or 'ignore'")
        ids = self._lookup(checked_text(text))
        unknown = ids == self._unknown
        if unknown.any():
            ids = self._without_unknown(text, ids, unknown, errors)
        return ids.astype(id_dtype(self.vocab_size), copy=False)

    def encode_batch(self, texts: Iterable[str], *, errors: Errors = "strict") -> list[list[int]]:
        """The ids of several texts, each as `encode` gives them."""
        return [self.encode(text, errors=errors) for text in checked_texts(texts)]

    def unknown_characters(self, text: str) -> dict[str, int]:
        """Each distinct character the vocabulary lacks and its first position, in that order."""
        return self._first_positions(text, self._lookup(checked_text(text)) == self._unknown)

    def decode(self, ids: Ids) -> str:
        """The characters of the ids; special ids add nothing.

        Raises:
            TokenIdError: ids are not one dimension of integers in `range(vocab_size)`.
        """
        checked = checked_ids(ids, self.vocab_size)
        if self._special_tokens:
            checked = checked[checked < self._character_count]
        # "clip" spares a second check of the range.
        return str(self._decoding.take(checked, mode="clip").data, self._codec)

    def decode_bytes(self, ids: Ids) -> bytes:
        """The characters of the ids as UTF-8."""
        return self.decode(ids).encode("utf-8")

    def fingerprint(self) -> str:
        """sha256 (hex) of the characters and special tokens."""
        return self._vocabulary().fingerprint()

    def _lookup(self, text: str) -> IdArray:
        """Ids in the table's type, with the largest value where a character is unknown."""
        table = self._table()
        ids = np.empty(len(text), dtype=self._table_dtype)
        start = 0
        for part in _slices(text):
            np.take(table, _as_code_points(part), out=ids[start : start + len(part)], mode="clip")
            start += len(part)
        return ids

    def _table(self) -> IdArray:
        # 2.2 MB, made on first use: a tokenizer that only decodes never needs it.
        if self._id_table is None:
            table = np.full(_CODE_POINTS, self._unknown, dtype=self._table_dtype)
            table[self._code_points] = np.arange(self._character_count, dtype=self._table_dtype)
            self._id_table = table
        return self._id_table

    def _without_unknown(
        self,
        text: str,
        ids: IdArray,
        unknown: NDArray[np.bool_],
        errors: Errors,
    ) -> IdArray:
        if errors == "ignore":
            return ids[~unknown]
        if errors == "replace" and self._replacement_id is not None:
            ids[unknown] = self._replacement_id
            return ids
        remedy = None
        if errors == "replace":
            remedy = 'errors="replace" needs U+FFFD or "?" in the vocabulary; use "ignore"'
        total = int(np.count_nonzero(unknown))
        raise UnknownCharacterError(self._first_positions(text, unknown), total, remedy=remedy)

    @staticmethod
    def _first_positions(text: str, unknown: NDArray[np.bool_]) -> dict[str, int]:
        first: dict[str, int] = {}
        for position in np.flatnonzero(unknown).tolist():
            first.setdefault(text[position], position)
        return first

    def _make_byte_table(self) -> list[bytes]:
        letters = [letter.encode("utf-8") for letter in self._itos[: self._character_count]]
        return letters + [b""] * len(self._special_tokens)

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(
            kind=self.kind, itos=self._itos, special_tokens=self._special_tokens, settings={}
        )

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return self._vocabulary().to_json()

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        """Read what `to_bytes` gave; see `load`."""
        vocabulary = vocabulary_from_json(content, source, kind=cls.kind)
        count = len(vocabulary.itos) - len(vocabulary.special_tokens)
        try:
            tokenizer = cls(vocabulary.itos[:count], special_tokens=vocabulary.itos[count:])
        except ValueError as error:
            raise TokenizerFileError(f"{source}: {error}; restore the file") from error
        if tokenizer.special_tokens != vocabulary.special_tokens:
            raise TokenizerFileError(f"{source}: special tokens do not come last; restore the file")
        return tokenizer

    def __reduce__(self) -> tuple[object, ...]:
        # The tables stay behind: the process that receives the copy builds its own when it encodes.
        names = self._itos[self._character_count :]
        return (_rebuild, (type(self), self._itos[: self._character_count], names))


def _rebuild(
    cls: type[CharTokenizer], characters: tuple[str, ...], names: tuple[str, ...]
) -> CharTokenizer:
    return cls(characters, special_tokens=names)


def _checked_characters(characters: Iterable[object]) -> tuple[str, ...]:
    letters: dict[str, int] = {}
    for i, letter in enumerate(characters):
        if not isinstance(letter, str) or len(letter) != 1:
            raise VocabularyError(f"entry {i} is {quoted(letter)}, expected one character")
        if "\ud800" <= letter <= "\udfff":
            raise VocabularyError(f"entry {i} is {character_name(letter)}; leave surrogates out")
        if letters.setdefault(letter, i) != i:
            raise VocabularyError(f"entry {i} is {character_name(letter)} again; drop one")
    if not letters:
        raise VocabularyError("the vocabulary holds no character; give at least one")
    return tuple(letters)


def _slices(text: str) -> Iterable[str]:
    for start in range(0, len(text), _SLICE_CHARACTERS):
        yield text[start : start + _SLICE_CHARACTERS]


def _as_code_points(text: str) -> IdArray:
    """The code points of a text, shape `(len(text),)`; an ASCII text is one byte each already."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    # surrogatepass: a lone surrogate reaches the table and is reported as unknown.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
