"""Everything that can be done in a conversation, with a scripted model."""

import io
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_chat.conversation import Conversation, Reply
from yocto_cli.command import UsageError
from yocto_model import SamplingError
from yocto_tokenizers import PLAIN, TURNS, CharTokenizer, TokenizerError


def press_ctrl_c(*, at: int, times: int = 1) -> Callable[[int], None]:
    def before_token(index: int) -> None:
        if index == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return before_token


def test_a_message_and_its_reply(make_talk: Any) -> None:
    """The model gets the message as the corpus has it; reply and facts appear, with the seed."""
    talk = make_talk(" Well met.\nUser:")
    talk.do("Hello")
    seed = talk.generator.calls[0]["seed"]
    assert talk.shown.startswith("Well met.\n16 tokens · ")
    assert talk.shown.endswith(f" tok/s · seed {seed} · ctx 38/512 · stop\n")
    assert talk.chat.conversation.turns[0].reply.seeds == (seed,)
    talk.do("Again")  # its prompt begins with all that was said: the cache has read it already
    first = "User: Hello\nAssistant:"
    assert [first, f"{first} Well met.\nUser: Again\nAssistant:"] == talk.generator.prompts()


def test_a_chat_model_gets_its_tokens(make_talk: Any, chat_tokenizer: CharTokenizer) -> None:
    """Where a token ends a reply there are no stop strings: a reply may hold blank lines."""
    talk = make_talk(" A\n\nB ", speaks=chat_tokenizer, template=TURNS)
    talk.do("m")
    assert [chat_tokenizer.assistant_id] == talk.generator.calls[0]["prompt"][-1:]
    assert talk.said == ["A\n\nB"]


def test_a_message_that_the_template_refuses_is_not_sent(make_talk: Any) -> None:
    """Nor a system text that it does not take; the conversation stays as it was, and goes on."""
    refuses = "{% if '7' in messages[-1].content or messages[0].role == 'system' %}"
    talk = make_talk(" ok\n\n", template=refuses + "{{ raise_exception('no') }}{% endif %}" + PLAIN)
    with pytest.raises(TokenizerError, match=r"the chat template refuses these messages \('no'\)"):
        talk.do("77")
    with pytest.raises(UsageError, match=r"\('no'\); leave the system text out"):
        talk.do("/system Be brief.")
    assert talk.chat.conversation == Conversation()
    talk.do("m")
    assert talk.said == ["ok"]
    talk.chat.resume(Conversation().asked("7").answered(Reply(text="loaded")).asked("m"))
    assert talk.chat.context_tokens > 0
    talk.chat.resume(Conversation().asked("m").answered(Reply(text="loaded")).asked("7"))
    with pytest.raises(TokenizerError, match="refuses"):
        talk.chat.retry()


def test_old_turns_drop_visibly_and_once(make_talk: Any) -> None:
    """When turns go out of sight, a line says how many; it is not repeated for the same number."""
    talk = make_talk(*[" reply.\n\n"] * 6, block_size=120, max_new_tokens=30)
    for _ in range(3):
        talk.do("message")
    assert "visible" not in talk.shown
    talk.do("message")
    assert talk.shown.count("- 1 earlier turn is no longer visible to the model -") == 1
    talk.do("message")
    talk.chat.retry()
    assert talk.shown.count("- 2 earlier turns are no longer visible to the model -") == 1
    assert talk.shown.count("visible") == 2


def test_a_message_that_is_too_long_keeps_its_end(make_talk: Any) -> None:
    """A line says how much of it the model does not see; ten million characters are cut first."""
    talk = make_talk(" ok\n\n")
    talk.do("y" * 10_000_000)
    assert "its beginning is cut (9,900,000 characters)" in talk.shown
    assert len(talk.chat.conversation.turns[0].message) == 100_000
    talk = make_talk(" ok\n\n", block_size=64)
    talk.do("x" * 100 + "end")
    assert re.fullmatch(r"User:x*end\nAssistant:", talk.generator.prompts()[0])
    cut = 104 + len("User:\nAssistant:") - 32
    assert f"does not see the first {cut} tokens of this turn" in talk.shown


def test_a_reply_that_is_cut_says_why(make_talk: Any) -> None:
    """By the limit."""
    talk = make_talk("abcdef", max_new_tokens=3)
    talk.do("m")
    assert "limit: /continue" in talk.shown


@pytest.mark.property
@given(
    script=st.text("ab c", min_size=200, max_size=200),
    block_size=st.integers(48, 120),
    limit=st.integers(1, 200),
)
def test_a_reply_goes_on_where_the_window_fills(
    make_talk: Any, script: str, block_size: int, limit: int
) -> None:
    """Each token is shown once, no prompt takes the reply's room, no two streams share a seed."""
    talk = make_talk(block_size=block_size, max_new_tokens=limit, seed=2**63 - 2)
    begin, streams = talk.generator.stream, list[Any]()

    def stream(prompt: list[int], max_new_tokens: int, **options: Any) -> Any:
        assert 0 < max_new_tokens <= block_size - len(prompt)
        talk.generator.scripts = [("x" + script)[sum(len(each.tokens) for each in streams) :]]
        streams.append(begin(prompt, max_new_tokens, **options))
        return streams[-1]

    talk.generator.stream = stream
    talk.do("m")
    assert talk.said == [("x" + script)[:limit]]
    assert talk.chat.last.n_drawn == limit
    seeds = [call["seed"] for call in talk.generator.calls]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_ctrl_c_keeps_what_was_said(make_talk: Any) -> None:
    """One Ctrl-C ends the reply after the token being drawn; the text stays, and is marked."""
    talk = make_talk(["Once", " upon", " a", " time"], [" there"])
    talk.generator.before_token = press_ctrl_c(at=2)
    handler = signal.getsignal(signal.SIGINT)
    talk.do("Tell me")
    assert talk.said[0] == "Once upon a"
    assert talk.chat.last.n_drawn == 3
    assert talk.chat.conversation.turns[0].reply.finish == "stopped"
    assert "Once upon a (stopped)\n" in talk.shown
    assert handler == signal.getsignal(signal.SIGINT)
    talk.generator.before_token = lambda _index: None
    talk.chat.extend()
    assert talk.generator.prompts()[1].endswith("\nAssistant: Once upon a")
    assert talk.said[0] == "Once upon a there"
    assert len(talk.chat.conversation.turns[0].reply.seeds) == 2


