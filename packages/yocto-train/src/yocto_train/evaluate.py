"""Loss over a validation split, and what it is per byte of text."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_data import TokenDataset, evaluation_batches
from yocto_model import GPT

from yocto_train.distributed import World


class ByteTokenizer(Protocol):
    """The part of a tokenizer that counting bytes needs."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def decode_bytes(self, ids: Sequence[int], /) -> bytes:
        """Ids to UTF-8 bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A measured loss.

    Attributes:
        loss: mean cross-entropy, nats per token.
        tokens: targets it was measured on.
        whole: whether these are all of the split's targets.
    """

    loss: float
    tokens: int
    whole: bool


def cross_entropy(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Loss of logits (B, T, V) for the targets (B, T), in nats, computed in float32 or wider."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), reduction=reduction)


@torch.no_grad()
def evaluate(
    model: GPT,
    dataset: TokenDataset,
    *,
    batch_size: int = 32,
    n_batches: int = 0,
    autocast: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World | None = None,
) -> Evaluation | None:
    """Mean loss over the split, cut into consecutive windows of the data set's block size.

    Every token but the first is a target exactly once, the short last window included; each loss
    counts once, whatever the batch it came in. Neither weights nor any random state change.

    Args:
        model: put in evaluation mode meanwhile.
        dataset: the validation split.
        batch_size: windows per forward pass.
        n_batches: 0 for the whole split, else this many batches of windows spread evenly over it,
            the same ones every time.
        autocast: dtype of matrix products, or None.
        should_stop: asked between batches, on all ranks.
        world: the processes that share the batches out among them; the result is the same on all.

    Returns:
        The result, or None if `should_stop` said so before it was complete.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    world = world or World()
    total, count = 0.0, 0
    try:
        for x, y, ours in _shared(_batches(dataset, batch_size, n_batches), world):
            if should_stop():
                return None
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits = model(x.to(device))
            if ours:
                total += float(cross_entropy(logits, y.to(device), reduction="sum"))
                count += y.numel()
    finally:
        model.train(was_training)
    total, tokens = world.sum(total, count)
    return Evaluation(loss=total / tokens, tokens=int(tokens), whole=tokens == dataset.n_tokens - 1)


def _shared(
    batches: Iterator[tuple[Tensor, Tensor]], world: World
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Every rank's turn in each round of `world.size` batches, and whether the batch is its own.

    In a last round that is too short, a rank repeats another's batch: a sharded model computes only
    if all ranks do.
    """
    while round_ := list(itertools.islice(batches, world.size)):
        ours = world.rank < len(round_)
        x, y = round_[world.rank if ours else 0]
        yield x, y, ours


def _batches(
    dataset: TokenDataset, batch_size: int, n_batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    windows = (dataset.n_tokens - 1) // dataset.block_size
    wanted = n_batches * batch_size
    if not 0 < wanted < windows:
        yield from evaluation_batches(dataset, batch_size)
        return
    starts = np.arange(wanted, dtype=np.int64) * windows // wanted * dataset.block_size
    for first in range(0, wanted, batch_size):
        yield dataset.gather(starts[first : first + batch_size])


def bytes_per_token(tokenizer: ByteTokenizer, dataset: TokenDataset) -> float:
    """UTF-8 bytes of text per target of the split (all tokens but the first)."""
    lengths = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])
    total = 0
    step = 1 << 20
    for start in range(0, dataset.n_tokens - 1, step):
        _, y = dataset.window(start, min(step, dataset.n_tokens - 1 - start))
        total += int(lengths[y.numpy()].sum())
    return total / (dataset.n_tokens - 1)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats per token as bits per byte of text, which does not depend on the tokenizer."""
    return loss / math.log(2) / bytes_per_token


class Evaluator:
    """Measures a model on its validation split, the same windows every time.

    Args:
        model: what is trained.
        data: the validation split.
        tokenizer: needed for bits per byte.
        autocast: dtype of matrix products, or None.
        world: the processes that share the work.
    """

    def __init__(
        self,
        model: GPT,
        data: TokenDataset,
        *,
        tokenizer: ByteTokenizer | None,
        autocast: torch.dtype | None,
        world: World,
    ) -> None:
        self._model, self._data, self._tokenizer = model, data, tokenizer
        self._autocast, self._world = autocast, world
        self.batch_size = max(1, min(64, 16_384 // data.block_size))  # windows per forward pass

    def measure(
        self, n_batches: int, should_stop: Callable[[], bool]
    ) -> tuple[Evaluation, float] | None:
        """The loss of some batches or, for 0, of all, and the seconds it took.

        None if `should_stop`, asked between batches, said so before it was complete.
        """
        begun = time.perf_counter()
        result = evaluate(
            self._model,
            self._data,
            batch_size=self.batch_size,
            n_batches=n_batches,
            autocast=self._autocast,
            should_stop=should_stop,
            world=self._world,
        )
        return None if result is None else (result, time.perf_counter() - begun)

    def bits_per_byte(self, loss: float) -> float | None:
        """A loss in nats per token as bits per byte of text; None without a tokenizer."""
        per_token = self._bytes_per_token
        return bits_per_byte(loss, per_token) if per_token else None

    @functools.cached_property
    def _bytes_per_token(self) -> float | None:
        return None if self._tokenizer is None else bytes_per_token(self._tokenizer, self._data)
