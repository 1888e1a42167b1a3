"""Laws of the optimizers: groups partition the parameters, Muon equals a naive reference."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT
from yocto_train import Muon, TrainConfig, Trainer, make_optimizers, orthogonalize
from yocto_train.optimizers import set_learning_rates

ARCHS = ("gpt2", "modern")
MakeModel = Callable[..., GPT]
MakeTrainer = Callable[..., Trainer]


def naive_orthogonalize(x: Tensor, iterations: int) -> Tensor:
    """The five lines of Jordan et al. 2024, for one matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x / (x.norm() + 1e-7)
    if x.shape[0] > x.shape[1]:
        return naive_orthogonalize(x.T, iterations).T
    for _ in range(iterations):
        gram: Tensor = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    result: Tensor = y
    return result


class NaiveMuon:
    """The formulas of Muon's docstring, for one matrix at a time."""

    def __init__(self, lr: float, momentum: float, weight_decay: float, iterations: int) -> None:
        self.lr, self.momentum = lr, momentum
        self.weight_decay, self.iterations = weight_decay, iterations
        self.buffers: dict[int, Tensor] = {}

    def step(self, weight: Tensor, grad: Tensor, parts: Sequence[int]) -> Tensor:
        """The new weight; the rows in each part are a matrix of their own."""
        old = self.buffers.get(id(parts), torch.zeros_like(grad))
        mean = self.momentum * old + (1 - self.momentum) * grad
        self.buffers[id(parts)] = mean
        nesterov = self.momentum * mean + (1 - self.momentum) * grad
        updates = []
        for part in torch.split(nesterov, list(parts)):
            rows, columns = part.shape
            scale = math.sqrt(max(1, rows / columns))
            updates.append(scale * naive_orthogonalize(part, self.iterations))
        return weight * (1 - self.lr * self.weight_decay) - self.lr * torch.cat(updates)


SEEDS = st.integers(0, 2**32)
SHAPES = st.lists(
    st.tuples(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 7)),
    min_size=1, max_size=5,
)  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {"momentum": st.floats(0, 0.99), "weight_decay": st.floats(0, 0.5),
     "iterations": st.integers(1, 6)}
)  # fmt: skip


@pytest.mark.property
@given(SHAPES, SEEDS, SETTINGS)
@example(
    [([4, 4, 4], 4), ([8, 8], 4), ([4], 8), ([4], 4)], 0,
    {"momentum": 0.95, "weight_decay": 0.1, "iterations": 5},
)  # fmt: skip
@example([([3], 5), ([5], 3)], 1, {"momentum": 0.0, "weight_decay": 0.0, "iterations": 1})
def test_muon_equals_one_matrix_at_a_time(
    shapes: list[tuple[list[int], int]], seed: int, settings: dict[str, Any]
) -> None:
    """R8: stacking equal and transposed shapes changes nothing, over three steps in float64."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [torch.nn.Parameter(noise(sum(parts), columns)) for parts, columns in shapes]
    expected = [weight.detach().clone() for weight in weights]
    all_parts = [parts for parts, _ in shapes]
    muon = Muon(list(zip(weights, all_parts, strict=True)), lr=0.03, **settings)
    naive = NaiveMuon(lr=0.03, **settings)
    for _ in range(3):
        for i, weight in enumerate(weights):
            weight.grad = noise(*weight.shape)
            expected[i] = naive.step(expected[i], weight.grad.clone(), all_parts[i])
        muon.step()
    for want, weight in zip(expected, weights, strict=True):
        torch.testing.assert_close(weight.detach(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.property
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=SEEDS)
@example(rows=4, columns=4, seed=0)
@example(rows=6, columns=2, seed=1)
def test_muon_agrees_with_torch(
    dtype: torch.dtype | None, rows: int, columns: int, seed: int
) -> None:
    """R8: the same step as torch.optim.Muon's, which iterates in bfloat16, to that precision."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, columns, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    muon = Muon([(ours, [rows])], lr=0.02, momentum=0.9, weight_decay=0.1, dtype=dtype)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True, ns_steps=5
    )
    for _ in range(2):
        ours.grad = torch.randn(rows, columns, generator=generator)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()  # type: ignore[no-untyped-call] # torch has no type here
    # An update has norm of about 0.02 per singular value; bfloat16 keeps 8 bits of it, and the
    # polynomial magnifies the rounding of small singular values.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * 2 * 0.35)
    moved, theirs_moved = (ours - start).flatten(), (theirs - start).flatten()
    cosine = torch.nn.functional.cosine_similarity(moved, theirs_moved, dim=0)
    assert cosine > 0.95


