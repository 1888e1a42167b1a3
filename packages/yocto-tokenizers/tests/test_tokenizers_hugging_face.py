"""The adapter and the exports: the same ids and text through a second reader."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import (
    CHAT_TOKENS,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TokenizerFileError,
    WordLevelTokenizer,
    load_tokenizer,
)

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module", params=["atomic", "merged"])
def pair(
    request: pytest.FixtureRequest, corpus: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SentencePieceTokenizer, HuggingFaceTokenizer]:
    ours = SentencePieceTokenizer.train(corpus, vocab_size=420, newline=request.param)
    return ours, HuggingFaceTokenizer.load(ours.to_hf_json(tmp_path_factory.mktemp("hf")))


@pytest.mark.property
@given(data=st.data())
def test_bpe_export_is_the_same_tokenizer(
    pair: tuple[SentencePieceTokenizer, HuggingFaceTokenizer],
    any_text: SearchStrategy[str],
    data: st.DataObject,
) -> None:
    """Exported BPE has the same ids for texts without U+2581, and the same bytes for all ids."""
    ours, theirs = pair
    text = data.draw(any_text).replace("\u2581", " ")
    assert ours.encode(text) == theirs.encode(text)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    assert ours.decode_bytes(ids) == theirs.decode_bytes(ids)
    valid = ours.encode(text)
    assert theirs._tokenizer.decode(valid, skip_special_tokens=True) == text


def test_bpe_export_keeps_size_and_special_tokens(
    pair: tuple[SentencePieceTokenizer, HuggingFaceTokenizer],
) -> None:
    """Size, special tokens and roles survive the export."""
    ours, theirs = pair
    assert ours.vocab_size == theirs.vocab_size
    assert dict(ours.special_tokens) == dict(theirs.special_tokens)
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (theirs.bos_id, theirs.eos_id, theirs.unk_id)
    assert theirs.exact_bytes


def test_bare_reader_agrees_on_plain_text(corpus: str, tmp_path: Path) -> None:
    """The library by itself, without our adapter, gives the same ids for the training text."""
    ours = SentencePieceTokenizer.train(corpus, vocab_size=420)
    theirs = tokenizers.Tokenizer.from_file(str(ours.to_hf_json(tmp_path)))
    assert ours.encode(corpus) == theirs.encode(corpus).ids
    assert corpus == theirs.decode(theirs.encode(corpus).ids)


ASCII_TEXT = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=127)),
        st.sampled_from(["What", " ", "\n\n", "<s>", "<unk>", "\x1c ", "is", "'", "1234"]),
    )
).map("".join)


@pytest.mark.property
@given(text=ASCII_TEXT)
def test_word_export_is_the_same_on_ascii(
    words: tuple[WordLevelTokenizer, HuggingFaceTokenizer], text: str
) -> None:
    """Exported words have the same ids and text on ASCII; `<unk>` is shown by both."""
    ours, theirs = words
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)
    assert theirs._tokenizer.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.fixture(scope="module")
def words(
    corpus: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WordLevelTokenizer, HuggingFaceTokenizer]:
    text = corpus + "".join(map(chr, range(128)))
    ours = WordLevelTokenizer.train(text, special_tokens=CHAT_TOKENS)
    return ours, HuggingFaceTokenizer.load(ours.to_hf_json(tmp_path_factory.mktemp("hf")))


def test_word_export_keeps_size_and_special_tokens(
    words: tuple[WordLevelTokenizer, HuggingFaceTokenizer],
) -> None:
    """Size, special tokens and the unknown id survive the export."""
    ours, theirs = words
    assert (ours.vocab_size, ours.unk_id) == (theirs.vocab_size, theirs.unk_id)
    assert dict(ours.special_tokens) == dict(theirs.special_tokens)


def tokenizer_json(**changes: Any) -> bytes:
    """A small word-level tokenizer.json by hand, with a hole between its ids."""
    right = {"stride": 0, "direction": "Right"}
    document = {
        "version": "1.0",
        "truncation": {"max_length": 1, "strategy": "LongestFirst", **right},
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 5}, "unk_token": "a"},
        **changes,
    }
    return json.dumps(document).encode()


def test_size_is_the_largest_id_plus_one() -> None:
    """Every id below vocab_size is valid: holes decode to nothing."""
    tokenizer = HuggingFaceTokenizer.from_bytes(tokenizer_json())
    assert tokenizer.vocab_size == 6
    assert tokenizer.decode([0, 3, 5]) == "ac"
    assert (tokenizer.bos_id, tokenizer.user_id, tokenizer.unk_id) == (None, None, 0)


def test_truncation_and_padding_are_off() -> None:
    """What a file asks for of a batch for another model does not shorten our texts."""
    plain = HuggingFaceTokenizer.from_bytes(tokenizer_json(truncation=None))
    cut = HuggingFaceTokenizer.from_bytes(tokenizer_json())
    assert [0, 1, 5] == plain.encode("a b c") == cut.encode("a b c")
    assert plain.fingerprint() == cut.fingerprint()
    other = HuggingFaceTokenizer.from_bytes(tokenizer_json(decoder=None))
    assert plain.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("decoder", "ids", "expected"),
    [
        ({"type": "ByteFallback"}, [0, 1], "a b"),
        (None, [0, 1, 5], "a b c"),
        ({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
         [0, 1], "ab"),
    ],
)  # fmt: skip
def test_other_decoders_are_followed_not_guessed(
    decoder: dict[str, Any] | None, ids: list[int], expected: str
) -> None:
    """A decoder that looks at neighbours is left to the library, in the stream too."""
    tokenizer = HuggingFaceTokenizer.from_bytes(tokenizer_json(decoder=decoder))
    assert not tokenizer.exact_bytes
    reference = tokenizers.Tokenizer.from_str(tokenizer_json(decoder=decoder).decode())
    assert reference.decode(ids) == tokenizer.decode(ids)
    assert tokenizer.decode(ids).encode() == tokenizer.decode_bytes(ids)
    stream = tokenizer.stream_decoder()
    for _ in range(2):
        assert tokenizer.decode(ids) == "".join(map(stream.push, ids)) + stream.finish()


def test_a_subtracting_stream_holds_back_half_characters() -> None:
    """Without a table, bytes of one character appear together, and the end is flushed."""
    pieces = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "\u2581a"]
    content = tokenizer_json(
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        model={
            "type": "WordLevel",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "unk_token": "\u2581a",
        },
    )
    tokenizer = HuggingFaceTokenizer.from_bytes(content)
    assert not tokenizer.exact_bytes
    stream = tokenizer.stream_decoder()
    assert [stream.push(i) for i in (4, 0, 1, 2, 3, 4)] == ["a", "", "", "", "\U0001f600", " a"]
    stream.push(0)
    assert stream.finish() == "\ufffd"


def test_byte_level_pieces_are_exact(corpus: str) -> None:
    """GPT-2's alphabet: every byte has its character, and the library decodes to the same text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    byte_level = {"type": "ByteLevel", "trim_offsets": True}
    content = tokenizer_json(
        decoder={**byte_level, "add_prefix_space": True, "use_regex": True},
        pre_tokenizer={**byte_level, "add_prefix_space": False, "use_regex": False},
        model={"type": "BPE", "vocab": {c: i for i, c in enumerate(alphabet)}, "merges": []},
        added_tokens=[],
    )
    tokenizer = HuggingFaceTokenizer.from_bytes(content)
    assert tokenizer.exact_bytes
    text = corpus + "\0\x7f\xa0\xad\u2581\U0001f600"
    ids = tokenizer.encode(text)
    assert text.encode() == tokenizer.decode_bytes(ids)
    assert len(text.encode()) == len(ids)
    assert {bytes([byte]) for byte in range(256)} == {
        tokenizer.decode_bytes([i]) for i in range(256)
    }


