"""Gradient checkpointing: the same gradients from less memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from yocto_model import GPT, GPTConfig
from yocto_model.config import ARCHITECTURES

SIZES = {"vocab_size": 13, "block_size": 8, "n_head": 2, "n_embd": 16}


def gradients(model: GPT, ids: torch.Tensor, *, checkpointing: bool) -> dict[str, torch.Tensor]:
    model.grad_checkpointing = checkpointing
    model.zero_grad()
    torch.manual_seed(5)
    model(ids).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@given(
    arch=st.sampled_from(sorted(ARCHITECTURES)),
    n_layer=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.4]),
    rows=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_the_same(
    arch: str, n_layer: int, dropout: float, rows: int, seed: int
) -> None:
    """Dropout included: what is computed again drops the same values."""
    config = GPTConfig.from_arch(
        arch, **{**SIZES, "n_layer": n_layer, "dropout": dropout, "zero_init": False}
    )
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator=generator).double()
    ids = torch.randint(13, (rows, 8), generator=generator)
    kept, recomputed = (gradients(model, ids, checkpointing=on) for on in (False, True))
    assert kept.keys() == recomputed.keys() == dict(model.named_parameters()).keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_a_block_keeps_what_enters_it_and_no_more(arch: str) -> None:
    """Each further layer keeps B T C floats; without checkpointing, many times that."""

    def kept_bytes(n_layer: int, *, checkpointing: bool) -> int:
        model = GPT(GPTConfig.from_arch(arch, **{**SIZES, "n_layer": n_layer}))
        model.grad_checkpointing = checkpointing
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        weights |= {b.untyped_storage().data_ptr() for b in model.buffers()}
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(torch.zeros(4, 8, dtype=torch.int64)).sum()
        assert loss.requires_grad
        return sum(kept.values())

    entering = 4 * 8 * 16 * 4
    more = kept_bytes(4, checkpointing=True) - kept_bytes(2, checkpointing=True)
    assert more <= 2 * entering + 64
    assert kept_bytes(4, checkpointing=False) - kept_bytes(2, checkpointing=False) > 10 * entering


def test_generation_is_as_before() -> None:
    """With a cache, or without gradients, nothing is kept anyhow."""
    model = GPT(GPTConfig.from_arch("modern", **{**SIZES, "n_layer": 2})).eval()
    ids = torch.tensor([[1, 2, 3]])
    before = model.generate(ids, 4, seed=1)
    model.grad_checkpointing = True
    assert torch.equal(before, model.generate(ids, 4, seed=1))
