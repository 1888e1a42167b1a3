"""Sub-word level: BPE, trained and run by sentencepiece, with options that lose nothing."""

import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import ClassVar, Self

import sentencepiece

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.cuts import additive_parts
from yocto_tokenizers.errors import TokenizerFileError
from yocto_tokenizers.gguf_export import GgufValue, gguf_fields
from yocto_tokenizers.hugging_face_export import write_sentence_piece
from yocto_tokenizers.sentence_piece_model import SPACE_MARK, ModelContent, PieceType, read_model
from yocto_tokenizers.sentence_piece_training import Newline, train_model
from yocto_tokenizers.special_tokens import CHAT_TOKENS
from yocto_tokenizers.texts import checked_unicode

# One long call is slower than many short ones: the merge queue of sentencepiece outgrows the cache.
_PART_CHARACTERS = 1024
_TEXT_IN_FRONT_OF_SPACE = re.compile(r"\S ")
_NEWLINE_WITH_MORE = re.compile(r"\n.|.\n", re.DOTALL)


class SentencePieceTokenizer(BaseTokenizer):
    """A sentencepiece model: BPE pieces, and bytes where no piece fits.

    Models made by `train` give every text back exactly. Foreign models are read too and encode as
    sentencepiece does; where they put a space in front of a text, decoding keeps it (`lossless` is
    False), since a part of a text cannot know whether it was the first.

    Args:
        model: the bytes of a model file.
        source: what messages call them.

    Raises:
        TokenizerFileError: they are not a sentencepiece model.
    """

    kind: ClassVar[str] = "sentencepiece"
    file_name: ClassVar[str] = "tokenizer.model"

    def __init__(self, model: bytes, *, source: str = "the model"):
        self._model = bytes(model)
        self._content = read_model(self._model, source)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except (RuntimeError, ValueError) as error:
            raise TokenizerFileError(
                f"{source} is not a sentencepiece model (sentencepiece refuses it); "
                "restore the file or train the tokenizer again"
            ) from error
        super().__init__(
            vocab_size=len(self._content.pieces), special_tokens=_special_tokens(self._content)
        )
        # What additive_parts relies on, asked of the pieces themselves.
        self._may_be_cut = (
            self._content.lossless
            and self._content.is_bpe
            and not _any_piece(self._content, _TEXT_IN_FRONT_OF_SPACE)
        )
        self._may_be_cut_after_newline = not _any_piece(self._content, _NEWLINE_WITH_MORE)
        byte_ids = {self._content.pieces[i].text: i for i in self._content.ids_of(PieceType.BYTE)}
        self._space_mark_ids = [
            byte_ids.get(f"<0x{byte:02X}>", self.unk_id) for byte in SPACE_MARK.encode("utf-8")
        ]

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        *,
        vocab_size: int,
        special_tokens: Iterable[str] = CHAT_TOKENS,
        newline: Newline = "atomic",
        character_coverage: float = 0.9995,
        shrink: bool = False,
        sample_characters: int = 100_000_000,
    ) -> Self:
        r"""Learn a vocabulary. Equal texts and options give an equal model, to the byte.

        Args:
            texts: one text, or an iterable of texts, which is read once.
            vocab_size: ids in all: unknown, special tokens, newline, 256 bytes, pieces.
            special_tokens: names; `<s>` and `</s>` are in every model, named or not.
            newline: `"atomic"` keeps `"\n"` a token of its own, so that text may be cut after it
                and "\n" can end a reply; `"merged"` lets pieces hold newlines, about 6 % fewer
                tokens.
            character_coverage: share of the text's characters that become pieces, 0.98 to 1; the
                rest is encoded as bytes.
            shrink: take fewer ids instead of an error when the text yields no more.
            sample_characters: of longer texts an evenly spaced part of at most this many
                characters is learned from, which bounds memory.

        Raises:
            VocabularyError: the text is empty, or yields no such vocabulary; the message has the
                smallest or largest size that works.
            SpecialTokenError: a name is unfit or doubled.
            TextError: an item is no `str`, or holds a lone surrogate.
        """
        return cls(
            train_model(
                texts,
                vocab_size=vocab_size,
                special_tokens=special_tokens,
                newline=newline,
                character_coverage=character_coverage,
                shrink=shrink,
                sample_characters=sample_characters,
            )
        )

    @property
    def bos_id(self) -> int | None:
        """Id that begins a document, whatever its spelling in a foreign model."""
        return _id_or_none(self._processor.bos_id())

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document or a reply."""
        return _id_or_none(self._processor.eos_id())

    @property
    def unk_id(self) -> int:
        """Id of the unknown piece, which models with byte fallback never produce."""
        return self._content.ids_of(PieceType.UNKNOWN)[0]

    @property
    def newline(self) -> Newline:
        """Whether a newline is a token of its own, `"atomic"`, or part of pieces, `"merged"`."""
        symbols = self._content.ids_of(PieceType.USER_DEFINED)
        return "atomic" if any(self._content.pieces[i].text == "\n" for i in symbols) else "merged"

    @property
    def lossless(self) -> bool:
        """Whether every text survives encoding and decoding."""
        return self._content.lossless

    def encode(self, text: str) -> list[int]:
        """The ids of one text.

        Raises:
            TextError: the text is no `str`, or holds a lone surrogate.
        """
        checked = checked_unicode(text)
        if self._content.lossless and SPACE_MARK in checked:
            return self._encode_around_marks(checked)
        return self._encode_plain(checked)

    def fingerprint(self) -> str:
        """sha256 (hex) of pieces, scores, types and normaliser."""
        return self._content.fingerprint()

    def to_hf_json(self, path: str | PathLike[str]) -> Path:
        """Write a `tokenizer.json` that Hugging Face `tokenizers` reads, with the same ids.

        Two differences are its own: that library finds special names in text unless
        `encode_special_tokens` is set on the loaded object, and reads U+2581 as a space.

        Returns:
            The path written; `tokenizer.json` in it, if it is a directory.

        Raises:
            TokenizerFileError: a foreign model whose options that format cannot express.
            TokenizerWriteError: the system refused; an old file is whole.
        """
        return write_sentence_piece(path, self._content)

    def to_gguf_fields(
        self, *, vocab_size: int | None = None, add_bos_token: bool = False
    ) -> dict[str, GgufValue]:
        """The tokenizer's metadata fields of a GGUF file: key and value of each.

        Args:
            vocab_size: rows of the model's embedding, if those are more than the ids.
            add_bos_token: whether readers begin every text with `<s>`.

        Raises:
            VocabularyError: `vocab_size` is smaller than the number of ids.
        """
        return gguf_fields(
            self._content,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            vocab_size=self.vocab_size if vocab_size is None else vocab_size,
            add_bos_token=add_bos_token,
        )

    def _encode_plain(self, text: str) -> list[int]:
        encode = self._processor.encode
        if not self._may_be_cut or len(text) <= 2 * _PART_CHARACTERS:
            ids: list[int] = encode(text)
            return ids
        ids = []
        for part in additive_parts(
            text, target=_PART_CHARACTERS, after_newline=self._may_be_cut_after_newline
        ):
            ids += encode(part)
        return ids

    def _encode_around_marks(self, text: str) -> list[int]:
        """A real U+2581 would come back as a space, so it is spelled as its three bytes."""
        first, *rest = text.split(SPACE_MARK)
        ids = self._encode_plain(first)
        for part in rest:
            ids += self._space_mark_ids
            if part:
                ids += self._encode_plain(part)
        return ids

    def _make_byte_table(self) -> Sequence[bytes]:
        return [self._piece_bytes(i) for i in range(self.vocab_size)]

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._content.pieces[token_id]
        if piece.type == PieceType.BYTE:
            return bytes([int(piece.text[3:5], 16)])
        if piece.text in self._special_tokens:
            return b""
        if piece.type == PieceType.UNKNOWN:
            return self._content.unknown_surface.encode("utf-8")
        return piece.text.replace(SPACE_MARK, " ").encode("utf-8")

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return self._model

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        """Read what `to_bytes` gave; see `load`."""
        return cls(content, source=source)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._model,))


def _special_tokens(content: ModelContent) -> dict[str, int]:
    """Control pieces, and the unknown piece where bytes take its place."""
    ids = content.ids_of(PieceType.CONTROL)
    if content.byte_fallback:
        ids = content.ids_of(PieceType.UNKNOWN) + ids
    return {content.pieces[i].text: i for i in ids}


def _any_piece(content: ModelContent, pattern: re.Pattern[str]) -> bool:
    textual = (PieceType.NORMAL, PieceType.USER_DEFINED)
    return any(
        pattern.search(piece.text.replace(SPACE_MARK, " "))
        for piece in content.pieces
        if piece.type in textual
    )


def _id_or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
