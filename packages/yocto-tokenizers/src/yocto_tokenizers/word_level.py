r"""Word level: words, runs of white space, and single symbols.

White space is kept as tokens, so that joining the tokens gives the text back exactly, without rules
about where spaces go. Only words outside the vocabulary are lost: they become `<unk>`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import ClassVar, Self

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.cuts import additive_parts
from yocto_tokenizers.errors import (
    SpecialTokenError,
    TokenizerFileError,
    VocabularyError,
    quoted,
)
from yocto_tokenizers.hugging_face_export import write_word_level
from yocto_tokenizers.marks import mark_class
from yocto_tokenizers.special_tokens import UNK, checked_names
from yocto_tokenizers.texts import checked_unicode, each_text
from yocto_tokenizers.vocabulary import MAX_TOKEN_CHARACTERS, Vocabulary, vocabulary_from_json

#: The name under which a file states the patterns below: no expression is ever read from a file.
PATTERN_NAME = "space-word-symbol"
_MARKS = mark_class()
_TOKENS = re.compile(rf"\s+|[\w{_MARKS}]+|[^\w\s{_MARKS}]")
# The same on ASCII, which has no marks, at twice the speed.
_ASCII_TOKENS = re.compile(r"\s+|\w+|[^\w\s]")

_PART_CHARACTERS = 1 << 16
_LONGEST_PART_CHARACTERS = 1 << 20
# Distinct words counted at a time. Beyond it the rarest are forgotten, so memory stays bounded.
_MAX_COUNTED_WORDS = 2_000_000


def split_words(text: str) -> list[str]:
    """The tokens of a text; joined they are the text."""
    return (_ASCII_TOKENS if text.isascii() else _TOKENS).findall(text)


class WordLevelTokenizer(BaseTokenizer):
    """A vocabulary of words, white space and symbols.

    Ids: 0 is `<unk>`, then special tokens, then words. The unknown id decodes to `<unk>`.

    Args:
        words: tokens as `split_words` makes them, in id order.
        special_tokens: names of special tokens.

    Raises:
        VocabularyError: no word, one twice, or one that is empty, too long, or holds a surrogate.
        SpecialTokenError: a name is unfit, doubled, or a word that text could spell.
    """

    kind: ClassVar[str] = "word"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, words: Iterable[str], *, special_tokens: Iterable[str] = ()):
        names = _checked_special_tokens(special_tokens)
        self._first_word_id = 1 + len(names)
        self._itos = (UNK, *names, *_checked_words(words, names))
        self._word_ids = {word: i for i, word in enumerate(self._itos) if i >= self._first_word_id}
        super().__init__(
            vocab_size=len(self._itos),
            special_tokens={name: i for i, name in enumerate(names, start=1)},
        )

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        *,
        vocab_size: int | None = None,
        special_tokens: Iterable[str] = (),
    ) -> Self:
        """The most frequent words of a text or of several; equally frequent ones as they appear.

        Args:
            texts: one text, or an iterable of texts, which is read once.
            vocab_size: ids at most, `<unk>` and special tokens included; None takes every word.
            special_tokens: names of special tokens.

        Raises:
            VocabularyError: the texts are empty, or `vocab_size` leaves no room for a word.
            SpecialTokenError: a name is unfit, doubled, or a word that text could spell.
            TextError: an item is no `str`, or holds a lone surrogate.
        """
        names = _checked_special_tokens(special_tokens)
        reserved = 1 + len(names)
        if vocab_size is not None and (type(vocab_size) is not int or vocab_size <= reserved):
            raise VocabularyError(
                f"vocab_size is {quoted(vocab_size)}; with {reserved} reserved ids it must be an "
                f"integer of at least {reserved + 1}"
            )
        counts = _count(texts)
        if not counts:
            raise VocabularyError("the text is empty; a vocabulary needs at least one word")
        room = None if vocab_size is None else vocab_size - reserved
        # most_common is stable: ties keep the order in which the words were first counted.
        return cls((word for word, _ in counts.most_common(room)), special_tokens=names)

    @property
    def unk_id(self) -> int:
        """Id of every word outside the vocabulary."""
        return 0

    @property
    def itos(self) -> tuple[str, ...]:
        """The string of each id."""
        return self._itos

    def encode(self, text: str) -> list[int]:
        """The ids of one text; words outside the vocabulary become `unk_id`.

        Raises:
            TextError: the text is no `str`, or holds a lone surrogate.
        """
        get, unknown = self._word_ids.get, self.unk_id
        return [get(word, unknown) for word in split_words(checked_unicode(text))]

    def unknown_rate(self, text: str) -> float:
        """Share of the text's tokens that the vocabulary lacks, 0 to 1; 0 for the empty text."""
        ids = self.encode(text)
        return ids.count(self.unk_id) / len(ids) if ids else 0.0

    def fingerprint(self) -> str:
        """sha256 (hex) of words, special tokens and pattern."""
        return self._vocabulary().fingerprint()

    def to_hf_json(self, path: str | PathLike[str]) -> Path:
        """Write a `tokenizer.json` that Hugging Face `tokenizers` reads.

        The ids are the same for ASCII text; beyond it the two regular expression engines disagree
        about some characters. That library finds special names in text unless
        `encode_special_tokens` is set on the loaded object.

        Returns:
            The path written; `tokenizer.json` in it, if it is a directory.

        Raises:
            TokenizerWriteError: the system refused; an old file is whole.
        """
        return write_word_level(path, self._itos, self._special_tokens)

    def _make_byte_table(self) -> list[bytes]:
        special = set(self._special_tokens.values())
        return [b"" if i in special else word.encode() for i, word in enumerate(self._itos)]

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(
            kind=self.kind,
            itos=self._itos,
            special_tokens=self._special_tokens,
            settings={"pattern": PATTERN_NAME},
        )

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return self._vocabulary().to_json()

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        """Read what `to_bytes` gave; see `load`."""
        vocabulary = vocabulary_from_json(content, source, kind=cls.kind, setting_names=["pattern"])
        pattern = vocabulary.settings["pattern"]
        if pattern != PATTERN_NAME:
            raise TokenizerFileError(
                f"{source} needs the pattern {quoted(pattern)}, unknown here; upgrade"
            )
        first_word_id = 1 + len(vocabulary.special_tokens)
        names = vocabulary.itos[1:first_word_id]
        try:
            tokenizer = cls(vocabulary.itos[first_word_id:], special_tokens=names)
        except (VocabularyError, SpecialTokenError) as error:
            raise TokenizerFileError(f"{source}: {error}; restore the file") from error
        if tokenizer.itos != vocabulary.itos or tokenizer.special_tokens != dict(
            vocabulary.special_tokens
        ):
            raise TokenizerFileError(
                f"{source}: {UNK} and the special tokens do not come first; restore the file"
            )
        return tokenizer

    def __reduce__(self) -> tuple[object, ...]:
        names = self._itos[1 : self._first_word_id]
        return (_rebuild, (type(self), self._itos[self._first_word_id :], names))


