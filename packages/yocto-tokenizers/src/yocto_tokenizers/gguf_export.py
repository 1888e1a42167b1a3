"""A sentencepiece vocabulary as the metadata of a GGUF file, for llama.cpp and its relatives.

Names and meanings follow https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Writing the
file, with the weights of the model, is for whoever exports the model.
"""

from typing import TypeAlias

from yocto_tokenizers.errors import VocabularyError
from yocto_tokenizers.sentence_piece_model import ModelContent, PieceType

GgufValue: TypeAlias = str | bool | int | list[str] | list[float] | list[int]

# A model may have more rows of weights than ids, for speed. No text may ever select such a row.
_PADDING_SCORE = -10000.0


def gguf_fields(
    model: ModelContent,
    *,
    bos_id: int | None,
    eos_id: int | None,
    vocab_size: int,
    add_bos_token: bool,
) -> dict[str, GgufValue]:
    """Key and value of each metadata field; see `SentencePieceTokenizer.to_gguf_fields`."""
    padding = vocab_size - len(model.pieces)
    if padding < 0:
        raise VocabularyError(
            f"vocab_size is {vocab_size}, fewer than the {len(model.pieces)} ids; pass that or more"
        )
    fields: dict[str, GgufValue] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.text for piece in model.pieces]
        + [f"[PAD{i}]" for i in range(padding)],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces]
        + [_PADDING_SCORE] * padding,
        "tokenizer.ggml.token_type": [int(piece.type) for piece in model.pieces]
        + [int(PieceType.UNUSED)] * padding,
        "tokenizer.ggml.unknown_token_id": model.ids_of(PieceType.UNKNOWN)[0],
        "tokenizer.ggml.add_bos_token": add_bos_token,
        "tokenizer.ggml.add_eos_token": False,
        # Readers put a space in front of every text unless this says no.
        "tokenizer.ggml.add_space_prefix": model.add_dummy_prefix,
    }
    if bos_id is not None:
        fields["tokenizer.ggml.bos_token_id"] = bos_id
    if eos_id is not None:
        fields["tokenizer.ggml.eos_token_id"] = eos_id
    return fields
