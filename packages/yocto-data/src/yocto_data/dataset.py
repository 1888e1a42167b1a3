"""Token files as data: the whole of one as an array, or a memory map cut into windows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yocto_data.errors import OptionError, ShortDataError, TokenFileError, WindowIndexError, show
from yocto_data.meta import DataMeta
from yocto_data.options import require_integer
from yocto_data.token_file import DtypeLike, TokenFile

if TYPE_CHECKING:
    import torch


def load_bin(path: str | Path, *, dtype: DtypeLike | None = None) -> np.ndarray:
    """A whole .bin file as an int64 array, shape (n_tokens,).

    This takes four times the size of a uint16 file: for small data. Larger data is for
    ``TokenDataset``, which maps the file.

    Args:
        path: a .bin file.
        dtype: ``uint16`` or ``uint32``; left out, the ``meta.json`` beside the file says it.

    Raises:
        MissingMetaError: no ``dtype`` given, and no ``meta.json`` to say it.
        TokenFileError: the file is missing, is no token file, is not what ``meta.json`` states, or
            holds an id beyond the vocabulary.
    """
    file = TokenFile(Path(path), dtype=dtype, vocab_size=None)
    file.check_ids()
    return file.array.astype(np.int64)


class TokenDataset:
    """A .bin file as overlapping windows: ``dataset[i]`` is (x, y), y being x one token later.

    ``len(dataset)`` is N - T for N tokens and a block of T: window i starts at token i. The file is
    mapped, so memory does not grow with it. Replacing it by rename leaves this data set its old
    content; truncating it is noticed at the next access.

    Args:
        path: a .bin file.
        block_size: T, the tokens per window.
        dtype: ``uint16`` or ``uint32``; left out, the ``meta.json`` beside the file says it.
        vocab_size: the number of valid ids; left out, ``meta.json`` says it where there is one.

    Raises:
        MissingMetaError: no ``dtype`` given, and no ``meta.json`` to say it.
        ShortDataError: the file holds fewer than ``block_size + 1`` tokens.
        TokenFileError: the file is missing, is no token file, or is not what ``meta.json`` states.
    """

    def __init__(
        self,
        path: str | Path,
        block_size: int,
        *,
        dtype: DtypeLike | None = None,
        vocab_size: int | None = None,
    ) -> None:
        require_integer("block_size", block_size, 1)
        self._file = TokenFile(Path(path), dtype=dtype, vocab_size=vocab_size)
        self._given = (None if dtype is None else str(np.dtype(dtype)), vocab_size)
        self.block_size = block_size
        self.n_tokens = len(self._file.array)
        if self.n_tokens < block_size + 1:
            raise ShortDataError(
                f"{show(self._file.path)} holds {self.n_tokens} tokens, but a block_size of "
                f"{block_size} needs at least {block_size + 1}; make it smaller, or use more text"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(self._file.array, block_size + 1)

    def __reduce__(self) -> tuple[object, ...]:
        # A copy in another process maps the file itself instead of receiving its content.
        return _reopen, (self.path, self.block_size, *self._given)

    @property
    def path(self) -> Path:
        """The .bin file."""
        return self._file.path

    @property
    def meta(self) -> DataMeta | None:
        """The ``meta.json`` beside the file, where it lists the file."""
        return self._file.meta

    @property
    def vocab_size(self) -> int | None:
        """The number of valid ids, as far as it is known."""
        return self._file.vocab_size

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The element type of the file."""
        return self._file.dtype

    def __len__(self) -> int:
        return self.n_tokens - self.block_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The window that starts at token ``index``: x and y, int64, shape (T,) each."""
        start = index + len(self) if index < 0 else index
        if not 0 <= start < len(self):
            raise WindowIndexError(f"window {index} of {len(self)} in {show(self.path)}")
        return self.window(start, self.block_size)

    def window(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``length`` inputs from token ``start`` on, and their targets: int64, shape (length,).

        Evaluation uses it for the last window of a split, which is shorter than T.

        Raises:
            WindowIndexError: they, and the target of the last, do not lie within the file.
        """
        if start < 0 or length < 1 or start + length + 1 > self.n_tokens:
            raise WindowIndexError(
                f"{length} tokens from {start} on, and a target, do not lie within the "
                f"{self.n_tokens} tokens of {show(self.path)}"
            )
        self._file.require_whole()
        return self._pair(self._file.array[start : start + length + 1])

    def gather(self, starts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Many windows at once, by one NumPy gather.

        Args:
            starts: int64, shape (B,), each within ``range(len(self))``.

        Returns:
            x and y, int64, shape (B, T) each. They overlap in one block of memory, so flatten them
            with ``reshape``, not ``view``, and do not write into them.

        Raises:
            WindowIndexError: a start is negative or too large.
        """
        if starts.dtype != np.int64 or starts.ndim != 1 or not len(starts):
            raise OptionError(
                f"starts must be one row of int64, found {starts.dtype} of shape {starts.shape}"
            )
        # Seen as unsigned, a negative start is a huge one: one comparison finds both.
        if _largest(starts.view(np.uint64)) >= len(self):
            wrong = starts[(starts < 0) | (starts >= len(self))][0]
            raise WindowIndexError(f"window {wrong} of {len(self)} in {show(self.path)}")
        self._file.require_whole()
        return self._pair(self._windows[starts])  # (B, T + 1)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex of the file: as ``meta.json`` records it, computed where it does not."""
        record = self._file.record
        return record.sha256 if record is not None else self._file.sha256()

    def verify(self) -> None:
        """Read the whole file once: every id in range, and the sha256 that ``meta.json`` records.

        Raises:
            TokenFileError: naming the first bad position, or both sums.
        """
        self._file.check_ids()
        record = self._file.record
        if record is not None and (found := self._file.sha256()) != record.sha256:
            raise TokenFileError(
                f"{show(self.path)} was damaged or replaced: its sha256 is {found[:12]}..., "
                f"meta.json records {record.sha256[:12]}...; run yocto-prepare again"
            )

    @cached_property
    def is_constant(self) -> bool:
        """Whether all ids are equal, which trains but teaches nothing."""
        first = self._file.array[0]
        return all(bool((block == first).all()) for block in self._file.blocks())

    def _pair(self, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """X and y of windows that are one token longer."""
        # An id beyond the vocabulary would reach the model as a device-side assertion.
        if self.vocab_size is not None and _largest(tokens) >= self.vocab_size:
            self._file.check_ids()
        # Imported here: preparation, and each of its worker processes, does without torch, which
        # would cost two seconds and 200 MB apiece.
        import torch  # noqa: PLC0415

        wide = tokens.astype(np.int64)
        # Sliced here and not as tensors, which takes longer than the gather.
        return torch.from_numpy(wide[..., :-1]), torch.from_numpy(wide[..., 1:])


def _largest(array: np.ndarray) -> int:
    # On arrays as small as a batch, argmax takes half the time of max.
    return int(array.item(array.argmax()))


def _reopen(path: Path, block_size: int, dtype: str | None, vocab_size: int | None) -> TokenDataset:
    return TokenDataset(path, block_size, dtype=dtype, vocab_size=vocab_size)


def compare_splits(train: TokenDataset, val: TokenDataset) -> tuple[str, ...]:
    """What is odd about two splits that are to be used together, one line each; mostly nothing.

    Raises:
        TokenFileError: they were made by different tokenizers, so their ids mean different things.
    """
    if train.meta is not None and val.meta is not None:
        ours, theirs = train.meta.tokenizer, val.meta.tokenizer
        for name, one, other in (
            ("vocab_size", train.vocab_size, val.vocab_size),
            ("tokenizer kind", ours.kind, theirs.kind),
            ("tokenizer fingerprint", ours.fingerprint, theirs.fingerprint),
        ):
            if one != other:
                raise TokenFileError(
                    f"{show(train.path)} and {show(val.path)} come from different tokenizers: "
                    f"{name} {one} and {other}; prepare both together"
                )
    odd = [
        f"{show(split.path)} holds one id only, so there is nothing to learn from it"
        for split in (train, val)
        if split.is_constant
    ]
    if train.fingerprint == val.fingerprint:
        odd.append(
            f"{show(val.path)} equals {show(train.path)}, so validation measures memory alone"
        )
    return tuple(odd)
