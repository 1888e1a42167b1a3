"""A .bin file on the disk: written, mapped, and checked against the meta.json beside it."""

import codecs
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

import numpy as np

from yocto_data.errors import DataError, MissingMetaError, shorten, usable, writing
from yocto_data.prep import files
from yocto_data.prep.meta import TEMPLATE_NAME, DataMeta, SplitMeta, token_dtype

if TYPE_CHECKING:
    import torch

DtypeLike = str | np.dtype[np.unsignedinteger]

_BLOCK_TOKENS = 1 << 20
_HEAD_BYTES = 512
_TEXT_CONTROLS = frozenset("\t\n\r\f\x1b")


def load_bin(path: str | Path, dtype: DtypeLike | None = None) -> "torch.LongTensor":
    """A whole .bin file as a tensor of int64, shape (n_tokens,): for small data.

    Raises:
        MissingMetaError: no `dtype` given, and no meta.json to say it.
        DataError: it is not a token file, or an id lies beyond the vocabulary.
    """
    import torch  # noqa: PLC0415 - preparation does without it

    file = TokenFile(Path(path), dtype=dtype)
    file.check_ids()
    return cast("torch.LongTensor", torch.from_numpy(file.array.astype(np.int64)))


def verify_tokens(path: str | Path, *, dtype: DtypeLike | None = None) -> int:
    """Read a whole token file: every id in range, and the sha256 that meta.json records.

    Returns the number of its tokens; raises a `DataError` as `load_bin` does.
    """
    file = TokenFile(Path(path), dtype=dtype)
    file.verify()
    return len(file.array)


