"""A model folder: what we write there, others read as we do, and of several files one is right."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import (
    CHAT_TOKENS,
    CharTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerFileError,
    WordLevelTokenizer,
    load_tokenizer,
)

transformers = pytest.importorskip("transformers")

# Each assigned and unassigned character once: combining marks, controls, private use, astral.
EVERY_CHARACTER = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)


def written(tokenizer: Tokenizer, directory: Path) -> Path:
    for name, content in tokenizer.folder_files(model_max_length=64).items():
        (directory / name).write_bytes(content)
    return directory


def theirs(tokenizer: Tokenizer, directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(written(tokenizer, directory))


def ids_by(other: Any, text: str) -> list[int]:
    """Their ids, where special names in text are text."""
    ids: list[int] = other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


@pytest.fixture(scope="session")
def other(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kind's tokenizer as AutoTokenizer opens its folder."""
    return theirs(tokenizer, tmp_path_factory.mktemp("folder"))


@pytest.mark.property
@given(data=st.data())
def test_others_read_the_folder_as_we_do(
    tokenizer: Tokenizer,
    other: Any,
    encodable_text: SearchStrategy[str],
    data: st.DataObject,
) -> None:
    """Ids and text are equal through AutoTokenizer, whatever the text."""
    text = data.draw(encodable_text)
    ids = tokenizer.encode(text)
    assert ids == ids_by(other, text)
    assert tokenizer.decode(ids) == other.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["word", "sentencepiece"])
def test_every_character_is_split_as_we_do(kind: str, corpus: str, tmp_path: Path) -> None:
    """No two engines can disagree about a character: each of them all is the same to both."""
    words = WordLevelTokenizer.train([corpus, *EVERY_CHARACTER[::97]], special_tokens=CHAT_TOKENS)
    pieces = SentencePieceTokenizer.train(corpus, vocab_size=400)
    ours: Tokenizer = words if kind == "word" else pieces
    other = theirs(ours, tmp_path)
    for text in (EVERY_CHARACTER if kind == "word" else "", " ".join(EVERY_CHARACTER[::13])):
        ids = ours.encode(text)
        assert ids == ids_by(other, text)
        assert ours.decode(ids) == other.decode(ids, skip_special_tokens=True)


def test_a_folder_gives_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What was written is read, roles and all; what others need stands there too."""
    again = load_tokenizer(written(tokenizer, tmp_path))
    assert type(tokenizer) is type(again)
    assert tokenizer.fingerprint() == again.fingerprint()
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(tokenizer.folder_files())
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert "PreTrainedTokenizerFast" == config["tokenizer_class"]
    assert (False, 64) == (config["clean_up_tokenization_spaces"], config["model_max_length"])
    assert ("<s>", "</s>") == (config["bos_token"], config["eos_token"])


def test_a_name_in_text_is_special_to_them_unless_told_not_to(tmp_path: Path) -> None:
    """The one difference: their templates are text, so their special names are found in text."""
    ours = CharTokenizer.train("<|user|>", special_tokens=CHAT_TOKENS)
    other = theirs(ours, tmp_path)
    assert [ours.user_id] == other("<|user|>", add_special_tokens=False)["input_ids"]
    assert ours.encode("<|user|>") == ids_by(other, "<|user|>")


def test_an_unknown_character_is_an_error_to_them_too(tmp_path: Path) -> None:
    """Neither invents an id, even where a special token is called `<unk>`."""
    ours = CharTokenizer("ab", special_tokens=["<unk>", "<s>"])
    library = HuggingFaceTokenizer.from_bytes(ours.folder_files()["tokenizer.json"])
    assert [0, 1] == library.encode("ab")
    with pytest.raises(Exception, match="UNK"):
        library.encode("c")


# Files of a folder that somebody else made, by name.
GPT2_VOCABULARY = b'{"kind": 5, "format_version": 7, "!": 0}'
CHAR = CharTokenizer("ab", special_tokens=["<s>"])
WORD = WordLevelTokenizer(["a", " "], special_tokens=["<s>"])


@pytest.fixture(scope="module")
def models(corpus: str) -> dict[str, bytes]:
    """One file of each meaning that a name can have."""
    import io

    import sentencepiece

    foreign = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()), model_writer=foreign, model_type="bpe",
        vocab_size=320, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    ours = SentencePieceTokenizer.train(corpus, vocab_size=320)
    return {
        "our vocab.json": CHAR.to_bytes(),
        "GPT-2's vocab.json": GPT2_VOCABULARY,
        "our tokenizer.model": ours.to_bytes(),
        "Llama's tokenizer.model": foreign.getvalue(),
        "tiktoken's tokenizer.model": b"IQ== 0\nIg== 1\n",
        "our tokenizer.json": WORD.to_bytes(),
        "their tokenizer.json": CHAR.folder_files()["tokenizer.json"],
        "no tokenizer.json": b"{}",
    }


@pytest.mark.parametrize(
    ("present", "kind"),
    [
        ("our vocab.json, their tokenizer.json, our tokenizer.model", "char"),
        ("our vocab.json, no tokenizer.json", "char"),
        ("GPT-2's vocab.json, their tokenizer.json", "huggingface"),
        ("GPT-2's vocab.json, our tokenizer.json", "word"),
        ("our tokenizer.model, their tokenizer.json", "sentencepiece"),
        ("Llama's tokenizer.model, their tokenizer.json", "huggingface"),
        ("tiktoken's tokenizer.model, their tokenizer.json", "huggingface"),
        ("GPT-2's vocab.json, Llama's tokenizer.model", "sentencepiece"),
        ("Llama's tokenizer.model", "sentencepiece"),
        ("our tokenizer.json", "word"),
        ("GPT-2's vocab.json", "is not a tokenizer of a known kind"),
        ("tiktoken's tokenizer.model", "not a sentencepiece model"),
        ("tiktoken's tokenizer.model, no tokenizer.json", "tokenizer.json' is not a tokenizer"),
    ],
)
def test_of_several_files_the_one_that_says_most(
    present: str, kind: str, *, models: dict[str, bytes], tmp_path: Path
) -> None:
    """Our characters, then a model that loses nothing, then tokenizer.json, then any model."""
    for described in present.split(", "):
        (tmp_path / described.rpartition(" ")[2]).write_bytes(models[described])
    if " " in kind:
        with pytest.raises(TokenizerFileError, match=kind):
            load_tokenizer(tmp_path)
    else:
        assert kind == load_tokenizer(tmp_path).kind
