r"""A tokenizer in a GGUF file: its fields `tokenizer.ggml.*`, made of a tokenizer and read back.

Three of llama.cpp's kinds are written. What each means is said by the code that reads them,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp:

- `llama`: pieces of sentencepiece, merged by score.
- `gpt2`: byte-level BPE with merges, of which llama.cpp knows the pre-tokenizers by name. It takes
  characters, too: the bytes of each merge, and nothing else. Of a text, others are left out.
- `rwkv`: always the longest token that fits, which splits known words as ours does. Unknown ones
  become shorter words and bytes, in tokens past those of the tokenizer.

Texts encode to our ids, but for such words, and for U+2581, a space to `llama`.
"""

import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from yocto_tokenizers.base import EOS, UNK, BaseTokenizer, config_bytes
from yocto_tokenizers.char import CharTokenizer
from yocto_tokenizers.errors import TokenizerError, TokenizerFileError, shown
from yocto_tokenizers.formats.hugging_face import GPT2_ALPHABET, HuggingFaceTokenizer
from yocto_tokenizers.formats.loading import class_for
from yocto_tokenizers.formats.sentence_piece_model import (
    BYTE_PIECES,
    SPACE_MARK,
    ModelContent,
    PieceType,
    merges_of,
)
from yocto_tokenizers.formats.tokenizer_json import added_token, document, split
from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
from yocto_tokenizers.word_level import WordLevelTokenizer

_GGML = "tokenizer.ggml."
_OWN = "yocto.tokenizer."
_ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id",
    "unk": "unknown_token_id", "pad": "padding_token_id",
}  # fmt: skip
_SOURCE = "the tokenizer in the GGUF file"

_LLAMA = {"model": "llama", "pre": "default"}

#: Text and type of each token, in id order.
_Tokens: TypeAlias = list[tuple[str, PieceType]]
#: What a kind adds to the tokens: `model`, `scores`, `merges` and so on.
_Fields: TypeAlias = dict[str, Any]


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {**step, "use_regex": use_regex}


_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Pre-tokenizers by llama.cpp's names, as the steps that the models' own tokenizer.json have.
_PRE = {
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    "qwen2": [split(_PATTERN % ""), _byte_level(use_regex=False)],
    "llama-bpe": [split(_PATTERN % "{1,3}"), _byte_level(use_regex=False)],
}


