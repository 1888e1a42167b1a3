"""Generation: stop strings, margins, probabilities, and replies that go on from kept tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_chat.conversation import Prompt
from yocto_chat.generation import Generation
from yocto_chat.screen import SHADES, shade_of
from yocto_cli.model_arguments import SamplingArguments

STOPS = ("\n\n", "\nUser:", "\nAssistant:")
MakeGeneration = Callable[..., Generation]


def prompt_of(ids: Sequence[int] = (1,), room: int = 100) -> Prompt:
    return Prompt(ids=list(ids), room=room, hidden_turns=0, cut_tokens=0)


@pytest.fixture(scope="session")
def finished(make_talk: Any) -> MakeGeneration:
    """Runs a reply of a scripted model to its end."""

    def make(script: Sequence[str], prompt: Prompt | None = None, **options: Any) -> Generation:
        chat, prompt = make_talk(script).chat, prompt or prompt_of()
        settings = SamplingArguments(max_new_tokens=prompt.room)
        options = {"settings": settings, "seed": 1, "onward": lambda *_: prompt, **options}
        reply = Generation(chat.model, prompt, chat.layout, **options)
        reply.run(lambda _token: None)
        return reply

    return make


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_ends_the_reply_and_is_not_in_it(finished: MakeGeneration, stop: str) -> None:
    """However a stop string is spread over tokens, the reply ends in front of it."""
    for cut in range(len(stop) + 1):
        done = finished([" Yes", "." + stop[:cut], stop[cut:] + "x", "more"])
        assert (done.text, done.finish) == ("Yes.", "stop")
    done = finished("one. two.", settings=SamplingArguments(stop=("two",)))
    assert (done.text, done.finish) == ("one. ", "stop")


@pytest.mark.parametrize(
    ("script", "room", "expected"),
    [
        ("abcd\nUser: x", 5, ("abcd", "limit")),
        ("abcd\nUser: x", 8, ("abcd", "limit")),
        (["ab", "cd\nUs", "er"], 2, ("abcd", "limit")),
        ("abcd\nUse", 100, ("abcd\nUse", "stop")),  # it only looked like a stop string
    ],
)
def test_a_reply_that_is_cut_shows_no_torn_stop_string(
    finished: MakeGeneration,
    script: Sequence[str],
    room: int,
    expected: tuple[str, str],
) -> None:
    """Cut by the limit, a reply says so, and half a stop string is left out."""
    done = finished(script, prompt_of(room=room))
    assert expected == (done.text, done.finish)


@pytest.mark.property
@given(
    script=st.lists(st.text("ab \nUé😀", max_size=4), max_size=12),
    room=st.integers(1, 12),
    before=st.sampled_from(["", "x"]),
)
def test_what_is_shown_is_cut_from_the_tokens_texts(
    finished: MakeGeneration, script: list[str], room: int, before: str
) -> None:
    """The tokens shown are the first ones drawn, with their text up to a stop string.

    White space in front is left out: a plain-text model writes a space after the colon that is not
    a part of its answer. A reply that goes on from another has its own.
    """
    done = finished(script, prompt_of(room=room), before=before)
    said = "".join(script[:room])
    ends = [place for stop in STOPS if (place := said.find(stop)) >= 0]
    said = said[: min(ends, default=len(said))]
    said = said if before else said.lstrip()
    assert said.startswith(done.text)
    assert len(said) - len(done.text) < max(map(len, STOPS))
    for shown, drawn in zip(done.shown, done.tokens, strict=False):
        assert shown.text in drawn.text
        assert replace(shown, text=drawn.text) == drawn


def test_a_stop_may_be_among_the_kept_tokens(finished: MakeGeneration) -> None:
    """Swapping in a line break lets the reply end there."""
    first = finished("abc")
    swapped = replace(first.tokens[1], text="\n")
    again = finished("User: no", kept=[first.tokens[0], swapped])
    assert (again.text, again.finish) == ("a", "stop")
    at_once = finished("more", kept=[swapped, swapped])
    assert (at_once.text, at_once.finish, at_once.n_drawn) == ("", "stop", 0)


def test_shades_cover_all_probabilities() -> None:
    """Likelier tokens never get a hotter shade, and no log-probability is without one."""
    order = [shade_of(math.log(p)) for p in (1.0, 0.8, 0.79, 0.5, 0.2, 0.05, 0.049, 1e-9)]
    assert sorted(order, key=SHADES.index) == order
    assert shade_of(-math.inf) == shade_of(math.nan) == SHADES[-1]
    assert shade_of(0.0) == SHADES[0]
    assert all("4" in shade.plain and "4" in shade.colour for shade in SHADES[-2:])  # underlined
