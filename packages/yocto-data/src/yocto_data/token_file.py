"""A .bin file on the disk: mapped, and checked against the meta.json beside it."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np

from yocto_data.errors import (
    MissingMetaError,
    OptionError,
    TokenFileError,
    reason,
    show,
)
from yocto_data.meta import DataMeta, SplitMeta, token_dtype
from yocto_data.regular import open_regular
from yocto_data.sniffing import foreign_format

DtypeLike = str | np.dtype[np.unsignedinteger]

_BLOCK_TOKENS = 1 << 20
_HEAD_BYTES = 512


class TokenFile:
    """A mapped .bin file and what is known of it.

    Args:
        path: the file.
        dtype: ``uint16`` or ``uint32``; None asks the ``meta.json`` beside the file.
        vocab_size: the number of valid ids; None asks ``meta.json`` where there is one.

    Raises:
        MissingMetaError: no ``dtype`` given, and no ``meta.json`` to say it.
        TokenFileError: the file is missing, is no token file, or is not what ``meta.json`` states.
    """

    def __init__(self, path: Path, *, dtype: DtypeLike | None, vocab_size: int | None) -> None:
        self.path = path
        self.meta, self.record = _meta_of(path, required=dtype is None)
        self.dtype = _element_type(dtype, self.meta)
        if vocab_size is not None:
            token_dtype(vocab_size)
        elif self.meta is not None:
            vocab_size = self.meta.vocab_size
        self.vocab_size = vocab_size
        try:
            with open_regular(path) as file:
                self._size_bytes = file.seek(0, 2)
                self._check_size(file)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise TokenFileError(f"cannot read {show(path)}: {reason(error)}") from error
        # Windows lie anywhere. Reading ahead from each costs far more than it brings: 640 single
        # reads of a 5 GB file took 9 s with it and 0.01 s without.
        self._advise("MADV_RANDOM")
        self.array = np.frombuffer(self._map, dtype=self.dtype)

    def _check_size(self, file: FileIO) -> None:
        record, size = self.record, self._size_bytes
        if not size:
            raise TokenFileError(f"{show(self.path)} is empty; run yocto-prepare again")
        if record is not None and size == record.bytes:
            return
        file.seek(0)
        if foreign := foreign_format(file.read(_HEAD_BYTES)):
            raise TokenFileError(
                f"{show(self.path)} is not a token file, it looks like {foreign}; "
                "run yocto-prepare on the text"
            )
        if record is not None:
            raise TokenFileError(
                f"{show(self.path)} has {size} bytes, meta.json records {record.bytes}; "
                "run yocto-prepare again"
            )
        if size % self.dtype.itemsize:
            raise TokenFileError(
                f"{show(self.path)} has {size} bytes, which is no multiple of the "
                f"{self.dtype.itemsize} bytes of {self.dtype.name}; give the right dtype"
            )

    def require_whole(self) -> None:
        """Reading beyond the end of a truncated file would end the process (SIGBUS).

        Raises:
            TokenFileError: the file is shorter than when it was opened.
        """
        if self._map.size() < self._size_bytes:
            raise TokenFileError(
                f"{show(self.path)} was truncated while in use, from {self._size_bytes} to "
                f"{self._map.size()} bytes; run yocto-prepare again"
            )

    def blocks(self) -> Iterator[np.ndarray]:
        """All tokens, in consecutive blocks."""
        self._advise("MADV_SEQUENTIAL")
        try:
            for start in range(0, len(self.array), _BLOCK_TOKENS):
                self.require_whole()
                yield self.array[start : start + _BLOCK_TOKENS]
        finally:
            self._advise("MADV_RANDOM")

    def _advise(self, name: str) -> None:
        """Tell the kernel how the map will be read, where there is a way to."""
        if (advice := getattr(mmap, name, None)) is not None:
            self._map.madvise(advice)

    def check_ids(self) -> None:
        """Read all tokens and compare them with the vocabulary, where its size is known.

        Raises:
            TokenFileError: naming the first id that is too large, and its position.
        """
        limit = self.vocab_size
        if limit is None:
            return
        before = 0
        for block in self.blocks():
            if block.max() >= limit:
                position = before + int(np.argmax(block >= limit))
                raise TokenFileError(
                    f"{show(self.path)} holds id {int(self.array[position])} at position "
                    f"{position}, but vocab_size is {limit}; run yocto-prepare again, or give "
                    "the right dtype"
                )
            before += len(block)

    def sha256(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block.view(np.uint8).data)
        return digest.hexdigest()


def _meta_of(path: Path, *, required: bool) -> tuple[DataMeta | None, SplitMeta | None]:
    """The meta.json beside a file, and its record of the file; meta.pkl is never looked at."""
    try:
        meta = DataMeta.load(path.parent)
    except MissingMetaError:
        if not required:
            return None, None
        if path.exists():
            raise
        raise TokenFileError(f"cannot read {show(path)}: no such file; run yocto-prepare") from None
    record = meta.split_of_file(path.name)
    if record is None and required:
        raise TokenFileError(
            f"{show(path)} is not listed in the meta.json beside it, and a dtype is never guessed"
        )
    return (None, None) if record is None else (meta, record)


def _element_type(dtype: DtypeLike | None, meta: DataMeta | None) -> np.dtype[np.unsignedinteger]:
    if dtype is None and meta is not None:
        return meta.dtype
    for element in (np.dtype("<u2"), np.dtype("<u4")):
        if dtype in (element.name, element):
            if meta is not None and meta.dtype != element:
                raise TokenFileError(
                    f"dtype {element.name} given, but meta.json says {meta.dtype.name}"
                )
            return element
    raise OptionError(f"dtype must be uint16 or uint32, found {show(str(dtype))}")
