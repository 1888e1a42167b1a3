"""Characters: the vectorised code against a plain loop, and what happens to unknown characters."""

import itertools
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_tokenizers import (
    CharTokenizer,
    SentencePieceTokenizer,
    TokenizerError,
    UnknownCharacterError,
    WordLevelTokenizer,
)
from yocto_tokenizers.fast.characters import additive_parts

ALPHABETS = st.text(min_size=1)
ANY_TEXT = st.text(st.characters())  # lone surrogates included


@pytest.mark.property
@given(text=st.text(min_size=1))
@example(text="a\xff\u0100")  # the first character beyond Latin-1
@example(text="b\0a\U0010ffff\u00e9\U0001f600a")
@example(text="e\u0301 \U0001f469\u200d\U0001f680 \u1112\u1161\u11ab \u05e9\u202e \ufeff\u2581")
def test_ids_are_the_sorted_code_points(text: str) -> None:
    """The vocabulary is the sorted alphabet, nothing normalised; stoi inverts itos; so the loop."""
    tokenizer = CharTokenizer.train(text)
    assert tuple(sorted(set(text))) == tokenizer.itos
    assert {c: i for i, c in enumerate(tokenizer.itos)} == dict(tokenizer.stoi)
    ids = [tokenizer.stoi[c] for c in text]
    assert ids == tokenizer.encode(text)
    assert "".join(tokenizer.itos[i] for i in ids) == tokenizer.decode(ids) == text


def test_shakespeare_has_65_ids() -> None:
    """The alphabet of tiny Shakespeare gets nanoGPT's ids."""
    alphabet = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    tokenizer = CharTokenizer.train(alphabet[::-1])
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode("Hello world") == [20, 43, 50, 50, 53, 1, 61, 53, 56, 50, 42]


@pytest.mark.property
@given(texts=st.lists(st.text(), min_size=1).filter(any))
def test_training_on_parts_is_training_on_the_whole(texts: list[str]) -> None:
    """A list, a generator and the joined text give one vocabulary."""
    whole = CharTokenizer.train("".join(texts)).fingerprint()
    assert whole == CharTokenizer.train(texts).fingerprint()
    assert whole == CharTokenizer.train(text for text in texts).fingerprint()


@pytest.mark.property
@given(first=ALPHABETS, second=ALPHABETS)
def test_fingerprints_are_equal_exactly_for_equal_alphabets(first: str, second: str) -> None:
    """T8: changing a character changes the fingerprint, changing the text alone does not."""
    same = set(first) == set(second)
    fingerprints = (
        CharTokenizer.train(first).fingerprint(),
        CharTokenizer.train(second).fingerprint(),
    )
    assert same == (fingerprints[0] == fingerprints[1])


def test_order_and_special_tokens_are_part_of_the_fingerprint() -> None:
    """T8: swapped ids and other special tokens give other fingerprints."""
    several = [
        CharTokenizer("ab"),
        CharTokenizer("ba"),
        CharTokenizer("ab", special_tokens=["<s>"]),
        CharTokenizer("ab", special_tokens=["</s>"]),
        CharTokenizer("ab", special_tokens=["<s>", "</s>"]),
        CharTokenizer("ab", special_tokens=["</s>", "<s>"]),
    ]
    for one, other in itertools.combinations(several, 2):
        assert one.fingerprint() != other.fingerprint()


@pytest.mark.property
@given(alphabet=ALPHABETS, text=ANY_TEXT)
@example(alphabet="?ab", text="ab\ud800\U0001f600")
@example(alphabet="\ufffd?ab", text="xa")
def test_replace_keeps_the_length(alphabet: str, text: str) -> None:
    """T5: each unknown character becomes U+FFFD, else `?`; a second round trip changes nothing."""
    tokenizer = CharTokenizer.train(alphabet + "?")
    mark = "\ufffd" if "\ufffd" in alphabet else "?"
    expected = "".join(c if c in tokenizer.stoi else mark for c in text)
    once = tokenizer.decode(tokenizer.encode(text, errors="replace"))
    assert expected == once
    assert once == tokenizer.decode(tokenizer.encode(once, errors="replace"))


@pytest.mark.property
@given(alphabet=ALPHABETS, text=ANY_TEXT)
@example(alphabet="ab", text="ab\ud800\U0001f600b")
def test_ignore_gives_a_subsequence(alphabet: str, text: str) -> None:
    """T5: unknown characters are dropped, the others keep their order; stable likewise."""
    tokenizer = CharTokenizer.train(alphabet)
    once = tokenizer.decode(tokenizer.encode(text, errors="ignore"))
    assert "".join(c for c in text if c in alphabet) == once
    assert once == tokenizer.decode(tokenizer.encode(once, errors="ignore"))


