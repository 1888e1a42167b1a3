"""The loss ladder: what models that learn nothing would score, to compare a loss with.

Each baseline is a model that counts. It counts on the training split and is scored on the
validation split, as the trained model is; scored on the text it counted, it would flatter itself.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from yocto_data import ChatDataset, TokenDataset

Ids = NDArray[np.unsignedinteger]

# Enough to know the frequencies of pairs; more would only take time.
_LIMIT_TOKENS = 1 << 24
_PARTS = 64
# Counts of pairs take vocab_size squared numbers.
_LIMIT_PAIRS_OF = 2048


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One model that counts, and its cross-entropy on the validation split in nats per token."""

    name: str
    loss: float


def ladder(train: Ids, val: Ids, *, vocab_size: int, characters: bool) -> tuple[Baseline, ...]:
    """The baselines, for any usual text with the highest loss first.

    Uniform knows only the vocabulary. Frequencies are smoothed by counting each id once more. Pairs
    know the previous id, and are smoothed by one more successor, spread as the frequencies are.

    Args:
        train: ids to count, shape (n,). The first is only a context. If there are very many, parts
            spread evenly over them are counted.
        val: ids to score, shape (m,), at least 2; the same holds for them.
        vocab_size: the number of ids.
        characters: whether the ids are characters. Only then is there a baseline for pairs: words
            or pieces form too many pairs to be known from one text.
    """
    baselines = [Baseline(name="uniform", loss=math.log(vocab_size))]
    counts = np.ones(vocab_size)
    for part in _parts(train):
        counts += np.bincount(part[1:], minlength=vocab_size)
    frequencies = counts / counts.sum()
    of_ids, n = 0.0, 0
    for part in _parts(val):
        of_ids -= float(np.log(frequencies)[part[1:]].sum())
        n += len(part) - 1
    baselines.append(
        Baseline(name=f"{'letter' if characters else 'token'} frequencies", loss=of_ids / n)
    )
    if characters and vocab_size <= _LIMIT_PAIRS_OF:
        baselines.append(
            Baseline(name="letter pairs", loss=_loss_of_pairs(train, val, frequencies))
        )
    return tuple(baselines)


def _loss_of_pairs(train: Ids, val: Ids, frequencies: NDArray[np.float64]) -> float:
    size = len(frequencies)
    pairs = np.zeros(size * size)
    for part in _parts(train):
        pairs += np.bincount(_pair_codes(part, size), minlength=size * size)
    table = pairs.reshape(size, size)
    logarithms = np.log((table + frequencies) / (table.sum(axis=1, keepdims=True) + 1)).ravel()
    total, n = 0.0, 0
    for part in _parts(val):
        total -= float(logarithms[_pair_codes(part, size)].sum())
        n += len(part) - 1
    return total / n


def _pair_codes(ids: Ids, size: int) -> NDArray[np.int64]:
    return ids[:-1].astype(np.int64) * size + ids[1:]


def _parts(ids: Ids) -> Iterator[Ids]:
    """The ids in pieces that overlap by one, so that each pair is in exactly one of them."""
    pairs, length = len(ids) - 1, _LIMIT_TOKENS // _PARTS
    starts: Iterable[int] = range(0, pairs, length)
    if pairs > _LIMIT_TOKENS:
        starts = [i * (pairs - length) // (_PARTS - 1) for i in range(_PARTS)]
    for start in starts:
        yield ids[start : start + length + 1]


def ladder_of(
    train: TokenDataset, val: TokenDataset, *, vocab_size: int, characters: bool
) -> tuple[Baseline, ...]:
    """The ladder of two datasets, whose files are mapped and not read whole.

    Of chats it is that of what is learned, as the loss is: all replies as one text.
    """
    counted, scored = map(_targets, (train, val))
    return ladder(counted, scored, vocab_size=vocab_size, characters=characters)


def _targets(data: TokenDataset) -> Ids:
    if not isinstance(data, ChatDataset):
        return np.memmap(data.path, dtype=data.dtype, mode="r")
    blocks, size = list[Ids](), 0
    for block in data.trained_ids():
        blocks.append(block)
        size += len(block)
        if size > _LIMIT_TOKENS:
            break
    return np.concatenate(blocks)
