"""Calls of `generate`: prompts and seeds, what stays as it was, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from yocto_model import GPT, GPTConfig, InputError, SamplingError

GPT2 = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)


def test_equal_seeds_give_equal_ids_and_leave_the_global_generator() -> None:
    """Randomness is an argument; without one, torch's global generator decides."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first = model.generate([[1], [1]], 20, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, model.generate([[1], [1]], 20, seed=7))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, model.generate([[1], [1]], 20, seed=9))
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(model.generate([[1]], 20))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("training", [True, False])
def test_generating_leaves_the_model_as_it_was(training: bool) -> None:
    """Dropout is off while it generates, and mode, weights and gradients are as before."""
    model = GPT(GPT2.replace(dropout=0.5)).train(training)
    model(torch.tensor([[1, 2]])).sum().backward()
    before = {name: (p.detach().clone(), p.grad) for name, p in model.named_parameters()}
    first = model.generate([[1, 2]], 8, seed=3)
    assert torch.equal(first, model.generate([[1, 2]], 8, seed=3))
    assert training == model.training == model.drop.training
    for name, weight in model.named_parameters():
        assert torch.equal(before[name][0], weight)
        assert before[name][1] is weight.grad
    with pytest.raises(InputError):
        model.generate([[99]], 1)
    assert training == model.training


def test_prompts_come_as_tensors_lists_or_arrays() -> None:
    """A tensor, lists, and rows of NumPy integers are the same prompt."""
    model = GPT(GPT2)
    expected = model.generate([[1, 2], [3, 4]], 3, seed=0).tolist()
    ids = np.array([[1, 2], [3, 4]], dtype=np.uint16)
    assert expected == model.generate(torch.tensor([[1, 2], [3, 4]]), 3, seed=0).tolist()
    assert expected == model.generate(list(ids), 3, seed=0).tolist()
    assert [[1, 2], [3, 0]] == model.generate([[1, 2], [3]], 0).tolist()


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "no prompt"),
        ([[]], "row 0 is empty"),
        ([[1], []], "row 1 is empty"),
        ([[1, 11]], r"id 11 in row 0 is outside 0\.\.10"),
        ([[-1]], "id -1 in row 0"),
        ([[2**70]], "in row 0 is outside"),
        ([1, 2], "rows of whole numbers"),
        ([[1.0]], "rows of whole numbers"),
        (["ab"], "rows of whole numbers"),
        (torch.tensor([1, 2]), r"shape \(batch, tokens\)"),
        (torch.zeros(1, 1, 1).long(), r"shape \(batch, tokens\)"),
        (torch.zeros(0, 2).long(), "no prompt"),
        (torch.zeros(2, 0).long(), "row 0 is empty"),
        (torch.zeros(1, 2), "rows of whole numbers"),
    ],
)
def test_a_prompt_that_is_none_is_refused(prompts: Any, said: str) -> None:
    """Wrong shape, kind or range is one line that says where."""
    with pytest.raises(InputError, match=said) as caught:
        GPT(GPT2).generate(prompts, 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "seed", [2**64, -(2**63) - 1, 10**30, 1.5, "1", [1, 2], [], [1.5], [2**64]]
)
def test_a_seed_out_of_range_is_refused(seed: Any) -> None:
    """F8: whole numbers of 64 bits, one in all or one per row."""
    with pytest.raises(InputError, match="seed"):
        GPT(GPT2).generate([[1]], 1, seed=seed)


@pytest.mark.parametrize("number", [-1, 1.5, "3", None, True])
def test_a_number_of_tokens_out_of_range_is_refused(number: Any) -> None:
    """It is a whole number from 0 on."""
    with pytest.raises(InputError, match="max_new_tokens must be a whole number >= 0"):
        GPT(GPT2).generate([[1]], number)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3}])
def test_damaged_weights_are_said_not_sampled(options: dict[str, Any]) -> None:
    """P6: NaN logits are an error of this package, and the model can be used again after repair."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))
    weight = model.token_emb.weight.detach().clone()
    with torch.no_grad():
        model.token_emb.weight[3] = torch.nan
    with pytest.raises(SamplingError, match="not finite"):
        model.generate([[1, 3]], 3, **options)
    with torch.no_grad():
        model.token_emb.weight.copy_(weight)
    assert model.generate([[1, 3]], 3, **options).shape == (1, 5)
