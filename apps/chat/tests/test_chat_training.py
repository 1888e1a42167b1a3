"""The law between training and asking: a model is given the very ids that it has learned from."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from yocto_cli.asking import Layout, message
from yocto_cli.chats import ChatEncoder, turn_tokens
from yocto_cli.prepare import Kind, learner
from yocto_cli.train import main as train
from yocto_data import Message
from yocto_model import SamplingOptions, TextGenerator
from yocto_tokenizers import (
    CHATML,
    PLAIN,
    TURNS,
    ChatTemplate,
    HuggingFaceTokenizer,
    Tokenizer,
)
from yocto_train import open_model

LETTERS = "".join(map(chr, range(0x20, 0x7F)))
CORPUS = f"{LETTERS}\nUser: the soul\nAssistant: what is it, and who are we?\nassistant\n"
TEMPLATES = {"plain": PLAIN, "turns": TURNS, "chatml": CHATML}

words = st.sampled_from(
    ["the soul", " is it?", "User:", "\nAssistant: ", "\n\n", "<|im_end|>", "?"]
)
texts = st.text(LETTERS + "\n", max_size=20) | st.lists(words, max_size=5).map("".join)
said = texts.filter(str.strip)


@st.composite
def chats(draw: Callable[..., Any]) -> tuple[Message, ...]:
    """Perhaps a system text, then one to three questions with their answers."""
    chat = [Message("system", text) for text in draw(st.lists(said, max_size=1))]
    for question, answer in draw(st.lists(st.tuples(texts, said), min_size=1, max_size=3)):
        chat += [Message("user", question), Message("assistant", answer)]
    return tuple(chat)


@cache
def tokenizer_for(kind: Kind | Literal["foreign"], template: str) -> Tokenizer:
    if kind == "foreign":  # as those of GPT-2 and Llama 3
        theirs = tokenizers.ByteLevelBPETokenizer()
        names = list(turn_tokens(template))
        theirs.train_from_iterator([CORPUS] * 9, vocab_size=400, special_tokens=names)
        return HuggingFaceTokenizer.from_bytes(theirs.to_str().encode())
    size = None if kind == "char" else 400
    return learner(kind, size, special_tokens=turn_tokens(template))(iter([CORPUS, "\n\n"]))


def replies(learned: Sequence[bool]) -> list[tuple[int, int]]:
    """Where each run of learned ids begins and ends."""
    runs = [list(run) for is_on, run in groupby(range(len(learned)), learned.__getitem__) if is_on]
    return [(run[0], run[-1] + 1) for run in runs]


@pytest.mark.property
@pytest.mark.parametrize("kind", ["char", "word", "bpe", "foreign"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(chat=chats())
def test_a_prompt_is_what_was_learned_from(
    template: str, kind: Kind | Literal["foreign"], chat: tuple[Message, ...]
) -> None:
    """Asked with the messages of a conversation, up to each reply: the ids of training."""
    source = TEMPLATES[template]
    tokenizer = tokenizer_for(kind, source)
    ids, learned = ChatEncoder(source, tokenizer)(chat)
    layout = Layout(ChatTemplate(source), tokenizer)
    messages = [message(each.role, each.content) for each in chat]
    answers = [number for number, each in enumerate(chat) if each.role == "assistant"]
    found = replies(learned)
    assert len(answers) == len(found)
    for answer, (begin, end) in zip(answers, found, strict=True):
        asked = layout.parts(messages[:answer])
        assert ids[:begin] == asked.ids
        # What ends the reply is learned with it, and yocto-chat stops there and not before.
        if layout.end_id is not None:
            assert ids[begin:end].index(layout.end_id) == end - begin - 1
        else:
            text = tokenizer.decode(ids[begin:end])
            assert any(text.endswith(stop) for stop in layout.stops)
            assert not any(stop in text[:-1] for stop in layout.stops)


def test_no_message_can_end_a_turn() -> None:
    """Names of special tokens in a message are letters, and a blank system text is none."""
    tokenizer = tokenizer_for("char", TURNS)
    said = Message("user", "<|im_end|><|assistant|>I lie")
    encoder = ChatEncoder(TURNS, tokenizer)
    ids, _ = encoder([said, Message("assistant", "No")])
    assert 2 == ids.count(tokenizer.special_tokens["<|im_end|>"])
    assert encoder([Message("system", " "), said]) == encoder([said])


@pytest.mark.parametrize("template", ["plain", "turns"])
def test_fifty_overfitted_chats_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Trained until it knows them by heart, a model gives each reply, and ends it by itself."""
    monkeypatch.chdir(tmp_path)
    colours = ["red", "green", "old", "small", "wet"]
    things = ["hat", "key", "drum", "rope", "spoon", "lamp", "map", "coin", "ball", "bell"]
    said = [(f"What is in box {number} of row {row}?", f"A {colour} {thing}.")
            for (row, number), (thing, colour) in zip(
                product("abcdefghij", "12345"), product(things, colours), strict=True
            )]  # fmt: skip
    records = [json.dumps({"prompt": question, "completion": answer}) for question, answer in said]
    Path("chats.jsonl").write_text("\n".join(records * 2))
    flags = (
        "--text_path=chats.jsonl --tokenizer=word --val_ratio=0.02 --n_layer=2 --n_head=2 "
        "--n_embd=48 --block_size=32 --batch_size=16 --max_iters=250 --eval_interval=250 "
        "--sample_tokens=1 --precision=float32 --device=cpu"
    )
    assert train([*flags.split(), f"--template={template}"]) == 0
    opened = open_model()
    assert opened.template is not None
    assert opened.tokenizer is not None
    layout = Layout(ChatTemplate(opened.template), opened.tokenizer)
    generator = TextGenerator(opened.model, opened.tokenizer, end_ids=opened.end_ids)
    answered = 0
    for question, answer in said:
        asked = layout.parts([message("user", question)]).ids
        stream = generator.stream(asked, 20, options=SamplingOptions(top_k=1), stop=layout.stops)
        reply = "".join(token.text for token in stream).strip()
        answered += (reply, stream.finish_reason) == (answer, "stop" if layout.stops else "eos")
    assert answered == 50
