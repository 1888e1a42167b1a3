"""Which text goes to training and which to validation, and where long texts are cut."""

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from yocto_data.errors import DataError, ShortDataError
from yocto_data.prep.documents import Corpus, PrepareOptions, TextPart

SplitName = Literal["train", "val"]

# TAB, LF and CR are text; the others of C0, and DEL, are counted.
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\r") + b"\x7f"
# Every tokenizer of the family begins a new token between a non-space and a space: characters
# always do, words because a run of white space is a token, sentencepiece because a piece may begin
# with a space but not hold one inside.
_BEFORE_SPACE = re.compile(r"(?<=\S) ")
_AFTER_NEWLINE = re.compile(r"(?<=\n)\S")
_C1 = re.compile("[\x80-\x9f\ufeff]")  # and marks within a text, where files were joined
_MOST_RANKED = 4096  # documents among which a choice can be made; so many need none
_TOLERANCE = 0.25  # of the smaller split: by how much whole documents may miss what was asked for


class SafeCutter:
    """Cuts the text of one document where encoding the pieces gives the ids of the whole.

    A piece ends at the first space that follows a non-space at or past `chunk_chars`. If the next
    `3 * chunk_chars` characters hold none, it ends after a newline before a non-space; failing
    that, at `4 * chunk_chars`, which `unsafe_cuts` counts, since ids may differ there.
    The cuts depend on the text and on `chunk_chars` alone, never on how the text arrived.
    """

    def __init__(self, chunk_chars: int) -> None:
        self._target = chunk_chars
        self._maximum = 4 * chunk_chars
        self._text = ""
        self.unsafe_cuts = 0

    def push(self, block: str) -> list[str]:
        """The pieces that are certain, now that `block` has arrived."""
        self._text += block
        pieces = []
        start = 0
        while (end := self._next_cut(start)) is not None:
            pieces.append(self._text[start:end])
            start = end
        self._text = self._text[start:]
        return pieces

    def flush(self) -> list[str]:
        """All that is left, at the end of a document or of a split."""
        pieces, self._text = [self._text] if self._text else [], ""
        return pieces

    def _next_cut(self, start: int) -> int | None:
        target, maximum = start + self._target, start + self._maximum
        # The character after the last possible cut is looked at, too.
        if found := _BEFORE_SPACE.search(self._text, target, maximum + 1):
            return found.start()
        if len(self._text) <= maximum:
            return None  # a space may still come
        if found := _AFTER_NEWLINE.search(self._text, target, maximum + 1):
            return found.start()
        self.unsafe_cuts += 1
        return maximum