class MappedFile:
    """A file of equal elements, mapped: memory does not grow with it.

    Args:
        path: the file.
        dtype: type of the elements.
        size, sha256: what meta.json says about the file, if anything: its bytes and their hash.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], size: int | None, sha256: str | None
    ) -> None:
        self.path, self.dtype, self._recorded = path, dtype, sha256
        with usable(path), files.open_regular(path) as file:
            self._size_bytes = file.seek(0, 2)
            status = os.fstat(file.fileno())
            self._inode, self._time_ns = status.st_ino, status.st_mtime_ns
            self._check_size(file, size)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Windows lie anywhere. Reading ahead from each costs far more than it brings: 640 single
        # reads of a 5 GB file took 9 s with it and 0.01 s without.
        self._advise("MADV_RANDOM")
        self.array = np.frombuffer(self._map, dtype=dtype)

    def _check_size(self, file: BinaryIO, recorded: int | None) -> None:
        size = self._size_bytes
        if size and size == recorded:
            return
        file.seek(0)
        if not size:
            problem = "is empty; run yocto-prepare again"
        elif self.dtype.itemsize > 1 and (foreign := _foreign_format(file.read(_HEAD_BYTES))):
            problem = f"is not a token file: it looks like {foreign}; run yocto-prepare on the text"
        elif recorded is not None:
            problem = f"has {size} bytes, but meta.json records {recorded}; run yocto-prepare again"
        elif size % self.dtype.itemsize:
            problem = (
                f"has {size} bytes, which is not a multiple of the {self.dtype.itemsize} bytes of "
                f"{self.dtype.name}; give the right dtype"
            )
        else:
            return
        raise DataError(f"{shorten(self.path)} {problem}")

    def require_whole(self) -> None:
        """Refuse a truncated file: reading beyond its end would end the process (SIGBUS)."""
        if self._map.size() < self._size_bytes:
            raise DataError(
                f"{shorten(self.path)} was truncated while in use, from {self._size_bytes} to "
                f"{self._map.size()} bytes; run yocto-prepare again"
            )

    def require_unchanged(self) -> None:
        """Refuse a file that was written over while in use, as far as meta.json knows its content.

        A new file under its name changes nothing here, and what was cut off is noticed when read.
        """
        with suppress(FileNotFoundError):
            status = self.path.stat()
            same = status.st_ino == self._inode and status.st_size >= self._size_bytes
            if same and status.st_mtime_ns != self._time_ns:
                self.verify()
                self._time_ns = status.st_mtime_ns

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
        """Tell the kernel how the map will be read, where it can be told."""
        if (advice := getattr(mmap, name, None)) is not None:
            self._map.madvise(advice)

    def sha256(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block.view(np.uint8).data)
        return digest.hexdigest()

    def verify(self) -> None:
        """Read it all and compare the sha256 with what meta.json records."""
        if self._recorded is not None and (found := self.sha256()) != self._recorded:
            raise DataError(
                f"{shorten(self.path)} was damaged or replaced: its sha256 is {found[:12]}..., but "
                f"meta.json records {self._recorded[:12]}...; run yocto-prepare again"
            )


class TokenFile(MappedFile):
    """A mapped .bin file; what is not given comes from the meta.json beside it."""

    def __init__(
        self, path: Path, *, dtype: DtypeLike | None = None, vocab_size: int | None = None
    ) -> None:
        self.meta, self.record = _meta_of(path, required=dtype is None)
        element = _element_type(dtype, self.meta)
        if vocab_size is not None:
            token_dtype(vocab_size)  # refuses what is out of range
        elif self.meta is not None:
            vocab_size = self.meta.vocab_size
        self.vocab_size = vocab_size
        self.chats = None if self.meta is None else self.meta.chats_of_file(path.name)
        record = self.record
        size, sha256 = (None, None) if record is None else (record.bytes, record.sha256)
        super().__init__(path, element, size, sha256)
        # Of chats, what belongs to this file: which tokens are learned, in bits, the first token of
        # each document, and the template.
        self.beside: dict[str, MappedFile] = {}
        if self.meta is not None and self.meta.chats and self.chats and record is not None:
            mask, starts = path.with_suffix(".mask"), path.with_suffix(".starts")
            bits, marks, size = np.dtype("u1"), np.dtype("<u8"), 8 * (record.documents or 0)
            self.beside = {
                "mask": MappedFile(mask, bits, -(-len(self.array) // 8), self.chats.mask),
                "starts": MappedFile(starts, marks, size, self.chats.starts),
            }
            if (template := self.meta.chats.template) is not None:
                named = path.with_name(TEMPLATE_NAME)
                self.beside["template"] = MappedFile(named, bits, None, template)

    def require_unchanged(self) -> None:
        """Refuse this file, or one beside it, that was written over: another mask is other data."""
        super().require_unchanged()
        for file in self.beside.values():
            file.require_unchanged()

    def check_ids(self) -> None:
        """Read all tokens and compare them with the vocabulary, where its size is known."""
        limit = self.vocab_size
        if limit is None:
            return
        before = 0
        for block in self.blocks():
            if block.max() >= limit:
                position = before + int(np.argmax(block >= limit))
                raise DataError(
                    f"{shorten(self.path)} holds id {int(self.array[position])} at position "
                    f"{position}, but vocab_size is {limit}; run yocto-prepare again, or give "
                    "the right dtype"
                )
            before += len(block)

    def verify(self) -> None:
        """Read all tokens: every id in range, and every sha256 that meta.json records."""
        self.check_ids()
        super().verify()
        for file in self.beside.values():
            file.verify()


def _meta_of(path: Path, *, required: bool) -> tuple[DataMeta | None, SplitMeta | None]:
    """The meta.json beside a file, and its record of the file; meta.pkl is never opened."""
    try:
        meta = DataMeta.load(path.parent)
    except MissingMetaError:
        if not required:
            return None, None
        if path.exists():
            raise MissingMetaError(
                f"{shorten(path)} has no meta.json beside it, so nothing says how its tokens are "
                "stored; run yocto-prepare, or give its dtype"
            ) from None
        raise DataError(f"cannot read {shorten(path)}: no such file; run yocto-prepare") from None
    record = meta.split_of_file(path.name)
    if record is None and required:
        raise DataError(
            f"{shorten(path)} is not listed in the meta.json beside it, so nothing says how its "
            "tokens are stored; give its dtype"
        )
    return (None, None) if record is None else (meta, record)


def _element_type(dtype: DtypeLike | None, meta: DataMeta | None) -> np.dtype[np.unsignedinteger]:
    if dtype is None and meta is not None:
        return meta.dtype
    for element in (np.dtype("<u2"), np.dtype("<u4")):
        if dtype in (element.name, element):
            if meta is not None and meta.dtype != element:
                raise DataError(f"dtype {element.name} given, but meta.json says {meta.dtype.name}")
            return element
    raise DataError(f"dtype must be uint16 or uint32, found {shorten(str(dtype))}")


def _foreign_format(head: bytes) -> str | None:
    """What the first bytes of a file look like; None where they could be tokens.

    Text is told from tokens by being UTF-8 without NUL and other control characters: in a token
    file of characters every second byte is 0, and in a larger vocabulary a control byte or a
    broken sequence turns up within a few ids.
    """
    if (name := files.foreign_format(head)) is not None:
        return name
    if head.lstrip()[:1] == b"<" and b"<html" in head.lower():
        return "HTML"
    try:  # a character may be cut at the end, which an incremental decoder lets pass
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    long_enough = len(head) >= 16
    return "text" if long_enough and all(c >= " " or c in _TEXT_CONTROLS for c in text) else None


class HashedWriter:
    """A new file, counted and hashed as it is written; `new_directory` syncs it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        with writing(path):
            self._file = path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is not None:
            with suppress(OSError):  # the failure is what the caller must hear about
                self._file.close()
            return
        with writing(self._path):
            self._file.close()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if not data:
            return
        with writing(self._path):
            self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    def sha256(self) -> str:
        """The hash (hex) of what was written."""
        return self._sha256.hexdigest()


class TokenWriter(HashedWriter):
    """A new .bin file."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        super().__init__(path)
        self.dtype = dtype
        self._max_id = 0
        self.documents = 0

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return self.bytes // self.dtype.itemsize

    def write_rows(self, rows: Sequence[Any]) -> None:
        """Append what an encoder has made of pieces: here, tokens as bytes."""
        self.write(b"".join(rows))

    def write(self, data: bytes) -> None:
        """Append tokens, as bytes of the file's own type."""
        if data:
            self._max_id = max(self._max_id, int(np.frombuffer(data, dtype=self.dtype).max()))
        super().write(data)

    def record(self) -> SplitMeta:
        """What meta.json says about the file."""
        return SplitMeta(
            file=self._path.name,
            tokens=self.tokens,
            bytes=self.bytes,
            sha256=self.sha256(),
            max_id=self._max_id,
            documents=self.documents or None,  # not counted in imported files
        )
