"""The JSON file of a vocabulary that is a list of strings: vocab.json and the word level's own.

```
{"format_version": 1, "kind": "char", "vocab_size": 3, "sha256": "...",
 "special_tokens": {"<s>": 2}, "itos": ["a", "b", "<s>"], "stoi": {"a": 0, "b": 1, "<s>": 2}}
```

`itos` is in id order, since JSON would turn integer keys into strings. `stoi`, `vocab_size` and
`sha256` repeat what `itos` says: for readers, and to notice a file that was edited or damaged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yocto_tokenizers.errors import TokenizerFileError, quoted
from yocto_tokenizers.strict_json import canonical_sha256, parse_object

FORMAT_VERSION = 1
#: Longer tokens are never learned and never accepted.
MAX_TOKEN_CHARACTERS = 256


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The strings of a vocabulary, in id order, and the ids of its special tokens.

    Attributes:
        kind: the kind of tokenizer it belongs to.
        itos: string of each id.
        special_tokens: name to id; each name stands in `itos` at its id.
        settings: further string settings of the kind, such as the word level's pattern.
    """

    kind: str
    itos: tuple[str, ...]
    special_tokens: Mapping[str, int]
    settings: Mapping[str, str]

    def fingerprint(self) -> str:
        """sha256 (hex) of the content, whatever its formatting in a file."""
        return canonical_sha256(
            {
                "kind": self.kind,
                "itos": list(self.itos),
                "special_tokens": dict(self.special_tokens),
                **self.settings,
            }
        )

    def to_json(self) -> bytes:
        """The content of the file."""
        document = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            **self.settings,
            "vocab_size": len(self.itos),
            "sha256": self.fingerprint(),
            "special_tokens": dict(self.special_tokens),
            "itos": list(self.itos),
            "stoi": {string: i for i, string in enumerate(self.itos)},
        }
        return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


def vocabulary_from_json(
    content: bytes, source: str, *, kind: str, setting_names: Sequence[str] = ()
) -> Vocabulary:
    """Read and check a vocabulary file.

    Args:
        content: the bytes of the file.
        source: the quoted name of the file, for messages.
        kind: the kind the file must state.
        setting_names: the string settings the kind has.

    Raises:
        TokenizerFileError: anything is missing, unexpected or contradictory.
    """
    document = parse_object(content, source)
    _check_header(document, source, kind)
    expected = {"format_version", "kind", "vocab_size", "sha256", "special_tokens", "itos", "stoi"}
    _check_keys(document, expected | set(setting_names), source)
    itos = _checked_strings(document["itos"], source)
    _check_ids(document["stoi"], itos, source, "stoi")
    if len(document["stoi"]) != len(itos):
        missing = next(string for string in itos if string not in document["stoi"])
        raise TokenizerFileError(
            f"{source}: stoi lacks the token {quoted(missing)}; restore the file"
        )
    _check_ids(document["special_tokens"], itos, source, "special_tokens")
    if type(document["vocab_size"]) is not int or document["vocab_size"] != len(itos):
        raise TokenizerFileError(
            f"{source} states vocab_size {quoted(document['vocab_size'])} but lists {len(itos)} "
            "tokens; restore the file"
        )
    for name in setting_names:
        if not isinstance(document[name], str):
            raise TokenizerFileError(f"{source}: {name} is not a string; restore the file")
    vocabulary = Vocabulary(
        kind=kind,
        itos=itos,
        special_tokens=document["special_tokens"],
        settings={name: document[name] for name in setting_names},
    )
    if document["sha256"] != vocabulary.fingerprint():
        raise TokenizerFileError(
            f"{source}: the content does not match its sha256; it was edited or damaged, restore it"
        )
    return vocabulary


def stated_kind(document: Mapping[str, Any], source: str) -> str:
    """The kind a parsed file states.

    Raises:
        TokenizerFileError: it is no file of this package.
    """
    kind = document.get("kind")
    if not isinstance(kind, str) or "format_version" not in document:
        raise TokenizerFileError(
            f"{source} has no kind and format_version; it is not a tokenizer file of yocto"
        )
    return kind


def _check_header(document: Mapping[str, Any], source: str, kind: str) -> None:
    stated = stated_kind(document, source)
    if stated != kind:
        raise TokenizerFileError(
            f"{source} is of kind {quoted(stated)}, expected {kind!r}; use load_tokenizer"
        )
    version = document["format_version"]
    if type(version) is not int or version < 1:
        raise TokenizerFileError(f"{source}: format_version {quoted(version)} is no version number")
    if version > FORMAT_VERSION:
        raise TokenizerFileError(
            f"{source} has format_version {version}, this yocto-tokenizers reads up to "
            f"{FORMAT_VERSION}; upgrade it"
        )


def _check_keys(document: Mapping[str, Any], expected: set[str], source: str) -> None:
    missing = sorted(expected - document.keys())
    if missing:
        raise TokenizerFileError(f"{source} lacks {', '.join(missing)}; restore the file")
    unexpected = sorted(document.keys() - expected)
    if unexpected:
        raise TokenizerFileError(f"{source} has the unknown key {quoted(unexpected[0])}; remove it")


def _checked_strings(itos: object, source: str) -> tuple[str, ...]:
    if not isinstance(itos, list) or not itos:
        raise TokenizerFileError(f"{source}: itos is no list of tokens; restore the file")
    for i, string in enumerate(itos):
        problem = _string_problem(string)
        if problem:
            raise TokenizerFileError(f"{source}: the token of id {i} {problem}; restore the file")
    if len(set(itos)) < len(itos):
        first: dict[str, int] = {}
        for i, string in enumerate(itos):
            if string in first:
                raise TokenizerFileError(
                    f"{source}: ids {first[string]} and {i} are both the token {quoted(string)}; "
                    "restore the file"
                )
            first[string] = i
    return tuple(itos)


def _string_problem(string: object) -> str | None:
    if not isinstance(string, str):
        return f"is {quoted(string)}, no string"
    if not string:
        return "is empty"
    if len(string) > MAX_TOKEN_CHARACTERS:
        return f"has {len(string)} characters, at most {MAX_TOKEN_CHARACTERS} are allowed"
    if any("\ud800" <= character <= "\udfff" for character in string):
        return f"is {quoted(string)}, which holds a lone surrogate"
    return None


def _check_ids(ids: object, itos: Sequence[str], source: str, name: str) -> None:
    """Every token has the id at which `itos` lists it; the first that has not is named."""
    if not isinstance(ids, dict):
        raise TokenizerFileError(f"{source}: {name} is no object; restore the file")
    for token, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < len(itos):
            raise TokenizerFileError(
                f"{source}: {name} gives {quoted(token)} the id {quoted(token_id)}, expected an "
                f"integer from 0 to {len(itos) - 1}; restore the file"
            )
        if itos[token_id] != token:
            raise TokenizerFileError(
                f"{source}: {name} gives {quoted(token)} the id {token_id}, which itos gives "
                f"{quoted(itos[token_id])}; restore the file"
            )
