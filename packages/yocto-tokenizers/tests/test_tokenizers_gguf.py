"""The fields of a GGUF file say what the tokenizer does, row by row."""

import io

import pytest
import sentencepiece
from yocto_tokenizers import SentencePieceTokenizer, VocabularyError

PREFIX = "tokenizer.ggml."


@pytest.fixture(scope="module")
def bpe(corpus: str) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(corpus, vocab_size=400)


def test_rows_are_the_pieces(bpe: SentencePieceTokenizer) -> None:
    """Tokens, scores and types have one row per id, in id order; types are GGUF's numbers."""
    fields = bpe.to_gguf_fields()
    library = sentencepiece.SentencePieceProcessor(model_proto=bpe.to_bytes())
    ids = range(bpe.vocab_size)
    assert [library.id_to_piece(i) for i in ids] == fields[PREFIX + "tokens"]
    assert [library.get_score(i) for i in ids] == fields[PREFIX + "scores"]
    newline = library.piece_to_id("\n")
    expected = [
        2
        if library.is_unknown(i)
        else 3
        if library.is_control(i)
        else 6
        if library.is_byte(i)
        else 4
        if i == newline
        else 1
        for i in ids
    ]
    assert expected == fields[PREFIX + "token_type"]


def test_settings_are_written_out(bpe: SentencePieceTokenizer) -> None:
    """No reader has to guess: kind, ids of begin, end, unknown, no space in front of a text."""
    fields = {k.removeprefix(PREFIX): v for k, v in bpe.to_gguf_fields().items()}
    rows = {"tokens", "scores", "token_type"}
    assert {
        "model": "llama",
        "pre": "default",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_space_prefix": False,
    } == {key: value for key, value in fields.items() if key not in rows}
    assert bpe.to_gguf_fields(add_bos_token=True)[PREFIX + "add_bos_token"] is True


def test_padding_rows_are_unused(bpe: SentencePieceTokenizer) -> None:
    """Rows beyond the vocabulary have names of their own, the lowest score, and type 5."""
    plain, padded = bpe.to_gguf_fields(), bpe.to_gguf_fields(vocab_size=402)
    for name, extra in (
        ("tokens", ["[PAD0]", "[PAD1]"]),
        ("scores", [-10000.0, -10000.0]),
        ("token_type", [5, 5]),
    ):
        rows = plain[PREFIX + name]
        assert isinstance(rows, list)
        assert [*rows, *extra] == padded[PREFIX + name]
    with pytest.raises(VocabularyError, match="399, fewer than the 400 ids"):
        bpe.to_gguf_fields(vocab_size=399)


def test_foreign_settings_are_kept(corpus: str) -> None:
    """A model that puts a space in front says so; a missing begin id is left out, never -1."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    fields = SentencePieceTokenizer(model.getvalue()).to_gguf_fields()
    assert fields[PREFIX + "add_space_prefix"] is True
    assert not {PREFIX + "bos_token_id", PREFIX + "eos_token_id"} & set(fields)