def gguf_fields(tokenizer: BaseTokenizer) -> dict[str, Any]:
    """The fields of a GGUF file by which llama.cpp encodes and decodes as this tokenizer does.

    Returns:
        Key and value: str, int, bool, or a list of str, int or float. There may be more
        `tokenizer.ggml.tokens` than `vocab_size`: such tokens have no row in the model. A tokenizer
        of ours is also there as a whole, so that `tokenizer_from_gguf` gives the same one back.

    Raises:
        TokenizerError: llama.cpp has no kind that encodes as this tokenizer does.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokens, fields = _foreign(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        tokens, fields = _pieces(tokenizer)
    elif isinstance(tokenizer, CharTokenizer):
        tokens, fields = _characters(tokenizer)
    elif isinstance(tokenizer, WordLevelTokenizer):
        tokens, fields = _words(tokenizer)
    else:
        raise TokenizerError(
            f"a tokenizer of kind {shown(tokenizer.kind)} cannot be in a GGUF file"
        )
    texts, kinds = [text for text, _ in tokens], [int(kind) for _, kind in tokens]
    # Where no end is given, llama.cpp takes one of its own, which may be any token here.
    if (eos_id := tokenizer.eos_id) is None:
        if EOS not in texts:
            texts.append(EOS)
            kinds.append(int(PieceType.CONTROL))
        eos_id = texts.index(EOS)
    if len(set(texts)) < len(texts):
        twice, _ = Counter(texts).most_common(1)[0]
        raise TokenizerError(f"token {shown(twice)} would be in the GGUF file twice; rename it")
    if "scores" in fields:
        fields["scores"] += [0.0] * (len(texts) - len(fields["scores"]))
    ggml = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_space_prefix": False,
        **fields,
        "tokens": texts,
        "token_type": kinds,
        "bos_token_id": eos_id if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos_token_id": eos_id,
    }
    if tokenizer.unk_id is not None:
        ggml["unknown_token_id"] = tokenizer.unk_id
    found = {_GGML + key: value for key, value in ggml.items()}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return found
    content = b64encode(tokenizer.to_bytes()).decode("ascii")
    return {**found, f"{_OWN}file": tokenizer.file_name, f"{_OWN}content": content}


def _characters(tokenizer: CharTokenizer) -> tuple[_Tokens, _Fields]:
    """Merges that make each character of its bytes; no merge begins in the middle of one."""
    special = tokenizer.special_tokens
    tokens = [
        (text, PieceType.CONTROL) if text in special else (_in_gpt2(text), PieceType.NORMAL)
        for text in tokenizer.itos
    ]
    # There must be a merge; those of a character that the vocabulary lacks do no harm.
    pieces = [*(text for text, kind in tokens if kind == PieceType.NORMAL), _in_gpt2("\ufffd")]
    merges = [f"{piece[:cut]} {piece[cut]}" for piece in pieces for cut in range(1, len(piece))]
    # Of the pre-tokenizers, one with which decoding does not take spaces away from punctuation.
    return tokens, {"model": "gpt2", "pre": "smollm", "merges": list(dict.fromkeys(merges))}


def _in_gpt2(text: str) -> str:
    return text.encode().decode("latin-1").translate(GPT2_ALPHABET)


def _words(tokenizer: WordLevelTokenizer) -> tuple[_Tokens, _Fields]:
    """Tokens as strings with escapes, and every byte: without one, llama.cpp would never end."""
    names = {**dict.fromkeys(tokenizer.special_tokens, PieceType.CONTROL), UNK: PieceType.UNKNOWN}
    tokens = [
        (text, names[text]) if text in names else (_escaped(text), PieceType.NORMAL)
        for text in tokenizer.itos
    ]
    bytes_left = [byte for byte in range(256) if byte > 127 or chr(byte) not in tokenizer.stoi]
    tokens += [(_hexadecimal(bytes([byte])), PieceType.BYTE) for byte in bytes_left]
    # A text that spells a name would match it. The last token of equal bytes wins, so another
    # spelling of the name takes its place, and no text forges a turn.
    tokens += [(_hexadecimal(name.encode()), PieceType.UNUSED) for name in names]
    return tokens, {"model": "rwkv"}


def _escaped(text: str) -> str:
    return "".join(c if c >= " " and c != "\\" else _hexadecimal(c.encode()) for c in text)


def _hexadecimal(content: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in content)


def _pieces(tokenizer: SentencePieceTokenizer) -> tuple[_Tokens, _Fields]:
    model = ModelContent(tokenizer.to_bytes(), "the model")
    if not (model.is_bpe and model.byte_fallback and not model.normalizes):
        raise TokenizerError(
            "this sentencepiece model cannot be in a GGUF file: llama.cpp encodes BPE with byte "
            "fallback and without a normalizer as it does, and no other"
        )
    tokens = [(piece.piece, PieceType(piece.type)) for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    return tokens, {**_LLAMA, "scores": scores, "add_space_prefix": model.adds_space}


def _foreign(tokenizer: HuggingFaceTokenizer) -> tuple[_Tokens, _Fields]:
    """A BPE of Hugging Face, if llama.cpp has one that splits and merges in the same way."""
    parts = json.loads(tokenizer.to_bytes())
    model, added = parts["model"], {token["id"]: token for token in parts["added_tokens"]}
    if "merges" not in model:
        raise _no_such(f"its model is {shown(model.get('type'))}")
    texts = {token_id: text for text, token_id in model["vocab"].items()}
    byte_fallback = model.get("byte_fallback", False)

    def token(i: int) -> tuple[str, PieceType]:
        text = added[i]["content"] if i in added else texts.get(i)
        if text is None:
            return f"[PAD{i}]", PieceType.UNUSED
        if byte_fallback and i == tokenizer.unk_id:
            return text, PieceType.UNKNOWN
        if i in added:
            return text, PieceType.CONTROL if added[i]["special"] else PieceType.USER_DEFINED
        is_byte = byte_fallback and text in BYTE_PIECES
        return text, PieceType.BYTE if is_byte else PieceType.NORMAL

    tokens = [token(i) for i in range(tokenizer.vocab_size)]
    merges = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
    steps = _steps(parts.get("normalizer")), _steps(parts.get("pre_tokenizer"))
    if byte_fallback:
        if tokenizer.unk_id is None:
            raise _no_such("it has bytes but no unknown token")
        tokens, fields = _by_score(tokens, merges, [*steps[0], *steps[1]])
    else:
        fields = {"model": "gpt2", "pre": _pre(*steps), "merges": [" ".join(m) for m in merges]}
    # What the library puts around an empty text is what it puts around any.
    around = tokenizer._tokenizer.encode("").ids  # noqa: SLF001
    fields["add_bos_token"] = around[:1] == [tokenizer.bos_id]
    fields["add_eos_token"] = around[fields["add_bos_token"] :] == [tokenizer.eos_id]
    return tokens, fields


def _no_such(what: str) -> TokenizerError:
    return TokenizerError(
        f"this tokenizer.json cannot be in a GGUF file: {what}, which llama.cpp does not know"
    )


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, without options that do not change ids."""
    if part is None:
        return []
    steps = part.get("normalizers", part.get("pretokenizers", [part]))
    usual, same = {"use_regex": True}, {"trim_offsets": True}
    return [{**usual, **s, **same} if s["type"] == "ByteLevel" else s for s in steps]


