"""Characters: their ids by NumPy tables, which of them belong to a word, where a text may be cut.

A text as UTF-32 is an array of code points already, so one look-up turns it into ids, and another
turns ids back: about thirty times as fast as a dictionary.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yocto_tokenizers.errors import TokenizerError, UnknownCharacterError, shown
from yocto_tokenizers.fast.checks import IdArray, checked_text, each_text, id_dtype

#: What `CharTokenizer.encode` does with a character that the vocabulary lacks.
Errors: TypeAlias = Literal["strict", "replace", "ignore"]

_CODE_POINTS = 0x110000
# Long texts go through in slices, so that the UTF-32 copy stays in the cache and memory flat.
_SLICE_CHARACTERS = 1 << 16


class CharacterTable:
    """Ids of characters by code point, and code points by id.

    Args:
        letters: distinct characters, in id order.
        vocab_size: how many ids there are, those of special tokens included.
    """

    def __init__(self, letters: Sequence[str], *, vocab_size: int):
        self._has_special = len(letters) < vocab_size
        self._code_points = np.array([ord(letter) for letter in letters], dtype="<u4")
        # One byte per character if all are in Latin-1, else four: to Python, both are plain arrays
        # of code points.
        self._codec = "latin-1" if self._code_points.max() < 256 else "utf-32-le"
        self._decoding = self._code_points.astype(np.uint8 if self._codec == "latin-1" else "<u4")
        # Wide enough for one value more, the largest, which means "unknown".
        self._dtype = id_dtype(len(letters) + 1)
        self._unknown = int(np.iinfo(self._dtype).max)
        self._id_dtype = id_dtype(vocab_size)
        marks = [letters.index(mark) for mark in ("\ufffd", "?") if mark in letters]
        self._replacement_id = marks[0] if marks else None

    def encode(self, text: str, errors: Errors) -> IdArray:
        """The ids of a text, shape `(n,)`; unknown characters are treated as `errors` says.

        Raises:
            TokenizerError: the text is not a `str`.
            UnknownCharacterError: `errors` is `"strict"` and the text holds unknown characters, or
                `"replace"` and the vocabulary has neither U+FFFD nor `?`.
        """
        if errors not in ("strict", "replace", "ignore"):
            raise TokenizerError(f"errors is {shown(errors)}; use 'strict', 'replace' or 'ignore'")
        ids = self._look_up(checked_text(text))
        unknown = ids == self._unknown
        if unknown.any():
            if errors == "ignore":
                ids = ids[~unknown]
            elif errors == "replace" and self._replacement_id is not None:
                ids[unknown] = self._replacement_id
            else:
                remedy = 'errors="replace" needs U+FFFD or "?" in the vocabulary; use "ignore"'
                raise UnknownCharacterError(
                    _first_positions(text, unknown),
                    int(np.count_nonzero(unknown)),
                    remedy if errors == "replace" else None,
                )
        return ids.astype(self._id_dtype, copy=False)

    def unknown_characters(self, text: str) -> dict[str, int]:
        """Each distinct unknown character and its first position, in that order."""
        return _first_positions(text, self._look_up(checked_text(text)) == self._unknown)

    def decode(self, ids: NDArray[np.integer[Any]]) -> str:
        """The characters of ids in range; those of special tokens have none."""
        if self._has_special:
            ids = ids[ids < len(self._decoding)]
        # "clip" spares a second check of the range.
        return str(self._decoding.take(ids, mode="clip").data, self._codec)

    def _look_up(self, text: str) -> IdArray:
        """The ids of a text, with the largest value of their type where one is unknown."""
        ids = np.empty(len(text), dtype=self._dtype)
        start = 0
        for part in _slices(text):
            target = ids[start : start + len(part)]
            np.take(self._id_table, _as_code_points(part), out=target, mode="clip")
            start += len(part)
        return ids

    @cached_property
    def _id_table(self) -> IdArray:
        # 2.2 MB, made on first use: a tokenizer that only decodes never needs it.
        table = np.full(_CODE_POINTS, self._unknown, dtype=self._dtype)
        table[self._code_points] = np.arange(len(self._code_points), dtype=self._dtype)
        return table


def distinct(texts: str | Iterable[str]) -> set[str]:
    """The set of the characters of a text, or of several."""
    seen = np.zeros(_CODE_POINTS, dtype=np.bool_)
    for text in each_text(texts):
        for part in _slices(text):
            seen[_as_code_points(part)] = True
    return set(map(chr, np.flatnonzero(seen)))


def _first_positions(text: str, unknown: NDArray[np.bool_]) -> dict[str, int]:
    first: dict[str, int] = {}
    for position in np.flatnonzero(unknown).tolist():
        first.setdefault(text[position], position)
    return first


def _slices(text: str) -> Iterator[str]:
    for start in range(0, len(text), _SLICE_CHARACTERS):
        yield text[start : start + _SLICE_CHARACTERS]


def _as_code_points(text: str) -> IdArray:
    """The code points of a text, shape `(len(text),)`; an ASCII text is one byte each already."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    # surrogatepass: a lone surrogate reaches the table and is reported as unknown.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


_BEFORE_SPACE = re.compile(r"(?<=\S) ")
_BEFORE_SPACE_OR_AFTER_NEWLINE = re.compile(r"(?<=\S) |(?<=\n)")


def additive_parts(
    text: str, *, target: int, after_newline: bool, maximum: int | None = None
) -> Iterator[str]:
    """The text in parts of at least `target` characters, cut at the first safe place past that.

    The parts joined are the text, and their ids joined are its ids. BPE merges run within a piece,
    so two parts encode independently where no piece of the vocabulary lies across the cut. No piece
    continues across a space that follows other text, so a cut before such a space is safe. A cut
    after a newline is safe where the newline is a token of its own.

    Args:
        text: any text; the empty one has no parts.
        target: wanted length of a part, in characters.
        after_newline: whether a cut after a newline is safe.
        maximum: length at which a part ends even where that is not safe; None means no limit.
    """
    safe = _BEFORE_SPACE_OR_AFTER_NEWLINE if after_newline else _BEFORE_SPACE
    start = 0
    while start < len(text):
        end = len(text) if maximum is None else min(len(text), start + maximum)
        cut = safe.search(text, start + target, end)
        stop = cut.start() if cut else end
        yield text[start:stop]
        start = stop


@cache
def mark_class() -> str:
    r"""The combining marks as the inside of a regular expression's character class.

    `re` has no name for them, and `\w` leaves them out, so that a word of an Indic script, or an
    "e" followed by its accent, would fall apart.
    """
    categories = "".join(unicodedata.category(chr(i))[0] for i in range(_CODE_POINTS))
    runs = re.finditer("M+", categories)
    return "".join(f"{chr(run.start())}-{chr(run.end() - 1)}" for run in runs)
