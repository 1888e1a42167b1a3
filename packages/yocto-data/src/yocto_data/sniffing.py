"""Recognising by its first bytes what a file is when it is not a token file."""

from __future__ import annotations

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_TEXT_CONTROLS = frozenset("\t\n\r\f\x1b")
_MIN_TEXT_BYTES = 16


def foreign_format(head: bytes) -> str | None:
    """What the first bytes of a file look like; None where they could be tokens.

    Text is told from tokens by being UTF-8 without NUL and other control characters: in a token
    file of characters every second byte is 0, and in a larger vocabulary a control byte or a
    broken sequence turns up within a few ids.
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.lstrip()[:1] == b"<" and b"<html" in head.lower():
        return "HTML"
    if len(head) < _MIN_TEXT_BYTES:
        return None
    # A character of up to four bytes may be cut at the end of the head.
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return "text" if all(c >= " " or c in _TEXT_CONTROLS for c in text) else None
    return None
