"""Parts of any model: rotary positions, the roles of its parameters, and the ids it takes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT, GPTConfig, InputError
from yocto_model.layers import rotary_tables, rotate

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
GPT2 = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)


def same(expected: Tensor, got: Tensor, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(got.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


every_config = given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())


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
@every_config
def test_every_parameter_has_one_role(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject
) -> None:
    """R7: embeddings, head, matrices and vectors are all parameters, each exactly once."""
    model = make_model(config, seed)
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
