"""Cross-entropy over a large vocabulary or of half precision, without copies of all logits."""

from typing import Any

import torch
from torch import Tensor

LARGE = 8_192  # ids, from which it pays


def some_at_a_time(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """What `cross_entropy` says, for logits (N, V) of any float and targets (N,)."""
    total: Tensor = _SomeAtATime.apply(logits, targets)
    return total if reduction == "sum" else total / (targets >= 0).sum()


class _SomeAtATime(torch.autograd.Function):
    """The sum over the tokens that are learned.

    1,024 tokens and 49,152 ids are 200 MB in float32, of which torch writes and reads three copies.
    Here logits and gradient exist once, in the dtype that they have, and a few tokens at a time are
    in float32; the softmax is computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        sums = torch.cat(
            [_exact(part).logsumexp(1) for part in torch.split(logits, _n_rows(logits))]
        )
        ctx.save_for_backward(logits, targets, sums)
        picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        return (sums - picked)[targets >= 0].sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The softmax, less 1 at the target, times `gradient`; zero where nothing is learned."""
        logits, targets, sums = ctx.saved_tensors
        out, weights = torch.empty_like(logits), (targets >= 0) * gradient
        n = _n_rows(logits)
        for here in (slice(at, at + n) for at in range(0, len(targets), n)):
            softmax = (_exact(logits[here]) - sums[here, None]).exp_()
            softmax.scatter_add_(
                1, targets[here].clamp(min=0)[:, None], softmax.new_full((len(softmax), 1), -1)
            )
            out[here] = softmax.mul_(weights[here, None])
        return out, None


def _exact(logits: Tensor) -> Tensor:
    """Half precision has too few bits to add up a whole vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _n_rows(logits: Tensor) -> int:
    """As many as stay in a CPU's caches (4 MB), or keep a GPU busy."""
    return max(1, (2**20 if logits.device.type == "cpu" else 2**26) // logits.shape[1])
