"""Which old turns leave; the other laws of how a model is asked are tested by yocto-chat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_cli.asking import n_hidden


@pytest.mark.property
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(0, 150))
def test_as_few_turns_leave_as_must(sizes: list[int], budget: int) -> None:
    """One more would not fit; all that may leave have left where the last one alone is too long."""
    n_turns = len(sizes) - 1

    def size(n: int) -> int:
        assert 0 <= n < max(1, n_turns)
        return sum(sizes[n:])

    hidden = n_hidden(n_turns, size, budget)
    assert hidden == n_turns or sum(sizes[hidden:]) <= budget
    assert hidden == 0 or sum(sizes[hidden - 1 :]) > budget
