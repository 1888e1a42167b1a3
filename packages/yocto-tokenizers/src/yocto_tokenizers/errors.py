"""Every error that this package raises.

```
TokenizerError (ValueError)     a text, an id, a vocabulary or a name cannot be used
├── UnknownCharacterError       a text holds characters that the vocabulary lacks
├── ChatTemplateError           a chat template is damaged, or refuses a conversation
└── TokenizerFileError          a file is missing, damaged, or of another kind
```

A message is one sentence: what, where, what to do. It holds paths and names as they are; a program
that prints it escapes it. When a file cannot be written, the system's `OSError` passes through.
"""

import unicodedata
from collections.abc import Mapping
from os import PathLike


class TokenizerError(ValueError):
    """Base of every error of this package."""


class TokenizerFileError(TokenizerError):
    """A tokenizer file is missing, damaged, or not what it says it is."""


class ChatTemplateError(TokenizerError):
    """A chat template is damaged, or refuses a conversation."""


class UnknownCharacterError(TokenizerError):
    """Characters of a text that the vocabulary lacks.

    Attributes:
        characters: each distinct unknown character and its first position, in order of appearance.
        total: how many unknown characters the text holds, repetitions counted.
    """

    def __init__(self, characters: Mapping[str, int], total: int, remedy: str | None = None):
        self.characters = dict(characters)
        self.total = total
        self.remedy = remedy or (
            'add them to the training text, or encode with errors="replace" or "ignore"'
        )
        super().__init__(f"{_summary(self.characters, total)}; {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call the class with the message alone, which fails in the process that
        # receives the error from a worker.
        return (type(self), (self.characters, self.total, self.remedy))


def _summary(characters: Mapping[str, int], total: int) -> str:
    """Name as many characters as fit one line: nine with short names, three with long ones."""
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


def shown(value: object, limit: int = 80) -> str:
    """A value as a message shows it: text in quotes, and the middle of a long value left out."""
    is_text = isinstance(value, str | PathLike)
    text = str(value) if is_text else repr(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return f"'{text}'" if is_text else text