def _pre(normalizer: list[dict[str, Any]], pre_tokenizer: list[dict[str, Any]]) -> str:
    """llama.cpp's name of a pre-tokenizer. It does not compose characters where Qwen's does."""
    if normalizer not in ([], [{"type": "NFC"}]):
        raise _no_such(f"it has a normalizer of type {shown(normalizer[0]['type'])}")
    for name, steps in _PRE.items():
        if steps == pre_tokenizer:
            return name
    raise _no_such(f"it splits text by {shown(json.dumps(pre_tokenizer), 120)}")


def _by_score(
    tokens: _Tokens, merges: list[tuple[str, ...]], steps: list[dict[str, Any]]
) -> tuple[_Tokens, _Fields]:
    """Merges as scores of what they make, if every way to make it is a merge of the same rank."""
    adds_space = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "\u2581"}:
                adds_space = True
            case {"type": "Metaspace", "replacement": "\u2581", "split": False}:
                adds_space = step["prepend_scheme"] != "never"
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                pass
            case _:
                raise _no_such(f"it changes text by {shown(json.dumps(step), 120)}")
    made = [text for text, _ in groupby(map("".join, merges))]
    rank = {text: -float(i) for i, text in enumerate(made)}
    possible = merges_of([text for text, kind in tokens if kind == PieceType.NORMAL])
    if set(possible) != set(merges) or len(rank) < len(made):
        raise _no_such("its merges are in an order that is not one of the tokens")
    scores = [rank.get(text, 0.0) if kind == PieceType.NORMAL else 0.0 for text, kind in tokens]
    spelled = [(text.replace(" ", SPACE_MARK), kind) for text, kind in tokens]
    return spelled, {**_LLAMA, "scores": scores, "add_space_prefix": adds_space}


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> BaseTokenizer:
    """The tokenizer of a GGUF file, from the file's fields.

    One of ours that `gguf_fields` wrote is the same again. Of others, the kind `llama` becomes a
    `SentencePieceTokenizer` and `gpt2` a `HuggingFaceTokenizer`, with the ids of llama.cpp.

    Args:
        fields: key and value, as in `gguf_fields`; others are passed over.

    Raises:
        TokenizerFileError: there is no tokenizer, or one of a kind that is not read, or its fields
            contradict each other.
    """
    if f"{_OWN}content" in fields:
        try:
            content = b64decode(fields[f"{_OWN}content"], validate=True)
        except (TypeError, ValueError) as error:
            raise _damaged(f"under {_OWN}content that is not base64") from error
        name = Path(str(fields.get(f"{_OWN}file")))
        return class_for(name, content, source=_SOURCE).from_bytes(content, source=_SOURCE)
    ggml = {key.removeprefix(_GGML): fields[key] for key in fields if key.startswith(_GGML)}
    if (model := ggml.get("model")) not in ("llama", "gpt2"):
        raise _damaged(f"of kind {shown(model)}, expected one of llama, gpt2")
    texts = _listed(ggml, "tokens", str, None)
    kinds = _listed(ggml, "token_type", int, [1] * len(texts))
    if not texts or len(kinds) != len(texts) or not set(kinds) <= set(PieceType):
        raise _damaged("whose tokens and their types do not belong together")
    for key in _ROLES.values():
        token_id = ggml.get(key)
        # llama.cpp, too, does without an id that is out of range.
        if type(token_id) is not int or not 0 <= token_id < len(texts):
            ggml.pop(key, None)
    tokens = list(zip(texts, map(PieceType, kinds), strict=True))
    return (_sentence_piece if model == "llama" else _byte_level_bpe)(ggml, tokens)


