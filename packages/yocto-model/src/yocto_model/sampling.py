"""From logits to the next id: pure functions, joined by `SamplingOptions`.

The order is: repetition penalty, temperature, top-k, top-p, min-p, draw. A filter sets what it
drops to minus infinity. Ties are broken towards the lower id, so each filter keeps an exact set.
All is computed in float64, in which no two float32 logits become equal by being scaled.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yocto_model.errors import SamplingError, quoted

_DROPPED = -math.inf
_FEW = 512  # tokens that top-p sorts at first
_NOT_FINITE = "the model's output is not finite; were its weights damaged?"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen; the default draws from the model's own distribution.

    Attributes:
        temperature: logits are divided by it; below 1 is more cautious, 0 is greedy.
        top_k: keep the k likeliest tokens (Fan et al. 2018); 0 keeps all.
        top_p: keep the smallest set that has this probability (Holtzman et al. 2020); 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024);
            0 keeps all.
        repetition_penalty: above 1 makes tokens of the context less likely (Keskar et al. 2019).

    Raises:
        SamplingError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        largest = sys.float_info.max  # beyond it is infinity, or an integer no float can hold
        rules: tuple[tuple[str, type, Callable[[Any], bool], str], ...] = (
            ("temperature", float, lambda x: 0 <= x <= largest, "a number >= 0"),
            ("top_k", int, lambda x: x >= 0, "a whole number >= 0"),
            ("top_p", float, lambda x: 0 < x <= 1, "above 0 and at most 1"),
            ("min_p", float, lambda x: 0 <= x <= 1, "from 0 to 1"),
            ("repetition_penalty", float, lambda x: 0 < x <= largest, "a number above 0"),
        )
        for name, kind, holds, rule in rules:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | kind) or not holds(value):
                raise SamplingError(f"{name} must be {rule}, not {quoted(value)}")


def penalize_repetition(
    logits: Tensor, contexts: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    """Make the tokens of each row's context less likely (CTRL, Keskar et al. 2019).

    Args:
        logits: (B, V).
        contexts: B rows of ids.
        penalty: positive logits are divided by it, negative ones multiplied.
    """
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, context in enumerate(contexts):
        ids = torch.tensor(sorted(set(context)), dtype=torch.int64, device=logits.device)
        seen = logits[row, ids]
        logits[row, ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep exactly the k largest logits of each row, (B, V) -> (B, V); k = 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[:, -1:]  # (B, 1)
    return _keep_largest(logits, torch.full_like(smallest, k), smallest)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep each row's smallest set of likeliest tokens with probability p or more, never none."""
    if p >= 1.0:
        return logits
    V = logits.shape[-1]
    total = (logits - logits.amax(dim=-1, keepdim=True)).exp().sum(dim=-1, keepdim=True)
    # Sorting a large vocabulary takes longer than a model; mostly a few of the likeliest suffice.
    for n_sorted in (min(_FEW, V), V):
        ordered = torch.topk(logits, n_sorted).values  # (B, n_sorted), largest first
        weights = (ordered - ordered[:, :1]).exp()
        before = (weights.cumsum(dim=-1) - weights) / total  # probability of the likelier tokens
        count = (before < p).sum(dim=-1, keepdim=True)  # (B, 1); never 0: before the first is 0
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


def filter_logits(
    logits: Tensor, options: SamplingOptions, contexts: Sequence[Sequence[int]]
) -> Tensor:
    """All filters in order, float64 (B, V) -> (B, V); for a temperature above 0."""
    logits = penalize_repetition(logits, contexts, options.repetition_penalty)
    # The k largest are the same at any temperature; taken before, rounding makes no ties.
    logits = keep_top_k(logits, options.top_k)
    if options.temperature != 1.0:
        # Down from the largest, so that the smallest temperature does not overflow.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / options.temperature
    logits = keep_top_p(logits, options.top_p)
    return keep_min_p(logits, options.min_p)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one id per row by inverting the cumulative distribution.

    A pure function: the randomness is an argument, so a row's draw does not depend on its
    neighbours in the batch.

    Args:
        logits: (B, V), minus infinity where nothing may be drawn.
        uniforms: float64 (B,), each in [0, 1).

    Returns:
        int64 (B,).

    Raises:
        SamplingError: a row has NaN, plus infinity, or no finite logit.
    """
    weights = (logits.double() - logits.amax(dim=-1, keepdim=True)).exp()
    cumulative = weights.cumsum(dim=-1)  # (B, V), not normalised
    total = cumulative[:, -1:]
    _check_finite(total[:, 0])
    # The first id whose cumulative weight exceeds the target; its own weight is then above 0. There
    # is one: a float64 below 1 is at most 1 - 2^-53, and times the total it is rounded below it.
    return torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)[:, 0]


def _check_finite(per_row: Tensor) -> None:
    # As floats of Python: torch's test of one number takes longer than drawing a letter.
    if not all(map(math.isfinite, per_row.tolist())):
        raise SamplingError(_NOT_FINITE)


def next_ids(
    logits: Tensor,
    options: SamplingOptions,
    uniforms: Tensor,
    contexts: Sequence[Sequence[int]],
) -> Tensor:
    """The next id of each row.

    Args:
        logits: (B, V) of the position before.
        options: how to choose.
        uniforms: float64 (B,), each in [0, 1), on the CPU; not looked at when greedy.
        contexts: B rows of ids, for the repetition penalty; not looked at without it.

    Returns:
        int64 (B,).

    Raises:
        SamplingError: logits from which nothing can be drawn.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # that device knows no float64
    logits = logits.double()
    # Before any filter: top-k would drop a NaN and hide it.
    _check_finite(logits.amax(dim=-1))
    if options.temperature > 0:
        filtered = filter_logits(logits, options, contexts)
        return draw(filtered, uniforms.to(logits.device))
    return penalize_repetition(logits, contexts, options.repetition_penalty).argmax(dim=-1)