@pytest.mark.property
@given(st.integers(1, 8), st.integers(1, 8), SEEDS)
@example(8, 8, 0)
@example(1, 5, 1)
def test_orthogonalize_moves_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    """After 5 iterations, singular values that began above 1 % of the norm lie in [0.65, 1.25].

    The singular directions stay: U and V of X diagonalise the result.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.T @ orthogonalize(x) @ vh.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-6)
    large = s > 0.01 * x.norm()
    assert bool(large.any())
    assert inner.diagonal()[large].min() > 0.65
    assert inner.diagonal()[large].max() < 1.25


def test_orthogonalize_of_a_batch_is_a_batch() -> None:
    """Each matrix of a stack is treated as if it were alone, and scale does not matter."""
    stack = torch.randn(3, 4, 6, dtype=torch.float64)
    expected = torch.stack([orthogonalize(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack), expected)
    torch.testing.assert_close(orthogonalize(1e3 * stack), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(orthogonalize(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tied", [True, False])
def test_groups_partition_the_parameters(
    arch: str, optimizer: str, tied: bool, make_model: MakeModel
) -> None:
    """R7: each parameter is in exactly one group of one optimizer, and each has its peak rate."""
    model = make_model(arch, tie_weights=tied)
    optimizers = make_optimizers(model, TrainConfig.from_dict({"optimizer": optimizer}))
    groups = [group for each in optimizers for group in each.param_groups]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(id(parameter) for parameter in model.parameters()) == sorted(grouped)
    assert all("peak_lr" in group for group in groups)


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_decayed(arch: str, make_model: MakeModel) -> None:
    """AdamW decays exactly what has two dimensions (nanoGPT's rule), Muon the blocks' matrices."""
    model = make_model(arch)
    (adamw,) = make_optimizers(model, TrainConfig(weight_decay=0.2))
    decay = {id(p): g["weight_decay"] for g in adamw.param_groups for p in g["params"]}
    expected = {id(p): 0.2 if p.dim() >= 2 else 0.0 for p in model.parameters()}
    assert expected == decay
    rest, muon = make_optimizers(model, TrainConfig(optimizer="muon", weight_decay=0.2))
    assert all(group["weight_decay"] == 0 for group in rest.param_groups)
    blocks = {id(p) for p in model.blocks.parameters() if p.dim() >= 2}
    assert blocks == {id(p) for p in muon.param_groups[0]["params"]}


def test_learning_rates_follow_the_factor(make_model: MakeModel) -> None:
    """Each group's rate is its own peak times the factor; Muon's momentum is set beside it."""
    config = TrainConfig(optimizer="muon", lr=0.004, muon_lr=0.02)
    adamw, muon = make_optimizers(make_model(), config)
    set_learning_rates([adamw, muon], 0.5, muon_momentum=0.9)
    assert {0.002} == {group["lr"] for group in adamw.param_groups}
    assert (0.01, 0.9) == (muon.param_groups[0]["lr"], muon.param_groups[0]["momentum"])


@pytest.mark.parametrize("arch", ARCHS)
def test_adamw_step_equals_torchs_plain_loop(arch: str, make_trainer: MakeTrainer) -> None:
    """R8: the trainer's fused AdamW equals torch's unfused one, given the same rates and clips."""
    settings: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.3, "max_iters": 4}
    trainer = make_trainer(arch, dropout=0.0, dtype=torch.float64, **settings)
    reference = make_trainer(arch, dropout=0.0, dtype=torch.float64, **settings)
    groups = [dict(group) for group in reference.optimizers[0].param_groups]
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=False, foreach=False)
    reference.optimizers[:] = [plain]
    for each in (trainer, reference):
        list(each.run())
    for name, want in reference.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], want, rtol=1e-9, atol=1e-10)


def test_muon_needs_every_gradient() -> None:
    """A matrix that the backward pass did not reach is an error, not a silent skip."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(AssertionError):
        Muon([(weight, [2])], lr=0.1).step()