def _damaged(what: str) -> TokenizerFileError:
    return TokenizerFileError(
        f"the GGUF file has a tokenizer {what}; convert the model again, or name a tokenizer"
    )


def _listed(ggml: _Fields, key: str, kind: type, otherwise: list[Any] | None) -> list[Any]:
    value = ggml.get(key, otherwise)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise _damaged(f"without a list of {kind.__name__} under {_GGML}{key}")
    return value


def _sentence_piece(ggml: _Fields, tokens: _Tokens) -> BaseTokenizer:
    """The model file of sentencepiece that says the same."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # noqa: PLC0415 - slow

    scores = _listed(ggml, "scores", float, [0.0] * len(tokens))
    kinds = [kind for _, kind in tokens]
    if len(scores) != len(tokens):
        raise _damaged("whose tokens and scores do not belong together")
    proto = ModelProto()
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.byte_fallback = PieceType.BYTE in kinds
    # llama.cpp's own ids, where the file has none.
    for role, default in (("bos", 1), ("eos", 2), ("unk", 0)):
        token_id = ggml.get(_ROLES[role], min(default, len(tokens) - 1))
        setattr(trainer, f"{role}_piece", tokens[token_id][0])
        setattr(trainer, f"{role}_id", token_id)
    for i, (text, kind) in enumerate(tokens):
        # Only one may be unknown to sentencepiece.
        is_second = kind == PieceType.UNKNOWN and i != kinds.index(kind)
        proto.pieces.add(
            piece=text or f"[EMPTY_{i}]",
            score=scores[i],
            type=int(PieceType.UNUSED if is_second or not text else kind),
        )
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(ggml.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return SentencePieceTokenizer(proto.SerializeToString(), source=_SOURCE)


def _byte_level_bpe(ggml: _Fields, tokens: _Tokens) -> BaseTokenizer:
    """The tokenizer.json and the tokenizer_config.json that say the same."""
    pre = ggml.get("pre")
    if not isinstance(pre, str) or pre not in _PRE:
        raise _damaged(f"that splits text by {shown(pre)}, expected one of {', '.join(_PRE)}")
    ids = {f"{role}_token": ggml.get(key) for role, key in _ROLES.items()}
    names = {key: None if i is None else tokens[i][0] for key, i in ids.items()}
    bos = names["bos_token"] if ggml.get("add_bos_token") else None
    content = document(
        [
            added_token(i, text, special=kind == PieceType.CONTROL)
            for i, (text, kind) in enumerate(tokens)
            if kind in (PieceType.CONTROL, PieceType.USER_DEFINED)
        ],
        indent=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": _PRE[pre]},
        post_processor=None if bos is None else _in_front(bos, ids["bos_token"]),
        decoder=_byte_level(use_regex=True),
        model={
            "type": "BPE",
            "ignore_merges": pre == "llama-bpe",
            "vocab": {text: i for i, (text, _) in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in _listed(ggml, "merges", str, None)],
        },
    )
    return HuggingFaceTokenizer(content, config_bytes(names), source=_SOURCE)


def _in_front(name: str, token_id: int | None) -> dict[str, Any]:
    """A post-processor that puts one token in front of every text."""
    token = {"SpecialToken": {"id": name, "type_id": 0}}
    text, other = ({"Sequence": {"id": sequence, "type_id": 0}} for sequence in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, token, other],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }
