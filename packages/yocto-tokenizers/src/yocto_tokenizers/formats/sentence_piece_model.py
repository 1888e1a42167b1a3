"""The model file of sentencepiece: what it says, and how one is made by training.

The file is one message of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. The processor
gives no access to most of it, so it is read by the class that sentencepiece generates for it.
"""

import math
import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, Final, Literal, TypeAlias

from yocto_tokenizers.base import BOS, EOS, UNK
from yocto_tokenizers.errors import TokenizerError, TokenizerFileError, shown
from yocto_tokenizers.fast.characters import additive_parts
from yocto_tokenizers.fast.checks import checked_names, each_text
from yocto_tokenizers.formats.tokenizer_json import added_token, document
from yocto_tokenizers.formats.vocabulary import canonical_sha256, refuse_pointer

#: What sentencepiece writes in place of a space.
SPACE_MARK: Final = "\u2581"

#: How byte fallback spells each byte.
BYTE_PIECES: Final = {f"<0x{byte:02X}>": byte for byte in range(256)}

#: Whether a newline is a token of its own, or part of pieces.
Newline: TypeAlias = Literal["atomic", "merged"]

_PART_CHARACTERS = 4096
_LONGEST_PART_CHARACTERS = 1 << 16
# The trainer takes U+2581 for a space, and skips every sentence that holds U+2585, its own mark.
# Neither has to be learned: both are encoded as bytes.
_RESERVED = re.compile(f"[{SPACE_MARK}\u2585]")


def spaced(piece: str) -> str:
    """The text of a piece, with the spaces that it stands for."""
    return piece.replace(SPACE_MARK, " ")


class PieceType(IntEnum):
    """Field `type` of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelContent:
    """What a model file says about how text is encoded.

    Args:
        content: the bytes of the file.
        source: what messages call it.

    Attributes:
        pieces: the vocabulary, in id order; each has a `piece`, which is its text, a `score` and a
            `type`.
        is_bpe: whether text is split by merges (the other types have no merge ranks).
        byte_fallback: whether a character that is not a piece becomes its UTF-8 bytes.
        unknown_surface: what the unknown piece decodes to in a model without byte fallback.
        adds_space: whether a space is put in front of every text.
        normalizes: whether a text is otherwise changed before it is split.
        lossless: whether every text survives encoding and decoding.

    Raises:
        TokenizerFileError: it is not a sentencepiece model, or one that contradicts itself.
    """

    def __init__(self, content: bytes, source: str):
        model = _parsed(content, source)
        trainer, self._normalizer = model.trainer_spec, model.normalizer_spec
        self.pieces = model.pieces
        self.is_bpe: bool = trainer.model_type == trainer.BPE
        self.byte_fallback: bool = trainer.byte_fallback
        self.unknown_surface: str = trainer.unk_surface
        self.adds_space: bool = self._normalizer.add_dummy_prefix
        self.normalizes: bool = (
            bool(self._normalizer.precompiled_charsmap)
            or not self._normalizer.escape_whitespaces
            or self._normalizer.remove_extra_whitespaces
        )
        self.lossless = self.byte_fallback and not self.normalizes and not self.adds_space
        if problem := self._problem(model):
            raise damaged(source, problem)

    def ids_of(self, kind: PieceType) -> list[int]:
        """Ids of all pieces of a type, ascending."""
        return [i for i, piece in enumerate(self.pieces) if piece.type == kind]

    def any_piece_has(self, pattern: re.Pattern[str]) -> bool:
        """Whether the pattern is found in the text that some piece stands for."""
        return any(
            pattern.search(spaced(piece.piece))
            for piece in self.pieces
            if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)
        )

    def fingerprint(self) -> str:
        """sha256 (hex) of what decides the ids: not of training options, which are stored too."""
        normalizer = self._normalizer
        return canonical_sha256(
            {
                "kind": "sentencepiece",
                "pieces": [[p.piece, p.score.hex(), p.type] for p in self.pieces],
                "is_bpe": self.is_bpe,
                "byte_fallback": self.byte_fallback,
                "unknown_surface": self.unknown_surface,
                "add_dummy_prefix": normalizer.add_dummy_prefix,
                "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
                "escape_whitespaces": normalizer.escape_whitespaces,
                "normalizer": f"{normalizer.name}:{normalizer.precompiled_charsmap.hex()}",
            }
        )

    def tokenizer_json(self) -> bytes | None:
        """The model in Hugging Face's layout; None if that cannot express it exactly."""
        named = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE)
        texts = [p.piece if p.type in named else spaced(p.piece) for p in self.pieces]
        vocabulary = {text: i for i, text in enumerate(texts)}
        if not (self.lossless and self.is_bpe and len(vocabulary) == len(texts)):
            return None
        added = [
            added_token(i, text, special=self.pieces[i].type != PieceType.USER_DEFINED)
            for i, text in enumerate(texts)
            if self.pieces[i].type in (*named[:2], PieceType.USER_DEFINED)
        ]
        return document(
            added,
            pre_tokenizer=None,
            decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            model={
                "type": "BPE",
                "unk_token": texts[self.ids_of(PieceType.UNKNOWN)[0]],
                "byte_fallback": True,
                "vocab": vocabulary,
                "merges": merges_of([texts[i] for i in self.ids_of(PieceType.NORMAL)]),
            },
        )

    def _problem(self, model: Any) -> str | None:
        """What keeps this from being a whole model: a file cut between two fields still parses."""
        pieces = [p.piece for p in self.pieces]
        texts = [self.unknown_surface, self._normalizer.name, *pieces]
        byte_pieces = {pieces[i] for i in self.ids_of(PieceType.BYTE)}
        all_bytes = set(BYTE_PIECES) if self.byte_fallback else set()
        problems = {
            "it holds no pieces": not self.pieces,
            "it is cut short": not all(map(model.HasField, ("trainer_spec", "normalizer_spec"))),
            # The reader gives such text as bytes.
            "it holds text that is not UTF-8": any(isinstance(text, bytes) for text in texts),
            "it holds an empty piece": not all(pieces),
            "it holds a score that is not a number": not all(
                math.isfinite(p.score) for p in self.pieces
            ),
            "it holds a piece twice": len(set(pieces)) < len(pieces),
            "it does not have exactly one unknown piece": len(self.ids_of(PieceType.UNKNOWN)) != 1,
            "it lacks some of the 256 byte pieces": byte_pieces != all_bytes,
        }
        return next((problem for problem, is_so in problems.items() if is_so), None)


