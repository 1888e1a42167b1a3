"""Bytes to text, incrementally."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataError, DecodingError
from yocto_data.prep.decoding import TextDecoder, check_encoding

# How the bytes are dealt out.
CUTS = st.lists(st.integers(0, 9), max_size=12)
MARKED = {"utf-16", "utf-32"}
ENCODINGS = st.sampled_from(
    ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "gb18030", "big5"]
)


def decode(
    data: bytes, cuts: list[int], encoding: str = "utf-8", errors: str = "strict"
) -> tuple[str, TextDecoder]:
    decoder = TextDecoder("a.txt", check_encoding(encoding), errors)
    text = ""
    for length in [*cuts, len(data)]:
        block, data = data[:length], data[length:]
        text += decoder.push(block) if block else ""
    return text + decoder.push(b"", final=True), decoder


@pytest.mark.property
@given(st.text(), CUTS, ENCODINGS)
@example("\r\n\n\r", [1, 1], "utf-8")
@example("a\u20ac\U0001f600", [2, 1, 1, 1], "utf-8")
def test_blocks_make_no_difference(text: str, cuts: list[int], encoding: str) -> None:
    """Decoding block by block equals decoding at once; line ends stay, one leading mark goes."""
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        return  # not a text of this encoding
    # The mark that Python writes is gone from what it reads; a second one is text.
    expected = data.decode(encoding).removeprefix("" if encoding in MARKED else "\ufeff")
    assert expected == decode(data, [4, *cuts], encoding)[0]


@pytest.mark.property
@given(st.binary(max_size=40), CUTS)
@example(b"abc\xff", [1])
@example(b"ab\xe2\x82", [3])  # a character cut by the end
@example(b"\xc0\xaf", [])  # an overlong form
@example(b"\xed\xa0\x80", [2])  # a surrogate
def test_the_first_bad_byte_is_named(data: bytes, cuts: list[int]) -> None:
    """D7: where bytes are not UTF-8, the error names the offset that decoding at once finds."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return
    try:
        expected = data.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(DecodingError) as caught:
            decode(data, [4, *cuts])
        offset = f"a.txt is not UTF-8 at byte {error.start} (0x{data[error.start]:02X}: "
        assert str(caught.value).startswith(offset)
    else:
        assert expected.removeprefix("\ufeff") == decode(data, [4, *cuts])[0]


@pytest.mark.property
@given(st.lists(st.sampled_from([b"a", b"\xff", "\ufffd".encode(), b"\xe2\x82", b"\x80"])), CUTS)
@example([b"\xff", "\ufffd".encode(), b"a"], [1, 2])
def test_replacements_are_counted(parts: list[bytes], cuts: list[int]) -> None:
    """`replace` and `ignore` agree with Python's, and both count errors, not U+FFFD itself."""
    data = b"ok:" + b"".join(parts)
    replaced, ignored = data.decode(errors="replace"), data.decode(errors="ignore")
    count = replaced.count("\ufffd") - ignored.count("\ufffd")
    for errors, expected in (("replace", replaced), ("ignore", ignored)):
        text, decoder = decode(data, cuts, errors=errors)
        assert expected == text
        assert count == decoder.replaced


WRITTEN = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8",
    "utf-16-le": "utf-16-le",
    "utf-16": "utf-16-be",
    "utf-32": "utf-32-le",
}


@pytest.mark.parametrize(
    ("stated", "marks"), [(s, n) for s in WRITTEN for n in range(3) if n or s not in MARKED]
)
def test_one_mark_is_dropped(stated: str, marks: int) -> None:
    """D6: of leading byte order marks exactly one goes, and it is said; another is text."""
    text, decoder = decode(("\ufeff" * marks + "\r\nab").encode(WRITTEN[stated]), [4], stated)
    assert "\ufeff" * (marks - 1) + "\r\nab" == text
    assert decoder.bom_dropped is (marks > 0)


def test_utf_16_without_a_mark_is_refused() -> None:
    """Without a mark the order of bytes is unknown, and is not guessed."""
    with pytest.raises(DecodingError, match="utf-16"):
        decode("abc".encode("utf-16-le"), [], "utf-16")


@pytest.mark.parametrize(
    "encoding", ["", "utf-9", "rot13", "hex", "unicode_escape", "idna", "a\0b", "x" * 999, "\udc80"]
)
def test_other_encodings_are_refused(encoding: str) -> None:
    """A name that stands for no encoding of text files is an error of the argument, in one line."""
    with pytest.raises(DataError) as caught:
        check_encoding(encoding)
    assert len(str(caught.value)) < 250


def test_an_encoding_has_one_name() -> None:
    """Spellings of one encoding are recorded alike."""
    assert [check_encoding(e) for e in ("UTF8", "u8", "utf_8", "utf-8")] == ["utf-8"] * 4
