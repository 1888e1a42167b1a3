"""Every error this package raises.

```
TokenizerError (ValueError)
├── TextError               the text is no str, or holds a lone surrogate
├── UnknownCharacterError   the text holds characters the vocabulary does not
├── TokenIdError            ids of the wrong kind, or out of range
├── VocabularyError         no such vocabulary can be built
├── SpecialTokenError       a special token is missing, doubled or misspelled
├── MissingExtraError       an optional dependency is not installed
├── TokenizerFileError      a file is missing, damaged or of another kind
└── TokenizerWriteError     a file could not be written (also an OSError)
```

A message is one line: what, where, what to do. Quoted content is escaped and shortened first.
"""

import unicodedata
from collections.abc import Mapping
from os import PathLike


class TokenizerError(ValueError):
    """Base of every error of this package."""


class TextError(TokenizerError):
    """The text to encode is no `str`, or cannot be written as UTF-8."""


class TokenIdError(TokenizerError):
    """Ids are not one dimension of integers, or lie outside `range(vocab_size)`."""


class VocabularyError(TokenizerError):
    """A vocabulary cannot be built from this text with these settings."""


class SpecialTokenError(TokenizerError):
    """A special token is missing, doubled, or spelled as text could spell it."""


class MissingExtraError(TokenizerError):
    """What was asked for needs an optional dependency that is not installed."""


class TokenizerFileError(TokenizerError):
    """A tokenizer file is missing, damaged, or not what it says it is."""


class TokenizerWriteError(TokenizerError, OSError):
    """A tokenizer file could not be written; `errno` is the system's."""


class UnknownCharacterError(TokenizerError):
    """Characters of a text that the vocabulary does not hold.

    Attributes:
        characters: each distinct unknown character and its first position, in order of appearance.
        total: how many unknown characters the text holds, repetitions counted.
    """

    def __init__(self, characters: Mapping[str, int], total: int, *, remedy: str | None = None):
        self.characters = dict(characters)
        self.total = total
        self.remedy = remedy or (
            'add them to the training text, or encode with errors="replace" or "ignore"'
        )
        super().__init__(f"{_unknown_summary(self.characters, total)}; {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call the class with the message alone, which fails in the process that
        # receives the error from a worker.
        return (_rebuild_unknown, (self.characters, self.total, self.remedy))


def _rebuild_unknown(characters: dict[str, int], total: int, remedy: str) -> UnknownCharacterError:
    return UnknownCharacterError(characters, total, remedy=remedy)


def _unknown_summary(characters: dict[str, int], total: int) -> str:
    """Name as many characters as one line holds: nine with short names, three with long ones."""
    named: list[str] = []
    for character, position in characters.items():
        entry = f"{character_name(character)} at index {position}"
        if named and sum(map(len, named)) + len(entry) > 160:
            break
        named.append(entry)
    left = len(characters) - len(named)
    more = f" and {left} more" if left else ""
    noun = "character" if total == 1 else "characters"
    return f"{total} unknown {noun}: {', '.join(named)}{more}"


def character_name(character: str) -> str:
    """`U+1F600 GRINNING FACE`; the code point alone where Unicode gives no name."""
    code_point = ord(character)
    if 0xD800 <= code_point <= 0xDFFF:
        return f"U+{code_point:04X} (lone surrogate)"
    return f"U+{code_point:04X} {unicodedata.name(character, '')}".rstrip()


def quoted(value: object, limit: int = 80) -> str:
    """A value as an error message shows it: control characters escaped, the middle of it cut.

    A string is cut before it is escaped, so quoting a token of 10 MB costs nothing.
    """
    if not isinstance(value, str | PathLike):
        plain = _middle_cut(repr(value), limit)
        return plain if plain.isprintable() else repr(plain)
    shown = repr(_middle_cut(str(value), limit))
    return shown if len(shown) <= 2 * limit else f"{shown[:limit]}...'"


def _middle_cut(text: str, limit: int) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"