@pytest.mark.property
@given(alphabet=ALPHABETS, text=ANY_TEXT)
@example(alphabet="a", text="xaxy")
def test_strict_names_what_is_unknown(alphabet: str, text: str) -> None:
    """T5: strict raises exactly if something is unknown, and knows first positions and total."""
    tokenizer = CharTokenizer.train(alphabet)
    unknown = [c for c in text if c not in alphabet]
    expected = {c: text.index(c) for c in unknown}
    assert list(expected.items()) == list(tokenizer.unknown_characters(text).items())
    if not unknown:
        assert len(text) == len(tokenizer.encode(text))
        return
    with pytest.raises(UnknownCharacterError) as raised:
        tokenizer.encode(text)
    assert expected == raised.value.characters
    assert len(unknown) == raised.value.total
    message = str(raised.value)
    assert len(message) <= 300
    assert message.isascii()
    assert message.isprintable()


def test_the_message_has_names_positions_and_remedy() -> None:
    """T13 of the bad input: code point, name, index, total, and what to do."""
    with pytest.raises(UnknownCharacterError) as raised:
        CharTokenizer("ab").encode("abababababab\U0001f600a\ud800\0\U0001f600")
    assert str(raised.value) == (
        "4 unknown characters: U+1F600 GRINNING FACE at index 12, "
        "U+D800 (lone surrogate) at index 14, U+0000 at index 15; "
        'add them to the training text, or encode with errors="replace" or "ignore"'
    )
    with pytest.raises(UnknownCharacterError, match=r"^1 unknown character: U\+0078 LATIN"):
        CharTokenizer("ab").encode("x")
    assert isinstance(raised.value, TokenizerError)
    assert isinstance(raised.value, ValueError)


def test_the_message_names_what_fits_a_line() -> None:
    """A text in a foreign script gives one line; the error object still holds every character."""
    digits = "0123456789abcdef"
    with pytest.raises(UnknownCharacterError, match=r"and 1[0-9] more;") as raised:
        CharTokenizer("x").encode(digits)
    assert str(raised.value).count("U+") <= 10
    assert len(raised.value.characters) == 16
    with pytest.raises(UnknownCharacterError, match=r"U\+0008 at index 8 and 7 more;"):
        CharTokenizer("x").encode("".join(map(chr, range(16))))


def test_the_error_survives_a_worker() -> None:
    """Pickled and unpickled, the error says and holds the same."""
    error = UnknownCharacterError({"x": 3}, 2)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(error), error.characters, error.total) == (str(copy), copy.characters, copy.total)


def test_replace_needs_a_mark() -> None:
    """T5: with neither U+FFFD nor `?` in the vocabulary, replace raises and says so."""
    with pytest.raises(UnknownCharacterError, match='needs U\\+FFFD or "\\?"'):
        CharTokenizer("ab").encode("abc", errors="replace")
    assert CharTokenizer("ab").encode("ab", errors="replace") == [0, 1]


def test_the_policy_holds_for_all_encoders() -> None:
    """The argument is the same for one text and for NumPy; a typo is an error."""
    tokenizer = CharTokenizer("?a")
    assert tokenizer.encode_to_numpy("ax", errors="replace").tolist() == [1, 0]
    with pytest.raises(TokenizerError, match="'strct'"):
        tokenizer.encode("a", errors="strct")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [65534, 65535, 65536, 65537])
def test_no_id_is_taken_for_the_sentinel(size: int) -> None:
    """Around 65,536 ids every character keeps its id, an unknown one is noticed, nothing wraps."""
    code_points = itertools.chain(range(0x20, 0xD800), range(0xE000, 0x110000))
    letters = [chr(c) for c in itertools.islice(code_points, size)]
    tokenizer = CharTokenizer(letters)
    ids = tokenizer.encode_to_numpy("".join(letters))
    assert np.dtype(np.uint16 if size <= 65536 else np.uint32) == ids.dtype
    assert np.array_equal(np.arange(size), ids)
    assert "".join(letters) == tokenizer.decode(ids)
    with pytest.raises(UnknownCharacterError):
        tokenizer.encode("\U0010ffff")
    assert tokenizer.encode("\U0010ffff", errors="ignore") == []


