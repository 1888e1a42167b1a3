r"""Our vocabularies as a `tokenizer.json` of Hugging Face `tokenizers`. Writing needs no library.

BPE follows the recipe of the Gemma converter in Hugging Face `transformers`: spaces become U+2581,
there is no pre-tokenizer, and merges are recovered from the pieces, whose order is their rank.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from yocto_tokenizers.errors import TokenizerFileError
from yocto_tokenizers.sentence_piece_model import SPACE_MARK, ModelContent, PieceType
from yocto_tokenizers.special_tokens import UNK
from yocto_tokenizers.storage import write_bytes

_FILE_NAME = "tokenizer.json"
# The separators U+001C to U+001F are white space to Python and not to the other library's engine.
_WORD_PATTERN = r"[\s\x1c-\x1f]+|[\w\p{M}]+|[^\w\s\p{M}\x1c-\x1f]"


def write_sentence_piece(path: str | PathLike[str], model: ModelContent) -> Path:
    """Write a lossless BPE model; see `SentencePieceTokenizer.to_hf_json`."""
    if not (model.lossless and model.is_bpe):
        raise TokenizerFileError(
            "this model is not BPE with lossless options, so its ids cannot be promised; "
            "export a tokenizer made by SentencePieceTokenizer.train"
        )
    special = (PieceType.UNKNOWN, PieceType.CONTROL)
    added = [
        _added_token(i, piece.text, special=piece.type in special)
        for i, piece in enumerate(model.pieces)
        if piece.type in (*special, PieceType.USER_DEFINED)
    ]
    document = _document(
        added_tokens=added,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.ids_of(PieceType.UNKNOWN)[0]].text,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
            "merges": _merges(model),
        },
    )
    return write_bytes(path, _FILE_NAME, document)


def write_word_level(
    path: str | PathLike[str], itos: Sequence[str], special_tokens: Mapping[str, int]
) -> Path:
    """Write a vocabulary of words; see `WordLevelTokenizer.to_hf_json`."""
    document = _document(
        added_tokens=[_added_token(i, name, special=True) for name, i in special_tokens.items()],
        normalizer=None,
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": _WORD_PATTERN},
            "behavior": "Isolated",
            "invert": False,
        },
        decoder={"type": "Fuse"},
        model={
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(itos)},
            "unk_token": UNK,
        },
    )
    return write_bytes(path, _FILE_NAME, document)


def _merges(model: ModelContent) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in the order of the pieces: the rank of a merge."""
    ids = {model.pieces[i].text: i for i in model.ids_of(PieceType.NORMAL)}
    merges: list[tuple[str, str]] = []
    for text in ids:
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _document(**parts: Any) -> bytes:
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "post_processor": None,
        **parts,
    }
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
