"""Rows of a batch do not know of each other, whatever the size of their logits."""

import copy
import pickle
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from yocto_model import (
    GPT,
    GPTConfig,
    InputError,
    KVCache,
    SamplingError,
    SamplingOptions,
    inference_copy,
)
from yocto_model.sampling import draw, filter_logits, keep_min_p, keep_top_p, next_ids

logits = st.lists(st.floats(-9, 9, width=16), min_size=5, max_size=5)
options = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 5, 9]),
    top_p=st.sampled_from([0.2, 0.7, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.5, 2.0]),
)


@pytest.mark.property
@given(a=logits, b=logits, shift=st.sampled_from([-2000.0, 0.0, 2000.0]), options=options)
def test_a_row_is_chosen_from_as_if_it_were_alone(
    a: list[float], b: list[float], shift: float, options: SamplingOptions
) -> None:
    """Also beside a row whose logits are larger by thousands, where exp would overflow."""
    rows = torch.tensor([a, b], dtype=torch.float64)
    rows[1] += shift
    uniforms = torch.tensor([0.3, 0.8], dtype=torch.float64)
    contexts = [[0, 1, 1], [4]]
    together = next_ids(rows, options, uniforms, contexts)
    apart = [
        next_ids(rows[i : i + 1], options, uniforms[i : i + 1], contexts[i : i + 1]) for i in (0, 1)
    ]
    assert torch.equal(together, torch.cat(apart))
    if options.temperature > 0:
        filtered = filter_logits(rows, options, contexts)
        alone = [filter_logits(rows[i : i + 1], options, contexts[i : i + 1]) for i in (0, 1)]
        assert torch.equal(filtered.isinf(), torch.cat(alone).isinf())


@pytest.mark.property
@given(a=logits, b=logits)
def test_filters_look_at_their_own_row(a: list[float], b: list[float]) -> None:
    rows = torch.tensor([a, b], dtype=torch.float64)
    rows[1] += 3000
    for keep in (partial(keep_min_p, min_p=0.3), partial(keep_top_p, p=0.6)):
        assert torch.equal(keep(rows), torch.cat([keep(rows[:1]), keep(rows[1:])]))
        assert bool(keep(rows).isfinite().any(dim=1).all())


def test_what_cannot_be_drawn_from_says_so() -> None:
    nothing = torch.full((1, 3), -torch.inf)
    with pytest.raises(SamplingError, match=r"^the model's output is not finite; were its weights"):
        draw(nothing, torch.tensor([0.5], dtype=torch.float64))


def test_a_pickled_cache_goes_on_as_the_other_does() -> None:
    """Its two views stay views of one storage: what one way writes, the other reads."""
    config = GPTConfig(vocab_size=5, block_size=6, n_layer=2, n_head=1, n_embd=4)
    model = GPT(config).eval()
    fast, first = inference_copy(model, "float32"), KVCache(config)
    fast(torch.tensor([[1, 2, 3]]), cache=first)
    caches = [first, copy.deepcopy(first), first.fork()]
    caches.append(pickle.loads(pickle.dumps(first)))  # noqa: S301 - our own
    for ids in ([[4]], [[0, 1]]):
        logits = [fast(torch.tensor(ids), cache=cache) for cache in caches]
        assert all(torch.equal(logits[0], other) for other in logits)


def test_a_cache_has_one_row_unless_told_and_says_when_it_is_full() -> None:
    config = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4)
    cache = KVCache(config, capacity=2)
    assert cache.keys.shape == cache.values.shape == (1, 1, 1, 2, 4)
    message = (
        "the cache holds 0 of 2 tokens, and 3 more do not fit; truncate it or make a larger one"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cache.append(0, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    with pytest.raises(InputError, match="truncate it"):
        KVCache(config, capacity=0).next_token()
