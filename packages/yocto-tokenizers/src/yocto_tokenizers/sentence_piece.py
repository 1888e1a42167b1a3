"""Sub-word level: BPE, trained and run by sentencepiece, with options that lose nothing."""

import io
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import ClassVar, Self

import sentencepiece

from yocto_tokenizers.base import CHAT_TOKENS, BaseTokenizer
from yocto_tokenizers.fast.characters import additive_parts
from yocto_tokenizers.fast.checks import checked_unicode
from yocto_tokenizers.formats.sentence_piece_model import (
    BYTE_PIECES,
    SPACE_MARK,
    ModelContent,
    Newline,
    PieceType,
    check_options,
    control_symbols,
    damaged,
    even_sample,
    sentences,
    spaced,
    translated,
)

# One long call is slower than many short ones: the merge queue of sentencepiece outgrows the cache.
_PART_CHARACTERS = 1024
_TEXT_IN_FRONT_OF_SPACE = re.compile(r"\S ")
_NEWLINE_WITH_MORE = re.compile(r"\n.|.\n", re.DOTALL)


class SentencePieceTokenizer(BaseTokenizer):
    """A sentencepiece model: BPE pieces, and bytes where no piece fits.

    Models made by `train` give every text back exactly. Other models are read too and encode as
    sentencepiece does; where they put a space in front of a text, decoding keeps it (`lossless` is
    False), since a part of a text cannot know whether it was the first.

    Args:
        model: the bytes of a model file.
        source: what messages call them.

    Attributes:
        lossless: whether every text survives encoding and decoding.

    Raises:
        TokenizerFileError: they are not a sentencepiece model.
    """

    kind: ClassVar[str] = "sentencepiece"
    file_name: ClassVar[str] = "tokenizer.model"

    def __init__(self, model: bytes, *, source: str = "the model"):
        self._model = bytes(model)
        self._content = ModelContent(self._model, source)
        self.lossless = self._content.lossless
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (RuntimeError, ValueError) as error:
            raise damaged(source, "sentencepiece refuses it") from error
        # Control pieces, and the unknown piece where bytes take its place.
        ids = self._content.ids_of(PieceType.CONTROL)
        if self._content.byte_fallback:
            ids = [self.unk_id, *ids]
        super().__init__(
            vocab_size=len(self._content.pieces),
            special_tokens={self._content.pieces[i].piece: i for i in ids},
        )
        # What additive_parts relies on, checked on the pieces themselves.
        self._may_be_cut = (
            self.lossless
            and self._content.is_bpe
            and not self._content.any_piece_has(_TEXT_IN_FRONT_OF_SPACE)
        )
        self._may_be_cut_after_newline = not self._content.any_piece_has(_NEWLINE_WITH_MORE)
        self._space_mark_ids: list[int] = [
            self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode("utf-8")
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
            shrink: accept fewer ids, instead of raising, if the text does not yield as many.
            sample_characters: of longer texts, learn from an evenly spaced sample of at most this
                many characters, which bounds memory.

        Raises:
            TokenizerError: the text is empty, a name or a text is not valid, or `vocab_size` does
                not suit the text: then the message has the smallest or largest that does.
        """
        check_options(vocab_size, newline, character_coverage, sample_characters)
        symbols = control_symbols(special_tokens)
        # Not read by the native trainer, which would turn every exception, Ctrl-C included, into a
        # RuntimeError.
        sample = even_sample(sentences(texts, newline), sample_characters)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sample),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=not shrink,
                control_symbols=symbols,
                user_defined_symbols=["\n"] if newline == "atomic" else [],
                # What is too rare for a piece is written as its bytes, so nothing is unknown ...
                character_coverage=character_coverage,
                byte_fallback=True,
                # ... and nothing is tidied up, so that decoding gives the very same text.
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                num_threads=1,  # stored in the model, so another number gives other bytes
                max_sentence_length=1 << 20,  # bytes; longer ones are silently skipped
                minloglevel=2,  # errors only; they arrive as exceptions
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise translated(error, vocab_size, character_coverage) from error
        return cls(model.getvalue())

    # The model says which pieces begin and end a text, whatever their spelling; -1 if none does.
    @property
    def bos_id(self) -> int | None:
        return token_id if (token_id := self._processor.bos_id()) >= 0 else None

    @property
    def eos_id(self) -> int | None:
        return token_id if (token_id := self._processor.eos_id()) >= 0 else None

    @cached_property
    def unk_id(self) -> int:
        """Id of the unknown piece, which models with byte fallback never produce."""
        return self._content.ids_of(PieceType.UNKNOWN)[0]

    def encode(self, text: str) -> list[int]:
        checked = checked_unicode(text)
        if not (self.lossless and SPACE_MARK in checked):
            return self._encode_plain(checked)
        # A real U+2581 would come back as a space, so it is spelled as its three bytes.
        first, *rest = checked.split(SPACE_MARK)
        ids = self._encode_plain(first)
        for part in rest:
            ids += [*self._space_mark_ids, *self._encode_plain(part)]
        return ids

    def fingerprint(self) -> str:
        """sha256 (hex) of pieces, scores, types and normaliser."""
        return self._content.fingerprint()

    def folder_files(self, *, model_max_length: int | None = None) -> dict[str, bytes]:
        """As in the base; a model that is not lossless has no `tokenizer.json`."""
        files = super().folder_files(model_max_length=model_max_length)
        document = self._content.tokenizer_json()
        return files if document is None else {**files, "tokenizer.json": document}

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

    @cached_property
    def _token_bytes(self) -> Sequence[bytes]:
        return [self._piece_bytes(i) for i in range(self.vocab_size)]

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._content.pieces[token_id]
        if piece.type == PieceType.BYTE:
            return bytes([BYTE_PIECES[piece.piece]])
        if piece.piece in self.special_tokens:
            return b""
        if piece.type == PieceType.UNKNOWN:
            return self._content.unknown_surface.encode("utf-8")
        return spaced(piece.piece).encode("utf-8")

    def to_bytes(self) -> bytes:
        return self._model

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        return cls(content, source=source)