def test_every_code_point() -> None:
    """Every Unicode scalar value in one string comes back, in one vocabulary and one text."""
    text = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))))
    tokenizer = CharTokenizer.train(text)
    assert tokenizer.vocab_size == 0x110000 - 2048
    assert text == tokenizer.decode(tokenizer.encode_to_numpy(text))
    assert text.encode() == tokenizer.decode_bytes(tokenizer.encode_to_numpy(text))


@pytest.mark.parametrize("length", [65535, 65536, 65537, 200_000])
def test_long_texts_are_looked_up_whole(length: int) -> None:
    """Texts longer than one slice of the lookup keep every id, ASCII and other parts mixed."""
    text = ("ab" * length)[: length - 3] + "\u00e9\U0001f600c"
    tokenizer = CharTokenizer.train(text)
    assert [tokenizer.stoi[c] for c in text] == tokenizer.encode(text)
    assert {"x": length} == tokenizer.unknown_characters(text + "x")


@pytest.mark.parametrize(
    "characters", ["", [], ["a", "a"], ["ab"], [""], ["\ud800"], "a\udfff", ["a", 1], [None]]
)
def test_unfit_characters_are_refused(characters: list[str]) -> None:
    """A vocabulary is distinct characters, at least one, none a surrogate."""
    with pytest.raises(TokenizerError):
        CharTokenizer(characters)


@pytest.mark.parametrize(
    "names",
    ["<s>", ["a"], [""], ["a b"], ["<s>", "<s>"], ["<\n>"], [5], ["x" * 65], ["<\u202e>"]],
)
def test_unfit_special_tokens_are_refused(names: list[str]) -> None:
    """A special token has a distinct, visible name of two characters or more."""
    with pytest.raises(TokenizerError):
        CharTokenizer.train("abc", special_tokens=names)


TRAINERS: dict[str, Callable[[Any], object]] = {
    "char": CharTokenizer.train,
    "word": WordLevelTokenizer.train,
    "BPE": partial(SentencePieceTokenizer.train, vocab_size=300),
}


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
@pytest.mark.parametrize("texts", ["", [], ["", ""], ()])
def test_empty_texts_are_refused(train: Callable[[Any], object], texts: list[str]) -> None:
    """Nothing to learn from is an error at once, in our words."""
    with pytest.raises(TokenizerError, match=r"^the text is empty;|holds no words"):
        train(texts)


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
@pytest.mark.parametrize(
    ("texts", "where"),
    [
        ("a\ud800", r"U\+D800 at index 1"),
        (["a", "bc\udfff"], r"item 1 .*U\+DFFF at index 2"),
        (["a", 5], "item 1 .*int"),
        (b"abc", "bytes"),
    ],
)
def test_bad_training_texts_are_named(
    train: Callable[[Any], object], texts: Any, where: str
) -> None:
    """D19: a lone surrogate or another type in the texts is named by item and index."""
    with pytest.raises(TokenizerError, match=where):
        train(texts)


@pytest.mark.property
@given(
    text=st.text("ab. \n\t\u00a0\u00e9", max_size=60),
    target=st.integers(1, 8),
    maximum=st.none() | st.integers(8, 20),
)
@example(text="a" * 30, target=1, maximum=8)
@example(text="a" * 10 + " b", target=1, maximum=8)
@example(text=" a b  c\nd\n", target=1, maximum=None)
def test_a_text_is_cut_at_the_first_safe_place(text: str, target: int, maximum: int | None) -> None:
    """Before a space that follows other text, or after a newline where that is safe, or nowhere.

    A part is as long as wanted and no longer than it may be; the parts joined are the text.
    """
    for after_newline in (False, True):
        expected, start = [], 0
        safe = [
            (text[i] == " " and not before.isspace()) or (after_newline and before == "\n")
            for i, before in enumerate(text[:-1], start=1)
        ]
        while start < len(text):
            end = len(text) if maximum is None else min(len(text), start + maximum)
            stop = next((i for i in range(start + target, end) if safe[i - 1]), end)
            expected.append(text[start:stop])
            start = stop
        parts = additive_parts(text, target=target, after_newline=after_newline, maximum=maximum)
        assert expected == list(parts)
        assert text == "".join(expected)


def test_decoding_is_independent_of_the_callers_array() -> None:
    """Decoding neither changes the ids nor keeps them."""
    tokenizer = CharTokenizer("ab", special_tokens=["<s>"])
    ids = np.array([0, 2, 1], dtype=np.uint16)
    assert tokenizer.decode(ids) == "ab"
    assert ids.tolist() == [0, 2, 1]
