"""What the user names as sources: files, directories and globs, opened one by one."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from yocto_data.errors import SourceChangedError, SourceError, reason, show
from yocto_data.meta import SourceMeta
from yocto_data.regular import open_regular

PathLike = str | os.PathLike[str]

BLOCK_BYTES = 1 << 20

_IN_DIRECTORIES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file. A name that ends in ``.jsonl`` holds records, any other is one document."""

    path: Path
    kind: Literal["text", "jsonl"]
    compressed: bool

    @cached_property
    def shown(self) -> str:
        """The path as errors show it."""
        return show(self.path)


def expand_sources(sources: PathLike | Sequence[PathLike]) -> list[Source]:
    """The files that are meant, in the order given; each directory's and glob's own are sorted.

    A directory stands for the .txt and .jsonl files below it, plain or .gz; names that begin with
    a dot are left out. A text with ``*``, ``?`` or ``[`` that names no file is a glob, in which
    ``**`` crosses directories.

    Raises:
        SourceError: nothing matches, a file is named twice, or a path cannot be looked at.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    found: dict[str, Source] = {}
    for given in sources:
        for path in _expand_one(given):
            identity = os.path.realpath(path)
            if identity in found:
                raise SourceError(f"{show(path)} is named twice; name each source once")
            found[identity] = _classify(path)
    if not found:
        raise SourceError("no source is named; name a text file, a directory or a glob")
    return list(found.values())


def size_on_disk(sources: Sequence[Source]) -> int:
    """The bytes of all files together, as they lie on the disk.

    Raises:
        SourceError: one of them is gone.
    """
    total_bytes = 0
    for source in sources:
        try:
            total_bytes += source.path.stat().st_size
        except OSError as error:
            raise SourceError(f"cannot read {source.shown}: {reason(error)}") from error
    return total_bytes


def _expand_one(given: PathLike) -> list[Path]:
    text = os.fspath(given)
    if not text:
        raise SourceError("a source has no name; name a text file, a directory or a glob")
    if "\0" in text:
        raise SourceError(f"cannot read {show(text)}: the path holds a NUL character")
    path = Path(text)
    try:
        if not os.path.lexists(path) and glob.has_magic(text):
            # Path.glob knows neither absolute patterns nor a start directory with magic in it.
            found = glob.glob(text, recursive=True)  # noqa: PTH207
            matches = [Path(match) for match in sorted(found)]
            if not matches:
                raise SourceError(f"{show(text)} matches no file")
            return [file for match in matches for file in _files_of(match)]
        path.stat()
        return _files_of(path)
    except OSError as error:
        raise SourceError(f"cannot read {show(text)}: {reason(error)}") from error


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [
        Path(folder) / name
        for folder, folders, names in os.walk(path, onerror=_raise)
        for name in names
        if _is_visible(folders, name) and name.lower().endswith(_IN_DIRECTORIES)
    ]
    if not files:
        raise SourceError(
            f"the directory {show(path)} holds no {', '.join(_IN_DIRECTORIES)} file; "
            "name the files, or a glob"
        )
    return sorted(files)


def _is_visible(folders: list[str], name: str) -> bool:
    # os.walk goes where this list says: hidden folders are taken out of it on the way.
    folders[:] = [folder for folder in folders if not folder.startswith(".")]
    return not name.startswith(".")


def _raise(error: OSError) -> None:
    raise error


def _classify(path: Path) -> Source:
    name = path.name.lower()
    compressed = name.endswith(".gz")
    name = name.removesuffix(".gz")
    if name.endswith(".json"):
        raise SourceError(
            f"{show(path)} is JSON, not text; write one record per line and name it .jsonl"
        )
    return Source(
        path=path, kind="jsonl" if name.endswith(".jsonl") else "text", compressed=compressed
    )


class SourceFile:
    """An open source: its bytes in blocks, decompressed, while what is on the disk is hashed.

    Raises:
        SourceError: it cannot be read, or is not the compressed file that its name says.
        SourceChangedError: its size or time changed between opening and the end.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            self._raw = _CountingReader(open_regular(source.path), source)
        except OSError as error:
            raise SourceError(f"cannot read {source.shown}: {reason(error)}") from error

    @property
    def bytes_read(self) -> int:
        """How much of the file on the disk has been read."""
        return self._raw.bytes_read

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *details: object) -> None:
        self._raw.close()

    def blocks(self) -> Iterator[bytes]:
        """All bytes, about a megabyte at a time."""
        try:
            stream: io.RawIOBase | gzip.GzipFile = self._raw
            if self._source.compressed:
                stream = gzip.GzipFile(fileobj=self._raw, mode="rb")
            while block := stream.read(BLOCK_BYTES):
                yield block
            self._raw.require_unchanged()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(
                f"{self._source.shown} is not a whole gzip file; compress it again"
            ) from error
        except OSError as error:
            raise SourceError(f"cannot read {self._source.shown}: {reason(error)}") from error

    def record(self) -> SourceMeta:
        """Name, size and sha256, once all blocks are read."""
        return SourceMeta(
            name=show(self._source.path.name),
            bytes=self._raw.bytes_read,
            sha256=self._raw.sha256.hexdigest(),
        )


class _CountingReader(io.RawIOBase):
    """The bytes on the disk, counted and hashed on their way."""

    def __init__(self, file: io.FileIO, source: Source) -> None:
        self._file = file
        self._source = source
        self._opened = self._stamp()
        self.bytes_read = 0
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer) or 0
        self.sha256.update(buffer[:count])
        self.bytes_read += count
        if self.bytes_read > self._opened[0]:  # a growing file would never end
            self.require_unchanged()
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def require_unchanged(self) -> None:
        """Compare with what the file was when it was opened."""
        if self._stamp() != self._opened or self.bytes_read != self._opened[0]:
            raise SourceChangedError(
                f"{self._source.shown} changed while it was being read; "
                "try again when it is at rest"
            )

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns
