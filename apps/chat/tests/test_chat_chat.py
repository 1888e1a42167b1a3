"""Everything that can be done in a conversation, with a scripted model."""

import io
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yocto_cli.arguments import UsageError
from yocto_model import SamplingError
from yocto_tokenizers import CharTokenizer

MakeTalk = Callable[..., Any]


def press_ctrl_c(*, at: int, times: int = 1) -> Callable[[int], None]:
    def before_token(index: int) -> None:
        if index == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return before_token


def test_a_message_and_its_reply(make_talk: MakeTalk) -> None:
    """The model gets the message as the corpus has it; reply and facts appear, with the seed."""
    talk = make_talk(" Well met.\nUser:")
    talk.chat.send("Hello")
    assert talk.speaker.prompts() == ["User: Hello\nAssistant:"]
    seed = talk.speaker.calls[0]["seed"]
    assert talk.shown.startswith("Well met.\n16 tokens · ")
    assert talk.shown.endswith(f" tok/s · seed {seed} · ctx 38/512 · stop\n")
    assert talk.chat.conversation.turns[0].reply.seeds == (seed,)


def test_turns_follow_each_other(make_talk: MakeTalk) -> None:
    """The next prompt begins with all that was said: the cache has read it already."""
    talk = make_talk(" One.\n\n", " Two.\n\n")
    talk.chat.send("a")
    talk.chat.send("b")
    first, second = talk.speaker.prompts()
    assert second == f"{first} One.\nUser: b\nAssistant:"


def test_a_chat_model_gets_its_tokens(make_talk: MakeTalk, chat_tokenizer: CharTokenizer) -> None:
    """With tokens for turns there are no stop strings: a reply may hold blank lines."""
    talk = make_talk(" A\n\nB ", speaks=chat_tokenizer, system="S")
    talk.chat.send("m\nn")
    ids = chat_tokenizer.special_tokens
    encode = chat_tokenizer.encode
    expected = [ids["<s>"], *encode("S"), ids["<|user|>"], *encode("m\nn"), ids["<|assistant|>"]]
    assert expected == talk.speaker.calls[0]["prompt"]
    assert talk.chat.conversation.turns[0].reply.text == " A\n\nB"


def test_old_turns_drop_visibly_and_once(make_talk: MakeTalk) -> None:
    """When turns go out of sight, a line says how many; it is not repeated for the same number."""
    talk = make_talk(*[" reply.\n\n"] * 6, block_size=120, max_new_tokens=30)
    for _ in range(3):
        talk.chat.send("message")
    assert "visible" not in talk.shown
    talk.chat.send("message")
    assert talk.shown.count("- 1 earlier turn is no longer visible to the model -") == 1
    talk.chat.send("message")
    talk.chat.retry()
    assert talk.shown.count("- 2 earlier turns are no longer visible to the model -") == 1
    assert talk.shown.count("visible") == 2


def test_a_message_that_is_too_long_keeps_its_end(make_talk: MakeTalk) -> None:
    """The line says how much of it the model does not see."""
    talk = make_talk(" ok\n\n", block_size=64)
    talk.chat.send("x" * 100 + "end")
    assert re.fullmatch(r"User:x*end\nAssistant:", talk.speaker.prompts()[0])
    cut = 104 + len("User:\nAssistant:") - 32
    assert f"does not see the first {cut} tokens of this turn" in talk.shown


def test_a_reply_that_fills_the_window_says_so(make_talk: MakeTalk) -> None:
    """The window ends it with a stated reason, and /continue makes room and goes on."""
    talk = make_talk("x" * 99, " y.\n\n", block_size=64)
    talk.chat.send("m")
    assert "ctx 64/64 · window full: /continue" in talk.shown
    talk.chat.extend()
    assert talk.chat.conversation.turns[0].reply.text == "x" * 46 + " y."
    assert len(talk.speaker.calls[1]["prompt"]) == 32


def test_a_reply_that_meets_the_limit_says_so(make_talk: MakeTalk) -> None:
    """max_new_tokens is told from the window."""
    talk = make_talk("abcdef", max_new_tokens=3)
    talk.chat.send("m")
    assert "3 tokens" in talk.shown
    assert "limit: /continue" in talk.shown


