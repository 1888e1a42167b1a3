"""Token files as data: a long row of ids, read through windows of one context each."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yocto_data.errors import ShortDataError, integer, require_starts, shorten
from yocto_data.prep.token_files import DtypeLike, TokenFile

if TYPE_CHECKING:
    import torch


class TokenDataset:
    """A .bin file as overlapping windows: `dataset[i]` is (x, y), y being x one token later.

    The file is mapped, so memory does not grow with it. Replacing it by rename leaves this data set
    its old content; truncating it is noticed at the next access.

    Args:
        path: a .bin file.
        block_size: T, the tokens per window.
        dtype: `uint16` or `uint32`; if left out, as the `meta.json` beside the file says.
        vocab_size: the number of valid ids; if left out, as `meta.json` says, where there is one.

    Raises:
        MissingMetaError: no `dtype` given, and no `meta.json` to say it.
        ShortDataError: the file holds fewer than `block_size + 1` tokens.
        DataError: the file is missing, is not a token file, or is not what `meta.json` states.
    """

    def __init__(
        self,
        path: str | Path,
        block_size: int,
        *,
        dtype: DtypeLike | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._open(TokenFile(Path(path), dtype=dtype, vocab_size=vocab_size), block_size)
        if self.n_tokens < self.block_size + 1:
            raise ShortDataError(
                f"{shorten(self.path)} is too short for a block_size of {block_size}: it holds "
                f"{self.n_tokens} of {block_size + 1} tokens; lower block_size, or use more text"
            )
        # Every run of T + 1 tokens, T inputs and the target of the last: a view, nothing is copied.
        # Row i begins at token i; shape (N - T, T + 1).
        self._windows = np.lib.stride_tricks.sliding_window_view(
            self._file.array, self.block_size + 1
        )

    def _open(self, file: TokenFile, block_size: int) -> None:
        # TokenFile finds whatever is wrong with a file: all else here is only about windows.
        self.block_size = integer("block_size", block_size, 1)
        self._file, self.path, self.meta = file, file.path, file.meta
        self.dtype, self.vocab_size, self.n_tokens = file.dtype, file.vocab_size, len(file.array)

    def __reduce__(self) -> tuple[object, ...]:
        # A copy in another process maps the file itself instead of receiving its content.
        opening = partial(type(self), dtype=self.dtype.name, vocab_size=self.vocab_size)
        return opening, (self.path, self.block_size)

    def __len__(self) -> int:
        # N tokens have N - T windows: the last one must leave a token for its last target.
        return self.n_tokens - self.block_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The window that starts at token `index`: x and y, int64, shape (T,) each."""
        start = range(len(self))[index]  # a negative index counts from the end
        return self.window(start, self.block_size)

    def window(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`length` inputs from token `start` on, and their targets: int64, shape (length,) each.

        Evaluation uses it for the last window of a split, which is shorter than T.
        """
        if start < 0 or length < 1 or start + length + 1 > self.n_tokens:
            raise IndexError(f"length {length} from {start} is outside {self.n_tokens} tokens")
        self._file.require_whole()
        return self._pair(self._file.array[start : start + length + 1])  # (length + 1,)

    def gather(self, starts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The windows that start at `starts`, int64, shape (B,): x and y, int64, shape (B, T) each.

        x and y overlap in one block of memory, so flatten them with `reshape`, not `view`, and do
        not write into them.
        """
        require_starts(starts)
        # Seen as unsigned, a negative start is a huge one: one comparison finds both.
        if _largest(starts.view(np.uint64)) >= len(self):
            wrong = starts[(starts < 0) | (starts >= len(self))][0]
            raise IndexError(f"window {wrong} of {len(self)}")
        self._file.require_whole()
        # One NumPy gather is far quicker than B slices, and a mapped page is read only now.
        return self._pair(self._windows[starts])  # (B, T + 1)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the file, as `meta.json` records it, or else computed."""
        return self._file.record.sha256 if self._file.record else self._file.sha256()

    def _pair(self, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The exercise: from each token, and those before it, the model predicts the next one."""
        # An id beyond the vocabulary would reach the model as a device-side assertion.
        if self.vocab_size is not None and _largest(tokens) >= self.vocab_size:
            self._file.check_ids()
        # Imported here: preparation, and each of its worker processes, does without torch, which
        # would cost two seconds and 200 MB apiece.
        import torch  # noqa: PLC0415

        # Widened once, then cut into two views. They share all tokens but the first and the last,
        # and slicing arrays is quicker than slicing tensors.
        wide = tokens.astype(np.int64)
        return torch.from_numpy(wide[..., :-1]), torch.from_numpy(wide[..., 1:])


CharDataset = TokenDataset  # its name in courses that begin with characters


def _largest(array: np.ndarray) -> int:
    # On arrays as small as a batch, argmax takes half the time of max.
    return int(array.item(array.argmax()))
