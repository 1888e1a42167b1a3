"""Stop strings: what a filter lets out, holds back, and shuts off."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from yocto_model import InputError, StopFilter, Token

STOPS = st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3)


def through(stops: Sequence[str], pieces: Iterable[str]) -> tuple[list[list[Token]], bool]:
    """What a filter lets out for each token and at the end, and whether it stopped."""
    stop_filter, out = StopFilter(stops), []
    for number, piece in enumerate(pieces):
        out.append(stop_filter.push(Token(id=number, text=piece)))
        if stop_filter.stopped:
            break
    return [*out, stop_filter.finish()], stop_filter.stopped


def joined(out: Iterable[list[Token]]) -> str:
    return "".join(token.text for tokens in out for token in tokens)


# Naive: up to the stop that is complete first; of those, the one that began first.
def before_first_stop(stops: Sequence[str], text: str) -> tuple[str, bool]:
    places = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (text[: min(places)[1]], True) if places else (text, False)


@pytest.mark.property
@given(stops=STOPS, pieces=st.lists(st.text("ab\né", max_size=5), max_size=8))
@example(stops=["abc", "b"], pieces=["abc"])
@example(stops=["abc", "b"], pieces=["a", "b", "c"])
@example(stops=["b", "ab"], pieces=["a", "b"])
@example(stops=["aab"], pieces=["a", "a", "a", "b"])
@example(stops=["User:"], pieces=["Us", "er", ": Us"])
def test_how_a_text_is_cut_up_does_not_matter(stops: list[str], pieces: list[str]) -> None:
    """What comes out is the text up to the stop that is complete first, whatever the pieces."""
    expected, stopped = before_first_stop(stops, "".join(pieces))
    out, was_stopped = through(stops, pieces)
    assert expected == joined(out)
    assert stopped == was_stopped
    ids = [token.id for tokens in out for token in tokens]
    assert list(range(len(ids))) == ids


@pytest.mark.property
@given(stops=STOPS, pieces=st.lists(st.text("ab", max_size=3), max_size=6))
@example(stops=["ab"], pieces=["aa"])
def test_no_more_is_held_back_than_could_become_a_stop(stops: list[str], pieces: list[str]) -> None:
    """After each token, only those are inside that reach into a tail that begins a stop string."""
    text = "".join(pieces)
    assume(not before_first_stop(stops, text)[1])
    shown = joined(through(stops, pieces)[0][:-1])
    tails = [text[-n:] for n in range(1, len(text) + 1)]
    held = [tail for tail in tails if any(stop.startswith(tail) for stop in stops)]
    ends = [len("".join(pieces[:n])) for n in range(len(pieces) + 1)]
    longest = max(held, key=len, default="")
    assert max(end for end in ends if end <= len(text) - len(longest)) == len(shown)


def test_a_text_that_is_cut_off_shows_no_torn_stop() -> None:
    """Where the length ends a text, the caller may leave out what began like a stop string."""
    for torn, expected in ((False, "aU"), (True, "a")):
        stop_filter = StopFilter(["User:"])
        out = [stop_filter.push(Token(id=0, text="aU")), stop_filter.finish(torn=torn)]
        assert expected == joined(out)


def test_one_string_is_one_stop() -> None:
    """`stop="ab"` means "ab", not "a" or "b"."""
    assert joined(through("ab", ["baab"])[0]) == "ba"
    for empty in ("", ["a", ""]):
        with pytest.raises(InputError, match="must not be empty"):
            StopFilter(empty)
