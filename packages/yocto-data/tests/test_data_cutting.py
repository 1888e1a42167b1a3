"""Where long texts are cut."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data.prep.splitting import SafeCutter

# Few characters, so that every kind of neighbour turns up: spaces of several kinds, line ends,
# letters, symbols, a combining mark, the sign that sentencepiece writes for a space.
TEXTS = st.text(alphabet="ab. \n\r\t\u00a0\u2028\u0301\u2581\U0001f600", max_size=80)
WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def cut(text: str, chunk_chars: int, blocks: list[int] | None = None) -> tuple[list[str], int]:
    cutter = SafeCutter(chunk_chars)
    pieces = []
    start = 0
    for length in blocks or []:
        pieces += cutter.push(text[start : start + length])
        start += length
    pieces += cutter.push(text[start:])
    pieces += cutter.flush()
    return pieces, cutter.unsafe_cuts


@pytest.mark.property
@given(TEXTS, st.integers(1, 12))
@example("a b", 1)
@example("aaaa aaaa aaaa", 4)
def test_pieces_are_the_text_and_short(text: str, chunk_chars: int) -> None:
    """Joined pieces are the text; none is empty, none is longer than four times the target."""
    pieces, _ = cut(text, chunk_chars)
    assert text == "".join(pieces)
    assert all(1 <= len(piece) <= 4 * chunk_chars for piece in pieces)


@pytest.mark.property
@given(TEXTS, st.integers(1, 12), st.lists(st.integers(0, 30), max_size=12))
@example("aaaa aaaa aaaa", 4, [4, 1, 1])
@example("a" * 20 + " b", 4, [17, 1])
def test_cuts_do_not_depend_on_arrival(text: str, chunk_chars: int, blocks: list[int]) -> None:
    """However the text is dealt out in blocks, the pieces are those of the text pushed at once."""
    assert cut(text, chunk_chars) == cut(text, chunk_chars, blocks)


@pytest.mark.property
@given(TEXTS, st.integers(1, 12))
@example("one two three four", 3)
@example("a\n\nb\n\nc\nd", 1)
def test_safe_cuts_part_no_word(text: str, chunk_chars: int) -> None:
    """D7: where every cut was safe, the words of the pieces are the words of the text."""
    pieces, unsafe_cuts = cut(text, chunk_chars)
    if unsafe_cuts == 0:
        words = [word for piece in pieces for word in WORDS.findall(piece)]
        assert WORDS.findall(text) == words


@pytest.mark.property
@given(TEXTS, st.integers(1, 12))
def test_every_cut_is_of_a_named_kind(text: str, chunk_chars: int) -> None:
    """A cut stands before a space behind non-space, or behind a newline, or is counted."""
    pieces, unsafe_cuts = cut(text, chunk_chars)
    others = 0
    for before, after in pairwise(pieces):
        before_space = after[0] == " " and not before[-1].isspace()
        after_newline = before[-1] == "\n" and not after[0].isspace()
        others += not (before_space or after_newline)
    assert unsafe_cuts >= others


@pytest.mark.parametrize(
    ("text", "pieces", "unsafe_cuts"),
    [
        ("abcd efgh", ["abcd", " efgh"], 0),  # exactly at the target
        ("abcde fgh", ["abcde", " fgh"], 0),  # the first place past it
        ("abcd  efg", ["abcd", "  efg"], 0),  # before the first of two spaces
        ("abc  defg", ["abc  defg"], 0),  # the second of two spaces is no place
        ("abcd\nefgh ijkl", ["abcd\nefgh", " ijkl"], 0),  # a space beats an earlier newline
        ("abcd\nefghijklmnop", ["abcd\n", "efghijklmnop"], 0),  # no space within 16
        ("abcdefghijklmnop q", ["abcdefghijklmnop", " q"], 0),  # a space at the very limit
        ("abcdefghijklmnopq r", ["abcdefghijklmnop", "q r"], 1),  # one too far
        ("abcdefghijklmnop", ["abcdefghijklmnop"], 0),  # ends at the limit: no cut at all
        ("abcdefghijklmno\npq", ["abcdefghijklmno\n", "pq"], 0),  # a newline at the very limit
        ("abcdefghijklmnop\nq", ["abcdefghijklmnop", "\nq"], 1),  # one too far
        ("", [], 0),
    ],
)
def test_golden_cuts(text: str, pieces: list[str], unsafe_cuts: int) -> None:
    """The rule, spelled out for a target of 4 and so a maximum of 16."""
    assert (pieces, unsafe_cuts) == cut(text, 4)