class FirstPass:
    """What reading everything once has found; this pass also checks the whole input.

    `heartbeat` is called for every block, so that a caller can show progress, or raise to stop.
    """

    def __init__(self, corpus: Corpus, heartbeat: Callable[[], None]) -> None:
        self.corpus = corpus
        self.documents = self.characters = self.control_characters = 0
        self.low_characters = 0  # of documents whose hashes are low
        self.ranked: list[tuple[int, int, int]] = []  # hash, number, characters of the first ones
        read = -1
        with closing(corpus.documents()) as documents:
            for document in documents:
                before = self.characters
                for block in document.blocks:
                    data = block.encode("utf-8")
                    self.characters += len(block)
                    self.control_characters += len(data) - len(data.translate(None, _CONTROLS))
                    if len(data) != len(block):
                        self.control_characters += len(_C1.findall(block))
                    if corpus.bytes_read != read:  # not for each of many short records
                        read = corpus.bytes_read
                        heartbeat()
                size, word = self.characters - before, _word(corpus.options.seed, self.documents)
                self.low_characters += size * _is_low(word, corpus.options.val_ratio)
                if self.documents < _MOST_RANKED:
                    self.ranked.append((word, self.documents, size))
                self.documents += 1


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The decision for every character: by its position, or by the number of its document.

    `cut` is the position of the first validation character; None splits by documents. Each of them
    goes to validation when the first 64 bits of a hash of seed and number, read as a fraction, lie
    below `val_ratio`; or, where few or large ones would make that too much or too little, when it
    is one of `chosen`.
    """

    options: PrepareOptions
    cut: int | None = None
    chosen: frozenset[int] | None = None

    @classmethod
    def after(cls, found: FirstPass, options: PrepareOptions) -> Self:
        """Decide how to split; `auto` keeps documents whole if they make about what is asked for.

        Raises:
            ShortDataError: a split would hold no text.
            DataError: one document cannot be split by documents.
        """
        ratio, by = options.val_ratio, options.split_by
        if by == "documents" and found.documents == 1:
            raise DataError("one document cannot be split by documents; use split_by=position")
        if by != "position" and found.documents > 1:
            wanted, tolerance = (
                share * found.characters for share in (ratio, _TOLERANCE * min(ratio, 1 - ratio))
            )
            characters, chosen = found.low_characters, None
            if abs(characters - wanted) > tolerance and found.documents <= _MOST_RANKED:
                characters, chosen = _fitting(found.ranked, wanted, wanted + tolerance)
            if by == "documents" or abs(characters - wanted) <= tolerance:
                return cls(options=options, chosen=chosen)
        cut = int(found.characters * (1 - ratio))
        if not 0 < cut < found.characters:
            raise ShortDataError(
                f"val_ratio {ratio} leaves a split without text (characters in all: "
                f"{found.characters}); use more text"
            )
        return cls(options=options, cut=cut)

    @property
    def by(self) -> Literal["position", "documents"]:
        """The name for meta.json."""
        return "documents" if self.cut is None else "position"

    def is_val(self, ordinal: int) -> bool:
        """Whether a document belongs to validation, when documents decide."""
        if self.chosen is not None:
            return ordinal in self.chosen
        return _is_low(_word(self.options.seed, ordinal), self.options.val_ratio)


def _fitting(
    ranked: list[tuple[int, int, int]], wanted: float, most: float
) -> tuple[int, frozenset[int]]:
    """Documents for validation, by their hashes, and their characters: at least `wanted` if it can.

    Those that would make it more than `most` are passed over; but one goes there, and one does not.
    """
    chosen: set[int] = set()
    total = 0
    for _, number, size in sorted(ranked):
        if total < wanted and total + size <= most and len(chosen) < len(ranked) - 1:
            chosen.add(number)
            total += size
    if not chosen:
        _, number, total = min(ranked, key=lambda document: document[2])
        chosen.add(number)
    return total, frozenset(chosen)


def _word(seed: int, ordinal: int) -> int:
    digest = hashlib.sha256(f"yocto-data split {seed} {ordinal}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _is_low(word: int, val_ratio: float) -> bool:
    return word / (1 << 64) < val_ratio


class Piece(NamedTuple):
    """A stretch of one document that lies in one split, short enough to be encoded at once."""

    content: Any  # a `TextPart`, or a conversation
    characters: int
    split: SplitName
    where: str  # names the document
    bytes_read: int  # how far the sources were read when it was cut
    start: int = 0  # the character of its document at which it begins
    is_first: bool = True  # of its document in its split

    @property
    def place(self) -> str:
        """Where it lies, for errors."""
        return self.where + (f" (from character {self.start} on)" if self.start else "")


@dataclass(kw_only=True)
class PieceCutter:
    """The second pass: reads the corpus again and cuts it into pieces, in order."""

    corpus: Corpus
    plan: SplitPlan
    unsafe_cuts: int = 0

    def pieces(self) -> Generator[Piece, None, None]:
        """All pieces of all documents; joined, they are the whole text."""
        seen_chars = 0
        with closing(self.corpus.documents()) as documents:
            for ordinal, document in enumerate(documents):
                start, before = 0, None
                for text, split, ends in self._parts(document.blocks, ordinal, seen_chars):
                    yield Piece(
                        TextPart(text, ends), len(text), split, document.where,
                        self.corpus.bytes_read, start, is_first=split != before,
                    )  # fmt: skip
                    start, before = start + len(text), split
                seen_chars += start

    def _parts(
        self, blocks: Iterable[str], ordinal: int, seen_chars: int
    ) -> Iterator[tuple[str, SplitName, bool]]:
        """The pieces of a document, their splits, and whether the document ends there."""
        cut = self.plan.cut
        in_val = self.plan.is_val(ordinal) if cut is None else seen_chars >= cut
        split: SplitName = "val" if in_val else "train"
        cutter = SafeCutter(self.corpus.options.chunk_chars)
        for block in blocks:
            rest, before = block, seen_chars
            seen_chars += len(block)
            if cut is not None and before <= cut < seen_chars:
                # Here validation begins; both sides are cut as if they were texts of their own.
                for text in (*cutter.push(block[: cut - before]), *cutter.flush()):
                    yield text, "train", False
                rest, split = block[cut - before :], "val"
            for text in cutter.push(rest):
                yield text, split, False
        for text in cutter.flush():  # always one, since a cut leaves something behind it
            yield text, split, True
        self.unsafe_cuts += cutter.unsafe_cuts
