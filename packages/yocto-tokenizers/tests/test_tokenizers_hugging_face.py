"""The adapter: any tokenizer of a Hugging Face folder behind our methods."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from yocto_tokenizers import HuggingFaceTokenizer, TokenizerFileError, load_tokenizer


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


@pytest.mark.property
@given(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join))
def test_more_special_tokens_change_no_text(text: str) -> None:
    """They have ids of their own, and what spells one stays text."""
    before = HuggingFaceTokenizer(tokenizer_json(), b'{"eos_token": "c"}')
    after = before.with_special_tokens(["<|user|>", "<|im_end|>"])
    assert before.encode(text) == after.encode(text)
    assert ["<|user|>", "<|im_end|>"] == list(after.special_tokens)
    assert not {*after.special_tokens.values()} & {*before.encode("a b c <|user|>")}
    assert before.encode("<|user|>") == after.encode("<|user|>")
    assert before.eos_id == after.eos_id == 5
    again = HuggingFaceTokenizer.from_bytes(after.to_bytes())
    assert again.special_tokens == after.special_tokens


WORD_PIECE = {"type": "WordPiece", "prefix": "##", "cleanup": True}
METASPACE = {
    "type": "Metaspace",
    "replacement": "\u2581",
    "prepend_scheme": "always",
    "split": True,
}
SUFFIX = {"type": "BPEDecoder", "suffix": "</w>"}
PIECES = ["a", "b", "\u2581a", "\u2581", "##b", "b</w>", "."]


@pytest.mark.property
@pytest.mark.parametrize("decoder", [None, {"type": "Fuse"}, WORD_PIECE, METASPACE, SUFFIX])
@given(ids=st.lists(st.integers(0, len(PIECES) - 1)).map(lambda ids: [0, *ids]))
def test_other_decoders_are_followed_not_guessed(decoder: Any, ids: list[int]) -> None:
    """What the library makes of ids is what ours makes, with a space around it where it had one."""
    content = tokenizer_json(decoder=decoder, model=words(PIECES))
    tokenizer = HuggingFaceTokenizer.from_bytes(content)
    reference = tokenizers.Tokenizer.from_str(content.decode()).decode(ids)
    decoded = tokenizer.decode(ids)
    assert decoded in (reference, f" {reference}", f"{reference} ")
    stream = tokenizer.stream_decoder()
    assert decoded == "".join(map(stream.push, ids)) + stream.finish()


def words(pieces: list[str]) -> dict[str, Any]:
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return {"type": "WordLevel", "vocab": vocabulary, "unk_token": pieces[0]}


@pytest.mark.parametrize("strip", [0, 1])
def test_a_space_in_front_is_kept(strip: int) -> None:
    """Llama's decoder takes it away, so that a part of a text would lose one; bytes are exact."""
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * strip),
    ]
    content = tokenizer_json(
        decoder={"type": "Sequence", "decoders": steps},
        model=words(["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "\u2581a"]),
    )
    tokenizer = HuggingFaceTokenizer.from_bytes(content)
    assert " a\U0001f600 a" == tokenizer.decode([4, 0, 1, 2, 3, 4])
    assert b"\xf0\x9f" == tokenizer.decode_bytes([0, 1])
    stream = tokenizer.stream_decoder()
    assert [stream.push(i) for i in (4, 0, 1, 2, 3, 4)] == [" a", "", "", "", "\U0001f600", " a"]


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
    text = corpus + "\0\x7f\xa0\xad\u2581\U0001f600"
    ids = tokenizer.encode(text)
    assert text.encode() == tokenizer.decode_bytes(ids)
    assert len(text.encode()) == len(ids)
    assert {bytes([byte]) for byte in range(256)} == {
        tokenizer.decode_bytes([i]) for i in range(256)
    }


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


@pytest.mark.parametrize(
    ("config", "bos", "eos"),
    [
        (None, None, None),
        ({}, None, None),
        ({"bos_token": "a", "eos_token": "c", "add_bos_token": True}, 0, 5),
        ({"bos_token": {"content": "b", "lstrip": False}, "eos_token": None}, 1, None),
        ({"bos_token": "no such", "eos_token": 5}, None, None),
    ],
)
def test_the_config_beside_it_names_the_ends(
    config: dict[str, Any] | None, bos: int | None, eos: int | None, tmp_path: Path
) -> None:
    """By a string or an object; both files go, byte for byte, wherever the folder goes."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json())
    files = {"tokenizer.json": path.read_bytes()}
    if config is not None:
        files["tokenizer_config.json"] = json.dumps(config).encode()
        (tmp_path / "tokenizer_config.json").write_bytes(files["tokenizer_config.json"])
    tokenizer = load_tokenizer(tmp_path)
    assert (bos, eos) == (tokenizer.bos_id, tokenizer.eos_id)
    assert tokenizer.fingerprint() == load_tokenizer(path).fingerprint()
    assert tokenizer.fingerprint() == pickle.loads(pickle.dumps(tokenizer)).fingerprint()  # noqa: S301
    given = tokenizer.folder_files()
    assert files == {name: given[name] for name in files}
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()}


def test_a_role_wins_over_a_usual_name() -> None:
    """Usual names are looked for only where a config does not say, even that there is none."""
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, name in enumerate(["<s>", "</s>"])
    ]  # fmt: skip
    content = tokenizer_json(added_tokens=added)
    guessed = HuggingFaceTokenizer(content)
    assert (3, 4) == (guessed.bos_id, guessed.eos_id)
    told = HuggingFaceTokenizer(content, b'{"bos_token": null, "eos_token": "<s>"}')
    assert (None, 3) == (told.bos_id, told.eos_id)
    assert told.fingerprint() != guessed.fingerprint()


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    """A config that is no JSON object is refused by its name, and never passed over."""
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "tokenizer_config.json").write_bytes(b"{")
    with pytest.raises(
        TokenizerFileError, match=r"^the tokenizer_config\.json beside '.* not valid"
    ):
        load_tokenizer(tmp_path)
