"""Ids in, whole characters out.

One token need not be one character: an emoji may be four byte tokens. Decoding each id alone would
print four replacement marks, and decoding everything twice to subtract costs quadratic time. Here
every id has its bytes, and Python's incremental UTF-8 decoder holds back unfinished characters.
"""

import codecs
from collections.abc import Sequence
from typing import SupportsIndex

from yocto_tokenizers.fast.checks import checked_id

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Turns a stream of ids into text, one id at a time, in constant time per id.

    The pieces joined equal `decode` of all the ids, whatever the ids: bytes that are not valid
    UTF-8 become U+FFFD in both.

    Args:
        token_bytes: the bytes of each id, in id order; empty for special tokens.
    """

    def __init__(self, token_bytes: Sequence[bytes]):
        self._token_bytes = token_bytes
        self._decoder = _utf8_decoder(errors="replace")

    def push(self, token_id: SupportsIndex) -> str:
        """The text that becomes complete with this id; often empty in the middle of a character.

        Raises:
            TokenizerError: the id is not an integer in `range(vocab_size)`.
        """
        return self._decoder.decode(self._token_bytes[checked_id(token_id, len(self._token_bytes))])

    def finish(self) -> str:
        """What is left: U+FFFD if the stream ended inside a character. Then it can start anew."""
        return self._decoder.decode(b"", final=True)
