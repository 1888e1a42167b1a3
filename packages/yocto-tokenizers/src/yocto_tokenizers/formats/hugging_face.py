r"""Hugging Face's `tokenizer.json`: any of them as a tokenizer of ours, and ours as one of them.

Reading needs the library `tokenizers` (the extra `hf`), writing needs no library. BPE is written by
the recipe of the Gemma converter in Hugging Face `transformers`: spaces become U+2581, there is no
pre-tokenizer, and merges are recovered from the pieces, whose order is their rank.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self, SupportsIndex

from yocto_tokenizers.base import UNK, BaseTokenizer, StreamDecoder
from yocto_tokenizers.errors import TokenizerFileError, shown
from yocto_tokenizers.fast.checks import Ids, checked_id, checked_ids, checked_unicode, file_at
from yocto_tokenizers.formats.sentence_piece_model import SPACE_MARK, ModelContent, PieceType
from yocto_tokenizers.formats.vocabulary import canonical_sha256, parse_json

# The separators U+001C to U+001F are white space to Python and not to the other library's engine.
_WORD_PATTERN = r"[\s\x1c-\x1f]+|[\w\p{M}]+|[^\w\s\p{M}\x1c-\x1f]"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def is_hugging_face(document: Mapping[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is Hugging Face's rather than ours."""
    return "model" in document and "added_tokens" in document


class HuggingFaceTokenizer(BaseTokenizer):
    """A tokenizer of the `tokenizers` library.

    Text is encoded without special tokens, and text that spells one stays text. Truncation and
    padding that the file asks for are off. `vocab_size` is the largest id plus one; ids between
    that have no token decode to nothing.

    Where the file's decoder is byte-level or byte fallback, bytes are exact. Any other decoder may
    treat a token by its neighbours: then `exact_bytes` is False, `decode_bytes` is the decoded text
    as UTF-8, and the stream decodes everything again at each id.

    Args:
        content: the bytes of the file.
        source: what messages call it.

    Raises:
        TokenizerFileError: the bytes are not such a file, or `tokenizers` is not installed.
    """

    kind: ClassVar[str] = "huggingface"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, content: bytes, *, source: str = "the tokenizer.json"):
        self._content = bytes(content)
        self._document = parse_json(self._content, source)
        if not is_hugging_face(self._document):
            raise TokenizerFileError(
                f"{source} has no model and added_tokens; it is not a Hugging Face tokenizer"
            )
        self._document |= {"truncation": None, "padding": None}
        self._tokenizer = _open(self._document, source)
        self._pieces: dict[int, str] = {
            token_id: text for text, token_id in self._tokenizer.get_vocab().items()
        }
        if not self._pieces:
            raise TokenizerFileError(f"{source} has an empty vocabulary; it is not a tokenizer")
        added = self._tokenizer.get_added_tokens_decoder()
        super().__init__(
            vocab_size=max(self._pieces) + 1,
            special_tokens={token.content: i for i, token in added.items() if token.special},
        )
        self._piece_bytes = _piece_decoder(self._document.get("decoder"))

    @property
    def unk_id(self) -> int | None:
        unknown = self._document["model"].get("unk_token")
        token_id: int | None = self._tokenizer.token_to_id(unknown) if unknown else None
        return token_id

    @property
    def exact_bytes(self) -> bool:
        """Whether every id stands for the same bytes wherever it appears."""
        return self._piece_bytes is not None

    def encode(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(checked_unicode(text), add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Ids) -> str:
        if self.exact_bytes:
            return super().decode(ids)
        return self._decode_whole(checked_ids(ids, self.vocab_size).tolist())

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes of the ids: exact if `exact_bytes`, else those of the decoded text."""
        if self.exact_bytes:
            return super().decode_bytes(ids)
        return self.decode(ids).encode("utf-8")

    def stream_decoder(self) -> StreamDecoder:
        if self.exact_bytes:
            return super().stream_decoder()
        return _SubtractingDecoder(self._decode_whole, self.vocab_size)

    def fingerprint(self) -> str:
        """sha256 (hex) of the file's content, without truncation and padding."""
        return canonical_sha256({"kind": self.kind, "document": self._document})

    def _decode_whole(self, ids: list[int]) -> str:
        # The library silently accepts ids without a token, as we do.
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @cached_property
    def _token_bytes(self) -> Sequence[bytes]:
        special = set(self.special_tokens.values())
        to_bytes = self._piece_bytes
        assert to_bytes is not None  # noqa: S101 - only exact decoders are asked for the table
        return [
            to_bytes(self._pieces[i]) if i in self._pieces and i not in special else b""
            for i in range(self.vocab_size)
        ]

    def to_bytes(self) -> bytes:
        return self._content

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        return cls(content, source=source)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._content,))


