"""Any tokenizer of a Hugging Face folder as one of ours: tokenizer.json, tokenizer_config.json."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from os.path import lexists
from pathlib import Path
from typing import Any, ClassVar, Self

from yocto_tokenizers.base import CONFIG_NAME, BaseTokenizer
from yocto_tokenizers.errors import TokenizerFileError, shown
from yocto_tokenizers.fast.checks import checked_unicode, file_at, read_bytes
from yocto_tokenizers.formats.sentence_piece_model import BYTE_PIECES
from yocto_tokenizers.formats.vocabulary import canonical_sha256, parse_json


def is_hugging_face(document: Mapping[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is Hugging Face's rather than ours."""
    return "model" in document and "added_tokens" in document


class HuggingFaceTokenizer(BaseTokenizer):
    """A tokenizer of the `tokenizers` library.

    Text is encoded without special tokens, and text that spells one stays text. Truncation and
    padding that the file asks for are off. `vocab_size` is the largest id plus one; ids between
    that have no token decode to nothing.

    An id stands for the same bytes wherever it appears. Where the library takes a space away from
    the beginning of a text, decoding keeps it, since a part of a text cannot know whether it was
    the first.

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
        self._pieces: dict[int, str] = {i: text for text, i in self._tokenizer.get_vocab().items()}
        if not self._pieces:
            raise TokenizerFileError(f"{source} has an empty vocabulary; it is not a tokenizer")
        added = self._tokenizer.get_added_tokens_decoder()
        super().__init__(
            vocab_size=max(self._pieces) + 1,
            special_tokens={token.content: i for i, token in added.items() if token.special},
        )

    def _special_id(self, role: str) -> int | None:
        key = f"{role}_token"
        return self._id_of(self._named[key]) if key in self._named else super()._special_id(role)

    @property
    def adds_bos(self) -> bool:
        # What the file's post-processor puts around an empty text is what it puts around any.
        return bool(self._tokenizer.encode("").ids[:1] == [self.bos_id])

    @property
    def unk_id(self) -> int | None:
        unknown = self._document["model"].get("unk_token")
        return self._id_of(unknown) if unknown else self._special_id("unk")

    def _id_of(self, name: str | None) -> int | None:
        token_id: int | None = None if name is None else self._tokenizer.token_to_id(name)
        return token_id

    def encode(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(checked_unicode(text), add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def fingerprint(self) -> str:
        """sha256 (hex) of the file's content, without truncation and padding, and of the ends."""
        ends = [self.bos_id, self.eos_id]
        return canonical_sha256({"kind": self.kind, "document": self._document, "ends": ends})

    @cached_property
    def _token_bytes(self) -> Sequence[bytes]:
        special = set(self.special_tokens.values())
        ids = sorted(self._pieces.keys() - special)
        to_bytes = _piece_decoder(self._document.get("decoder"))
        if to_bytes is None:
            found = dict(zip(ids, self._between(ids), strict=True))
        else:
            found = {i: to_bytes(self._pieces[i]) for i in ids}
        return [found.get(i, b"") for i in range(self.vocab_size)]

    def _between(self, ids: list[int]) -> list[bytes]:
        """What the library's decoder makes of each id between two others."""
        other = ids[:1]
        one, two = self._tokenizer.decode(other), self._tokenizer.decode(other * 2)
        texts = self._tokenizer.decode_batch([[*other, i, *other] for i in ids])
        return [text[len(one) : len(text) - len(two) + len(one)].encode() for text in texts]

    def with_special_tokens(self, names: Sequence[str]) -> "HuggingFaceTokenizer":
        """The same with more special tokens; their ids follow the others, or fill holes."""
        larger = _open(self._content, self.file_name)
        larger.add_special_tokens(list(names))
        return HuggingFaceTokenizer(larger.to_str().encode(), self._config)

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
        given = read_bytes(config) if lexists(config) else None
        return cls(read_bytes(file), given, source=shown(file))

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        return cls(content, source=source)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._content, self._config))


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
    """How each piece becomes bytes, for decoders that say so piece by piece; None for others."""
    match decoder:
        case {"type": "ByteLevel"}:
            return _byte_level_bytes
        case {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]}:
            pass
        # The last of them takes a space from the beginning of a text.
        case {"decoders": [*steps, {"type": "Fuse"}, {"type": "Strip", "content": " ", "stop": 0}]}:
            pass
        case _:
            return None
    replacements: list[tuple[str, str]] = []
    byte_fallback = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                replacements.append((old, new))
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case _:
                return None

    def to_bytes(piece: str) -> bytes:
        if byte_fallback and piece in BYTE_PIECES:
            return bytes([BYTE_PIECES[piece]])
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
