"""The stream decoder by itself: bytes cut anywhere give the text Python reads in the whole."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_tokenizers import StreamDecoder, TokenizerError


@pytest.mark.property
@given(parts=st.lists(st.binary(max_size=4)))
@example(parts=[b"\xf0", b"\x9f\x98", b"\x80"])
@example(parts=[b"\xf0\x9f", b"a\xff", b"\xe2\x82"])
@example(parts=["\ufffd".encode()[:1], "\ufffd".encode()[1:]])
def test_any_bytes_cut_anywhere(parts: list[bytes]) -> None:
    """The text of a stream is the text of the bytes joined, with one mark per invalid part."""
    decoder = StreamDecoder(parts)
    pieces = [decoder.push(i) for i in range(len(parts))]
    assert b"".join(parts).decode("utf-8", "replace") == "".join(pieces) + decoder.finish()


def test_a_character_appears_when_it_is_complete() -> None:
    """Each character is shown with its last byte and no later; a genuine U+FFFD does not stall."""
    text = "a\u00e9\U0001f600\ufffd"
    decoder = StreamDecoder([bytes([byte]) for byte in range(256)])
    assert [decoder.push(byte) for byte in text.encode()] == [
        "a",
        "",
        "\u00e9",
        "",
        "",
        "",
        "\U0001f600",
        "",
        "",
        "\ufffd",
    ]
    assert not decoder.finish()


def test_an_unfinished_character_becomes_one_mark() -> None:
    """X7: the stream may end inside a character: one U+FFFD, and the decoder is as new."""
    decoder = StreamDecoder([b"\xf0\x9f\x98", b"a"])
    assert not decoder.push(0)
    assert decoder.finish() == "\ufffd"
    assert not decoder.finish()
    assert decoder.push(1) == "a"


@pytest.mark.parametrize("token_id", [np.int64(1), np.uint16(1), np.array(1)])
def test_any_integer_is_an_id(token_id: int) -> None:
    """NumPy integers, as a sampler gives them, are ids."""
    assert StreamDecoder([b"a", b"b"]).push(token_id) == "b"


@pytest.mark.parametrize("token_id", [-1, 2, 2**40, 2**70, True, np.True_, 1.0, "1", None, [1]])
def test_other_values_are_refused(token_id: int) -> None:
    """T3: anything but an integer in range raises, and leaves the stream as it was."""
    decoder = StreamDecoder([b"\xc3", b"\xa9"])
    decoder.push(0)
    with pytest.raises(TokenizerError):
        decoder.push(token_id)
    assert decoder.push(1) == "\u00e9"
