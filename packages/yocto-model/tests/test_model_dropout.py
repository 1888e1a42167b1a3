"""Dropout: off in evaluation, unbiased, as often as asked, and decided by torch's seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from yocto_model import GPT, GPTConfig
from yocto_model.fast.training import Dropout
from yocto_model.layers import CausalSelfAttention

probabilities = st.floats(0.01, 0.95)


@given(p=probabilities, shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_evaluation_leaves_values_as_they_are(p: float, shape: list[int]) -> None:
    x = torch.randn(shape)
    assert torch.equal(Dropout(p).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@given(p=probabilities, seed=st.integers(0, 2**31))
def test_a_share_p_becomes_zero_and_the_others_grow_so_that_the_mean_stays(
    p: float, seed: int
) -> None:
    torch.manual_seed(seed)
    n = 40_001  # not a multiple of four
    y = Dropout(p)(torch.ones(n, dtype=torch.float64))
    zeros = int((y == 0).sum())
    assert abs(zeros / n - p) < 6 * (p * (1 - p) / n) ** 0.5  # six deviations
    torch.testing.assert_close(y[y != 0], torch.full((n - zeros,), 1 / (1 - p)).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 33, dtype=dtype, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, y)


@given(seed=st.integers(0, 2**31))
def test_neighbours_are_independent(seed: int) -> None:
    """Four draws share one random word: each pair of its quarters must agree half the time."""
    torch.manual_seed(seed)
    kept = (Dropout(0.5)(torch.ones(20_000)) != 0).view(-1, 4)
    for a in range(4):
        for b in range(a):
            agree = (kept[:, a] == kept[:, b]).double().mean()
            assert abs(float(agree) - 0.5) < 6 * 0.5 / 5_000**0.5


def test_the_seed_decides() -> None:
    x, drop = torch.ones(1_000), Dropout(0.4)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("attn_dropout", [None, 0.0, 0.4])
def test_a_model_in_training_drops_in_every_place_it_says(
    arch: str, attn_dropout: float | None
) -> None:
    config = GPTConfig.from_arch(
        arch, vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=8, dropout=0.4,
        attn_dropout=attn_dropout,
    )  # fmt: skip
    model = GPT(config)
    places = [m for m in model.modules() if isinstance(m, Dropout)]
    assert [m.p for m in places] == [0.4] * 3  # the embedding, and one for each block's branches
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    expected = 0.4 if attn_dropout is None else attn_dropout
    attentions = [m for m in model.modules() if isinstance(m, CausalSelfAttention)]
    assert [attention.dropout for attention in attentions] == [expected] * 2
