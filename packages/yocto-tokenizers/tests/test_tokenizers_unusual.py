"""Unusual texts and ids: exact where a rung knows them, and named where it does not."""

import pytest
from yocto_tokenizers import (
    CharTokenizer,
    SentencePieceTokenizer,
    TextError,
    TokenIdError,
    UnknownCharacterError,
    WordLevelTokenizer,
)

CHAR = CharTokenizer("ab?", special_tokens=["<s>"])
WORD = WordLevelTokenizer(["a", " ", "b"], special_tokens=["<s>"])
BPE = SentencePieceTokenizer.train("a b ab", vocab_size=300, shrink=True).to_bytes()


@pytest.mark.parametrize(
    "text",
    ["e\u0301", "\U0001f469\u200d\U0001f680", "\u1112\u1161\u11ab", "\u05d0\u202e", "\U0010ffff",
     "\ufffd", "\ufeff", "\u2581", "\u2581 a\u2581"],
)  # fmt: skip
def test_unusual_text_is_exact(text: str) -> None:
    """T11, T12: exact on every rung that knows it, and reported or marked where it does not."""
    for tokenizer in (
        CharTokenizer.train(text),
        WordLevelTokenizer.train(text),
        SentencePieceTokenizer.from_bytes(BPE),
    ):
        assert text == tokenizer.decode(tokenizer.encode(text))
    with pytest.raises(UnknownCharacterError):
        CHAR.encode(text)
    assert set(CHAR.decode(CHAR.encode(text, errors="replace"))) <= {"?", "a"}
    assert "<unk>" in WORD.decode(WORD.encode(text))


def test_unseen_characters_have_code_point_and_index() -> None:
    """T13: the message names U+1F600 and index 12; replaced, it costs nothing else."""
    with pytest.raises(UnknownCharacterError, match=r"U\+1F600 GRINNING FACE at index 12"):
        CHAR.encode("abababababab\U0001f600")
    assert CHAR.decode(CHAR.encode("a\U0001f600b", errors="replace")) == "a?b"
    assert CHAR.unknown_characters("a\U0001f600b") == {"\U0001f600": 1}


@pytest.mark.parametrize("bad", [-1, 4, 2**40, 1.0, True, float("nan")])
def test_unfit_ids(bad: int) -> None:
    """T14: refused, and -1 does not wrap to the last id."""
    for ids in ([bad], [0, bad]):
        with pytest.raises(TokenIdError):
            CHAR.decode(ids)


def test_repetition() -> None:
    """T15: a million equal characters go through every rung; quadratic code would need hours."""
    text = "a" * 1_000_000
    assert text == CHAR.decode(CHAR.encode(text))
    assert WORD.encode(text) == [WORD.unk_id]
    bpe = SentencePieceTokenizer.from_bytes(BPE)
    assert text == bpe.decode(bpe.encode(text))


def test_surrogates_stop_before_native_code() -> None:
    """D19: a lone surrogate is refused with its index on every rung."""
    bpe = SentencePieceTokenizer.from_bytes(BPE)
    for tokenizer in (WORD, bpe):
        with pytest.raises(TextError, match=r"U\+D83D at index 3"):
            tokenizer.encode("ab \ud83d")
    with pytest.raises(UnknownCharacterError, match=r"U\+D83D \(lone surrogate\) at index 2"):
        CHAR.encode("ab\ud83d")
