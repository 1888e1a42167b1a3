"""JSON as a file format, without what the standard reader lets pass."""

import codecs
import hashlib
import json
from typing import Any, Never

from yocto_tokenizers.errors import TokenizerFileError, quoted

# 2^63 has 19 digits: nothing in a tokenizer is longer, and Python's own limit is 4,300.
_MAX_NUMBER_CHARACTERS = 32


def parse_object(content: bytes, source: str) -> dict[str, Any]:
    """The top-level object of a JSON file.

    Refused: a byte order mark, bytes that are not UTF-8, duplicate keys, NaN and infinities,
    numbers of absurd length, nesting beyond the interpreter's stack, a top level that is no object.

    Args:
        content: the bytes of the file.
        source: the quoted name of the file, for messages.

    Raises:
        TokenizerFileError: with line and column where the reader knows them.
    """
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TokenizerFileError(
            f"{source} is not valid JSON (line 1, column 1): it begins with a byte order mark; "
            "save it as UTF-8 without one"
        )
    try:
        parsed = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
        )
    except json.JSONDecodeError as error:
        raise TokenizerFileError(
            f"{source} is not valid JSON (line {error.lineno}, column {error.colno}): {error.msg}; "
            "restore the file or prepare the data again"
        ) from error
    except UnicodeDecodeError as error:
        raise TokenizerFileError(
            f"{source} is not valid JSON: byte {error.start} is not UTF-8; "
            "restore the file or prepare the data again"
        ) from error
    except RecursionError:
        raise TokenizerFileError(f"{source} is nested too deeply; it is no tokenizer") from None
    except _RefusedError as error:
        raise TokenizerFileError(f"{source} {error}; restore the file") from None
    if not isinstance(parsed, dict):
        raise TokenizerFileError(
            f"{source} holds a JSON {_json_type(parsed)}, expected an object; it is no tokenizer"
        )
    return parsed


def canonical_sha256(content: dict[str, Any]) -> str:
    """sha256 (hex) of a JSON value in one fixed spelling, so that formatting does not matter."""
    spelled = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(spelled.encode("ascii")).hexdigest()


class _RefusedError(Exception):
    """Raised inside the reader's hooks, translated above where the file is known."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"has the key {quoted(key)} twice")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> Never:
    raise _RefusedError(f"is not valid JSON: it holds {name}")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_CHARACTERS:
        raise _RefusedError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _json_type(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
