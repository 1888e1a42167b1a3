"""Bytes to text, block by block; and recognising files that hold no tokens."""

from __future__ import annotations

import codecs
from typing import Literal

from yocto_data.errors import DataError, DecodingError, shorten

Errors = Literal["strict", "replace", "ignore"]

# Longest first: the UTF-32 mark begins with the UTF-16 one.
_WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# These read escapes or domain names, not the text of a file.
_NOT_FOR_FILES = {"unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined"}
_BOM = "\ufeff"


def check_encoding(encoding: str) -> str:
    """The codec's own name for `encoding`, such as `utf-8` for `UTF8`.

    Raises:
        DataError: no encoding of text files has this name.
    """
    try:
        "".encode(encoding)  # refuses codecs that do not turn bytes into text
        name = codecs.lookup(encoding).name
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        raise DataError(f"no text encoding is called '{shorten(encoding)}'; try utf-8") from error
    if name == "utf-8-sig":  # a mark is dropped, and counted, under utf-8 as well
        return "utf-8"
    if name.replace("-", "_") in _NOT_FOR_FILES:
        raise DataError(f"{name} does not encode text files; try utf-8")
    return name


class TextDecoder:
    """Decodes one source: one byte order mark is dropped, line ends are kept.

    Args:
        where: the source, for errors.
        encoding: as `check_encoding` returns it.
        errors: `strict` raises; `replace` puts U+FFFD, `ignore` nothing, and both count.
    """

    def __init__(self, where: str, encoding: str, errors: str) -> None:
        self._where = where
        self._encoding = encoding
        make = codecs.getincrementaldecoder(encoding)
        self._decoder = make("strict" if errors == "strict" else "replace")
        # What "replace" adds to what "ignore" leaves is the number of errors, whatever U+FFFD
        # the text itself holds.
        self._counter = None if errors == "strict" else make("ignore")
        self._keep_counted = errors == "ignore"
        self._bytes_fed = 0
        self._started = False
        self.bom_dropped = False
        self.replaced = 0

    def push(self, data: bytes, *, final: bool = False) -> str:
        """The text of the next bytes; a character cut at their end waits for the next call.

        The first call gets at least four bytes, or all there are: marks are looked for there.

        Raises:
            DecodingError: names the first byte that does not fit.
            DataError: the file begins with the mark of another encoding.
        """
        if not self._bytes_fed:
            self._look_for_marks(data)
        self._bytes_fed += len(data)
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise self._located(error) from error
        except UnicodeError as error:  # UTF-16 and UTF-32 without a mark where one is due
            raise DecodingError(f"{self._where} is not {self._encoding}: {error}") from error
        if self._counter is not None:
            kept = self._counter.decode(data, final)
            self.replaced += text.count("\ufffd") - kept.count("\ufffd")
            text = kept if self._keep_counted else text
        if text and not self._started:
            self._started = True
            if text[0] == _BOM and not self.bom_dropped:
                self.bom_dropped = True
                text = text[1:]
        return text

    def _look_for_marks(self, data: bytes) -> None:
        wide = self._encoding.replace("_", "-").startswith(("utf-16", "utf-32"))
        name = next((name for mark, name in _WIDE_MARKS if data.startswith(mark)), None)
        if name and not wide:
            raise DataError(
                f"{self._where} begins with a {name.upper()} byte order mark, so it is not "
                f"{self._encoding}; pass encoding={name}"
            )
        # The codec without a byte order in its name takes the mark away itself.
        self.bom_dropped = bool(name) and self._encoding in {"utf-16", "utf-32"}

    def _located(self, error: UnicodeDecodeError) -> DecodingError:
        # The codec saw what it had kept from before, then the new bytes.
        offset = self._bytes_fed - len(error.object) + error.start
        value = error.object[error.start]
        name = "UTF-8" if self._encoding == "utf-8" else self._encoding
        return DecodingError(
            f"{self._where} is not {name} at byte {offset} (0x{value:02X}: {error.reason}); "
            "pass its encoding, such as encoding=cp1252 or encoding=latin-1, or errors=replace"
        )


_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_TEXT_CONTROLS = frozenset("\t\n\r\f\x1b")


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
    try:  # a character may be cut at the end, which an incremental decoder lets pass
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    long_enough = len(head) >= 16
    return "text" if long_enough and all(c >= " " or c in _TEXT_CONTROLS for c in text) else None
