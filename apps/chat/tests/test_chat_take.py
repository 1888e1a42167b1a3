"""Take: stop strings, margins, probabilities, and replies that go on from kept tokens."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yocto_chat.chat_model import ChatModel
from yocto_chat.conversation import Prompt
from yocto_chat.probabilities import SHADES, shade_of
from yocto_chat.take import Take
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_model import GPT, GPTConfig, TextGenerator
from yocto_tokenizers import CharTokenizer

STOPS = ("\n\n", "\nUser:", "\nAssistant:")


def prompt_of(ids: Sequence[int] = (1,), room: int = 100, *, is_window: bool = False) -> Prompt:
    return Prompt(
        ids=list(ids),
        room=room,
        room_is_window=is_window,
        first_turn=0,
        hidden_turns=0,
        cut_tokens=0,
    )


@pytest.fixture
def take(make_talk: Callable[..., Any]) -> Callable[..., Take]:
    def make(script: Sequence[str], prompt: Prompt | None = None, **options: Any) -> Take:
        talk = make_talk(script)
        defaults: dict[str, Any] = {
            "settings": SamplingArguments(), "seed": 1, "stops": STOPS, "begins_line": True,
        }  # fmt: skip
        return Take(talk.chat.model, prompt or prompt_of(), **(defaults | options))

    return make


def finished(take: Take) -> Take:
    for _ in take:
        pass
    return take


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_ends_the_reply_and_is_not_in_it(
    take: Callable[..., Take], stop: str
) -> None:
    """However a stop string is spread over tokens, the reply ends in front of it."""
    for cut in range(len(stop) + 1):
        done = finished(take([" Yes", ".", stop[:cut], stop[cut:], "more"]))
        assert (done.text, done.finish) == ("Yes.", "stop")


@pytest.mark.parametrize(
    ("room", "is_window", "expected"),
    [(5, False, ("abcd", "limit")), (5, True, ("abcd", "window")), (8, False, ("abcd", "limit"))],
)
def test_a_reply_that_is_cut_shows_no_torn_stop_string(
    take: Callable[..., Take], room: int, is_window: bool, expected: tuple[str, str]
) -> None:
    """Cut by the limit or the window, a reply says so, and half a stop string is left out."""
    done = finished(take("abcd\nUser: x", prompt_of(room=room, is_window=is_window)))
    assert expected == (done.text, done.finish)


def test_what_only_looked_like_a_stop_string_is_kept(take: Callable[..., Take]) -> None:
    """A held back tail comes out when the model ends the reply itself."""
    done = finished(take("abcd\nUse"))
    assert (done.text, done.finish) == ("abcd\nUse", "stop")


def test_the_users_stop_strings_count_too(take: Callable[..., Take]) -> None:
    """--stop ends a reply as the layout's own strings do."""
    done = finished(take("one. two.", settings=SamplingArguments(stop=("two",))))
    assert (done.text, done.finish) == ("one. ", "stop")


def test_white_space_in_front_is_left_out_of_plain_text(take: Callable[..., Take]) -> None:
    """A plain-text model writes a space after the colon; it is no part of what it says."""
    assert finished(take(" \n Hi you")).text == "Hi you"
    assert finished(take(" Hi", begins_line=False)).text == " Hi"


def test_stopping_keeps_what_was_said(take: Callable[..., Take]) -> None:
    """After `stop` no more is drawn; text and reason stay."""
    going = take("abcdef")
    next(going)
    next(going)
    going.stop()
    assert (going.text, going.finish, going.n_drawn) == ("ab", "stopped", 2)
    assert list(going) == []


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(st.text("ab \nUé😀", max_size=4), max_size=12),
    room=st.integers(0, 12),
    begins_line=st.booleans(),
)
def test_spans_are_the_text_and_name_their_tokens(
    take: Callable[..., Take], script: list[str], room: int, begins_line: bool
) -> None:
    """The spans are what the script says up to a stop string, each cut from its token's text."""
    done = finished(take(script, prompt_of(room=room), begins_line=begins_line))
    said = "".join(script[:room])
    ends = [place for stop in STOPS if (place := said.find(stop)) >= 0]
    said = said[: min(ends, default=len(said))]
    said = said.lstrip() if begins_line else said
    assert said.startswith(done.text)
    assert len(said) - len(done.text) < max(map(len, STOPS))
    assert all(span.text in done.tokens[span.token].text for span in done.spans)
    assert sorted(span.token for span in done.spans) == [span.token for span in done.spans]
    assert all(span.logprob == done.tokens[span.token].logprob for span in done.spans)


def tiny_model() -> ChatModel:
    """A GPT of random weights."""
    tokenizer = CharTokenizer("\n abcdefgh")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=16
    )
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    return ChatModel(
        speaker=TextGenerator(model, tokenizer),
        tokenizer=tokenizer,
        block_size=64,
        name="tiny",
        step=0,
        n_parameters=1,
    )


def a_take(model: ChatModel, *, seed: int = 5, room: int = 20, **options: Any) -> Take:
    prompt = prompt_of(model.tokenizer.encode("abba "), room)
    return Take(
        model, prompt, settings=SamplingArguments(), seed=seed, stops=(), begins_line=False,
        **options,
    )  # fmt: skip


def test_a_seed_replays_a_reply_whatever_was_said_between() -> None:
    """Same seed and context, same reply: the cache of other replies leaves no trace."""
    model = tiny_model()
    first = finished(a_take(model)).text
    others = {finished(a_take(model, seed=seed)).text for seed in range(6, 9)}
    assert len(others | {first}) > 1
    assert first == finished(a_take(model)).text == finished(a_take(tiny_model())).text


def test_going_on_from_kept_tokens_is_going_on_from_their_text() -> None:
    """A swap rewinds to its place: the rest is what a new model draws from that very prefix."""
    model = tiny_model()
    first = finished(a_take(model))
    kept = list(first.tokens[:7])
    again = finished(a_take(model, seed=9, kept=kept))
    fresh = tiny_model()
    longer = prompt_of([*model.tokenizer.encode("abba "), *(token.id for token in kept)], 13)
    expected = finished(
        Take(fresh, longer, settings=SamplingArguments(), seed=9, stops=(), begins_line=False)
    )
    assert "".join(token.text for token in kept) + expected.text == again.text
    assert (20, 13) == (len(again.tokens), again.n_drawn)
    assert list(range(20)) == [span.token for span in again.spans]


def test_a_stop_string_may_begin_in_a_kept_token(take: Callable[..., Take]) -> None:
    """Swapping in a line break lets the reply end there, as the model then goes on to say."""
    first = finished(take("abc"))
    swapped = first.tokens[1].__class__(id=0, text="\n")
    again = finished(take("User: no", kept=[first.tokens[0], swapped]))
    assert (again.text, again.finish) == ("a", "stop")
    at_once = finished(take("more", kept=[swapped, swapped]))
    assert (at_once.text, at_once.finish, at_once.n_drawn) == ("", "stop", 0)


def test_shades_cover_all_probabilities() -> None:
    """Likelier tokens never get a hotter shade, and no log-probability is without one."""
    order = [shade_of(math.log(p)) for p in (1.0, 0.8, 0.79, 0.5, 0.2, 0.05, 0.049, 1e-9)]
    assert sorted(order, key=SHADES.index) == order
    assert shade_of(-math.inf) == shade_of(math.nan) == SHADES[-1]
    assert shade_of(0.0) == SHADES[0]
    assert all("underline" in s.plain_style and "underline" in s.style for s in SHADES[-2:])
