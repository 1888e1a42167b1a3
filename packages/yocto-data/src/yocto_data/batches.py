"""Which windows make up the batch of a step: a pure function of seed and step.

Nothing is remembered between steps, so resuming needs only the step's number, and the global batch
of a step is the same for every number of ranks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from yocto_data.dataset import TokenDataset
from yocto_data.errors import OptionError, ShortDataError, StateError, show
from yocto_data.options import require_integer, require_word
from yocto_data.philox import random_words

if TYPE_CHECKING:
    import torch

Mode = Literal["random", "epoch"]

_STATE_VERSION = 1
_MAX_UINT64 = (1 << 64) - 1
_MAX_BATCH = 1 << 40
_MAX_ROWS = 1 << 62  # rows since step 0, in signed 64-bit arithmetic
# 64-bit words of the counter that separate the streams drawn from one seed.
_MODE_WORD: dict[Mode, int] = {"random": 0, "epoch": 1}


class BatchSampler:
    """Chooses the windows of each step.

    ``random`` draws every row independently from all N - T windows. ``epoch`` cuts the tokens into
    W = (N - 1) // T disjoint windows, from a first token drawn per epoch, and visits each once, in
    an order drawn per epoch; batches run across the border of epochs and nothing is dropped.

    Args:
        dataset: the windows.
        batch_size: rows of the global batch, over all ranks.
        seed: within ``range(2**64)``.
        mode: ``random`` or ``epoch``.
        rank: which slice of the global batch is ours.
        world_size: the number of slices; divides ``batch_size``.
        stream: streams of one seed do not touch each other: 0 for training, another for the rest.

    Raises:
        OptionError: an argument is out of its range.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        *,
        seed: int,
        mode: Mode = "random",
        rank: int = 0,
        world_size: int = 1,
        stream: int = 0,
    ) -> None:
        require_integer("batch_size", batch_size, 1, _MAX_BATCH)
        require_integer("seed", seed, 0, _MAX_UINT64)
        require_integer("stream", stream, 0, _MAX_UINT64)
        require_integer("world_size", world_size, 1, _MAX_BATCH)
        require_integer("rank", rank, 0, world_size - 1)
        require_word("mode", mode, get_args(Mode))
        if batch_size % world_size:
            raise OptionError(
                f"batch_size {batch_size} does not divide among {world_size} ranks; "
                f"use a multiple of {world_size}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.mode: Mode = mode
        self.rank = rank
        self.world_size = world_size
        self.stream = stream
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def windows_per_epoch(self) -> int:
        """W, the number of disjoint windows: an epoch is W rows."""
        return (self.dataset.n_tokens - 1) // self.dataset.block_size

    def starts(self, step: int) -> np.ndarray:
        """First tokens of this rank's rows: int64, shape (batch_size // world_size,).

        The rows of all ranks, joined in order of rank, are the global batch of the step.
        """
        require_integer("step", step, 0, _MAX_ROWS // self.batch_size)
        rows = self.batch_size // self.world_size
        first = self.rank * rows
        if self.mode == "epoch":
            return self._epoch_starts(step * self.batch_size + first, rows)
        words = self._words(step, self.batch_size)[first : first + rows]
        return (words % np.uint64(len(self.dataset))).view(np.int64)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of a step: x and y, int64, shape (batch_size // world_size, T) each."""
        return self.dataset.gather(self.starts(step))

    def state(self, step: int = 0) -> dict[str, int | str]:
        """What must be equal for another sampler to continue at ``step`` with the same batches."""
        return {
            "format_version": _STATE_VERSION,
            "mode": self.mode,
            "seed": self.seed,
            "stream": self.stream,
            "step": step,
            "batch_size": self.batch_size,
            "block_size": self.dataset.block_size,
            "data": self.dataset.fingerprint,
        }

    def check_state(self, state: Mapping[str, object]) -> int:
        """The step at which to continue.

        Raises:
            StateError: a setting differs, naming both values; or the state is malformed.
        """
        step = state.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise StateError(f"the saved sampler state has no valid step, found {step!r}")
        expected = self.state(step)
        for key, here in expected.items():
            saved = state.get(key)
            if type(saved) is not type(here) or saved != here:
                raise StateError(
                    f"cannot continue with another {key}: saved {show(str(saved))}, now {here}"
                )
        if extra := sorted(set(state) - set(expected)):
            raise StateError(f"the saved sampler state holds an unknown key '{show(extra[0])}'")
        return step

    def _epoch_starts(self, position: int, rows: int) -> np.ndarray:
        per_epoch = self.windows_per_epoch
        starts = np.empty(rows, dtype=np.int64)
        done = 0
        while done < rows:
            epoch, offset = divmod(position + done, per_epoch)
            part = self._epoch_order(epoch)[offset : offset + rows - done]
            starts[done : done + len(part)] = part
            done += len(part)
        return starts

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Starts of an epoch's windows, in order of visit: int64, shape (W,)."""
        if epoch not in self._epochs:
            words = self._words(epoch, self.windows_per_epoch + 1)
            # The first word shifts the grid of windows, so that over the epochs the tail beyond
            # the last whole window is used too.
            tail = (self.dataset.n_tokens - 1) % self.dataset.block_size
            phase = int(words[0]) % (tail + 1)
            # Sorting raw words is a permutation that no NumPy version changes.
            order = np.argsort(words[1:], kind="stable")
            self._epochs[epoch] = order * self.dataset.block_size + phase
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _words(self, number: int, count: int) -> np.ndarray:
        """``count`` random 64-bit words of a step or an epoch."""
        stream = (_MODE_WORD[self.mode], self.stream)
        return random_words(key=(self.seed, number), stream=stream, count=count)


def get_batch(
    dataset: TokenDataset,
    batch_size: int,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    mode: Mode = "random",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of one step: ``BatchSampler(...).batch(step)``, for those who need just one.

    Returns:
        x and y, int64, shape (batch_size // world_size, T) each.
    """
    sampler = BatchSampler(
        dataset, batch_size, seed=seed, mode=mode, rank=rank, world_size=world_size
    )
    return sampler.batch(step)


def evaluation_windows(n_tokens: int, block_size: int) -> np.ndarray:
    """Consecutive windows whose targets are every token of a split but the first, exactly once.

    Returns:
        int64, shape (W, 2): the start and the length of each window. Every length is
        ``block_size`` but the last one's, which may be shorter.

    Raises:
        OptionError: ``block_size`` is not positive.
        ShortDataError: fewer than two tokens have no target at all.
    """
    require_integer("block_size", block_size, 1)
    if n_tokens < 2:
        raise ShortDataError(f"{n_tokens} tokens hold no target; at least 2 are needed")
    starts = np.arange(0, n_tokens - 1, block_size, dtype=np.int64)
    lengths = np.minimum(block_size, n_tokens - 1 - starts)
    return np.stack([starts, lengths], axis=1)


def evaluation_batches(
    dataset: TokenDataset, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A whole split in order, ``batch_size`` windows at a time, then the short last one alone.

    Yields:
        x and y, int64, shape (at most batch_size, T) each, or (1, shorter than T) at the end.
    """
    require_integer("batch_size", batch_size, 1, _MAX_BATCH)
    windows = evaluation_windows(dataset.n_tokens, dataset.block_size)
    whole = windows[windows[:, 1] == dataset.block_size, 0]
    for first in range(0, len(whole), batch_size):
        yield dataset.gather(whole[first : first + batch_size])
    start, length = windows[-1]
    if length < dataset.block_size:
        x, y = dataset.window(int(start), int(length))
        yield x[None], y[None]
