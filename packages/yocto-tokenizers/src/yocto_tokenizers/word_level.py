r"""Word level: words, runs of white space, and single symbols.

White space is kept as tokens, so that joining the tokens gives the text back exactly, without rules
about where spaces go. Only words outside the vocabulary are lost: they become `<unk>`.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar, Self

from yocto_tokenizers.base import UNK
from yocto_tokenizers.errors import TokenizerError, shown
from yocto_tokenizers.fast.characters import additive_parts, mark_class
from yocto_tokenizers.fast.checks import (
    checked_names,
    checked_strings,
    checked_unicode,
    each_text,
)
from yocto_tokenizers.formats.tokenizer_json import explicit_pattern, whole_tokens
from yocto_tokenizers.formats.vocabulary import (
    FORMAT_VERSION,
    VocabularyTokenizer,
    canonical_sha256,
)

# On ASCII, which has no marks, at twice the speed.
_ASCII_TOKENS = re.compile(r"\s+|\w+|[^\w\s]")

_PART_CHARACTERS = 1 << 16
_LONGEST_PART_CHARACTERS = 1 << 20
# Longer words are never learned and never accepted.
_MAX_WORD_CHARACTERS = 256
# Distinct words counted at a time. Beyond it the rarer half is forgotten, which bounds memory.
_MAX_COUNTED_WORDS = 2_000_000


def split_words(text: str) -> list[str]:
    """The tokens of a text; joined they are the text."""
    return (_ASCII_TOKENS if text.isascii() else _tokens()).findall(text)


@cache
def _tokens() -> re.Pattern[str]:
    return re.compile(rf"\s+|[\w{mark_class()}]+|[^\w\s{mark_class()}]")


class WordLevelTokenizer(VocabularyTokenizer):
    """A vocabulary of words, white space and symbols.

    Ids: 0 is `<unk>`, then special tokens, then words. The unknown id decodes to `<unk>`.

    Args:
        words: tokens as `split_words` makes them, in id order.
        special_tokens: names of special tokens.

    Raises:
        TokenizerError: there is no word; a word is repeated, empty, too long, or holds a surrogate;
            or a name is repeated, not valid, or a word that text could spell.
    """

    kind: ClassVar[str] = "word"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, words: Iterable[str], *, special_tokens: Iterable[str] = ()):
        names = _checked_special_tokens(special_tokens)
        known = checked_strings(words, longest=_MAX_WORD_CHARACTERS, reserved={UNK, *names})
        self.itos = (UNK, *names, *known)
        self.stoi = {string: i for i, string in enumerate(self.itos)}
        # Without `<unk>` and the special tokens: no text may select them by their names.
        self._word_ids = {word: i for word, i in self.stoi.items() if i > len(names)}
        super().__init__(
            vocab_size=len(self.itos), special_tokens={name: self.stoi[name] for name in names}
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
            vocab_size: the most ids, `<unk>` and special tokens included; None for all words.
            special_tokens: names of special tokens.

        Raises:
            TokenizerError: the texts are empty, `vocab_size` leaves no room for a word, or a text
                or a name is not valid.
        """
        names = _checked_special_tokens(special_tokens)
        reserved = 1 + len(names)
        if vocab_size is not None and (type(vocab_size) is not int or vocab_size <= reserved):
            raise TokenizerError(
                f"vocab_size is {shown(vocab_size)}; with {reserved} reserved ids it must be an "
                f"integer of at least {reserved + 1}"
            )
        room = None if vocab_size is None else vocab_size - reserved
        # most_common is stable: ties keep the order in which the words were first counted.
        words = (word for word, _ in _count(texts).most_common(room))
        return cls(words, special_tokens=names)

    @property
    def unk_id(self) -> int:
        """Id of every word outside the vocabulary."""
        return 0

    def encode(self, text: str) -> list[int]:
        """The ids of one text; words outside the vocabulary become `unk_id`."""
        get, unknown = self._word_ids.get, self.unk_id
        return [get(word, unknown) for word in split_words(checked_unicode(text))]

    def to_bytes(self) -> bytes:
        """A `tokenizer.json` in Hugging Face's layout, which its library reads as it is."""
        return self._spelled(explicit_pattern(r"\s+", rf"[\w{mark_class()}]+"))

    def _spelled(self, pattern: str) -> bytes:
        digest = canonical_sha256({"fingerprint": self.fingerprint(), "pattern": pattern})
        marker = {"format_version": FORMAT_VERSION, "kind": self.kind, "sha256": digest}
        return whole_tokens(
            self.itos, self.special_tokens, pattern=pattern, unknown=UNK, marker=marker
        )

    @classmethod
    def _rebuilt(cls, document: dict[str, Any]) -> tuple[Self, bytes]:
        names = [token["content"] for token in document["added_tokens"]]
        reserved = {UNK, *names}
        words = [word for word in document["model"]["vocab"] if word not in reserved]
        tokenizer = cls(words, special_tokens=names)
        # Another version of Python knows other letters, which is no damage.
        return tokenizer, tokenizer._spelled(document["pre_tokenizer"]["pattern"]["Regex"])


def _checked_special_tokens(special_tokens: Iterable[str]) -> tuple[str, ...]:
    names = checked_names(special_tokens, reserved=[UNK])
    for name in names:
        if len(split_words(name)) == 1:
            raise TokenizerError(
                f"special token {shown(name)} is a word that text can hold; "
                f"spell it with brackets, such as '<|{name}|>'"
            )
    return names


def _count(texts: str | Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in each_text(texts):
        # A part ends where a word cannot: all words of a long text would not fit memory.
        for part in additive_parts(
            text, target=_PART_CHARACTERS, after_newline=False, maximum=_LONGEST_PART_CHARACTERS
        ):
            counts.update(split_words(part))
            if len(counts) > _MAX_COUNTED_WORDS:
                threshold = statistics.median_low(counts.values())
                counts = Counter({word: n for word, n in counts.items() if n > threshold})
    kept = Counter({word: n for word, n in counts.items() if len(word) <= _MAX_WORD_CHARACTERS})
    if counts and not kept:
        raise TokenizerError(
            f"each word is longer than {_MAX_WORD_CHARACTERS} characters; a text without spaces "
            "suits characters or pieces"
        )
    return kept
