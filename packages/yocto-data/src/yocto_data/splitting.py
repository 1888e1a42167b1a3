"""Which text goes to training and which to validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from yocto_data.cutting import SafeCutter
from yocto_data.documents import Corpus, Tally
from yocto_data.errors import OptionError, ShortDataError
from yocto_data.options import require_integer, require_word

SplitBy = Literal["auto", "position", "documents"]
SplitName = Literal["train", "val"]

# TAB, LF and CR are text; the others of C0, and DEL, are counted.
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\r") + b"\x7f"


def check_split_options(val_ratio: float, seed: int, split_by: str) -> None:
    """Refuse what is out of range, by name."""
    if not 0 < val_ratio < 1:  # nan fails, too
        raise OptionError(f"val_ratio must lie between 0 and 1, both excluded, found {val_ratio!r}")
    require_integer("seed", seed, 0, (1 << 64) - 1)
    require_word("split_by", split_by, get_args(SplitBy))


@dataclass(kw_only=True)
class Survey:
    """What a first pass over all text has found. It also is the check of the whole input."""

    tally: Tally
    documents: int = 0
    characters: int = 0
    control_characters: int = 0
    val_documents: int = 0
    lowest: tuple[int, int] = (1 << 64, 0)
    highest: tuple[int, int] = (-1, 0)

    def count_document(self, word: int, ordinal: int, val_ratio: float) -> None:
        """A document begins, whose hash is ``word``."""
        self.documents += 1
        self.val_documents += _is_low(word, val_ratio)
        self.lowest = min(self.lowest, (word, ordinal))
        self.highest = max(self.highest, (word, ordinal))

    def count_text(self, block: str) -> None:
        """The next stretch of its text."""
        data = block.encode("utf-8")
        self.characters += len(block)
        self.control_characters += len(data) - len(data.translate(None, _CONTROLS))


def survey(corpus: Corpus, *, val_ratio: float, seed: int, heartbeat: Callable[[], None]) -> Survey:
    """Read everything once: count, check, and hash the sources.

    ``heartbeat`` is called for every block, so that a caller can show life, or raise to stop.
    """
    found = Survey(tally=Tally())
    read = -1
    with closing(corpus.documents(found.tally)) as documents:
        for ordinal, document in enumerate(documents):
            found.count_document(_word(seed, ordinal), ordinal, val_ratio)
            for block in document.blocks:
                found.count_text(block)
                if found.tally.bytes_read != read:  # not for each of many short records
                    read = found.tally.bytes_read
                    heartbeat()
    return found


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The decision for every character: by its position, or by the number of its document.

    ``cut`` is the position of the first validation character; None splits by documents, each of
    which goes to validation when the first 64 bits of a hash of seed and number, read as a
    fraction, lie below ``val_ratio``. ``exception`` is one document that goes the other way, so
    that among few documents no split stays without one.
    """

    seed: int
    val_ratio: float
    cut: int | None
    exception: int | None

    @property
    def by(self) -> Literal["position", "documents"]:
        """The name for meta.json."""
        return "documents" if self.cut is None else "position"

    def is_val(self, ordinal: int) -> bool:
        """Whether a document belongs to validation, when documents decide."""
        low = _is_low(_word(self.seed, ordinal), self.val_ratio)
        return low != (ordinal == self.exception)


def plan_split(found: Survey, *, val_ratio: float, seed: int, split_by: SplitBy) -> SplitPlan:
    """Decide how to split; ``auto`` cuts one document by position, several are kept whole.

    Raises:
        ShortDataError: a split would hold no text.
        OptionError: one document cannot be split by documents.
    """
    if split_by == "documents" and found.documents == 1:
        raise OptionError("one document cannot be split by documents; use split_by=position")
    if split_by == "documents" or (split_by == "auto" and found.documents > 1):
        exception = None
        if found.val_documents == 0:
            exception = found.lowest[1]
        elif found.val_documents == found.documents:
            exception = found.highest[1]
        return SplitPlan(seed=seed, val_ratio=val_ratio, cut=None, exception=exception)
    cut = int(found.characters * (1 - val_ratio))
    if not 0 < cut < found.characters:
        raise ShortDataError(
            f"{found.characters} characters at val_ratio {val_ratio} leave a split without text; "
            "use more text"
        )
    return SplitPlan(seed=seed, val_ratio=val_ratio, cut=cut, exception=None)


def _word(seed: int, ordinal: int) -> int:
    digest = hashlib.sha256(f"yocto-data split {seed} {ordinal}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _is_low(word: int, val_ratio: float) -> bool:
    return word / (1 << 64) < val_ratio


class Piece(NamedTuple):
    """A stretch of one document that lies in one split, short enough to be encoded at once."""

    text: str
    split: SplitName
    where: str  # names the document in errors
    start: int  # the character of its document at which it begins
    bytes_read: int  # how far the sources were read when it was cut


@dataclass(kw_only=True)
class PieceCutter:
    """Walks the corpus a second time and cuts it into pieces, in order."""

    corpus: Corpus
    plan: SplitPlan
    chunk_chars: int
    tally: Tally
    unsafe_cuts: int = 0

    def pieces(self) -> Generator[Piece, None, None]:
        """All pieces of all documents; joined, they are the whole text."""
        seen_chars = 0
        with closing(self.corpus.documents(self.tally)) as documents:
            for ordinal, document in enumerate(documents):
                start = 0
                for text, split in self._parts(document.blocks, ordinal, seen_chars):
                    yield Piece(text, split, document.where, start, self.tally.bytes_read)
                    start += len(text)
                seen_chars += start

    def _parts(
        self, blocks: Iterator[str], ordinal: int, seen_chars: int
    ) -> Iterator[tuple[str, SplitName]]:
        cut = self.plan.cut
        if cut is None:
            split: SplitName = "val" if self.plan.is_val(ordinal) else "train"
        else:
            split = "val" if seen_chars >= cut else "train"
        cutter = SafeCutter(self.chunk_chars)
        for block in blocks:
            rest, before = block, seen_chars
            seen_chars += len(block)
            if cut is not None and before < cut <= seen_chars:
                # Here validation begins; both sides are cut as if they were texts of their own.
                for text in (*cutter.push(block[: cut - before]), *cutter.flush()):
                    yield text, "train"
                rest, split = block[cut - before :], "val"
            for text in cutter.push(rest):
                yield text, split
        for text in cutter.flush():
            yield text, split
        self.unsafe_cuts += cutter.unsafe_cuts
