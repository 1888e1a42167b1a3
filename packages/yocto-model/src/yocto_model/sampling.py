"""From logits to the next id: pure functions, which `next_ids` joins.

A filter sets what it drops to minus infinity. Ties are broken towards the lower id, so top-k and
top-p keep exact sets. Everything is computed in float64, so that scaling makes no two float32
logits equal.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from yocto_model.config import SamplingOptions
from yocto_model.errors import SamplingError

_DROPPED = -math.inf
_FEW = 512  # tokens that top-p sorts at first


def next_ids(
    logits: Tensor,
    options: SamplingOptions,
    uniforms: Tensor,
    contexts: Sequence[Sequence[int]],
) -> Tensor:
    """The next id of each row: int64 (B,).

    Args:
        logits: (B, V) of the position before.
        options: how to choose.
        uniforms: float64 (B,), each in [0, 1), on the CPU; not used when greedy.
        contexts: B rows of ids, for the repetition penalty.

    Raises:
        SamplingError: logits from which nothing can be drawn.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # that device has no float64
    logits = logits.double()
    # Before any filter: top-k would drop a NaN and hide it.
    _check_finite(logits.amax(dim=-1))
    if options.temperature == 0:
        penalized = penalize_repetition(logits, contexts, options.repetition_penalty)
        return penalized.argmax(dim=-1)
    filtered = filter_logits(logits, options, contexts)
    return draw(filtered, uniforms.to(logits.device))


def filter_logits(
    logits: Tensor, options: SamplingOptions, contexts: Sequence[Sequence[int]]
) -> Tensor:
    """All filters in order, float64 (B, V) -> (B, V); for a temperature above 0."""
    logits = penalize_repetition(logits, contexts, options.repetition_penalty)
    # The k largest are the same at any temperature; chosen first, before rounding can make ties.
    logits = keep_top_k(logits, options.top_k)
    if options.temperature != 1.0:
        # Measured from the largest, so that even a tiny temperature does not overflow.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / options.temperature
    # Only now: how many tokens hold a share of the probability depends on the temperature.
    logits = keep_top_p(logits, options.top_p)
    return keep_min_p(logits, options.min_p)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one id per row by inverting the cumulative distribution: int64 (B,).

    Args:
        logits: (B, V), minus infinity where nothing may be drawn.
        uniforms: float64 (B,), each in [0, 1): the randomness, so that this is a pure function.

    Raises:
        SamplingError: a row has NaN, plus infinity, or no finite logit.
    """
    # A softmax that is not divided by its sum; instead, the target is multiplied by the sum.
    weights = (logits.double() - logits.amax(dim=-1, keepdim=True)).exp()
    cumulative = weights.cumsum(dim=-1)  # (B, V)
    total = cumulative[:, -1:]
    _check_finite(total[:, 0])
    # The ids lie side by side on a line, each as wide as its weight; the target falls on the one to
    # draw. It is the first whose cumulative weight exceeds the target, so its own is above 0. There
    # always is one: a float64 below 1, times the total, is rounded to less than the total.
    return torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)[:, 0]


def _check_finite(per_row: Tensor) -> None:
    # As Python floats: torch's test of one number takes longer than drawing a letter.
    if not all(map(math.isfinite, per_row.tolist())):
        raise SamplingError("the model's output is not finite; were its weights damaged?")


def penalize_repetition(
    logits: Tensor, contexts: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    """Make the tokens of each row's context less likely (Keskar et al. 2019), (B, V) -> (B, V)."""
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, context in enumerate(contexts):
        ids = torch.tensor(sorted(set(context)), dtype=torch.int64, device=logits.device)
        seen = logits[row, ids]
        # Less likely either way: a negative logit becomes smaller by multiplying.
        logits[row, ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep exactly the k largest logits of each row, (B, V) -> (B, V); k = 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[:, -1:]  # (B, 1)
    return _keep_largest(logits, torch.full_like(smallest, k), smallest)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep each row's smallest set of likeliest tokens with probability p or more, at least one."""
    if p >= 1.0:
        return logits
    V = logits.shape[-1]
    total = (logits - logits.amax(dim=-1, keepdim=True)).exp().sum(dim=-1, keepdim=True)
    # Sorting a large vocabulary can take longer than the model; usually the likeliest few suffice.
    for n_sorted in (min(_FEW, V), V):
        ordered = torch.topk(logits, n_sorted).values  # (B, n_sorted), largest first
        weights = (ordered - ordered[:, :1]).exp()
        before = (weights.cumsum(dim=-1) - weights) / total  # probability of the likelier tokens
        count = (before < p).sum(dim=-1, keepdim=True)  # (B, 1); at least 1: `before` begins with 0
        if bool((count < n_sorted).all()):
            break
    return _keep_largest(logits, count, ordered.gather(-1, count - 1))


def _keep_largest(logits: Tensor, count: Tensor, smallest: Tensor) -> Tensor:
    """Keep the `count` (B, 1) largest of each row, the last of which is `smallest` (B, 1)."""
    keep = logits >= smallest
    if not bool((keep.sum(dim=-1, keepdim=True) == count).all()):
        # Fill the places that are left with tied tokens, lowest ids first.
        above = logits > smallest
        tied = logits == smallest
        room = count - above.sum(dim=-1, keepdim=True)
        keep = above | (tied & (tied.cumsum(dim=-1) <= room))
    return logits.masked_fill(~keep, _DROPPED)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens whose probability is at least `min_p` times the row's largest."""
    if min_p == 0.0:
        return logits
    # A ratio of probabilities is a difference of logits: no softmax needed.
    floor = logits.amax(dim=-1, keepdim=True) + math.log(min_p)
    return logits.masked_fill(logits < floor, _DROPPED)
