"""Stop strings: what a filter lets out, holds back, and shuts off."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from yocto_model import InputError, StopFilter

STOPS = st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3)


def through(stops: Sequence[str], pieces: Iterable[str]) -> tuple[list[str], bool]:
    """What a filter lets out for each piece and at the end, and whether it stopped."""
    stop_filter = StopFilter(stops)
    out = [stop_filter.push(piece) for piece in pieces]
    return [*out, stop_filter.finish()], stop_filter.stopped


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
    assert expected == "".join(out)
    assert stopped == was_stopped
    assert not any(stop in "".join(out) for stop in stops)


@pytest.mark.property
@given(stops=STOPS, pieces=st.lists(st.text("ab", max_size=3), max_size=6))
@example(stops=["ab"], pieces=["aa"])
def test_no_more_is_held_back_than_could_become_a_stop(stops: list[str], pieces: list[str]) -> None:
    """After each piece, exactly the longest tail that begins a stop string is still inside."""
    text = "".join(pieces)
    assume(not before_first_stop(stops, text)[1])
    shown = "".join(through(stops, pieces)[0][:-1])
    tails = [text[-n:] for n in range(1, len(text) + 1)]
    held = [tail for tail in tails if any(stop.startswith(tail) for stop in stops)]
    assert text[len(shown) :] == max(held, key=len, default="")


def test_a_stopped_filter_stays_shut() -> None:
    """After a stop nothing comes out, and nothing is left to finish."""
    stop_filter = StopFilter(["."])
    assert [stop_filter.push(piece) for piece in ["a", "b.c", "d"]] == ["a", "b", ""]
    assert stop_filter.stopped
    assert stop_filter.finish() == ""


def test_one_string_is_one_stop() -> None:
    """`stop="ab"` means "ab", not "a" or "b"."""
    stop_filter = StopFilter("ab")
    assert stop_filter.push("baab") == "ba"
    for empty in ("", ["a", ""]):
        with pytest.raises(InputError, match="must not be empty"):
            StopFilter(empty)
