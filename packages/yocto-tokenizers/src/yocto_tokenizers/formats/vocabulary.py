"""A tokenizer whose whole content is a list of strings, and its JSON file.

```
{"format_version": 1, "kind": "char", "vocab_size": 3, "sha256": "...",
 "special_tokens": {"<s>": 2}, "itos": ["a", "b", "<s>"], "stoi": {"a": 0, "b": 1, "<s>": 2}}
```

`itos` is in id order, since JSON would turn integer keys into strings. `stoi` and `vocab_size`
repeat what `itos` says, for readers of the file.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.errors import TokenizerFileError, shown
from yocto_tokenizers.formats.tokenizer_json import head_of, whole_tokens

FORMAT_VERSION = 1


class VocabularyTokenizer(BaseTokenizer):
    """A tokenizer that its strings and the names of its special tokens determine.

    Its class is called as `cls(strings, special_tokens=names)`.

    Attributes:
        itos: the string of each id.
        stoi: the id of each string: the inverse of `itos`.
    """

    itos: tuple[str, ...]
    stoi: Mapping[str, int]

    def fingerprint(self) -> str:
        special = dict(self.special_tokens)
        return canonical_sha256({"kind": self.kind, "itos": self.itos, "special_tokens": special})

    def to_bytes(self) -> bytes:
        document = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "sha256": self.fingerprint(),
            "special_tokens": dict(self.special_tokens),
            "itos": self.itos,
            "stoi": dict(self.stoi),
        }
        return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8")

    def folder_files(self, *, model_max_length: int | None = None) -> dict[str, bytes]:
        # Characters outside the vocabulary are an error: no token is called by a name with a space.
        pattern, unknown = r"[\s\S]", "no token"
        document = whole_tokens(self.itos, self.special_tokens, pattern=pattern, unknown=unknown)
        # The class of words has that layout for a file of its own, which then takes this place.
        own = super().folder_files(model_max_length=model_max_length)
        return {"tokenizer.json": document, **own}

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        document = parse_json(content, source)
        head = head_of(document)
        kind, version = head.get("kind"), head.get("format_version")
        if kind != cls.kind:
            raise TokenizerFileError(
                f"{source} is of kind {shown(kind)}, expected {cls.kind!r}; use load_tokenizer"
            )
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise TokenizerFileError(
                f"{source} has format_version {shown(version)}, but this yocto-tokenizers reads up "
                f"to {FORMAT_VERSION}; upgrade it"
            )
        try:
            tokenizer, written = cls._rebuilt(document)
        except (KeyError, TypeError, ValueError) as error:
            raise TokenizerFileError(f"{source} is damaged ({error}); restore the file") from error
        # Stricter than checking field by field: not even a blank may differ from what was written,
        # and the content must match its own sha256.
        if content != written:
            raise TokenizerFileError(
                f"{source} is damaged or was edited: it contradicts itself or its sha256; "
                "restore the file"
            )
        return tokenizer

    @classmethod
    def _rebuilt(cls, document: dict[str, Any]) -> tuple[Self, bytes]:
        """The tokenizer of a parsed file, and what `to_bytes` gave where it was written."""
        make: Callable[..., Self] = cls
        names = dict.fromkeys(document["special_tokens"])
        letters = [string for string in document["itos"] if string not in names]
        tokenizer = make(letters, special_tokens=names)
        return tokenizer, tokenizer.to_bytes()

    @cached_property
    def _token_bytes(self) -> Sequence[bytes]:
        return [b"" if name in self.special_tokens else name.encode() for name in self.itos]


def parse_json(content: bytes, source: str) -> dict[str, Any]:
    """The object that a JSON file holds; `source` is what messages call it.

    Raises:
        TokenizerFileError: it is not JSON, or not an object.
    """
    refuse_pointer(content, source)
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerFileError(
            f"{source} is not valid JSON ({error}); restore the file or prepare it again"
        ) from error
    if not isinstance(parsed, dict):
        raise TokenizerFileError(
            f"{source} is not a tokenizer: its JSON is not an object; name a tokenizer file"
        )
    return parsed


def refuse_pointer(content: bytes, source: str) -> None:
    """Raise TokenizerFileError for what git leaves in place of a large file."""
    if content.startswith(b"version https://git-lfs"):
        raise TokenizerFileError(
            f"{source} is a Git LFS pointer; fetch the real file with `git lfs pull`"
        )


def canonical_sha256(content: dict[str, Any]) -> str:
    """sha256 (hex) of a JSON value in one fixed spelling, so that formatting does not matter."""
    spelled = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(spelled.encode("ascii")).hexdigest()