def test_special_names_in_text_stay_text(corpus: str, tmp_path: Path) -> None:
    """The bare library reads `<|user|>` in a message as the special token; the adapter does not."""
    ours = SentencePieceTokenizer.train(corpus, vocab_size=400)
    path = ours.to_hf_json(tmp_path / "bpe.json")
    bare = tokenizers.Tokenizer.from_file(str(path))
    assert [ours.user_id] == bare.encode("<|user|>").ids
    assert load_tokenizer(path).encode("<|user|>") == ours.encode("<|user|>")


@pytest.mark.parametrize(
    "content",
    [
        tokenizer_json(model={"type": "Nonsense"}),
        tokenizer_json(model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}),
        tokenizer_json(model=[]),
        tokenizer_json(added_tokens=5),
        b'{"model": {}}',
        b"[]",
    ],
)
def test_other_files_are_refused(content: bytes) -> None:
    """What the library cannot read is our error, in one line, with the name of the file."""
    with pytest.raises(TokenizerFileError, match=r"^'x.json' ") as raised:
        HuggingFaceTokenizer.from_bytes(content, source="'x.json'")
    assert "\n" not in str(raised.value)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the library, such a file says what to install."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerFileError, match=r"install yocto-tokenizers\[hf\]"):
        load_tokenizer(path)
