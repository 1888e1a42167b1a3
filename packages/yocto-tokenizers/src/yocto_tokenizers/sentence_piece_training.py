"""Training of a sentencepiece BPE model: lossless options, bounded memory, errors in our words."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import sentencepiece

from yocto_tokenizers.cuts import additive_parts
from yocto_tokenizers.errors import SpecialTokenError, VocabularyError, quoted
from yocto_tokenizers.sentence_piece_model import SPACE_MARK
from yocto_tokenizers.special_tokens import BOS, EOS, UNK, checked_names
from yocto_tokenizers.texts import each_text

Newline: TypeAlias = Literal["atomic", "merged"]

_PART_CHARACTERS = 4096
_LONGEST_PART_CHARACTERS = 1 << 16
# The trainer takes U+2581 for a space, and skips every sentence that holds U+2585, its own mark.
# Neither has to be learned: both are encoded as bytes.
_RESERVED = re.compile(f"[{SPACE_MARK}\u2585]")


def train_model(
    texts: str | Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Iterable[str],
    newline: Newline,
    character_coverage: float,
    shrink: bool,
    sample_characters: int,
) -> bytes:
    """The bytes of a model file, equal for equal texts and options.

    See `SentencePieceTokenizer.train` for arguments and errors.
    """
    symbols = _control_symbols(special_tokens)
    _check_options(vocab_size, newline, character_coverage, sample_characters)
    # The texts are read here and not by the native trainer, which would turn every exception of
    # theirs, Ctrl-C included, into a RuntimeError.
    sentences = even_sample(_sentences(texts, newline), sample_characters)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=not shrink,
            control_symbols=symbols,
            user_defined_symbols=["\n"] if newline == "atomic" else [],
            character_coverage=character_coverage,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            num_threads=1,  # stored in the model, so another number gives other bytes
            max_sentence_length=1 << 20,  # bytes; longer ones are skipped without a word
            minloglevel=2,  # errors only; they arrive as exceptions
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise _translated(error, vocab_size, character_coverage) from error
    return model.getvalue()


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


def _sentences(texts: str | Iterable[str], newline: Newline) -> Iterator[str]:
    for text in each_text(texts):
        for part in additive_parts(
            text,
            target=_PART_CHARACTERS,
            after_newline=newline == "atomic",
            maximum=_LONGEST_PART_CHARACTERS,
        ):
            yield from filter(None, _RESERVED.split(part))


def _control_symbols(special_tokens: Iterable[str]) -> list[str]:
    """The names that are not in every model anyway, free of collisions with what is."""
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    names = checked_names(special_tokens, reserved=[UNK, *byte_names])
    for name in names:
        # The option is a list in CSV, and pieces hold SPACE_MARK for a space.
        if any(character in name for character in f',"{SPACE_MARK}'):
            raise SpecialTokenError(
                f"special token {quoted(name)} holds a comma, a quote or U+2581; leave it out"
            )
    return [name for name in names if name not in (BOS, EOS)]


def _check_options(
    vocab_size: int, newline: Newline, character_coverage: float, sample_characters: int
) -> None:
    if type(vocab_size) is not int or not 1 <= vocab_size < 1 << 31:
        raise VocabularyError(f"vocab_size is {quoted(vocab_size)}, expected 1 to {(1 << 31) - 1}")
    if newline not in ("atomic", "merged"):
        raise VocabularyError(f"newline is {quoted(newline)}; use 'atomic' or 'merged'")
    if not 0.98 <= character_coverage <= 1:
        raise VocabularyError(
            f"character_coverage is {quoted(character_coverage)}, expected 0.98 to 1"
        )
    if type(sample_characters) is not int or sample_characters < 1:
        raise VocabularyError(
            f"sample_characters is {quoted(sample_characters)}, expected a positive integer"
        )


def _translated(error: Exception, vocab_size: int, character_coverage: float) -> VocabularyError:
    """The trainer's error in our words. Its phrases are stable, its source line numbers are not."""
    text = str(error)
    if match := re.search(r"Vocabulary size too high \(\d+\).*<= (\d+)", text, re.DOTALL):
        return VocabularyError(
            f"vocab_size {vocab_size} is too large for this text, which yields at most "
            f"{match[1]}; pass {match[1]}, more text, or shrink=True"
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        return VocabularyError(
            f"vocab_size {vocab_size} is too small: this text needs at least {match[1]} (its "
            f"characters, 256 bytes, special tokens); pass {match[1]} or lower "
            f"character_coverage (now {character_coverage})"
        )
    if "!sentences_.empty()" in text:
        return VocabularyError("the corpus holds no words; train on a text that is not empty")
    if "already defined" in text:
        return VocabularyError("a special token is defined twice; drop one")
    return VocabularyError(f"sentencepiece cannot train on this text: {quoted(text, 160)}")
