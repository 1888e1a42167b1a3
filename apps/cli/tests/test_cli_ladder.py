"""The loss ladder against plain counting."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli.screen import ladder as module
from yocto_cli.screen.ladder import ladder


def by_hand(train: list[int], val: list[int], size: int) -> list[float]:
    """The three losses, counted with dictionaries."""
    ids = Counter(train[1:])
    frequency = [(ids[i] + 1) / (len(train[1:]) + size) for i in range(size)]
    pairs, before = Counter(pairwise(train)), Counter(train[:-1])
    targets = list(pairwise(val))
    return [
        math.log(size),
        -sum(math.log(frequency[b]) for _, b in targets) / len(targets),
        -sum(math.log((pairs[a, b] + frequency[b]) / (before[a] + 1)) for a, b in targets)
        / len(targets),
    ]


def array(ids: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    return np.array(ids, dtype=np.uint16)


IDS = st.lists(st.integers(0, 4), min_size=2, max_size=40)


@pytest.mark.property
@given(IDS, IDS)
@example([0, 1, 0, 1, 0, 1], [0, 1, 0])
@example([3, 3], [0, 1])
def test_baselines_are_what_counting_gives(train: list[int], val: list[int]) -> None:
    """Counted on one split, scored on the other; nothing is infinite, seen or not."""
    found = ladder(array(train), array(val), vocab_size=5, characters=True)
    assert pytest.approx(by_hand(train, val, 5)) == [baseline.loss for baseline in found]
    assert ["uniform", "letter frequencies", "letter pairs"] == [
        baseline.name for baseline in found
    ]


def test_long_texts_are_cut_without_losing_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces overlap by one, so the result does not depend on their length."""
    rng = np.random.default_rng(7)
    train, val = (rng.integers(0, 5, n).tolist() for n in (500, 300))
    monkeypatch.setattr(module, "_PARTS", 16)
    monkeypatch.setattr(module, "_LIMIT_TOKENS", 1600)
    found = ladder(array(train), array(val), vocab_size=5, characters=True)
    assert pytest.approx(by_hand(train, val, 5)) == [baseline.loss for baseline in found]


def test_very_long_texts_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts from beginning to end stand for the whole, so time does not grow with the text."""
    monkeypatch.setattr(module, "_PARTS", 8)
    monkeypatch.setattr(module, "_LIMIT_TOKENS", 64)
    text = array([0] * 500 + [1] * 500)
    parts = list(module._parts(text))
    assert 8 == len(parts)
    assert {9} == {len(part) for part in parts}
    assert parts[0][0] == 0
    assert parts[-1][-1] == 1
    letters = ladder(text, text, vocab_size=2, characters=True)[1].loss
    assert pytest.approx(math.log(2), rel=0.02) == letters


def test_pairs_are_for_characters_and_small_vocabularies() -> None:
    """Tokens have no baseline of pairs, nor has an alphabet whose table would be large."""
    ids = array([0, 1, 2, 1, 0])
    tokens = ladder(ids, ids, vocab_size=3, characters=False)
    assert ["uniform", "token frequencies"] == [baseline.name for baseline in tokens]
    assert 2 == len(ladder(ids, ids, vocab_size=5000, characters=True))