def merges_of(pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in the order of the pieces: the rank of a merge."""
    ids = {text: i for i, text in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for text in ids:
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _parsed(content: bytes, source: str) -> Any:
    """The message of a model file."""
    # Imported late, since it takes longer than everything else here together.
    from google.protobuf.message import (  # type: ignore[import-untyped]  # noqa: PLC0415
        DecodeError,
    )
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # noqa: PLC0415

    refuse_pointer(content, source)
    try:
        return ModelProto.FromString(content)
    except (DecodeError, ValueError) as error:
        raise damaged(source, "its fields are damaged, or it is cut short") from error


def damaged(source: str, problem: str) -> TokenizerFileError:
    """The error for a file that is not a model, to raise."""
    return TokenizerFileError(
        f"{source} is not a sentencepiece model ({problem}); "
        "restore the file or train the tokenizer again"
    )


def even_sample(parts: Iterable[str], limit_characters: int) -> list[str]:
    """All parts if they fit the limit, else every n-th of them, n a power of two.

    Memory stays within the limit however long the text is, the sample covers it evenly, and equal
    texts give equal samples: whenever the limit is passed, every other part is dropped.
    """
    kept: list[str] = []
    characters = 0
    stride = 1
    for index, part in enumerate(parts):
        if index % stride:
            continue
        kept.append(part)
        characters += len(part)
        while characters > limit_characters and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
            characters = sum(map(len, kept))
    return kept


def sentences(texts: str | Iterable[str], newline: Newline) -> Iterator[str]:
    """The texts in parts that the trainer accepts."""
    for text in each_text(texts):
        for part in additive_parts(
            text,
            target=_PART_CHARACTERS,
            after_newline=newline == "atomic",
            maximum=_LONGEST_PART_CHARACTERS,
        ):
            yield from filter(None, _RESERVED.split(part))


def control_symbols(special_tokens: Iterable[str]) -> list[str]:
    """The names that are not in every model anyway; none may collide with those that are."""
    names = checked_names(special_tokens, reserved=[UNK, *BYTE_PIECES])
    for name in names:
        # The option is a list in CSV, and pieces hold SPACE_MARK for a space.
        if any(character in name for character in f',"{SPACE_MARK}'):
            raise TokenizerError(
                f"special token {shown(name)} holds a comma, a quote or U+2581; rename it"
            )
    return [name for name in names if name not in (BOS, EOS)]


def check_options(
    vocab_size: int, newline: Newline, character_coverage: float, sample_characters: int
) -> None:
    """Refuse, in our words, what the trainer would refuse in its own, or misunderstand."""
    problem = ""
    if type(vocab_size) is not int or not 1 <= vocab_size < 1 << 31:
        problem = f"vocab_size is {shown(vocab_size)}, expected 1 to {(1 << 31) - 1}"
    elif newline not in ("atomic", "merged"):
        problem = f"newline is {shown(newline)}; use 'atomic' or 'merged'"
    elif not 0.98 <= character_coverage <= 1:
        problem = f"character_coverage is {shown(character_coverage)}, expected 0.98 to 1"
    elif type(sample_characters) is not int or sample_characters < 1:
        problem = f"sample_characters is {shown(sample_characters)}, expected a positive integer"
    if problem:
        raise TokenizerError(problem)


def translated(error: Exception, vocab_size: int, character_coverage: float) -> TokenizerError:
    """The trainer's error in our words. Its phrases are stable, its source line numbers are not."""
    text = str(error)
    if match := re.search(r"Vocabulary size too high \(\d+\).*<= (\d+)", text, re.DOTALL):
        return TokenizerError(
            f"vocab_size {vocab_size} is too large for this text, which yields at most "
            f"{match[1]}; pass {match[1]}, more text, or shrink=True"
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        return TokenizerError(
            f"vocab_size {vocab_size} is too small: this text needs at least {match[1]} (its "
            f"characters, 256 bytes, special tokens); pass {match[1]} or lower "
            f"character_coverage (now {character_coverage})"
        )
    if "!sentences_.empty()" in text:
        return TokenizerError("the corpus holds no words; train on a text that is not empty")
    return TokenizerError(f"sentencepiece cannot train on this text: {shown(text, 160)}")
