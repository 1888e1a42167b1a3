"""One small tokenizer of every kind, and the texts that each gives back exactly."""

from collections.abc import Callable
from functools import cache

import pytest
import tokenizers
from hypothesis import settings
from hypothesis import strategies as st
from yocto_tokenizers import (
    CHAT_TOKENS,
    CharTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordLevelTokenizer,
)

if settings().deadline is not None:
    # Run by themselves, the tests lack the repository's profiles, and a first call can be slow.
    settings.register_profile("alone", max_examples=60, deadline=None, derandomize=True)
    settings.load_profile("alone")

CORPUS = (
    "What is a word?  It names a thing, and the thing is named by it.\r\n"
    "\tShe said: \u201cYes\u201d \u2014 caf\u00e9, cafe\u0301, \u4f60\u597d, 1234 times.\n\n"
    "He asks; she answers. He asks again; she answers again: 'so it is', said he.\n"
) * 4
#: What formats, decoders and regular expressions stumble over; every text may hold some of it.
AWKWARD = [
    *["", " ", "   ", "\r", "\n", "\r\n", "\n\n", "\t", "\0", "\x1b[2J", "\x1c", "\x85", "\xa0"],
    *["\ufeff", "\ufffd", "\u2581", "\u2585", "e\u0301", "\u0939\u093f\u0928\u094d\u0926\u0940"],
    *["\U0001f469\u200d\U0001f680", "\u1112\u1161\u11ab", "\u05e9\u05dc", "\U0010ffff", "\u2028"],
    *["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<0x41>", " the", "thing is", "^"],
    "\ue000",
]


@cache
def texts() -> st.SearchStrategy[str]:
    """Any Unicode text without lone surrogates, rich in awkward pieces."""
    return st.lists(st.one_of(st.text(), st.sampled_from(AWKWARD))).map("".join)


def char() -> CharTokenizer:
    return CharTokenizer.train([CORPUS, *AWKWARD, "?"], special_tokens=CHAT_TOKENS)


def word() -> WordLevelTokenizer:
    return WordLevelTokenizer.train([CORPUS, *AWKWARD], special_tokens=CHAT_TOKENS)


def sentence_piece() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(CORPUS, vocab_size=400)


def sentence_piece_merged() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(CORPUS, vocab_size=400, newline="merged")


def hugging_face() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_bytes(sentence_piece().folder_files()["tokenizer.json"])


def byte_level() -> HuggingFaceTokenizer:
    """A byte-level BPE as GPT-2's, trained by the Hugging Face library."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=list(CHAT_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator([CORPUS], trainer)
    return HuggingFaceTokenizer.from_bytes(model.to_str().encode())


KINDS: dict[str, Callable[[], Tokenizer]] = {
    function.__name__: function
    for function in (char, word, sentence_piece, sentence_piece_merged, hugging_face, byte_level)
}


@pytest.fixture(scope="session", params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[], Tokenizer]:
    """Makes one kind's tokenizer, the same at every call."""
    return KINDS[request.param]


@pytest.fixture(scope="session")
def tokenizer(make: Callable[[], Tokenizer]) -> Tokenizer:
    """One kind's tokenizer; a test that asks for it runs once per kind."""
    return make()


@pytest.fixture(scope="session")
def any_text() -> st.SearchStrategy[str]:
    """Any text that can be written as UTF-8."""
    return texts()


@pytest.fixture(scope="session")
def known_text(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """The texts that the kind declares lossless."""
    if isinstance(tokenizer, CharTokenizer):
        characters = tokenizer.itos[: -len(tokenizer.special_tokens)]
        return st.text(st.sampled_from(characters))
    if isinstance(tokenizer, WordLevelTokenizer):
        return texts().filter(lambda text: tokenizer.unk_id not in tokenizer.encode(text))
    return texts()


@pytest.fixture(scope="session")
def encodable_text(tokenizer: Tokenizer, known_text: st.SearchStrategy[str]) -> object:
    """The texts that the kind encodes without an error."""
    return known_text if isinstance(tokenizer, CharTokenizer) else texts()


@pytest.fixture(scope="session")
def corpus() -> str:
    """The text that the kinds are trained on."""
    return CORPUS
