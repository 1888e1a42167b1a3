"""Conversations as windows of one context: packed whole, learned only where the mask says so.

A window is a row of T + 1 tokens, as for texts. It holds whole conversations, one after another,
and padding behind them; a model may look from one back into another, as it may in texts.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yocto_data.batches import BatchSampler
from yocto_data.dataset import TokenDataset
from yocto_data.errors import DataError, ShortDataError, integer, require_starts, shorten
from yocto_data.prep.token_files import TokenFile

if TYPE_CHECKING:
    import torch

#: What y holds where nothing is learned; torch's cross-entropy leaves it out.
IGNORED = -100

_LONGEST_HEADER = 64  # tokens with which a template announces a speaker


class ChatDataset(TokenDataset):
    """A .bin file of chats as packed windows: `dataset[i]` is (x, y).

    y is x one token later where that is learned, else -100. Every learned token is a target in
    exactly one window, and no window is without. A document is cut only if it is longer than a
    window: behind a reply, if one ends in time; `n_cut` counts them.

    Args:
        path: a .bin file that `prepare_chats` wrote.
        block_size: T, the tokens per window.

    Raises:
        MissingMetaError: there is no `meta.json` beside it.
        ShortDataError: there is nothing to learn in it.
        DataError: a file is missing, does not hold chats, or is not what `meta.json` states.
    """

    def __init__(self, path: str | Path, block_size: int) -> None:
        self._open(TokenFile(Path(path)), block_size)
        if self._file.chats is None:
            raise DataError(f"{shorten(self.path)} holds texts, not chats; use TokenDataset")
        self.chats = self._file.chats
        self._mask, self._starts = self._file.beside["mask"], self._file.beside["starts"]
        self._begins, self._context, self._lengths, self.n_cut = self._pieces()
        if not self.chats.trained or not len(self._begins):
            raise ShortDataError(f"{shorten(self.path)} holds nothing to learn; use other chats")
        # Pieces by window: window i holds those from bound i to bound i + 1.
        self._order, self._bounds = pack(self._lengths, self.block_size + 1)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.block_size)

    def __len__(self) -> int:
        """How many windows all conversations fill."""
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Window `index`: x and y, int64, shape (T,) each."""
        x, y = self.gather(np.array([range(len(self))[index]], dtype=np.int64))
        return x[0], y[0]

    def gather(self, starts: np.ndarray) -> tuple["torch.Tensor", "torch.Tensor"]:
        """The windows `starts`, int64, shape (B,): x and y, int64, shape (B, T) each.

        W windows make an epoch, so that W + i is window i again, with its conversations in another
        order: none is for ever the first of its row.
        """
        import torch  # noqa: PLC0415 - preparation does without it

        source, target, learned = self._places(starts)
        shape = len(starts), self.block_size + 1
        # Padding is id 0, whatever that is: behind everything that is learned, it teaches nothing.
        tokens, trained = np.zeros(shape, np.int64), np.zeros(shape, bool)
        tokens.ravel()[target] = self._file.array[source]
        trained.ravel()[target] = learned
        if self.vocab_size is not None and tokens.max() >= self.vocab_size:
            self._file.check_ids()
        y = np.where(trained[:, 1:], tokens[:, 1:], IGNORED)
        return torch.from_numpy(tokens[:, :-1]), torch.from_numpy(y)

    def count_trained(self, starts: np.ndarray) -> int:
        """How many targets of these windows are learned, without reading their tokens."""
        return int(self._places(starts)[2].sum())

    def trained_ids(self) -> Iterator[np.ndarray]:
        """The ids of all learned tokens, in order and in blocks: what a loss is taken over."""
        before = 0
        for block in self._file.blocks():
            yield block[self._bits(np.arange(before, before + len(block)))]
            before += len(block)

    def opening(self) -> np.ndarray:
        """The ids of the first document before any that is learned: what the model is asked."""
        along = self._begins[0] + np.arange(self._lengths[0])
        n_asked = int(self._bits(along).argmax())  # the first that is learned
        return self._file.array[along[:n_asked]].astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) that stands for tokens, mask and starts together."""
        assert self._file.record is not None  # noqa: S101 - it was opened by its meta.json
        hashes = (self._file.record.sha256, self.chats.mask, self.chats.starts)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def _places(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the tokens of windows lie in the file and in the rows, and which are learned."""
        require_starts(starts)
        if starts.min() < 0:
            raise IndexError(f"window {starts.min()} of {len(self)}")
        self._file.require_whole()
        epochs, windows = np.divmod(starts, len(self))
        per_row = self._bounds[windows + 1] - self._bounds[windows]  # (B,)
        parts = []
        for first, count, turn in zip(
            self._bounds[windows], per_row, epochs + windows, strict=True
        ):
            then = first + turn % count
            parts += [self._order[then : first + count], self._order[first:then]]
        pieces = np.concatenate(parts)  # (P,)
        lengths = self._lengths[pieces]
        ends = np.cumsum(lengths)
        firsts = ends - lengths  # of each piece, if all rows were one without padding
        # Rows begin at multiples of T + 1 instead of where the pieces before them end.
        row_firsts = firsts[np.cumsum(per_row) - per_row]
        shift = np.arange(len(starts)) * (self.block_size + 1) - row_firsts
        along = np.arange(ends[-1])
        source = along + np.repeat(self._begins[pieces] - firsts, lengths)
        target = along + np.repeat(np.repeat(shift, per_row), lengths)
        # What a piece begins with is not learned there: it would be predicted from the end of
        # another piece, or is learned in the piece before.
        is_new = along >= np.repeat(firsts + self._context[pieces], lengths)
        return source, target, self._bits(source) & is_new

    def _bits(self, positions: np.ndarray) -> np.ndarray:
        """Whether the tokens at these positions are learned."""
        self._mask.require_whole()
        return (self._mask.array[positions >> 3] >> (positions & 7).astype(np.uint8) & 1) == 1

    def _pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """What is never cut: first token, how many of its tokens are only context, and length.

        Also how many documents had to be cut into such pieces.
        """
        starts = self._starts.array.astype(np.int64)
        ends = np.append(starts[1:], self.n_tokens)
        lengths = ends - starts
        if starts[0] != 0 or lengths.min() < 1:
            raise DataError(f"{shorten(self._starts.path)} was damaged; run yocto-prepare again")
        capacity = self.block_size + 1
        is_long = lengths > capacity
        whole = [starts[~is_long], starts[~is_long] + 1, ends[~is_long]]
        pieces = [np.stack(whole, axis=1)]  # (P, 3)
        for begin, end in zip(starts[is_long].tolist(), ends[is_long].tolist(), strict=True):
            trained = self._bits(np.arange(begin, end))
            cuts = cut(self._file.array[begin:end], trained, capacity)
            pieces.append(begin + np.array(cuts, dtype=np.int64).reshape(-1, 3))
        begins, news, ends = np.concatenate(pieces).T
        return begins, news - begins, ends - begins, int(is_long.sum())


