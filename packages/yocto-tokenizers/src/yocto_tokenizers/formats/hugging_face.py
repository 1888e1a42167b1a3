"""Any tokenizer of a Hugging Face folder as one of ours: tokenizer.json, tokenizer_config.json."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self, SupportsIndex

from yocto_tokenizers.base import CONFIG_NAME, BaseTokenizer, StreamDecoder
from yocto_tokenizers.errors import TokenizerFileError, shown
from yocto_tokenizers.fast.checks import (
    Ids,
    checked_id,
    checked_ids,
    checked_unicode,
    file_at,
    read_bytes,
)
from yocto_tokenizers.formats.vocabulary import canonical_sha256, parse_json

#: How a piece of byte fallback spells its byte.
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


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
        config: the bytes of the `tokenizer_config.json` beside it, if there is one; it says which
            tokens begin and end a text. Without it their usual names are looked for.
        source: what messages call the file.

    Raises:
        TokenizerFileError: the bytes are not such a file.
    """

    kind: ClassVar[str] = "huggingface"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(
        self, content: bytes, config: bytes | None = None, *, source: str = "the tokenizer.json"
    ):
        self._content = bytes(content)
        self._config = config
        self._named = _named_tokens(config, source)
        self._document = parse_json(self._content, source)
        if not is_hugging_face(self._document):
            raise TokenizerFileError(
                f"{source} has no model and added_tokens; it is not a Hugging Face tokenizer"
            )
        self._document |= {"truncation": None, "padding": None}
        self._tokenizer = _open(self._content, source)
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

    def _special_id(self, role: str) -> int | None:
        key = f"{role}_token"
        return self._id_of(self._named[key]) if key in self._named else super()._special_id(role)

    @property
    def unk_id(self) -> int | None:
        unknown = self._document["model"].get("unk_token")
        return self._id_of(unknown) if unknown else self._special_id("unk")

    def _id_of(self, name: str | None) -> int | None:
        token_id: int | None = None if name is None else self._tokenizer.token_to_id(name)
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
        """sha256 (hex) of the file's content, without truncation and padding, and of the ends."""
        ends = [self.bos_id, self.eos_id]
        return canonical_sha256({"kind": self.kind, "document": self._document, "ends": ends})

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

    def folder_files(self, *, model_max_length: int | None = None) -> dict[str, bytes]:
        """The files that it was read from, byte for byte; a config is made if there was none."""
        files = super().folder_files(model_max_length=model_max_length)
        return files if self._config is None else {**files, CONFIG_NAME: self._config}

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the tokenizer's file; into a directory its config, too."""
        file = super().save(path)
        if self._config is not None and file != Path(path):
            file.with_name(CONFIG_NAME).write_bytes(self._config)
        return file

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a tokenizer.json, or the one in a directory, and the config beside it.

        Raises:
            TokenizerFileError: the file is missing, damaged, or of another kind.
        """
        file = file_at(path, cls.file_name)
        config = file.with_name(CONFIG_NAME)
        return cls(
            read_bytes(file), read_bytes(config) if config.exists() else None, source=shown(file)
        )

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        return cls(content, source=source)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._content, self._config))


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


def _open(content: bytes, source: str) -> Any:
    import tokenizers  # noqa: PLC0415 - slow to import

    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:
        raise TokenizerFileError(
            f"{source} is not a tokenizer.json that tokenizers {tokenizers.__version__} reads "
            f"({shown(str(error))}); restore the file or upgrade tokenizers"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Otherwise a user could forge a turn by typing <|assistant|>. Files do not store this switch.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _named_tokens(config: bytes | None, source: str) -> dict[str, str | None]:
    """What a config calls each token that has a role, `bos_token` and so on; None where none is.

    A name stands there as a string, or as the object of an added token.
    """
    document = {} if config is None else parse_json(config, f"the {CONFIG_NAME} beside {source}")
    named = {}
    for key, value in document.items():
        if key.endswith("_token") and not key.startswith("add_"):
            name = value.get("content") if isinstance(value, dict) else value
            named[key] = name if isinstance(name, str) else None
    return named


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
        if byte_fallback and (match := BYTE_PIECE.fullmatch(piece)):
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


def _gpt2_alphabet() -> str:
    """The printable character that stands for each byte in GPT-2's byte-level BPE, in order.

    Bytes that are printable in Latin-1 stand for themselves, the others are numbered from U+0100
    (https://github.com/openai/gpt-2, encoder.py).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


GPT2_ALPHABET = _gpt2_alphabet()
_GPT2_BYTES = {character: byte for byte, character in enumerate(GPT2_ALPHABET)}
