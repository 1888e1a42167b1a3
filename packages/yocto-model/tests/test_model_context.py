"""What generating reads: a window of the newest tokens, and nothing that is known already."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT, GPTConfig, SamplingOptions, window_start
from yocto_model.cache import Reader
from yocto_model.generate import stream

MakeModel = Callable[[GPTConfig, int], GPT]
GPT2 = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch(
    "modern", vocab_size=11, block_size=6, n_layer=2, n_head=4, n_kv_head=2, n_embd=16
)


@pytest.mark.property
@given(n_tokens=st.integers(1, 10_000), block_size=st.integers(1, 600))
@example(n_tokens=2, block_size=1)
@example(n_tokens=1_025, block_size=1_024)
def test_the_window_is_full_of_the_newest_tokens(n_tokens: int, block_size: int) -> None:
    """It fits, is never less than about three quarters full, and moves in whole hops, forwards."""
    start, hop = window_start(n_tokens, block_size), max(1, block_size // 4)
    shown = n_tokens - start
    assert 1 <= shown <= block_size
    assert start % hop == 0
    if n_tokens <= block_size:
        assert start == 0
    else:
        assert shown > block_size - hop
    assert start <= window_start(n_tokens + 1, block_size) <= start + hop


def counting(model: GPT) -> list[int]:
    """The list to which every pass will add how many tokens it read."""
    read: list[int] = []
    forward = model.hidden_states

    def hidden_states(idx: Tensor, **more: Any) -> Tensor:
        read.append(idx.shape[1])
        return forward(idx, **more)

    model.hidden_states = hidden_states  # type: ignore[method-assign] # to watch it
    return read


def test_what_is_known_is_not_read_again(make_model: MakeModel) -> None:
    """The prompt is read once, then one token a step; a restart reads only what is new."""
    model = make_model(MODERN.replace(block_size=64), 0)
    read = counting(model)
    reader, rows = Reader(model), [[1, 2, 3, 4, 5]]
    generators = [torch.Generator().manual_seed(0)]
    list(stream(reader, rows, 4, options=SamplingOptions(), generators=generators))
    assert [5, 1, 1, 1] == read
    read.clear()
    reader.next_logits([[*rows[0], 1, 2, 3]])
    assert [4] == read  # the id that was drawn last had not been read, and three new ones
    read.clear()
    reader.next_logits([[1, 2, 9]])
    reader.next_logits([[1, 2, 9]])
    assert [1, 1] == read  # of a prompt that is known whole, the last id: its logits are wanted
    read.clear()
    model.generate([[1], [1, 2, 3]], 3)
    assert [3, 1, 1] == read


def test_beyond_the_window_most_steps_still_read_one_token(make_model: MakeModel) -> None:
    """The window moves in hops of a quarter, and only a hop costs a full pass."""
    model = make_model(GPT2.replace(block_size=16), 0)
    read = counting(model)
    model.generate([[1]], 48)
    assert read.count(1) == 48 - len([n for n in read if n > 1])
    assert all(n <= 13 for n in read)  # fewer where a window begins like the one before
    assert len(read) == 48
    assert sum(n > 1 for n in read) <= 8


def test_a_stream_may_be_left_at_any_point() -> None:
    """The rows hold exactly what was yielded, and another stream goes on from there."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))

    def steps(rows: list[list[int]], n: int) -> list[int]:
        options, generators = SamplingOptions(temperature=0), [torch.Generator()]
        made = stream(Reader(model), rows, n, options=options, generators=generators)
        return [ids[0] for ids, _ in made]

    whole, parted = [[1, 2]], [[1, 2]]
    steps(whole, 10)
    for part in (0, 1, 3, 6):
        before = list(parted[0])
        assert before + steps(parted, part) == parted[0]
    assert whole == parted


def test_a_cache_is_no_larger_than_it_need_be(make_model: MakeModel) -> None:
    """A model that could read a million tokens asks for memory as its context grows."""
    model = make_model(MODERN.replace(block_size=20_000), 0)
    reader = Reader(model)
    for n_tokens, capacity in ((3, 4096), (4097, 8194)):
        reader.next_logits([[1] * n_tokens])
        assert reader._cache is not None
        assert capacity == reader._cache.capacity
