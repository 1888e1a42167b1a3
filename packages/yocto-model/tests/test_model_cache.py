"""The key/value cache: appended to or truncated, it gives the logits of a full pass."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from yocto_model import GPT, GPTConfig, InputError, KVCache

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
GPT2 = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch(
    "modern", vocab_size=11, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16
)


def cache_for(model: GPT, batch_size: int = 1, capacity: int | None = None) -> KVCache:
    cache = KVCache(model.config, batch_size, capacity=capacity, dtype=torch.float64)
    cache.keys.fill_(torch.nan)  # whoever read what was not written would show it
    cache.values.fill_(torch.nan)
    return cache


def random_ids(config: GPTConfig, rows: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (rows, length), generator=generator)


def same(expected: Tensor, got: Tensor) -> None:
    np.testing.assert_allclose(got.detach(), expected.detach(), rtol=1e-9, atol=1e-9)


@st.composite
def partitions(draw: st.DrawFn, total: int) -> list[int]:
    """Sizes of chunks that add up to `total`."""
    cuts = draw(st.sets(st.integers(1, total - 1))) if total > 1 else set()
    edges = [0, *sorted(cuts), total]
    return [b - a for a, b in itertools.pairwise(edges)]


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
@example(config=MODERN, seed=0, data=None)
def test_any_chunks_of_any_rows_give_the_full_logits(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M4: at once, token by token or in chunks, rows of one length or padded to it on the left."""
    model = make_model(config, seed)
    lengths, sizes = [8, 8], [3, 1, 1, 2, 1]
    if data is not None:
        length = st.integers(1, config.block_size)
        lengths = data.draw(length.map(lambda n: [n, n]) | st.lists(length, min_size=1, max_size=3))
        sizes = data.draw(partitions(max(lengths)))
    longest = max(lengths)
    rows = [random_ids(config, 1, n, seed + b) for b, n in enumerate(lengths)]
    ids = torch.full((len(rows), longest), seed % config.vocab_size)  # what padding holds
    for b, row in enumerate(rows):
        ids[b, longest - row.shape[1] :] = row
    cache = cache_for(model, len(rows))
    if min(lengths) < longest:
        cache.padding = torch.tensor([longest - n for n in lengths])
    logits = torch.cat([model(part, cache=cache) for part in torch.split(ids, sizes, dim=1)], dim=1)
    assert bool(torch.isfinite(logits).all())
    assert longest == cache.length
    for b, row in enumerate(rows):
        same(model(row)[0], logits[b, longest - row.shape[1] :])


class CacheMachine(RuleBasedStateMachine):
    """Caches that are appended to and truncated, each beside its list of ids."""

    make: MakeModel
    caches = Bundle("caches")

    @initialize(config=st.from_type(GPTConfig), seed=SEEDS)
    def start(self, config: GPTConfig, seed: int) -> None:
        self.model = type(self).make(config, seed)
        self.size = config.block_size

    @rule(target=caches)
    def new(self) -> tuple[KVCache, list[int]]:
        return cache_for(self.model), []

    @rule(held=caches, data=st.data())
    def append(self, held: tuple[KVCache, list[int]], data: st.DataObject) -> None:
        cache, ids = held
        token = st.integers(0, self.model.config.vocab_size - 1)
        chunk = data.draw(st.lists(token, min_size=1, max_size=self.size + 1))
        before = len(ids)
        if before + len(chunk) > self.size:
            with pytest.raises(InputError):
                self.model(torch.tensor([chunk]), cache=cache)
        else:
            ids += chunk
            expected = self.model(torch.tensor([ids]))[:, before:]
            same(expected, self.model(torch.tensor([chunk]), cache=cache))
        assert len(ids) == cache.length

    @rule(held=caches, data=st.data())
    def truncate(self, held: tuple[KVCache, list[int]], data: st.DataObject) -> None:
        cache, ids = held
        length = data.draw(st.integers(0, len(ids)))
        cache.truncate(length)
        del ids[length:]

    @rule(held=caches, beyond=st.integers(1, 3))
    def refuse(self, held: tuple[KVCache, list[int]], beyond: int) -> None:
        cache, ids = held
        for length in (-beyond, len(ids) + beyond):
            with pytest.raises(InputError, match="cannot truncate"):
                cache.truncate(length)


@pytest.mark.property
def test_a_cache_is_its_list_of_ids(make_model: MakeModel) -> None:
    """M4 for any order of append and truncate: logits are a full pass over the ids."""
    CacheMachine.make = staticmethod(make_model)
    run_state_machine_as_test(CacheMachine, settings=settings(stateful_step_count=30))


def test_a_cache_takes_the_bytes_it_says() -> None:
    """2 · layers · rows · KV heads · head width · capacity values, allocated once."""
    cache = KVCache(MODERN, 3, capacity=5, dtype=torch.bfloat16)
    assert 2 * 2 * 3 * 2 * 4 * 5 * 2 == cache.keys.nbytes + cache.values.nbytes
    assert cache.capacity == 5
    assert KVCache(MODERN).capacity == MODERN.block_size


def test_a_full_cache_refuses_and_stays_as_it_was(make_model: MakeModel) -> None:
    """A cache smaller than the context says how much it holds; nothing was changed."""
    model = make_model(GPT2, 0)
    cache, ids = cache_for(model, capacity=3), torch.tensor([[1, 2, 3, 4]])
    model(ids[:, :2], cache=cache)
    with pytest.raises(InputError, match="at most 3 tokens, without room for 2 more"):
        model(ids[:, 2:], cache=cache)
    same(model(ids[:, :3])[:, 2:], model(ids[:, 2:3], cache=cache))
