"""Parts of any model: rotary positions, roles of parameters, ids refused, first weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_model import GPT, GPTConfig, InputError
from yocto_model.layers import rotary_tables, rotate

SEEDS = st.integers(0, 2**40)
GPT2 = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch("modern", vocab_size=7, block_size=4, n_layer=2, n_head=2, n_embd=8)


def same(expected: Tensor, got: Tensor, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(got.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.property
@given(
    half=st.integers(1, 8), base=st.floats(1, 1e6), places=st.tuples(*[st.integers(0, 40)] * 3),
    seed=SEEDS,
)  # fmt: skip
@example(half=2, base=10_000.0, places=(0, 1, 40), seed=0)
@example(half=1, base=1.0, places=(3, 3, 3), seed=0)
def test_rotation_keeps_lengths_and_knows_only_distances(
    half: int, base: float, places: tuple[int, int, int], seed: int
) -> None:
    """M8: |rotate(x)| = |x|, and q at m times k at n depends on m - n alone."""
    config = GPTConfig(
        block_size=81, n_head=1, n_embd=2 * half, positions="rotary", rotary_base=base
    )
    cos, sin = (table.double() for table in rotary_tables(config))
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 2 * half, generator=generator, dtype=torch.float64)

    def turned(x: Tensor, place: int) -> Tensor:
        return rotate(x[None, None, None], cos[place : place + 1], sin[place : place + 1]).flatten()

    m, n, shift = places
    same(q.norm(), turned(q, m).norm(), 1e-6)
    same(q, turned(q, 0))
    # The tables are float32: at place 80 an angle is off by up to 80 * 2^-24.
    same(turned(q, m) @ turned(k, n), turned(q, m + shift) @ turned(k, n + shift), 2e-5 * half)


@pytest.mark.property
@given(config=st.from_type(GPTConfig))
def test_every_parameter_has_one_role(config: GPTConfig) -> None:
    """R7: embeddings, head, matrices and vectors are all parameters, each exactly once."""
    model = GPT(config)
    roles = model.parameter_roles()
    matrices = [weight for weight, _ in roles.matrices]
    listed = [*roles.embeddings, *roles.head, *matrices, *roles.vectors]
    assert sorted(map(id, model.parameters())) == sorted(map(id, listed))
    assert all(weight.shape[0] == sum(sizes) for weight, sizes in roles.matrices)
    assert config.tie_weights == (not roles.head)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.zeros(3, dtype=torch.int64), r"shape \(batch, tokens >= 1\), not \(3,\)"),
        (torch.zeros(1, 0, dtype=torch.int64), r"not \(1, 0\)"),
        (torch.zeros(1, 7, dtype=torch.int64), "7 tokens exceed block_size 6"),
    ],
)
def test_ids_of_the_wrong_shape_are_refused(ids: Tensor, said: str) -> None:
    """Expected and received are both said."""
    with pytest.raises(InputError, match=said):
        GPT(GPT2)(ids)


# --- first weights ---------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=st.integers(0, 2**32))
@example(config=GPT2, seed=0)
@example(config=MODERN, seed=0)
def test_randomness_is_an_argument(config: GPTConfig, seed: int) -> None:
    """Equal seeds give equal weights, drawn anew too, and the global generator is left alone."""
    old, before = GPT(config), torch.get_rng_state()
    old.initialize(seeded(seed))
    weights = [model.state_dict() for model in (old, GPT(config, generator=seeded(seed)))]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_without_a_generator_the_global_one_decides() -> None:
    """`torch.manual_seed` fixes the weights, as torch's users expect."""
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(GPT(GPT2).head.weight)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], GPT(GPT2).head.weight)


@pytest.mark.property
@given(config=st.from_type(GPTConfig))
@example(config=MODERN)
def test_zero_init_makes_each_block_the_identity(config: GPTConfig) -> None:
    """With `zero_init` the residual stream passes every block unchanged; untied logits are 0."""
    model = GPT(config.replace(zero_init=True, bias=False, qkv_bias=False)).double().eval()
    x = torch.randn(1, 2, config.n_embd, dtype=torch.float64)
    rotary = None
    if config.positions == "rotary":
        rotary = (
            torch.ones(2, config.head_width).double(),
            torch.zeros(2, config.head_width).double(),
        )
    for block in model.blocks:
        assert torch.equal(x, block(x, rotary))
    if not config.tie_weights:
        assert not model(torch.zeros(1, 1, dtype=torch.int64)).any()


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_a_fresh_model_expects_nothing(arch: str) -> None:
    """M6: before training the loss is near ln(vocabulary), every token about equally likely."""
    config = GPTConfig.from_arch(
        arch, vocab_size=1_000, block_size=32, n_layer=3, n_head=2, n_embd=32
    )
    model = GPT(config, generator=seeded(0)).eval()
    ids = torch.randint(1_000, (8, 33), generator=seeded(1))
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert math.log(1_000) == pytest.approx(float(loss), abs=0.05)


def test_normal_weights_have_the_deviations_of_gpt2() -> None:
    """0.02 everywhere, residual projections divided by sqrt(2 layers), biases 0, gains 1."""
    config = GPTConfig(vocab_size=500, block_size=64, n_layer=3, n_head=2, n_embd=64)
    for name, weight in GPT(config, generator=seeded(0)).state_dict().items():
        if weight.dim() == 1:
            assert torch.equal(torch.full_like(weight, float(name.endswith("weight"))), weight)
            continue
        expected = 0.02 / math.sqrt(6) if name.endswith("proj.weight") else 0.02
        assert expected == pytest.approx(float(weight.std()), rel=0.05), name
        assert float(weight.mean()) == pytest.approx(0, abs=0.002), name


def test_uniform_weights_fill_their_bounds() -> None:
    """Within sqrt(3 / fan-in), which is deviation sqrt(1 / fan-in); embeddings N(0, 1)."""
    config = GPTConfig.from_arch(
        "modern", vocab_size=500, block_size=8, n_layer=2, n_head=2, n_embd=64, zero_init=False
    )
    for name, weight in GPT(config, generator=seeded(0)).state_dict().items():
        if weight.dim() == 1:
            assert bool((weight == 1).all()), name
            continue
        expected = 1.0 if name == "token_emb.weight" else 1 / math.sqrt(weight.shape[1])
        if name.endswith("proj.weight"):
            expected /= math.sqrt(4)
        assert expected == pytest.approx(float(weight.std()), rel=0.05), name
        if name != "token_emb.weight":
            assert float(weight.abs().max()) <= expected * math.sqrt(3) + 1e-6, name


def test_a_tied_head_is_initialised_as_an_embedding() -> None:
    """Rows of N(0, 1) would start a tied head with huge logits, so both are N(0, 0.02)."""
    config = GPTConfig.from_arch(
        "modern", vocab_size=500, block_size=8, n_layer=1, n_head=2, n_embd=64, tie_weights=True
    )
    model = GPT(config, generator=seeded(0))
    assert float(model.head.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