def test_ctrl_c_keeps_what_was_said(make_talk: MakeTalk) -> None:
    """One Ctrl-C ends the reply after the token being drawn; the text stays, and is marked."""
    talk = make_talk(["Once", " upon", " a", " time"], [" there"])
    talk.speaker.before_token = press_ctrl_c(at=2)
    handler = signal.getsignal(signal.SIGINT)
    talk.chat.send("Tell me")
    assert talk.chat.conversation.turns[0].reply.text == "Once upon a"
    assert talk.chat.conversation.turns[0].reply.finish == "stopped"
    assert "Once upon a (stopped)\n" in talk.shown
    assert handler == signal.getsignal(signal.SIGINT)
    talk.speaker.before_token = lambda _index: None
    talk.chat.extend()
    assert talk.speaker.prompts()[1].endswith("\nAssistant: Once upon a")
    assert talk.chat.conversation.turns[0].reply.text == "Once upon a there"
    assert len(talk.chat.conversation.turns[0].reply.seeds) == 2


def test_ctrl_c_twice_does_not_wait_for_the_token(make_talk: MakeTalk) -> None:
    """A second Ctrl-C leaves the token undrawn; what was said before stays."""
    talk = make_talk(["Once", " upon", " a"])
    talk.speaker.before_token = press_ctrl_c(at=1, times=2)
    talk.chat.send("Tell me")
    assert talk.chat.conversation.turns[0].reply.text == "Once"


def test_ctrl_c_before_the_first_token(make_talk: MakeTalk) -> None:
    """Nothing was said: the message stays for /retry, and later prompts leave it out."""
    talk = make_talk(["late"], [" Yes.\n\n"], [" No.\n\n"])
    talk.speaker.before_token = press_ctrl_c(at=0, times=2)
    talk.chat.send("first")
    assert talk.chat.conversation.turns[0].reply is None
    assert "(stopped)" in talk.shown
    talk.speaker.before_token = lambda _index: None
    talk.chat.send("second")
    assert talk.speaker.prompts()[1] == "User: second\nAssistant:"


def test_a_model_that_breaks_does_not_end_the_chat(make_talk: MakeTalk) -> None:
    """Logits from which nothing can be drawn: one line, and the next message works."""
    talk = make_talk("ab", " fine\n\n")

    def broken(index: int) -> None:
        if index:
            raise SamplingError("the model's output is not finite")

    talk.speaker.before_token = broken
    talk.chat.send("m")
    assert "! the model could not go on: the model's output is not finite\n" in talk.shown
    talk.speaker.before_token = lambda _index: None
    talk.chat.send("again")
    assert "fine\n" in talk.shown


def test_an_end_at_once_is_no_reply(make_talk: MakeTalk) -> None:
    """A model that ends at once has said nothing, and the screen says that."""
    talk = make_talk("\n\n")
    talk.chat.send("m")
    assert talk.shown.startswith("(no reply)\n")
    assert talk.chat.conversation.turns[0].reply is None


def test_unknown_characters_are_named_and_left_out(make_talk: MakeTalk) -> None:
    """The rest of the message goes through."""
    talk = make_talk(" ok\n\n")
    talk.chat.send("caf\u00e9 \u263a")
    assert "left out, as this model does not know them: 'é' (U+00E9), '☺' (U+263A)" in talk.shown
    assert talk.speaker.prompts()[0] == "User: caf \nAssistant:"


@pytest.mark.parametrize("message", ["", " \n\t", "\u263a", "\ud800"])
def test_what_cannot_be_read_is_not_sent(make_talk: MakeTalk, message: str) -> None:
    """An empty or unreadable message changes nothing."""
    talk = make_talk("never")
    with pytest.raises(UsageError, match="nothing sent"):
        talk.chat.send(message)
    assert talk.chat.conversation.turns == ()
    assert talk.speaker.calls == []


def test_a_giant_message_is_capped(make_talk: MakeTalk) -> None:
    """Ten million characters are one message, cut in one line."""
    talk = make_talk(" ok\n\n")
    talk.chat.send("y" * 10_000_000)
    assert "its first 9,900,000 characters are cut" in talk.shown
    assert len(talk.chat.conversation.turns[0].message) == 100_000


