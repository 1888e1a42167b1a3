"""Cutting a long text where encoding its pieces gives the ids of the whole."""

from __future__ import annotations

import re

# Between a non-space and a space every tokenizer of the family begins a new token: characters
# anyway, words since a run of white space is a token, sentencepiece since a piece may begin with a
# space but not hold one inside.
_BEFORE_SPACE = re.compile(r"(?<=\S) ")
_AFTER_NEWLINE = re.compile(r"(?<=\n)\S")
_MAX_FACTOR = 4


class SafeCutter:
    """Takes the text of one document in blocks of any size, gives it back in safe pieces.

    A piece ends at the first space behind non-space at or past ``chunk_chars``. Where the next
    ``3 * chunk_chars`` characters hold none, it ends behind a newline that non-space follows;
    failing that, at ``4 * chunk_chars``, which ``unsafe_cuts`` counts, since ids may differ there.
    The cuts depend on the text and on ``chunk_chars`` alone, never on how the text arrived.
    """

    def __init__(self, chunk_chars: int) -> None:
        self._target = chunk_chars
        self._maximum = _MAX_FACTOR * chunk_chars
        self._text = ""
        self.unsafe_cuts = 0

    def push(self, block: str) -> list[str]:
        """The pieces that are certain, now that ``block`` has arrived."""
        self._text += block
        return self._cut()

    def flush(self) -> list[str]:
        """All that is left, at the end of a document or of a split."""
        pieces = self._cut()
        if self._text:
            pieces.append(self._text)
        self._text = ""
        return pieces

    def _cut(self) -> list[str]:
        pieces = []
        start = 0
        while (end := self._next_cut(start)) is not None:
            pieces.append(self._text[start:end])
            start = end
        self._text = self._text[start:]
        return pieces

    def _next_cut(self, start: int) -> int | None:
        target, maximum = start + self._target, start + self._maximum
        if len(self._text) <= target:
            return None
        # The character behind the last possible cut is looked at, too.
        if found := _BEFORE_SPACE.search(self._text, target, maximum + 1):
            return found.start()
        if len(self._text) <= maximum:
            return None  # a space may still come
        if found := _AFTER_NEWLINE.search(self._text, target, maximum + 1):
            return found.start()
        self.unsafe_cuts += 1
        return maximum
