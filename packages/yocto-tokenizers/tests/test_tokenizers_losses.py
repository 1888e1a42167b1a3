"""What is lost on the way, in numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import (
    CharTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    TokenizerError,
    WordLevelTokenizer,
    round_trip,
)


@pytest.mark.property
@given(data=st.data())
def test_what_comes_back_is_exact(
    tokenizer: Tokenizer, known_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """A text that its kind declares lossless has no loss of any sort."""
    text = data.draw(known_text)
    found = round_trip(tokenizer, text)
    assert found.exact
    assert (len(text), len(tokenizer.encode(text))) == (found.characters, found.ids)
    assert (0, 0, 0, 0) == (
        found.unknown_ids, found.lost_characters, found.lost_line_ends, found.lost_case
    )  # fmt: skip
    assert f"all {len(text):,} characters come back." == found.summary()


@pytest.mark.property
@given(text=st.text(), known=st.text(min_size=1))
def test_unknown_characters_are_counted(text: str, known: str) -> None:
    """Characters: each that the vocabulary lacks is an unknown id and a lost character."""
    found = round_trip(CharTokenizer.train(known), text)
    unknown = [character for character in text if character not in known]
    assert (len(unknown), len(unknown)) == (found.unknown_ids, found.lost_characters)
    assert sum(character in "\r\n" for character in unknown) == found.lost_line_ends
    assert (len(text), not unknown) == (found.ids, found.exact)


def test_unknown_words_are_counted() -> None:
    """Words: those that became `<unk>`, with all of their characters."""
    found = round_trip(WordLevelTokenizer.train("a b"), "a ccc b\n")
    assert (6, 2, 4, 1) == (
        found.ids, found.unknown_ids, found.lost_characters, found.lost_line_ends
    )  # fmt: skip
    assert found.summary() == (
        "4 of 8 characters do not come back, 1 line ends among them, 33.33% of 6 ids are unknown."
    )


def lowercasing(**changes: object) -> HuggingFaceTokenizer:
    """A tokenizer as BERT's: lower case, words by white space, which is not kept."""
    vocabulary = {"[UNK]": 0, "what": 1, "is": 2, "a": 3, "word": 4}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        **changes,
    }
    return HuggingFaceTokenizer.from_bytes(json.dumps(document).encode())


def test_lost_case_and_line_ends_are_counted() -> None:
    """Letters that come back in the other case, line ends that come back as spaces."""
    found = round_trip(lowercasing(), "What is\na WORD")
    assert (5, 1, 6, 0) == (
        found.lost_case, found.lost_line_ends, found.lost_characters, found.unknown_ids
    )  # fmt: skip
    assert not found.exact
    assert "6 of 14 characters do not come back" in found.summary()
    assert "5 letters change case" in found.summary()


def test_one_space_in_front_is_no_loss() -> None:
    """Llama's tokenizers begin a text with a space; a second one would be a change."""
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "split": True}
    vocabulary = {"[UNK]": 0, "\u2581a": 1, "\u2581is": 2}
    keeps_space = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    tokenizer = lowercasing(
        normalizer=None,
        pre_tokenizer={**metaspace, "prepend_scheme": "always"},
        decoder={"type": "Sequence", "decoders": [keeps_space, {"type": "Fuse"}]},
        model={"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    )
    assert tokenizer.decode(tokenizer.encode("a is")) == " a is"
    assert round_trip(tokenizer, "a is").exact
    assert not round_trip(tokenizer, "a be").exact


def test_only_a_text_is_measured() -> None:
    """What cannot be encoded at all is refused as by `encode`."""
    with pytest.raises(TokenizerError, match="surrogate"):
        round_trip(CharTokenizer("a"), "\ud800")
    with pytest.raises(TokenizerError, match="type"):
        round_trip(CharTokenizer("a"), ["a"])  # type: ignore[arg-type]
