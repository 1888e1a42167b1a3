"""Which windows make up the batch of a step: a pure function of seed and step.

Nothing is remembered between steps, so resuming needs only the step's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from yocto_data.dataset import TokenDataset
from yocto_data.errors import DataError, integer, require_one_of
from yocto_data.prep.philox import random_words

if TYPE_CHECKING:
    import torch

Mode = Literal["random", "epoch"]

_MAX_UINT64 = (1 << 64) - 1
_MAX_ROWS = 1 << 62  # since step 0, so that signed 64-bit arithmetic holds every row's number


class BatchSampler:
    """Chooses the windows of each step.

    Of N tokens, `random` draws every row from all N - T windows of T. `epoch` cuts them into
    W = (N - 1) // T disjoint windows, starting from a token drawn for each epoch, and visits each
    once, in an order drawn for each epoch; batches run on into the next epoch, nothing is dropped.

    `batch_size` counts the rows of all ranks together; each of `world_size` ranks gets an equal
    slice. Streams of one seed never overlap: 0 is for training, others are for anything else.
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
        self.dataset = dataset
        self.batch_size = integer("batch_size", batch_size, 1, 1 << 40)
        self.seed = integer("seed", seed, 0, _MAX_UINT64)
        self.stream = integer("stream", stream, 0, _MAX_UINT64)
        self.world_size = integer("world_size", world_size, 1, 1 << 40)
        self.rank = integer("rank", rank, 0, self.world_size - 1)
        require_one_of("mode", mode, get_args(Mode))
        self.mode: Mode = mode
        # Slices of unequal size would give the rows unequal weight in the mean gradient.
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} cannot be divided among {world_size} ranks")
        # The order of up to two epochs, since a batch may lie across their border.
        self._epochs: dict[int, np.ndarray] = {}

    @property
    def windows_per_epoch(self) -> int:
        """W, the number of disjoint windows: an epoch is W rows."""
        return (self.dataset.n_tokens - 1) // self.dataset.block_size

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of a step: x and y, int64, shape (batch_size // world_size, T) each."""
        return self.dataset.gather(self.starts(step))

    def count_trained(self, step: int) -> int:  # noqa: ARG002 - chats override it
        """How many targets of a step are learned, on all ranks together: in a text, all."""
        return self.batch_size * self.dataset.block_size

    def starts(self, step: int) -> np.ndarray:
        """First tokens of this rank's rows: int64, shape (batch_size // world_size,)."""
        step = integer("step", step, 0, _MAX_ROWS // self.batch_size)
        rows = self.batch_size // self.world_size
        first = self.rank * rows
        if self.mode == "epoch":
            return self._epoch_starts(step * self.batch_size + first, rows)
        # Windows are drawn with replacement: two may overlap, which costs nothing and saves the
        # bookkeeping of an epoch. The generator is set to (seed, step) instead of drawing on and
        # on: that is what makes a resumed run see the same data. Every rank draws the whole batch
        # and keeps its slice, so that the number of ranks changes nothing.
        words = self._words(step, self.batch_size)[first : first + rows]
        # 2^64 is so much larger than N - T that the remainder favours no window measurably.
        return (words % np.uint64(len(self.dataset))).view(np.int64)

    def _epoch_starts(self, position: int, rows: int) -> np.ndarray:
        """Rows `position` to `position + rows` of all epochs laid end to end."""
        # A batch may begin in one epoch and end in the next, or span several small ones.
        parts = []
        while rows > 0:
            epoch, offset = divmod(position, self.windows_per_epoch)
            parts.append(self._epoch_order(epoch)[offset : offset + rows])
            position += len(parts[-1])
            rows -= len(parts[-1])
        return np.concatenate(parts)  # (rows,)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Starts of an epoch's windows, in order of visit: int64, shape (W,)."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.clear()
            self._epochs[epoch] = self._drawn_order(epoch)
        return self._epochs[epoch]

    def _drawn_order(self, epoch: int) -> np.ndarray:
        words = self._words(epoch, self.windows_per_epoch + 1)
        # The first word shifts the grid of windows, so that the tail is used, too.
        tail = (self.dataset.n_tokens - 1) % self.dataset.block_size
        phase = int(words[0]) % (tail + 1)
        # Sorting raw words is a permutation that no NumPy version changes, unlike `shuffle`.
        return np.argsort(words[1:], kind="stable") * self.dataset.block_size + phase

    def _words(self, number: int, count: int) -> np.ndarray:
        """`count` random 64-bit words of a step or an epoch."""
        # Mode and stream go into the generator's counter, which keeps the draws of one seed apart.
        stream = ({"random": 0, "epoch": 1}[self.mode], self.stream)
        return random_words(key=(self.seed, number), stream=stream, count=count)

    def state(self, step: int = 0) -> dict[str, int | str]:
        """What must be equal for another sampler to continue at `step` with the same batches."""
        own = {name: getattr(self, name) for name in ("mode", "seed", "stream", "batch_size")}
        data = {"block_size": self.dataset.block_size, "data": self.dataset.fingerprint}
        return {"format_version": 1, "step": step, **own, **data}


def evaluation_batches(
    dataset: TokenDataset, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A whole split in order, as pairs (x, y): every token but the first is a target once."""
    batch_size = integer("batch_size", batch_size, 1, 1 << 40)
    n_targets = dataset.n_tokens - 1
    rest = n_targets % dataset.block_size
    starts = np.arange(0, n_targets - rest, dataset.block_size, dtype=np.int64)
    for first in range(0, len(starts), batch_size):
        yield dataset.gather(starts[first : first + batch_size])
    # The last window is shorter and does not stack with the others. Leaving it out would make the
    # loss of a split depend on the length of the context.
    if rest:
        x, y = dataset.window(n_targets - rest, rest)  # (rest,)
        yield x[None], y[None]