def test_retry_draws_a_new_seed_in_the_same_context(make_talk: MakeTalk) -> None:
    """Even where the user fixed a seed: the same one would say the same again."""
    talk = make_talk(" One.\n\n", " Two.\n\n", " Three.\n\n", seed=7)
    talk.chat.send("m")
    talk.chat.retry()
    talk.chat.retry(99)
    seeds = [call["seed"] for call in talk.speaker.calls]
    assert (seeds[0], seeds[2]) == (7, 99)
    assert seeds[1] not in (7, 99)
    assert len(set(talk.speaker.prompts())) == 1
    assert talk.chat.conversation.turns[0].reply.text == "Three."


def test_undo_edit_and_reset(make_talk: MakeTalk) -> None:
    """Turns go; the message comes back for editing; system text and settings stay."""
    talk = make_talk(*[" ok.\n\n"] * 3, system="S", temperature=0.3)
    for message in ("a", "b", "c"):
        talk.chat.send(message)
    talk.chat.edit()
    assert (talk.chat.draft, len(talk.chat.conversation.turns)) == ("c", 2)
    talk.chat.undo(1)
    assert [turn.message for turn in talk.chat.conversation.turns] == ["a"]
    talk.chat.reset()
    assert talk.chat.conversation.turns == ()
    assert (talk.chat.conversation.system, talk.chat.settings.temperature) == ("S", 0.3)
    assert talk.chat.context_tokens == len("S\n\n")


def test_a_swap_goes_on_from_another_token(make_talk: MakeTalk) -> None:
    """The tokens before the place stay, the chosen one follows, and the model goes on from it."""
    talk = make_talk(" abc.\n\n", " no.\n\n", "Z\n\n")
    talk.chat.send("m")
    talk.chat.swap(2, talk.speaker.tokenizer.stoi["X"])
    prompt = talk.speaker.prompts()[1]
    assert prompt == "User: m\nAssistant: aX"
    assert talk.chat.conversation.turns[0].reply.text == "aX no."
    talk.chat.swap(3, talk.speaker.tokenizer.stoi["!"])
    assert talk.chat.conversation.turns[0].reply.text == "aX!Z"


@pytest.mark.parametrize("block_size", [8, 32, 38])
def test_a_window_too_small_to_talk_in_is_refused(make_talk: MakeTalk, block_size: int) -> None:
    """Before anything starts."""
    with pytest.raises(UsageError, match="too small to talk in"):
        make_talk(block_size=block_size)


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.integers(40, 300),
    system=st.integers(0, 120),
    message=st.integers(1, 300),
    limit=st.integers(1, 300),
)
def test_whatever_is_accepted_leaves_room_for_a_message(
    make_talk: MakeTalk, window: int, system: int, message: int, limit: int
) -> None:
    """A system text is refused at once or never gets in the way of a message and a reply."""
    try:
        talk = make_talk("x" * 999, block_size=window, system="s" * system, max_new_tokens=limit)
    except UsageError:
        return
    talk.chat.send("m" * message)
    call = talk.speaker.calls[0]
    assert len(call["prompt"]) + call["max"] <= window
    assert "m\nAssistant:" in talk.speaker.prompts()[0]
    assert talk.speaker.prompts()[0].startswith("s" * system)


def test_a_system_text_that_does_not_fit_is_refused(make_talk: MakeTalk) -> None:
    """Never cut, never dropped: refused, with the room that there is, and nothing changes."""
    talk = make_talk(block_size=256, system="short")
    with pytest.raises(UsageError, match="has room for 94; shorten it"):
        talk.chat.set_system("x" * 200)
    assert talk.chat.conversation.system == "short"


def test_replies_can_be_tinted(make_talk: MakeTalk, terminal_out: io.StringIO) -> None:
    """With /probs on, each token wears its shade, and the text is the same."""
    talk = make_talk(["Yes", " no\n\n"], out=terminal_out)
    talk.chat.tinted = True
    talk.chat.send("m")
    reply = talk.shown.partition("\n")[0]
    assert "\x1b[36mYes\x1b[0m\x1b[36m no" in reply
