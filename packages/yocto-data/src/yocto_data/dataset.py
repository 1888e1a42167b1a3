"""Token files: the whole of one as an array, or a memory map cut into windows."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yocto_data.errors import (
    MissingMetaError,
    OptionError,
    ShortDataError,
    TokenFileError,
    WindowIndexError,
    reason,
    show,
)
from yocto_data.meta import DataMeta, SplitMeta, token_dtype
from yocto_data.regular import open_regular
from yocto_data.sniffing import foreign_format

if TYPE_CHECKING:
    import torch

_BLOCK_TOKENS = 1 << 20


def load_bin(path: str | Path, *, dtype: str | np.dtype[Any] | None = None) -> np.ndarray:
    """A whole .bin file as an int64 array, shape (n_tokens,).

    This takes four times the size of a uint16 file: for small data. Larger data is for
    ``TokenDataset``, which maps the file.

    Args:
        path: a .bin file.
        dtype: ``uint16`` or ``uint32``; left out, the ``meta.json`` beside the file says it.

    Raises:
        MissingMetaError: no ``dtype`` given, and no ``meta.json`` to say it.
        TokenFileError: the file is missing, is no token file, or is not what ``meta.json`` states.
    """
    tokens = _TokenFile(Path(path), dtype=dtype, vocab_size=None)
    array = tokens.array.astype(np.int64)
    if tokens.vocab_size is not None and array.max() >= tokens.vocab_size:
        tokens.refuse_ids(int(np.argmax(array >= tokens.vocab_size)))
    return array


class TokenDataset:
    """A .bin file as overlapping windows: ``dataset[i]`` is (x, y), y being x one token later.

    ``len(dataset)`` is N - T for N tokens and a block of T: window i starts at token i. The file is
    mapped, so memory does not grow with it; replacing it by rename leaves this data set its old
    content, and truncating it is noticed at the next access.

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
        dtype: str | np.dtype[Any] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
            raise OptionError(f"block_size must be an integer of at least 1, found {block_size!r}")
        self._file = _TokenFile(Path(path), dtype=dtype, vocab_size=vocab_size)
        self._arguments = (str(path), block_size, dtype, vocab_size)
        self.block_size = block_size
        self.n_tokens = len(self._file.array)
        if self.n_tokens < block_size + 1:
            raise ShortDataError(
                f"{show(self._file.path)} holds {self.n_tokens} tokens, but a block_size of "
                f"{block_size} needs at least {block_size + 1}; make it smaller, or use more text"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(self._file.array, block_size + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process maps the file itself instead of receiving its content.
        path, block_size, dtype, vocab_size = self._arguments
        return _reopen, (path, block_size, None if dtype is None else str(dtype), vocab_size)

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
    def dtype(self) -> np.dtype[Any]:
        """The element type of the file."""
        return self._file.array.dtype

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
        """
        if start < 0 or length < 1 or start + length + 1 > self.n_tokens:
            raise WindowIndexError(
                f"{length} tokens from {start} on, and a target, do not lie within the "
                f"{self.n_tokens} tokens of {show(self.path)}"
            )
        self._file.require_whole()
        tokens = self._checked(self._file.array[start : start + length + 1])
        return tokens[:-1], tokens[1:]

    def gather(self, starts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Many windows at once, by one NumPy gather.

        Args:
            starts: int64, shape (B,), each within ``range(len(self))``.

        Returns:
            x and y, int64, shape (B, T) each. Both are views of one (B, T + 1) tensor, so flatten
            them with ``reshape``, not ``view``.

        Raises:
            WindowIndexError: a start is negative or too large.
        """
        if starts.dtype != np.int64:
            raise OptionError(f"starts must be int64, found {starts.dtype}")
        # Seen as unsigned, a negative start is a huge one: one comparison finds both.
        if starts.ndim != 1 or not len(starts) or starts.view(np.uint64).max() >= len(self):
            raise WindowIndexError(
                f"starts must be one row of numbers within 0 and {len(self) - 1}, "
                f"found {show(np.array2string(starts, threshold=6))}"
            )
        self._file.require_whole()
        windows = self._checked(self._windows[starts])  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

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
        vocab_size, record = self.vocab_size, self._file.record
        for start, block in self._file.blocks():
            if vocab_size is not None and block.max() >= vocab_size:
                self._file.refuse_ids(start + int(np.argmax(block >= vocab_size)))
        if record is not None and (found := self._file.sha256()) != record.sha256:
            raise TokenFileError(
                f"{show(self.path)} was damaged or replaced: its sha256 is {found[:12]}..., "
                f"meta.json records {record.sha256[:12]}...; run yocto-prepare again"
            )

    @cached_property
    def is_constant(self) -> bool:
        """Whether all ids are equal, which trains but teaches nothing."""
        first = self._file.array[0]
        return all(bool((block == first).all()) for _, block in self._file.blocks())

    def _checked(self, tokens: np.ndarray) -> torch.Tensor:
        # An id beyond the vocabulary would reach the model as a device-side assertion.
        if self.vocab_size is not None and tokens.max() >= self.vocab_size:
            raise TokenFileError(
                f"{show(self.path)} holds id {int(tokens.max())}, but vocab_size is "
                f"{self.vocab_size}; run yocto-prepare again"
            )
        # Imported here: preparation, and each of its worker processes, does without torch, which
        # would cost two seconds and 200 MB apiece.
        import torch  # noqa: PLC0415

        return torch.from_numpy(tokens.astype(np.int64))


def _reopen(path: str, block_size: int, dtype: str | None, vocab_size: int | None) -> TokenDataset:
    return TokenDataset(path, block_size, dtype=dtype, vocab_size=vocab_size)


class _TokenFile:
    """A mapped .bin file and what is known of it."""

    def __init__(
        self, path: Path, *, dtype: str | np.dtype[Any] | None, vocab_size: int | None
    ) -> None:
        self.path = path
        self.meta, self.record = _meta_of(path, required=dtype is None)
        element = _element_type(dtype, self.meta)
        if vocab_size is not None:
            token_dtype(vocab_size)
        elif self.meta is not None:
            vocab_size = self.meta.vocab_size
        self.vocab_size = vocab_size
        try:
            with open_regular(path) as file:
                self._size_bytes = file.seek(0, 2)
                head = self._read_head(file)
                self._check_size(element, head)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise TokenFileError(f"cannot read {show(path)}: {reason(error)}") from error
        self.array = np.frombuffer(self._map, dtype=element)

    def _read_head(self, file: Any) -> bytes:
        file.seek(0)
        return bytes(file.read(512))

    def _check_size(self, element: np.dtype[Any], head: bytes) -> None:
        record, size = self.record, self._size_bytes
        if record is not None and size == record.bytes and size:
            return
        if not size:
            raise TokenFileError(f"{show(self.path)} is empty; run yocto-prepare again")
        if foreign := foreign_format(head):
            raise TokenFileError(
                f"{show(self.path)} is not a token file, it looks like {foreign}; "
                "run yocto-prepare on the text"
            )
        if record is not None:
            raise TokenFileError(
                f"{show(self.path)} has {size} bytes, meta.json records {record.bytes}; "
                "run yocto-prepare again"
            )
        if size % element.itemsize:
            raise TokenFileError(
                f"{show(self.path)} has {size} bytes, which is no multiple of the "
                f"{element.itemsize} bytes of {element.name}; give the right dtype"
            )

    def require_whole(self) -> None:
        """Reading beyond the end of a truncated file would end the process (SIGBUS)."""
        if self._map.size() < self._size_bytes:
            raise TokenFileError(
                f"{show(self.path)} was truncated while in use, from {self._size_bytes} to "
                f"{self._map.size()} bytes; run yocto-prepare again"
            )

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, tokens) of consecutive blocks."""
        for start in range(0, len(self.array), _BLOCK_TOKENS):
            self.require_whole()
            yield start, self.array[start : start + _BLOCK_TOKENS]

    def sha256(self) -> str:
        """Hash of the mapped content."""
        digest = hashlib.sha256()
        for _, block in self.blocks():
            digest.update(block.view(np.uint8).data)
        return digest.hexdigest()

    def refuse_ids(self, position: int) -> None:
        """Raise for an id that the vocabulary does not have."""
        raise TokenFileError(
            f"{show(self.path)} holds id {int(self.array[position])} at position {position}, but "
            f"vocab_size is {self.vocab_size}; run yocto-prepare again, or give the right dtype"
        )


def _meta_of(path: Path, *, required: bool) -> tuple[DataMeta | None, SplitMeta | None]:
    """The meta.json beside a file, and its record of the file; meta.pkl is never looked at."""
    try:
        meta = DataMeta.load(path.parent)
    except MissingMetaError:
        if required and path.exists():
            raise
        if required:
            raise TokenFileError(
                f"no file {show(path)}; run yocto-prepare, or name its directory"
            ) from None
        return None, None
    record = meta.split_of_file(path.name)
    if record is None and required:
        raise TokenFileError(
            f"{show(path)} is not listed in the meta.json beside it, and a dtype is never guessed"
        )
    return (meta, record) if record is not None else (None, None)


def _element_type(dtype: str | np.dtype[Any] | None, meta: DataMeta | None) -> np.dtype[Any]:
    if dtype is None and meta is not None:
        return meta.dtype
    element = np.dtype(dtype).newbyteorder("<")
    if element not in (np.dtype("<u2"), np.dtype("<u4")):
        raise OptionError(f"dtype must be uint16 or uint32, found {show(str(dtype))}")
    if meta is not None and element != meta.dtype:
        raise TokenFileError(f"dtype {element.name} given, but meta.json says {meta.dtype.name}")
    return element