def test_ctrl_c_twice_does_not_wait_for_the_token(make_talk: Any) -> None:
    """What was said before stays; without that, the message stays for /retry, not for prompts."""
    talk = make_talk(["Once", " upon"], ["late"], [" Yes.\n\n"])
    talk.generator.before_token = press_ctrl_c(at=1, times=2)
    talk.do("first")
    assert talk.said == ["Once"]
    talk.generator.before_token = press_ctrl_c(at=0, times=2)
    talk.do("/reset", "second")
    assert talk.shown.count("(stopped)") == 2
    talk.generator.before_token = lambda _index: None
    talk.do("third")
    assert talk.generator.prompts()[2] == "User: third\nAssistant:"
    assert talk.said == [None, "Yes."]


def test_a_model_that_breaks_does_not_end_the_chat(make_talk: Any) -> None:
    """Logits from which nothing can be drawn: one line, and the next message works."""
    talk = make_talk("ab", " fine\n\n")

    def broken(index: int) -> None:
        if index:
            raise SamplingError("the model's output is not finite")

    talk.generator.before_token = broken
    talk.do("m")
    assert "! the model could not go on: the model's output is not finite\n" in talk.shown
    talk.generator.before_token = lambda _index: None
    talk.do("again")
    assert "fine\n" in talk.shown


def test_an_end_at_once_is_no_reply(make_talk: Any) -> None:
    """A model that ends at once has said nothing, and the screen says that."""
    talk = make_talk("\n\n")
    talk.do("m")
    assert talk.shown.startswith("(no reply)\n")
    assert talk.said == [None]


def test_unknown_characters_are_named_and_left_out(make_talk: Any) -> None:
    """The rest of the message goes through."""
    talk = make_talk(" ok\n\n")
    talk.do("caf\u00e9 \u263a")
    assert "left out, as this model does not know them: 'é' (U+00E9), '☺' (U+263A)" in talk.shown
    assert talk.generator.prompts()[0] == "User: caf \nAssistant:"


@pytest.mark.parametrize("message", ["", " \n\t", "\u263a", "\ud800"])
def test_what_cannot_be_read_is_not_sent(make_talk: Any, message: str) -> None:
    """An empty or unreadable message changes nothing."""
    talk = make_talk("never")
    with pytest.raises(UsageError, match="nothing sent"):
        talk.do(message)
    assert talk.chat.conversation.turns == ()
    assert talk.generator.calls == []


def test_retry_draws_a_new_seed_in_the_same_context(make_talk: Any) -> None:
    """Even where the user fixed a seed: the same one would say the same again."""
    talk = make_talk(" One.\n\n", " Two.\n\n", " Three.\n\n", seed=7)
    talk.do("m")
    talk.chat.retry()
    talk.chat.retry(99)
    seeds = [call["seed"] for call in talk.generator.calls]
    assert (seeds[0], seeds[2]) == (7, 99)
    assert seeds[1] not in (7, 99)
    assert len(set(talk.generator.prompts())) == 1
    assert talk.said[0] == "Three."


@pytest.mark.property
@given(
    window=st.integers(40, 300),
    system=st.integers(0, 120),
    message=st.integers(1, 300),
    limit=st.integers(1, 300),
)
def test_whatever_is_accepted_leaves_room_for_a_message(
    make_talk: Any, window: int, system: int, message: int, limit: int
) -> None:
    """A system text is refused at once or never gets in the way of a message and a reply."""
    try:
        talk = make_talk("x" * 999, block_size=window, system="s" * system, max_new_tokens=limit)
    except UsageError:
        return
    talk.do("m" * message)
    call = talk.generator.calls[0]
    assert len(call["prompt"]) + call["max"] <= window
    assert "m\nAssistant:" in talk.generator.prompts()[0]
    assert talk.generator.prompts()[0].startswith("s" * system)


def test_a_system_text_that_does_not_fit_is_refused(make_talk: Any) -> None:
    """Never cut, never dropped: refused, with the room that there is; so is a tiny window."""
    for block_size in (8, 32, 38):
        with pytest.raises(UsageError, match="too small to talk in"):
            make_talk(block_size=block_size)
    talk = make_talk(block_size=256, system="short")
    with pytest.raises(UsageError, match="has room for 92; shorten it"):
        talk.chat.set_system("x" * 200)
    assert talk.chat.conversation.system == "short"


def test_replies_can_be_tinted(make_talk: Any, terminal_out: io.StringIO) -> None:
    """With /probs on, each token wears its shade, and the text is the same."""
    talk = make_talk(["Yes", " no\n\n"], out=terminal_out)
    talk.chat.tinted = True
    talk.do("m")
    reply = talk.shown.partition("\n")[0]
    assert reply == "\x1b[36mYes \x1b[0m\x1b[36mno\x1b[0m"
