"""Words: the split loses nothing, the vocabulary is by frequency, only `<unk>` forgets."""

import re
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_tokenizers import TokenizerError, WordLevelTokenizer
from yocto_tokenizers import word_level as module
from yocto_tokenizers.fast.characters import mark_class

split_words = module.split_words


@pytest.mark.property
@given(text=st.text())
@example(text="\x1c\x85\xa0 \u2003\r\n\t\0\ufeff")
@example(text="\u0939\u093f\u0928\u094d\u0926\u0940 e\u0301te\u0301")
def test_splitting_loses_nothing(text: str) -> None:
    """The tokens joined are the text, and no token is empty."""
    tokens = split_words(text)
    assert text == "".join(tokens)
    assert all(tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  world!\n", ["Hello", ",", "  ", "world", "!", "\n"]),
        ("don't 3.14 a_b", ["don", "'", "t", " ", "3", ".", "14", " ", "a_b"]),
        ("...", [".", ".", "."]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("e\u0301te\u0301 ok", ["e\u0301te\u0301", " ", "ok"]),
        ("<|user|>", ["<", "|", "user", "|", ">"]),
    ],
)
def test_what_a_word_is(text: str, expected: list[str]) -> None:
    """Letters, digits and their marks make words, white space makes runs, symbols stand alone."""
    assert expected == split_words(text)


def test_marks_are_those_of_unicode_14() -> None:
    """Python's own table changes with its version: none of its marks before 14 may be missing."""
    characters = list(map(chr, range(sys.maxunicode + 1)))
    found = set(re.findall(f"[{mark_class()}]", "".join(characters)))
    now = {c for c in characters if unicodedata.category(c).startswith("M")}
    old = {c for c in now if unicodedata.ucd_3_2_0.category(c).startswith("M")}
    assert old < found <= now
    assert unicodedata.unidata_version != "14.0.0" or found == now


@pytest.mark.property
@given(text=st.text(st.characters(max_codepoint=127)))
def test_the_ascii_pattern_is_the_same_split(text: str) -> None:
    """The fast pattern for ASCII splits as the full one does."""
    assert module._tokens().findall(text) == module._ASCII_TOKENS.findall(text)


@pytest.mark.property
@given(text=st.text(min_size=1), other=st.text())
@example(text="a b", other="a c! a")
def test_unknown_words_show_as_unk(text: str, other: str) -> None:
    """A text comes back with its own words; others get the unknown id, shown as `<unk>`."""
    tokenizer = WordLevelTokenizer.train(text)
    assert text == tokenizer.decode(tokenizer.encode(text))
    assert tokenizer.unk_id not in tokenizer.encode(text)
    known = set(split_words(text))
    shown = [word if word in known else "<unk>" for word in split_words(other)]
    ids = tokenizer.encode(other)
    assert "".join(shown) == tokenizer.decode(ids)
    assert shown.count("<unk>") == ids.count(tokenizer.unk_id)


@pytest.mark.property
@given(words=st.lists(st.sampled_from("abcdefgh"), min_size=1), size=st.integers(2, 10))
def test_the_most_frequent_words_first(words: list[str], size: int) -> None:
    """Ids follow frequency, then first appearance; vocab_size is a ceiling."""
    text = " ".join(words)
    counts = Counter(split_words(text))
    order = sorted(counts, key=lambda word: (-counts[word], text.index(word)))
    tokenizer = WordLevelTokenizer.train(text, vocab_size=size)
    assert ("<unk>", *order[: size - 1]) == tokenizer.itos
    assert tokenizer.itos == WordLevelTokenizer.train(iter([text]), vocab_size=size).itos


def test_ids_begin_with_unknown_and_special_tokens() -> None:
    """Id 0 is `<unk>`, then special tokens in the order given, then words."""
    tokenizer = WordLevelTokenizer.train("b a", special_tokens=["<s>", "</s>"])
    assert tokenizer.itos == ("<unk>", "<s>", "</s>", "b", " ", "a")
    assert dict(tokenizer.special_tokens) == {"<s>": 1, "</s>": 2}
    assert (tokenizer.unk_id, tokenizer.vocab_size, tokenizer.user_id) == (0, 6, None)
    assert tokenizer.encode("<s>") == [0, 0, 0]


def test_fingerprint_is_of_the_content() -> None:
    """T8: another word, another order, another special token: another fingerprint."""
    several = [
        WordLevelTokenizer(["a", "b"]),
        WordLevelTokenizer(["b", "a"]),
        WordLevelTokenizer(["a"]),
        WordLevelTokenizer(["a", "b"], special_tokens=["<s>"]),
    ]
    assert len(several) == len({tokenizer.fingerprint() for tokenizer in several})
    assert several[0].fingerprint() == WordLevelTokenizer(("a", "b")).fingerprint()


def test_long_texts_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting a text for counting changes no count."""
    text = "one two,  three\n" * 50
    whole = WordLevelTokenizer.train(text).fingerprint()
    monkeypatch.setattr(module, "_PART_CHARACTERS", 5)
    assert whole == WordLevelTokenizer.train(text).fingerprint()


def test_counting_forgets_the_rarest_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound on counted words, frequent ones stay and memory does not grow."""
    monkeypatch.setattr(module, "_MAX_COUNTED_WORDS", 100)
    monkeypatch.setattr(module, "_PART_CHARACTERS", 50)
    text = " ".join(f"common rare{i}" for i in range(2000))
    tokenizer = WordLevelTokenizer.train(text)
    assert {" ", "common"} <= set(tokenizer.itos)
    assert tokenizer.vocab_size < 110


def test_very_long_words_are_not_learned() -> None:
    """A word longer than 256 characters stays unknown instead of becoming an entry."""
    tokenizer = WordLevelTokenizer.train("a" * 257 + " " + "b" * 256)
    assert tokenizer.itos == ("<unk>", " ", "b" * 256)


@pytest.mark.parametrize(
    "words", [[], [""], ["a", "a"], ["<unk>"], [5], ["a" * 257], ["<s>"], ["\ud800"]]
)
def test_unfit_words_are_refused(words: list[str]) -> None:
    """Words are distinct, not empty, not too long, no special name, no surrogate."""
    with pytest.raises(TokenizerError):
        WordLevelTokenizer(words, special_tokens=["<s>"])


@pytest.mark.parametrize("names", [["hello"], ["<unk>"], ["<s>", "<s>"], "<s>", ["_1"]])
def test_unfit_special_tokens_are_refused(names: list[str]) -> None:
    """A special token is spelled as no single word of a text could be."""
    with pytest.raises(TokenizerError):
        WordLevelTokenizer.train("hello", special_tokens=names)


@pytest.mark.parametrize("size", [0, -1, 1, 3, True, 4.0, "5"])
def test_vocab_size_has_room_for_a_word(size: int) -> None:
    """D14: a size without room for a word, or of another type, is refused with the least."""
    with pytest.raises(TokenizerError, match="at least 4"):
        WordLevelTokenizer.train("a b", vocab_size=size, special_tokens=["<s>", "</s>"])
