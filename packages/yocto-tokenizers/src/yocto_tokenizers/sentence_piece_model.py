"""A reader of sentencepiece's model file, without the protobuf library.

The file is one message of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Only the fields
that decide how text is encoded are read; the native library gives no access to most of them.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from yocto_tokenizers.errors import TokenizerFileError
from yocto_tokenizers.strict_json import canonical_sha256

#: What sentencepiece writes in place of a space.
SPACE_MARK: Final = "\u2581"


class PieceType(IntEnum):
    """Field `type` of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary; its position is its id."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, kw_only=True)
class ModelContent:
    """What a model file says.

    Attributes:
        pieces: the vocabulary, in id order.
        is_bpe: whether text is split by merges (the other types have no merge ranks).
        byte_fallback: whether a character that is no piece becomes its UTF-8 bytes.
        unknown_surface: what the unknown piece decodes to in a model without byte fallback.
        identity: whether the normaliser leaves every character as it is.
        add_dummy_prefix: whether a space is put in front of every text.
        remove_extra_whitespaces: whether runs of spaces are collapsed.
        escape_whitespaces: whether spaces become `SPACE_MARK` in pieces.
        normalizer: name and table of the normaliser, for the fingerprint.
    """

    pieces: tuple[Piece, ...]
    is_bpe: bool
    byte_fallback: bool
    unknown_surface: str
    identity: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    normalizer: str

    @property
    def lossless(self) -> bool:
        """Whether every text survives encoding and decoding."""
        return (
            self.byte_fallback
            and self.identity
            and self.escape_whitespaces
            and not self.add_dummy_prefix
            and not self.remove_extra_whitespaces
        )

    def ids_of(self, kind: PieceType) -> list[int]:
        """Ids of all pieces of a type, ascending."""
        return [i for i, piece in enumerate(self.pieces) if piece.type == kind]

    def fingerprint(self) -> str:
        """sha256 (hex) of what decides the ids: not of training options, which are stored too."""
        return canonical_sha256(
            {
                "kind": "sentencepiece",
                "pieces": [[text, score.hex(), int(kind)] for text, score, kind in self.pieces],
                "is_bpe": self.is_bpe,
                "byte_fallback": self.byte_fallback,
                "unknown_surface": self.unknown_surface,
                "add_dummy_prefix": self.add_dummy_prefix,
                "remove_extra_whitespaces": self.remove_extra_whitespaces,
                "escape_whitespaces": self.escape_whitespaces,
                "normalizer": self.normalizer,
            }
        )


def read_model(content: bytes, source: str) -> ModelContent:
    """Read the bytes of a model file.

    Raises:
        TokenizerFileError: they are not a sentencepiece model, or one that contradicts itself.
    """
    try:
        return _model(content)
    except (_DamagedError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise TokenizerFileError(
            f"{source} is not a sentencepiece model ({_reason(error)}); "
            "restore the file or train the tokenizer again"
        ) from error


_Fields: TypeAlias = dict[int, int | bytes]


class _DamagedError(Exception):
    """Raised while reading, translated where the file is known."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _DamagedError) else "its fields are damaged"


def _model(content: bytes) -> ModelContent:
    pieces: list[Piece] = []
    trainer: _Fields | None = None
    normalizer: _Fields | None = None
    for number, value in _fields(content):
        if number not in (1, 2, 3):
            continue
        message = dict(_fields(_as_bytes(value)))
        if number == 1:
            pieces.append(_piece(message))
        elif number == 2:
            trainer = message
        else:
            normalizer = message
    if not pieces:
        raise _DamagedError("it holds no pieces")
    if trainer is None or normalizer is None:
        raise _DamagedError("it is cut short")
    name = _as_bytes(normalizer.get(1, b"")).decode("utf-8")
    table = _as_bytes(normalizer.get(2, b""))
    model = ModelContent(
        pieces=tuple(pieces),
        is_bpe=_as_int(trainer.get(3, 1)) == 2,
        byte_fallback=bool(_as_int(trainer.get(35, 0))),
        unknown_surface=_as_bytes(trainer.get(44, b" \xe2\x81\x87 ")).decode("utf-8"),
        identity=not table,
        add_dummy_prefix=bool(_as_int(normalizer.get(3, 1))),
        remove_extra_whitespaces=bool(_as_int(normalizer.get(4, 1))),
        escape_whitespaces=bool(_as_int(normalizer.get(5, 1))),
        normalizer=f"{name}:{table.hex()}",
    )
    _check(model)
    return model


def _piece(fields: _Fields) -> Piece:
    text = _as_bytes(fields.get(1, b"")).decode("utf-8")
    score = struct.unpack("<f", _as_bytes(fields.get(2, b"\0\0\0\0")))[0]
    if not text:
        raise _DamagedError("it holds an empty piece")
    if not math.isfinite(score):
        raise _DamagedError("it holds a score that is no number")
    return Piece(text, score, PieceType(_as_int(fields.get(3, 1))))


def _check(model: ModelContent) -> None:
    if len({piece.text for piece in model.pieces}) < len(model.pieces):
        raise _DamagedError("it holds a piece twice")
    if len(model.ids_of(PieceType.UNKNOWN)) != 1:
        raise _DamagedError("it does not have exactly one unknown piece")
    byte_pieces = [model.pieces[i].text for i in model.ids_of(PieceType.BYTE)]
    if model.byte_fallback and set(byte_pieces) != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise _DamagedError("it lacks some of the 256 byte pieces")


def _as_bytes(value: int | bytes) -> bytes:
    # bytes(n) of a number would allocate n zeros.
    if not isinstance(value, bytes):
        raise _DamagedError("its fields are damaged")
    return value


def _as_int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise _DamagedError("its fields are damaged")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: varints as int, everything else as bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise _DamagedError("its fields are damaged")
        if position + length > len(message):
            raise _DamagedError("it is cut short")
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first; the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _DamagedError("it is cut short")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise _DamagedError("its fields are damaged")