class _SubtractingDecoder(StreamDecoder):
    """Decodes all ids so far and returns what is new, holding back unfinished characters."""

    def __init__(self, decode: Callable[[list[int]], str], vocab_size: int):
        super().__init__([])
        self._decode = decode
        self._vocab_size = vocab_size
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token_id: SupportsIndex) -> str:
        self._ids.append(checked_id(token_id, self._vocab_size))
        # A replacement mark at the end may be the beginning of a character.
        return self._show(self._decode(self._ids).rstrip("\ufffd"))

    def finish(self) -> str:
        rest = self._show(self._decode(self._ids))
        self._ids, self._shown = [], ""
        return rest

    def _show(self, text: str) -> str:
        # Some decoders take back a space that they gave: wait until the text grows again.
        new = text[len(self._shown) :]
        if new:
            self._shown = text
        return new


def _open(document: dict[str, Any], source: str) -> Any:
    try:
        import tokenizers  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise TokenizerFileError(
            f"{source} is a Hugging Face tokenizer; install yocto-tokenizers[hf] to read it"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:
        raise TokenizerFileError(
            f"{source} is not a tokenizer.json that tokenizers {tokenizers.__version__} reads "
            f"({shown(str(error))}); restore the file or upgrade tokenizers"
        ) from error
    # Otherwise a user could forge a turn by typing <|assistant|>. Files do not store this switch.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _piece_decoder(decoder: object) -> Callable[[str], bytes] | None:
    """How each piece becomes bytes, for decoders that treat pieces one by one; None for others."""
    if not isinstance(decoder, dict):
        return None
    if decoder.get("type") == "ByteLevel":
        return _byte_level_bytes
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not steps or steps[-1].get("type") != "Fuse":
        return None
    replacements: list[tuple[str, str]] = []
    byte_fallback = False
    for step in steps[:-1]:
        pattern = step.get("pattern")
        if step.get("type") == "Replace" and isinstance(pattern, dict) and "String" in pattern:
            replacements.append((pattern["String"], step["content"]))
        elif step.get("type") == "ByteFallback":
            byte_fallback = True
        else:
            return None

    def to_bytes(piece: str) -> bytes:
        if byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        for old, new in replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8")

    return to_bytes


def _byte_level_bytes(piece: str) -> bytes:
    """Bytes of a piece in GPT-2's alphabet; a piece outside that alphabet is plain text."""
    try:
        return bytes(_GPT2_BYTES[character] for character in piece)
    except KeyError:
        return piece.encode("utf-8")


def _gpt2_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in GPT-2's byte-level BPE.

    Bytes that are printable in Latin-1 stand for themselves, the others are numbered from U+0100
    (https://github.com/openai/gpt-2, encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_GPT2_BYTES = _gpt2_alphabet()


def write_sentence_piece(path: str | PathLike[str], model: ModelContent) -> Path:
    """Write a lossless BPE model; see `SentencePieceTokenizer.to_hf_json`."""
    if not (model.lossless and model.is_bpe):
        raise TokenizerFileError(
            "this model is not BPE with lossless options, so its ids might differ; export a "
            "tokenizer made by SentencePieceTokenizer.train"
        )
    special = (PieceType.UNKNOWN, PieceType.CONTROL)
    added = [
        _added_token(i, piece.text, special=piece.type in special)
        for i, piece in enumerate(model.pieces)
        if piece.type in (*special, PieceType.USER_DEFINED)
    ]
    return _write(
        path,
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


def write_word_level(
    path: str | PathLike[str], itos: Sequence[str], special_tokens: Mapping[str, int]
) -> Path:
    """Write a vocabulary of words; see `WordLevelTokenizer.to_hf_json`."""
    return _write(
        path,
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


def _write(path: str | PathLike[str], **parts: Any) -> Path:
    defaults = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
    file = file_at(path, HuggingFaceTokenizer.file_name)
    document = json.dumps({**defaults, **parts}, ensure_ascii=False, indent=1)
    file.write_bytes(f"{document}\n".encode())
    return file