def cut(ids: np.ndarray, trained: np.ndarray, capacity: int) -> list[tuple[int, int, int]]:
    """Cut a document that is longer than a window.

    A piece ends behind a reply if one ends within `capacity` tokens. Where no token ends a turn, a
    reply ends with how the next speaker is announced, as the whole document begins: there the next
    piece begins, too. If no reply ends in time, it repeats one token, as what the token after it is
    predicted from. Pieces in which nothing is learned are left out.

    Args:
        ids: shape (L,).
        trained: bool, shape (L,): which tokens are learned.
        capacity: T + 1, at least 2.

    Returns:
        Of each piece its first token, the first that no piece before it has taught, and its end.
    """
    turns = np.flatnonzero(trained[:-1] & ~trained[1:]) + 1
    so_far = np.cumsum(trained)
    pieces = []
    start, new = 0, 1
    while True:
        end = min(start + capacity, len(trained))
        n_repeated = 1
        if end < len(trained):
            last = int(np.searchsorted(turns, end, side="right")) - 1
            if last >= 0 and turns[last] > new:
                end = int(turns[last])
                n_repeated = _repeated(ids, end, capacity)
        if so_far[end - 1] > so_far[new - 1]:
            pieces.append((start, new, end))
        if end == len(trained):
            return pieces
        start, new = end - n_repeated, max(end, end - n_repeated + 1)


