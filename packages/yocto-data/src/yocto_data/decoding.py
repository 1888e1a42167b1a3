"""Bytes to text, block by block: one byte order mark dropped, line ends kept, errors located."""

from __future__ import annotations

import codecs
from typing import Literal, get_args

from yocto_data.errors import DecodingError, OptionError, SourceError, show
from yocto_data.options import require_word

Errors = Literal["strict", "replace", "ignore"]

# Longest first: the UTF-32 mark begins with the UTF-16 one.
_WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# These read escapes or domain names, not the text of a file.
_NOT_FOR_FILES = frozenset(
    {"unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined"}
)
_BOM = "\ufeff"


def check_encoding(encoding: str, errors: str) -> str:
    """The codec's own name for ``encoding``, such as ``utf-8`` for ``UTF8``.

    Raises:
        OptionError: there is no such text encoding, or no such way to treat errors.
    """
    require_word("errors", errors, get_args(Errors))
    try:
        "".encode(encoding)  # refuses codecs that do not turn bytes into text
        name = codecs.lookup(encoding).name
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError, UnicodeError) as error:
        raise OptionError(f"no text encoding is called '{show(encoding)}'; try utf-8") from error
    if name == "utf-8-sig":  # a mark is dropped, and counted, under utf-8 as well
        return "utf-8"
    if name.replace("-", "_") in _NOT_FOR_FILES:
        raise OptionError(f"{name} is no encoding for text files; try utf-8")
    return name


class TextDecoder:
    """Decodes one source incrementally.

    Args:
        shown: the source's name in errors.
        encoding: as ``check_encoding`` returns it.
        errors: ``strict`` raises; ``replace`` puts U+FFFD, ``ignore`` nothing, and both count.
    """

    def __init__(self, shown: str, encoding: str, errors: str) -> None:
        self._shown = shown
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
            DecodingError: naming the first byte that does not fit.
            SourceError: the file begins with the mark of another encoding.
        """
        if not self._bytes_fed:
            self._look_for_marks(data)
        self._bytes_fed += len(data)
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise self._located(error) from error
        except UnicodeError as error:  # UTF-16 and UTF-32 without a mark where one is due
            raise DecodingError(f"{self._shown} is not {self._encoding}: {error}") from error
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
        for mark, name in _WIDE_MARKS:
            if data.startswith(mark):
                if not wide:
                    raise SourceError(
                        f"{self._shown} begins with a {name.upper()} byte order mark, so it is not "
                        f"{self._encoding}; pass encoding {name}"
                    )
                # The codec without a byte order in its name takes the mark away itself.
                self.bom_dropped = self._encoding in {"utf-16", "utf-32"}
                return

    def _located(self, error: UnicodeDecodeError) -> DecodingError:
        # The codec saw what it had kept from before, then the new bytes.
        offset = self._bytes_fed - len(error.object) + error.start
        value = error.object[error.start]
        name = "UTF-8" if self._encoding == "utf-8" else self._encoding
        return DecodingError(
            f"{self._shown} is not {name} at byte {offset} (0x{value:02X}: {error.reason}); "
            "pass its encoding, such as encoding=latin-1 or encoding=cp1252, or errors=replace"
        )
