"""What this package's tests share: tiny models of every variant, and a tamed random generator.

Tests compare by `torch.allclose` or NumPy: `torch.testing` imports a compiler, several seconds.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import register_random
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT, GPTConfig


class _TorchRandom:
    """torch's global generator, as Hypothesis wants to seed and restore it."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


# Hypothesis keeps only a weak reference: the name keeps the object alive.
TORCH_RANDOM = _TorchRandom()
register_random(TORCH_RANDOM)


@st.composite
def tiny_configs(draw: st.DrawFn) -> GPTConfig:
    """Both architectures, and any mixture of their parts; head widths are even, for rotary."""
    head_dim, n_head = draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([1, 2, 3, 4]))
    fields: dict[str, Any] = {
        "vocab_size": draw(st.integers(2, 13)),
        "block_size": draw(st.integers(1, 10)),
        "n_layer": draw(st.integers(1, 2)),
        "n_head": n_head,
        "n_embd": n_head * head_dim,
        "n_kv_head": draw(
            st.sampled_from([None, *[k for k in range(1, n_head + 1) if n_head % k == 0]])
        ),
        "n_hidden": draw(st.sampled_from([None, 1, 5, 8])),
    }
    changes: dict[str, list[Any]] = {
        "norm": ["layernorm", "rmsnorm"],
        "norm_eps": [1e-6, 1e-2],
        "positions": ["learned", "rotary"],
        "rotary_base": [10_000.0, 3.0],
        "activation": ["gelu", "gelu_tanh", "swiglu"],
        "bias": [True, False],
        "qkv_bias": [True, False],
        "qk_norm": [True, False],
        "head_dim": [2, 8],
        "tie_weights": [True, False],
        "init": ["normal", "uniform"],
        "zero_init": [True, False],
    }
    chosen = draw(st.sets(st.sampled_from(sorted(changes)), max_size=len(changes)))
    fields |= {name: draw(st.sampled_from(changes[name])) for name in sorted(chosen)}
    return GPTConfig.from_arch(draw(st.sampled_from(["gpt2", "modern"])), **fields)


# Tests write `st.from_type(GPTConfig)`; a new field joins all of them here.
st.register_type_strategy(GPTConfig, tiny_configs())


@pytest.fixture(scope="session")
def make_model() -> Callable[[GPTConfig, int], GPT]:
    """A float64 model in evaluation mode whose weights are all redrawn.

    A fresh model may be trivial: with `zero_init` every block is the identity and all logits are 0.
    """

    def make(config: GPTConfig, seed: int = 0) -> GPT:
        generator = torch.Generator().manual_seed(seed)
        model = GPT(config).double().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.normal_(std=0.5, generator=generator)
                if weight.dim() == 1 and name.endswith("weight"):
                    weight.add_(1)  # gains of norms
        return model

    return make


@pytest.fixture
def counting() -> Callable[[GPT], list[int]]:
    """Watch a model: the list to which every pass from now on adds how many tokens it read."""

    def watch(model: GPT) -> list[int]:
        read: list[int] = []
        forward = model.hidden_states

        def hidden_states(idx: Tensor, **more: Any) -> Tensor:
            read.append(idx.shape[1])
            return forward(idx, **more)

        model.hidden_states = hidden_states  # type: ignore[method-assign] # to watch it
        return read

    return watch
