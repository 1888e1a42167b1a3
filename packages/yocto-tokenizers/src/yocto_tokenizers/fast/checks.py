"""Ids, texts, names and files as callers pass them: checked before anything relies on them."""

import operator
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yocto_tokenizers.errors import TokenizerError, TokenizerFileError, character_name, shown

#: Token ids as they come in: lists, tuples, ranges, integer arrays, CPU tensors. One dimension.
Ids: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

#: Token ids as they go out: uint16 or uint32, shape (n,).
IdArray: TypeAlias = NDArray[np.unsignedinteger[Any]]

#: Larger than any tokenizer in use (the largest known tokenizer.json files have about 35 MB).
MAX_FILE_BYTES = 64 << 20

_NAME = re.compile(r"[^ ]{2,64}")


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The narrower of the two types of token files that holds every id of the vocabulary."""
    return np.uint16 if vocab_size <= 65536 else np.uint32


def checked_ids(ids: object, vocab_size: int) -> NDArray[np.integer[Any]]:
    """The ids as an integer array of shape `(n,)`, every one in `range(vocab_size)`.

    Raises:
        TokenizerError: not one dimension, not integers (a bool is not one), or out of range.
    """
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise TokenizerError(
            f"ids of type {type(ids).__name__} cannot be read as an array; "
            "give one list, tuple, array or CPU tensor of integers"
        ) from error
    if array.ndim != 1:
        raise TokenizerError(
            f"ids have {array.ndim} dimensions, expected 1; give one sequence of ids"
        )
    if array.size == 0:
        return np.empty(0, dtype=np.int64)  # np.asarray([]) is float64, yet holds no float
    # NumPy reads [3, True] as [3, 1]: only the list itself still knows.
    is_list = isinstance(ids, list | tuple)
    has_bool = is_list and not {bool, np.bool_}.isdisjoint(map(type, ids))  # type: ignore[call-overload]
    # The range is checked before any look-up, because -1 would silently pick the last token.
    if array.dtype.kind in "iu" and not has_bool and array.min() >= 0 and array.max() < vocab_size:
        return array
    # NumPy makes floats of [0, 2**63] and objects of [2**70], so each value itself is checked.
    values = ids if isinstance(ids, list | tuple) else array.tolist()
    integers = [checked_id(id_, vocab_size, f" at index {i}") for i, id_ in enumerate(values)]
    return np.array(integers, dtype=np.int64)


def checked_id(token_id: Any, vocab_size: int, where: str = "") -> int:
    """One id as an `int` in `range(vocab_size)`; NumPy's integers are ids too.

    Raises:
        TokenizerError: it is something else; the message has `where` after the id.
    """
    try:
        number = -1 if isinstance(token_id, bool | np.bool_) else operator.index(token_id)
    except TypeError:
        number = -1
    if not 0 <= number < vocab_size:
        raise TokenizerError(
            f"id {shown(token_id)}{where} is not an integer from 0 to {vocab_size - 1}"
        )
    return number


def checked_text(text: object) -> str:
    """The text itself, if it is a `str`. A list is an error: `encode_batch` is for those.

    Raises:
        TokenizerError: it is something else.
    """
    if not isinstance(text, str):
        raise TokenizerError(
            f"text has type {type(text).__name__}, expected str; use encode_batch for several texts"
        )
    return text


def checked_unicode(text: object) -> str:
    """The text itself, if it can be written as UTF-8: native code must never see a surrogate.

    Raises:
        TokenizerError: it is not a `str`, or holds a lone surrogate.
    """
    checked = checked_text(text)
    if not checked.isascii():
        try:
            checked.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text holds the lone surrogate U+{ord(checked[error.start]):04X} at index "
                f"{error.start}; decode the source as UTF-8, or drop it"
            ) from None
    return checked


def checked_texts(texts: object) -> Iterable[str]:
    """Several texts. One `str` is an error, because iterating over it gives single characters.

    Raises:
        TokenizerError: it is a `str`, or cannot be iterated over.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TokenizerError(
            f"texts has type {type(texts).__name__}, expected a list of str; use encode for one"
        )
    return texts


def each_text(texts: str | Iterable[str]) -> Iterable[str]:
    """The texts to train on, one after the other: one `str`, or an iterable of them.

    Raises:
        TokenizerError: an item is not a `str`, or holds a lone surrogate; its index is named.
    """
    if isinstance(texts, str):
        yield checked_unicode(texts)
        return
    for index, text in enumerate(checked_texts(texts)):
        try:
            yield checked_unicode(text)
        except TokenizerError as error:
            raise TokenizerError(f"item {index} of the texts: {error}") from None


def checked_names(names: Iterable[object], *, reserved: Collection[str] = ()) -> tuple[str, ...]:
    """The names as a tuple, if they can be special tokens.

    A name has 2 to 64 printable characters without spaces: a shorter one would collide with the
    character itself, and names are shown in messages and files.

    Raises:
        TokenizerError: a name is not valid, given twice, or among `reserved`.
    """
    if isinstance(names, str):
        raise TokenizerError(
            f"special_tokens is the string {shown(names)}; give a list or tuple of names"
        )
    checked: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not name.isprintable():
            raise TokenizerError(
                f"special token {shown(name)} is not valid; use 2 to 64 printable characters "
                "without spaces"
            )
        if name in checked or name in reserved:
            raise TokenizerError(f"special token {shown(name)} is already defined; drop it")
        checked[name] = None
    return tuple(checked)


def checked_strings(
    strings: Iterable[object], *, longest: int, reserved: Collection[str] = ()
) -> tuple[str, ...]:
    """The strings, if they are a vocabulary: distinct, of 1 to `longest` characters, no surrogates.

    Raises:
        TokenizerError: they are not a vocabulary, or none is given.
    """
    one = longest == 1  # of characters, not of words
    expected = "one character" if one else f"1 to {longest} characters"
    checked: dict[str, None] = {}
    for i, string in enumerate(strings):
        if not isinstance(string, str) or not 1 <= len(string) <= longest:
            raise TokenizerError(f"entry {i} is {shown(string)}, expected {expected}")
        if string in checked or string in reserved:
            name = character_name(string) if one else shown(string)
            raise TokenizerError(f"entry {i} repeats {name}; drop one")
        checked[checked_unicode(string)] = None
    if not checked:
        unit = "character" if one else "word"
        raise TokenizerError(f"the text is empty; a vocabulary needs at least one {unit}")
    return tuple(checked)


def file_at(path: str | PathLike[str], name: str) -> Path:
    """The path itself, or the file of that name in it, if it is a directory."""
    try:
        return Path(path) / name if Path(path).is_dir() else Path(path)
    except OSError:  # a path that the system refuses: opening it says why
        return Path(path)


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The whole content of a regular file (reading a FIFO could block forever).

    Raises:
        TokenizerFileError: it is missing, unreadable, not a regular file, or over the limit.
    """
    try:
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise TokenizerFileError(f"cannot read {shown(path)}: {reason}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise TokenizerFileError(f"{shown(path)} is not a regular file; name a tokenizer file")
    raise TokenizerFileError(
        f"{shown(path)} has {status.st_size} bytes, more than any tokenizer ({MAX_FILE_BYTES}); "
        "name a tokenizer file"
    )
