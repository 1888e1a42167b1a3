"""/alts: stepping along a reply, and what its keys do."""

import math
from typing import Any
from unittest.mock import Mock

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from yocto_chat.alternatives import Browser, choose, options_at
from yocto_model import Token
from yocto_tokenizers import CharTokenizer


@pytest.fixture
def talk(make_talk: Any) -> Any:
    talk = make_talk(" abc.\n\n", " now.\n\n", "Z\n\n")
    talk.do("m")
    return talk


def test_five_options_and_the_one_that_was_said(tokenizer: CharTokenizer) -> None:
    """Ranked by probability; a token that ranks lower than five is shown beneath."""
    ranked = tuple((id_, math.log(0.5) - id_ + 10) for id_ in range(10, 18))
    options = options_at(
        Token(id=16, text="/", logprob=ranked[6][1], alternatives=ranked), tokenizer
    )
    assert [option.rank for option in options] == [1, 2, 3, 4, 5, 7]
    assert [option.drawn for option in options] == [False] * 5 + [True]
    assert options[0].probability == pytest.approx(0.5)
    beyond = options_at(Token(id=40, text="G", logprob=-9.0, alternatives=ranked), tokenizer)
    assert (beyond[-1].rank, beyond[-1].drawn, len(beyond)) == (None, True, 6)


@pytest.mark.parametrize(
    ("keys", "place", "chosen"),
    [
        ("\r", None, None),  # on what was said: nothing changes
        ("q", None, None),
        ("\x1b", None, None),
        ("\x03", None, None),
        ("\x04", None, None),
        ("\x1b[B\r", 1, 1),  # Down, Enter: the second likeliest
        ("\x1b[C\x1b[C\x1b[B\x1b[B\r", 3, 2),  # Right, Right, Down, Down
        ("\x1b[C\x1b[D\x1b[B\r", 1, 1),  # and Left
        ("ljj\r", 2, 2),
        ("\x1b[F\x1b[B\r", 4, 1),  # End
        ("\x1b[C\x1b[C\x1b[C\x1b[C\x1b[C\x1b[B\r", 4, 1),  # not beyond the end
        ("\x1b[B\x1b[A\r", None, None),  # Down and Up again
    ],
)
def test_keys(talk: Any, keys: str, place: int | None, chosen: int | None) -> None:
    """Along the reply, along the options, and Enter takes one; leaving changes nothing."""
    with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
        keyboard.send_text(keys)
        found = choose(talk.chat.last, talk.generator.tokenizer, unicode=True)
    expected = (
        None
        if place is None or chosen is None
        else (place, talk.chat.last.tokens[place].alternatives[chosen][0])
    )
    assert expected == found


def test_tab_finds_a_surprise(make_talk: Any) -> None:
    """The next place where the first choice was not taken; the end if there is none."""
    talk = make_talk(["a", "b", "\u2603", "d", "\n\n"])
    talk.do("m")
    talk.chat.last.shown[2] = Token(
        id=5, text="\u2603", logprob=-3.0, alternatives=((9, -0.1), (5, -3.0))
    )
    browser = Browser(talk.chat.last, talk.generator.tokenizer)
    browser.to_surprise()
    assert (browser.place, browser.chosen.rank) == (2, 2)
    browser.to_surprise()
    assert browser.place == 2


@pytest.mark.parametrize("unicode", [True, False])
def test_what_is_drawn(talk: Any, unicode: bool) -> None:
    """The reply with one token marked, the options with rank, share and bar, and the keys."""
    browser = Browser(talk.chat.last, talk.generator.tokenizer)
    browser.move(1)
    text = "".join(fragment[1] for fragment in browser.fragments(columns=60, unicode=unicode))
    assert text.startswith("abc.\n\ntoken 2 of 4\n> 1. 'b'")
    assert ("█" if unicode else "#") in text
    assert unicode or text.isascii()
    assert " 60.7 % " in text
    assert "said" in text
    narrow = "".join(f[1] for f in browser.fragments(columns=30, unicode=unicode))
    assert max(len(line) for line in narrow.split("\n")[2:-1]) < 30


def test_a_choice_is_swapped_in(talk: Any) -> None:
    """The tokens before the place stay, the chosen one follows, and the model goes on from them.

    That is from the same ids, up to the same limit, and with a new seed.
    """
    for place, letter, expected in ((2, "X", "aX now."), (3, "!", "aX!Z")):
        talk.chat.choose = Mock(return_value=(place, talk.generator.tokenizer.stoi[letter]))
        talk.do("/alts")
        assert talk.said == [expected]
    assert talk.generator.prompts()[1:] == ["User: m\nAssistant: aX", "User: m\nAssistant: aX!"]
    first, *swapped = talk.generator.calls
    assert [call["max"] for call in swapped] == [first["max"] - 3, first["max"] - 4]
    assert len({call["seed"] for call in talk.generator.calls}) == 3
    talk.chat.choose = Mock(return_value=None)
    talk.do("/alts")
    assert talk.said == ["aX!Z"]


@pytest.mark.parametrize(("place", "expected"), [(0, None), (1, "a"), (2, "ab")])
@pytest.mark.parametrize("limit", [3, 100])  # the last place is the last that the limit allows
def test_the_end_token_ends_the_reply(
    make_talk: Any, chat_tokenizer: CharTokenizer, place: int, expected: str, limit: int
) -> None:
    """Nothing is drawn after it, nothing is shown of it, and the reply came to its own end."""
    talk = make_talk("abc", "never", speaks=chat_tokenizer, max_new_tokens=limit)
    talk.do("m")
    talk.chat.choose = Mock(return_value=(place, chat_tokenizer.eos_id))
    talk.do("/alts")
    assert [expected] == talk.said
    assert (talk.chat.last.finish, talk.chat.last.n_drawn) == ("stop", 0)
    assert "<|endoftext|>" not in talk.shown
    assert "never" not in talk.shown
