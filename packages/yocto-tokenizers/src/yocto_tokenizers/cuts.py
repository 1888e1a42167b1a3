r"""Where a text may be cut without changing its ids.

BPE merges run within a piece, so two parts encode independently where no piece of the vocabulary
lies across the cut. Pieces do not continue over a space that follows other text: in front of such a
space is safe. After a newline is safe where the newline is a symbol of its own.
"""

import re
from collections.abc import Iterator

_BEFORE_SPACE = re.compile(r"(?<=\S) ")
_BEFORE_SPACE_OR_AFTER_NEWLINE = re.compile(r"(?<=\S) |(?<=\n)")


def additive_parts(
    text: str, *, target: int, after_newline: bool, maximum: int | None = None
) -> Iterator[str]:
    """The text in parts of at least `target` characters, cut at the first safe place past that.

    The parts joined are the text, and their ids joined are its ids.

    Args:
        text: any text; the empty one has no parts.
        target: wanted length of a part, in characters.
        after_newline: whether after a newline is safe.
        maximum: length at which a part ends even where that is not safe; None means never.
    """
    safe = _BEFORE_SPACE_OR_AFTER_NEWLINE if after_newline else _BEFORE_SPACE
    start = 0
    while start < len(text):
        end = len(text) if maximum is None else min(len(text), start + maximum)
        cut = safe.search(text, start + target, end)
        stop = cut.start() if cut else end
        yield text[start:stop]
        start = stop
