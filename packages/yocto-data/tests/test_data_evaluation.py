"""Evaluation reads a split from end to end: every target once."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import (
    OptionError,
    ShortDataError,
    TokenDataset,
    evaluation_batches,
    evaluation_windows,
)

# (tokens, block): at least one window.
SIZES = st.tuples(st.integers(2, 90), st.integers(1, 20)).filter(lambda pair: pair[0] > pair[1])
DatasetOf = Callable[[int, int], TokenDataset]


@pytest.mark.property
@given(n_tokens=st.integers(2, 200), block_size=st.integers(1, 60))
@example(n_tokens=2, block_size=1)
@example(n_tokens=9, block_size=4)
@example(n_tokens=10, block_size=4)
def test_evaluation_covers_every_target_once(n_tokens: int, block_size: int) -> None:
    """The windows' targets are all tokens but the first, in order; only the last may be short."""
    windows = evaluation_windows(n_tokens, block_size)
    targets = [start + 1 + i for start, length in windows for i in range(length)]
    assert list(range(1, n_tokens)) == targets
    assert all(block_size == length for _, length in windows[:-1])
    assert 1 <= windows[-1, 1] <= block_size
    assert np.int64 == windows.dtype


def test_evaluation_needs_a_target() -> None:
    """One token has no target."""
    with pytest.raises(ShortDataError):
        evaluation_windows(1, 4)
    with pytest.raises(OptionError):
        evaluation_windows(9, 0)


@pytest.mark.property
@given(size=SIZES, batch_size=st.integers(1, 9))
@example(size=(9, 4), batch_size=1)
@example(size=(10, 4), batch_size=3)
def test_evaluation_batches_hold_the_whole_split(
    dataset_of: DatasetOf, size: tuple[int, int], batch_size: int
) -> None:
    """Batch after batch, x is every token but the last and y every token but the first."""
    pairs = list(evaluation_batches(dataset_of(*size), batch_size))
    assert list(range(size[0] - 1)) == [int(i) for x, _ in pairs for i in x.flatten()]
    assert list(range(1, size[0])) == [int(i) for _, y in pairs for i in y.flatten()]
    assert all(x.shape == y.shape and len(x) <= batch_size for x, y in pairs)