def _repeated(ids: np.ndarray, end: int, capacity: int) -> int:
    """How many tokens in front of `end` are those with which the document begins."""
    counts = range(min(capacity - 1, _LONGEST_HEADER, end // 2), 0, -1)
    return next((n for n in counts if np.array_equal(ids[end - n : end], ids[:n])), 0)


def pack(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Put pieces into windows, the longest first, each where the least room is left that will do.

    Returns:
        The pieces' numbers by window, ascending within each, shape (N,), and where each window
        begins among them, shape (W + 1,).
    """
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # windows by the tokens left in them
    rooms = 0  # bit r is set if some window has r tokens left
    n_windows = 0
    windows = np.empty(len(lengths), np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    for piece, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
        if fitting := rooms >> length:
            left = (fitting & -fitting).bit_length() - 1
            window = room[left + length].pop()
            if not room[left + length]:
                rooms ^= 1 << (left + length)
        else:
            window, left = n_windows, capacity - length
            n_windows += 1
        windows[piece] = window
        if left:
            room[left].append(window)
            rooms |= 1 << left
    bounds = np.cumsum(np.bincount(windows, minlength=n_windows))
    return np.argsort(windows, kind="stable"), np.concatenate(([0], bounds))


class ChatBatches(BatchSampler):
    """Chooses the windows of each step: every conversation once an epoch, in an order drawn for it.

    It is a `BatchSampler` in the mode `epoch` over packed windows: the batch of a step is a pure
    function of (seed, step), each rank gets an equal slice, and batches run on into the next epoch.
    `options` are rank, world_size and stream.
    """

    dataset: ChatDataset

    def __init__(
        self,
        dataset: ChatDataset,
        batch_size: int,
        *,
        seed: int,
        **options: int,
    ) -> None:
        super().__init__(dataset, batch_size, seed=seed, mode="epoch", **options)

    @property
    def windows_per_epoch(self) -> int:
        """W, the number of packed windows: an epoch is W rows."""
        return len(self.dataset)

    def count_trained(self, step: int) -> int:
        """How many targets of a step are learned, of all ranks together: what its mean is over."""
        first = integer("step", step, 0, (1 << 62) // self.batch_size) * self.batch_size
        return self.dataset.count_trained(self._epoch_starts(first, self.batch_size))

    def _drawn_order(self, epoch: int) -> np.ndarray:
        # Numbered on from the windows of the epochs before.
        words = self._words(epoch, self.windows_per_epoch)
        return np.argsort(words, kind="stable") + epoch * self.windows_per_epoch


def chat_evaluation_batches(
    dataset: ChatDataset, batch_size: int, *, n_batches: int = 0
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """A whole split in order, as pairs (x, y): every learned token is a target once.

    With `n_batches`, as many batches of windows spread evenly over it, the same ones every time.
    """
    batch_size = integer("batch_size", batch_size, 1, 1 << 40)
    wanted = integer("n_batches", n_batches, 0, 1 << 20) * batch_size
    windows = np.arange(len(dataset), dtype=np.int64)
    if 0 < wanted < len(windows):
        windows = np.arange(wanted, dtype=np.int64) * len(windows) // wanted
    for first in range(0, len(windows), batch_size):
        yield dataset.gather(windows[first : first + batch_size])
