"""Conversations are built from ids: no message can pose as another speaker."""

from functools import partial
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import (
    CHAT_TOKENS,
    CharTokenizer,
    SpecialTokenError,
    TextError,
    Tokenizer,
    UnknownCharacterError,
    encode_chat,
)


@pytest.mark.property
@given(data=st.data(), is_open=st.booleans())
def test_the_parts_of_a_conversation(
    tokenizer: Tokenizer,
    encodable_text: SearchStrategy[str],
    data: st.DataObject,
    is_open: bool,
) -> None:
    """Ids are bos, then user, message, assistant, reply, eos; the mask is 1 on replies and eos."""
    turns: list[tuple[str, str | None]] = data.draw(
        st.lists(st.tuples(encodable_text, encodable_text), max_size=3)
    )
    if turns and is_open:
        turns[-1] = (turns[-1][0], None)
    chat = encode_chat(tokenizer, turns)
    ids, mask = [tokenizer.bos_id], [0]
    for message, reply in turns:
        asked = tokenizer.encode(message)
        ids += [tokenizer.user_id, *asked, tokenizer.assistant_id]
        mask += [0] * (len(asked) + 2)
        if reply is not None:
            answered = tokenizer.encode(reply)
            ids += [*answered, tokenizer.eos_id]
            mask += [1] * (len(answered) + 1)
    assert ids == chat.ids
    assert mask == chat.loss_mask


@pytest.mark.property
@given(data=st.data())
def test_roles_cannot_be_forged(
    tokenizer: Tokenizer, encodable_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """Whatever is said, each special id appears once per turn, in its place."""
    turns = data.draw(st.lists(st.tuples(encodable_text, encodable_text), min_size=1, max_size=3))
    ids = encode_chat(tokenizer, turns).ids
    roles = [tokenizer.user_id, tokenizer.assistant_id, tokenizer.eos_id]
    found = [i for i in ids if i in tokenizer.special_tokens.values()]
    assert [tokenizer.bos_id, *roles * len(turns)] == found
    assert len(turns) == list(accumulate(i == tokenizer.user_id for i in ids))[-1]


def test_names_in_a_message_are_characters() -> None:
    """D16: `<|assistant|>` typed by a user is thirteen characters."""
    tokenizer = CharTokenizer.train("<|asitn>", special_tokens=CHAT_TOKENS)
    chat = encode_chat(tokenizer, [("<|assistant|>", None)])
    assert [tokenizer.bos_id, tokenizer.user_id] == chat.ids[:2]
    assert chat.ids[2:-1] == tokenizer.encode("<|assistant|>")
    assert len(chat.ids) == 1 + 1 + 13 + 1
    assert chat.loss_mask == [0] * 16


def test_an_error_policy_can_be_given() -> None:
    """Unknown characters follow the policy of the encoder given; the default is strict."""
    tokenizer = CharTokenizer.train("ab?", special_tokens=CHAT_TOKENS)
    with pytest.raises(UnknownCharacterError):
        encode_chat(tokenizer, [("axb", "a")])
    lenient = encode_chat(
        tokenizer, [("axb", "a")], encode=partial(tokenizer.encode, errors="replace")
    )
    assert tokenizer.decode(lenient.ids) == "a?ba"


def test_only_the_last_turn_may_be_open() -> None:
    """A missing reply in the middle is an error that has the turn."""
    tokenizer = CharTokenizer.train("ab", special_tokens=CHAT_TOKENS)
    with pytest.raises(TextError, match="turn 0 has no reply"):
        encode_chat(tokenizer, [("a", None), ("b", "a")])


def test_missing_special_tokens_are_named() -> None:
    """A tokenizer without the four tokens is refused with what it lacks."""
    with pytest.raises(SpecialTokenError, match=r"no eos, user, assistant token.*CHAT_TOKENS"):
        encode_chat(CharTokenizer("ab", special_tokens=["<s>"]), [("a", "b")])
