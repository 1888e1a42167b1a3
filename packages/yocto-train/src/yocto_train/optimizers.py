"""How each parameter is updated: AdamW's groups, and Muon for the matrices inside the blocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from yocto_model import GPT

from yocto_train.config import TrainConfig

# Coefficients of the odd quintic that drives singular values towards 1 (Jordan et al. 2024). It
# does not converge to 1 but into about [0.7, 1.2], quickly, which serves just as well.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def make_optimizers(
    model: GPT, config: TrainConfig, *, autocast: torch.dtype | None = None
) -> list[Optimizer]:
    """The optimizers of a run; together their groups hold each parameter exactly once.

    Every group carries "peak_lr", which the schedule's factor multiplies. Muon's matrix products
    are in bfloat16 if those of the model are (`autocast`).
    """
    if config.lora_rank:
        return [
            _adamw([weight for weight in model.parameters() if weight.requires_grad], [], config)
        ]
    roles = model.parameter_roles()
    matrices = [weight for weight, _ in roles.matrices]
    if config.optimizer == "adamw":
        decayed, plain = [*roles.embeddings, *roles.head, *matrices], roles.vectors
        return [_adamw(decayed, plain, config)]
    rest = [*roles.embeddings, *roles.head, *roles.vectors]
    muon = Muon(
        roles.matrices,
        lr=config.muon_lr,
        momentum=config.muon_momentum,
        weight_decay=config.weight_decay,
        iterations=config.muon_iterations,
        dtype=torch.bfloat16 if autocast == torch.bfloat16 else None,
    )
    # Embeddings are rows picked by ids, and decaying rows that were not picked only forgets them.
    return [_adamw([], rest, config), muon]


def set_learning_rates(
    optimizers: Sequence[Optimizer], factor: float, *, muon_momentum: float
) -> None:
    """Prepare the next update: learning rate is peak times `factor`; set Muon's momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            if isinstance(optimizer, Muon):
                group["momentum"] = muon_momentum


def _adamw(
    decayed: Sequence[Tensor], plain: Sequence[Tensor], config: TrainConfig
) -> torch.optim.AdamW:
    groups = [
        {"params": list(decayed), "weight_decay": config.weight_decay, "peak_lr": config.lr},
        {"params": list(plain), "weight_decay": 0.0, "peak_lr": config.lr},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,  # one pass over the memory instead of several, on CPU too
    )


def orthogonalize(x: Tensor, iterations: int = 5) -> Tensor:
    """Move all singular values of each matrix near 1, keeping its directions.

    Newton-Schulz iteration on X / |X|: X <- a X + (b A + c A A) X with A = X X^T, the odd
    polynomial of Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks").

    Args:
        x: (rows, columns) or (n, rows, columns), float.
        iterations: after 5, singular values that began above 1 % of the norm lie in about
            [0.7, 1.2].

    Returns:
        The same shape and dtype.
    """
    if x.dim() == 2:
        return orthogonalize(x[None], iterations)[0]
    a, b, c = _NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the smaller side makes the smaller products
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


@dataclass
class _Stack:
    """Matrices of one shape, each some rows of a parameter, updated by one batched product."""

    places: list[tuple[Tensor, int]]  # a parameter and the first of its rows
    rows: int
    columns: int
    flipped: list[bool]  # taller than wide, so stored transposed


class Muon(Optimizer):
    """Momentum, orthogonalised: each matrix moves by a nearly orthogonal update (Jordan 2024).

    M <- mu M + (1-mu) G;  N = mu M + (1-mu) G;  W <- (1 - lr wd) W - lr s orthogonalize(N),
    with s = sqrt(max(1, rows / columns)).

    Matrices of one shape, or of its transpose, are stacked: one batched product replaces dozens of
    small ones, which on a CPU costs a third less time.

    Args:
        matrices: pairs of a two-dimensional parameter and the row counts of the matrices it is
            made of: a fused q, k, v is three matrices, each orthogonalised on its own.
        lr: peak learning rate.
        momentum: mu.
        weight_decay: wd, decoupled.
        iterations: Newton-Schulz iterations per update.
        dtype: the dtype of those, None for the parameters' own; bfloat16 takes half the time on
            machines that have it, and changes the singular values by less than 0.01.
    """

    def __init__(
        self,
        matrices: Sequence[tuple[Tensor, Sequence[int]]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = {"params": [weight for weight, _ in matrices], "peak_lr": lr}
        settings = {"momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__([group], {"lr": lr, **settings})
        self._stacks, self._dtype = _make_stacks(matrices), dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] # without a closure
        """Update every parameter from its gradient; all must have one."""
        group = self.param_groups[0]
        if group["weight_decay"]:
            for weight in group["params"]:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
        for stack in self._stacks:
            self._update(stack, group)

    def _update(self, stack: _Stack, group: dict[str, Any]) -> None:
        grads = torch.stack([_gradient(stack, i) for i in range(len(stack.places))])
        # A stack's momentum is kept with the first parameter in it: (n, rows, columns).
        state = self.state[stack.places[0][0]]
        key = f"momentum_{stack.places[0][1]}"
        if key not in state:
            state[key] = torch.zeros_like(grads)
        momentum: Tensor = state[key].lerp_(grads, 1 - group["momentum"])
        nesterov = grads.lerp_(momentum, group["momentum"])
        update = orthogonalize(nesterov.to(self._dtype or grads.dtype), group["iterations"])
        for i, (weight, first) in enumerate(stack.places):
            move = update[i].mT if stack.flipped[i] else update[i]
            rows, columns = move.shape
            _add(weight, first, move, -group["lr"] * math.sqrt(max(1, rows / columns)))


def _make_stacks(matrices: Sequence[tuple[Tensor, Sequence[int]]]) -> list[_Stack]:
    stacks: dict[tuple[int, int], _Stack] = {}
    for weight, parts in matrices:
        first = 0
        for rows in parts:
            columns = weight.shape[1]
            flipped = rows > columns
            shape = (columns, rows) if flipped else (rows, columns)
            stack = stacks.setdefault(shape, _Stack([], *shape, []))
            stack.places.append((weight, first))
            stack.flipped.append(flipped)
            first += rows
    return list(stacks.values())


def _gradient(stack: _Stack, index: int) -> Tensor:
    """The gradient of one matrix (rows, columns), wider than tall; whole, if it is sharded."""
    weight, first = stack.places[index]
    gradient = weight.grad
    assert gradient is not None  # noqa: S101 - the trainer's backward pass reaches every parameter
    if hasattr(gradient, "full_tensor"):  # half a matrix has other singular values
        gradient = gradient.full_tensor()
    flipped = stack.flipped[index]
    count = stack.columns if flipped else stack.rows
    part = gradient[first : first + count]
    return part.mT if flipped else part


def _add(weight: Tensor, first: int, move: Tensor, scale: float) -> None:
    """weight[first:] += scale * move, on this rank's rows alone if the weight is sharded."""
    if hasattr(weight, "full_tensor"):
        from yocto_train.scale.distributed import share_of  # noqa: PLC0415 - only if it is sharded

        whole = move.new_zeros(weight.shape)
        whole[first : first + move.shape[0]] = move
        weight.add_(share_of(whole, weight), alpha=scale)
    else:
        weight[first : first + move.shape[0]].add_(move, alpha=scale)