def _rebuild(
    cls: type[WordLevelTokenizer], words: tuple[str, ...], names: tuple[str, ...]
) -> WordLevelTokenizer:
    return cls(words, special_tokens=names)


def _checked_special_tokens(special_tokens: Iterable[str]) -> tuple[str, ...]:
    names = checked_names(special_tokens, reserved=[UNK])
    for name in names:
        if len(split_words(name)) == 1:
            raise SpecialTokenError(
                f"special token {quoted(name)} is a word that text can hold; "
                f"spell it with brackets, such as '<|{name}|>'"
            )
    return names


def _checked_words(words: Iterable[object], names: tuple[str, ...]) -> tuple[str, ...]:
    taken = {UNK, *names}
    checked: dict[str, None] = {}
    for i, word in enumerate(words):
        if not isinstance(word, str) or not 1 <= len(word) <= MAX_TOKEN_CHARACTERS:
            raise VocabularyError(
                f"word {i} is {quoted(word)}, expected 1 to {MAX_TOKEN_CHARACTERS} characters"
            )
        if word in taken or word in checked:
            raise VocabularyError(f"word {i} is {quoted(word)} again; drop one")
        checked_unicode(word)
        checked[word] = None
    if not checked:
        raise VocabularyError("the vocabulary holds no word; give at least one")
    return tuple(checked)


def _count(texts: str | Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for part in _parts(texts):
        counts.update(split_words(part))
        if len(counts) > _MAX_COUNTED_WORDS:
            counts = _without_rarest(counts, _MAX_COUNTED_WORDS // 2)
    return Counter({word: n for word, n in counts.items() if len(word) <= MAX_TOKEN_CHARACTERS})


def _parts(texts: str | Iterable[str]) -> Iterator[str]:
    # A part ends where a word cannot: the list of all words of a long text would not fit memory.
    for text in each_text(texts):
        yield from additive_parts(
            text, target=_PART_CHARACTERS, after_newline=False, maximum=_LONGEST_PART_CHARACTERS
        )


def _without_rarest(counts: Counter[str], keep_at_most: int) -> Counter[str]:
    """Drop the words counted once, then those counted twice, until few enough are left."""
    threshold = 1
    while len(counts) > keep_at_most:
        counts = Counter({word: n for word, n in counts.items() if n > threshold})
        threshold += 1
    return counts
