"""What the user names as sources: files, directories and globs, read and decoded one by one."""

import codecs
import contextlib
import glob
import gzip
import hashlib
import json
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, Self

from yocto_data.errors import DataError, DecodingError, WorkError, shorten, usable
from yocto_data.prep.files import foreign_format, open_regular
from yocto_data.prep.meta import SourceMeta
from yocto_data.prep.remote import Address, RemoteFile, addresses, is_address, optional

PathLike = str | os.PathLike[str]
Errors = Literal["strict", "replace", "ignore"]

BLOCK_BYTES = 1 << 20

_COMPRESSED = (".gz", ".zst")
# What is read of a directory: texts, and chats, which may be whole JSON files.
TEXTS = (*(kind + end for kind in (".txt", ".jsonl") for end in ("", *_COMPRESSED)), ".parquet")
CHATS = (*TEXTS, *(".json" + end for end in ("", *_COMPRESSED)))
_ROWS = 64  # of a parquet file, read at a time: they may be long

# Longest first: the UTF-32 mark begins with the UTF-16 one.
_WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# These read escapes or domain names, not the text of a file.
_NOT_FOR_FILES = {"unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined"}
_BOM = "\ufeff"
_LOOKED_AT = 4096  # bytes, to tell what encoding a file has
_LEAST_WIDE_BYTES = 16
_WIDE = {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}


@dataclass(frozen=True)
class Source:
    """One input file. A `.jsonl`, `.json` or `.parquet` file holds records, others one document."""

    path: Path  # of a file at an address its name alone
    address: Address | None = None

    @property
    def shown(self) -> str:
        """The path or address for errors."""
        return shorten(self.path if self.address is None else self.address.url)

    @property
    def kind(self) -> str:
        """What it holds, by its name: `jsonl`, `json`, `parquet`, or `text`."""
        ending = Path(self.path.name.lower().removesuffix(self.compression)).suffix[1:]
        return ending if ending in ("jsonl", "json", "parquet") else "text"

    @property
    def compression(self) -> str:
        """The ending of its name that says how it is compressed, or nothing."""
        return next((end for end in _COMPRESSED if self.path.name.lower().endswith(end)), "")

    @property
    def size(self) -> int:
        """Its bytes, as far as anybody says; else 0."""
        if self.address is not None:
            return self.address.size or 0
        return self.path.stat().st_size if self.path.is_file() else 0


def expand_sources(
    sources: PathLike | Sequence[PathLike], endings: tuple[str, ...] = TEXTS
) -> list[Source]:
    """The files that are meant, in the order given; those of a directory or glob are sorted.

    A directory stands for the files below it, in linked directories too, that have one of the
    `endings`; names that begin with a dot are left out, others are named by `passed_over`. A text
    with `*`, `?` or `[` that names no file is a glob, in which `**` crosses directories. A text
    with `://` is an address that fsspec knows.

    Raises:
        DataError: nothing matches, or a path cannot be read.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    found: dict[str, Source] = {}
    for given in sources:
        text = os.fspath(given)
        if is_address(text):
            files = [Source(Path(each.name), each) for each in addresses(text, endings)]
        else:
            files = [Source(path) for path in _paths(text, endings)]
        for source in files:
            if source.kind == "json" and ".json" not in endings:
                raise DataError(
                    f"{source.shown} is JSON, not text; write one record per line and name it "
                    ".jsonl"
                )
            # A file that is named twice is read once: otherwise it would silently count double.
            address = source.address
            found.setdefault(address.url if address else os.path.realpath(source.path), source)
    if not found:
        raise DataError("no source is given; name a text file, a directory or a glob")
    return list(found.values())


def _paths(text: str, endings: tuple[str, ...]) -> list[Path]:
    if not text:
        raise DataError("the name of a source is empty; name a text file, a directory or a glob")
    if "\0" in text:
        raise DataError(f"cannot read {shorten(text)}: the path holds a NUL character")
    path = Path(text)
    with usable(path):
        if not os.path.lexists(path) and glob.has_magic(text):
            # Path.glob knows neither absolute patterns nor a start directory with magic in it.
            found = glob.glob(text, recursive=True)  # noqa: PTH207
            matches = [Path(match) for match in sorted(found)]
            if not matches:
                raise DataError(f"{shorten(text)} matches no file")
            return [file for match in matches for file in _files_of(match, endings)]
        path.stat()
        return _files_of(path, endings)


def _files_of(path: Path, endings: tuple[str, ...]) -> list[Path]:
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise DataError(
                f"{shorten(path)} is not a regular file; texts are read more than once, so write "
                "what it gives into a file"
            )
        return [path]
    files = [file for file in _walk(path) if file.name.lower().endswith(endings)]
    if not files:
        raise DataError(
            f"the directory {shorten(path)} holds no {', '.join(endings)} file; "
            "name the files, or a glob"
        )
    return sorted(files)


def _walk(path: Path) -> Iterator[Path]:
    """All files below a directory, but for hidden ones; a directory is entered once."""
    entered = set()
    for folder, folders, names in os.walk(path, onerror=_raise, followlinks=True):
        # os.walk goes where this list says. Links may lead back, or to what was already read.
        entered.add(os.path.realpath(folder))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(folder, name)) not in entered  # noqa: PTH118 - many
        ]
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def passed_over(
    sources: PathLike | Sequence[PathLike], endings: tuple[str, ...] = TEXTS
) -> list[Path]:
    """Files in the directories that are named, which `expand_sources` leaves out, sorted."""
    sources = [sources] if isinstance(sources, str | os.PathLike) else sources
    folders = (Path(source) for source in sources if Path(source).is_dir())
    found = (file for folder in folders for file in _walk(folder))
    return sorted(file for file in found if not file.name.lower().endswith(endings))


def _raise(error: OSError) -> None:
    raise error


class SourceFile:
    """An open source: its bytes in blocks, decompressed; the file itself is hashed as it is read.

    Of a parquet file the blocks are its rows as lines of JSON, without columns that hold no text,
    and the hash is theirs: reading the rest, to hash it, could take far longer.

    Raises:
        DataError: it cannot be read, or is not what its name says.
        WorkError: its size or time changed between opening and the end, or a connection broke.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._file: Any
        if source.address is not None and source.kind == "parquet":
            self._file = source.address.open()
        elif source.address is not None:
            self._file = BufferedReader(RemoteFile(source.address), BLOCK_BYTES)
        else:
            with usable(source.path):
                self._file = open_regular(source.path)
        self._opened = self._stamp()
        self._sha256 = hashlib.sha256()
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[bytes]:
        """All bytes, about a megabyte at a time."""
        if self._source.kind == "parquet":
            yield from self._rows()
            return
        stream, not_whole = self._stream()
        not_whole = (*not_whole, EOFError)
        try:
            while block := stream.read(BLOCK_BYTES):
                yield block
        except not_whole as error:
            raise DataError(
                f"{self._source.shown} is not a whole {self._source.compression} file ({error}); "
                "compress it again"
            ) from error
        self._require_unchanged()

    def read(self, size: int = -1) -> bytes:
        """The next bytes as they lie there, counted and hashed; decompressors call it, too."""
        with usable(self._source.path):
            data: bytes = self._file.read(size)
        self._sha256.update(data)
        self.bytes_read += len(data)
        if self._opened and self.bytes_read > self._opened[0]:  # a growing file would never end
            self._require_unchanged()
        return data

    def record(self) -> SourceMeta:
        """Name, size and sha256, once all blocks are read."""
        return SourceMeta(
            name=self._source.path.name, bytes=self.bytes_read, sha256=self._sha256.hexdigest()
        )

    def _stream(self) -> tuple[Any, tuple[type[Exception], ...]]:
        """The decompressed file, and the errors of one that is damaged."""
        raw: Any = self  # only `read` is called
        if self._source.compression == ".gz":
            return gzip.GzipFile(fileobj=raw), (gzip.BadGzipFile, zlib.error)
        if self._source.compression == ".zst":
            name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
            zstd = optional(name, "zstd", self._source.shown)
            return zstd.ZstdFile(raw), (zstd.ZstdError,)
        return raw, ()

    def _rows(self) -> Iterator[bytes]:
        """The rows of a parquet file as lines of JSON."""
        parquet = optional("pyarrow.parquet", "parquet", self._source.shown)
        size = self._opened[0] if self._opened else self._source.size
        done = 0
        try:
            with closing(parquet.ParquetFile(self._file, buffer_size=BLOCK_BYTES)) as table:
                columns = [each.name for each in table.schema_arrow if _holds_text(each.type)]
                for batch in table.iter_batches(_ROWS, columns=columns):
                    # A date is no text, and must not become one: any object will do instead.
                    rows = (json.dumps(row, default=lambda _: {}) for row in batch.to_pylist())
                    block = "".join(f"{row}\n" for row in rows).encode()
                    done += len(batch)
                    self.bytes_read = size * done // table.metadata.num_rows
                    self._sha256.update(block)
                    yield block
        except Exception as error:  # pyarrow's own, and those of the file system below it
            raise DataError(
                f"{self._source.shown} is no parquet file that can be read to its end "
                f"({shorten(' '.join(str(error).split()))}); name another"
            ) from error
        self.bytes_read = size
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        if self._stamp() != self._opened or (self._opened and self.bytes_read != self._opened[0]):
            raise WorkError(
                f"{self._source.shown} changed while it was being read; try again when nothing "
                "writes to it"
            )

    def _stamp(self) -> tuple[int, ...]:
        """Size and time of a file; nothing of one at an address, which its own reader watches."""
        if self._source.address is not None:
            return ()
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def read_whole(source: Source) -> SourceMeta:
    """Read a source to its end: what meta.json says of it, if it is prepared as it is now."""
    with SourceFile(source) as file:
        deque(file.blocks(), maxlen=0)
        return file.record()


def _holds_text(column: Any) -> bool:
    """Whether a column of a parquet file is of text, maybe within records, and not of images."""
    kinds, leaves = [column], []
    for kind in kinds:
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        kinds += inner
        leaves += [] if inner else [str(kind)]
    return any("string" in leaf for leaf in leaves) and not any("binary" in leaf for leaf in leaves)


def check_encoding(encoding: str) -> str:
    """The codec's own name for `encoding`, such as `utf-8` for `UTF8`.

    Raises:
        DataError: no encoding of text files has this name.
    """
    try:
        "".encode(encoding)  # refuses codecs that do not turn bytes into text
        name = codecs.lookup(encoding).name
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        raise DataError(f"no text encoding is called '{shorten(encoding)}'; try utf-8") from error
    if name == "utf-8-sig":  # a mark is dropped, and counted, under utf-8 as well
        return "utf-8"
    if name.replace("-", "_") in _NOT_FOR_FILES:
        raise DataError(f"{name} does not encode text files; try utf-8")
    return name


class TextDecoder:
    """Decodes one source: one byte order mark is dropped, line ends are kept.

    Args:
        where: the source, for errors.
        encoding: as `check_encoding` returns it.
        errors: `strict` raises; `replace` puts U+FFFD, `ignore` puts nothing; both are counted.
        alone: whether no other source is read as `encoding`: then another one may be the advice.
    """

    def __init__(self, where: str, encoding: str, errors: str, *, alone: bool = True) -> None:
        self._where, self._alone = where, alone
        self._encoding = encoding
        make = codecs.getincrementaldecoder(encoding)
        self._decoder = make("strict" if errors == "strict" else "replace")
        # What "replace" adds to what "ignore" leaves is the number of errors, whatever U+FFFD
        # the text itself holds.
        self._counter = None if errors == "strict" else make("ignore")
        self._keep_counted = errors == "ignore"
        self._bytes_fed = 0
        self._is_ascii = True  # what has been read
        self.bom_dropped = False
        self.replaced = 0

    def push(self, data: bytes, *, final: bool = False) -> str:
        """The text of the next bytes; a character cut at their end waits for the next call.

        The first call gets at least four bytes, or all there are: marks are looked for there.

        Raises:
            DecodingError: names the first byte that does not fit.
            DataError: the file begins with the mark of another encoding.
        """
        is_first = not self._bytes_fed
        if is_first:
            self._look_for_marks(data)
        self._bytes_fed += len(data)
        try:
            text = self._decoder.decode(data, final)
            self._is_ascii &= text.isascii()
        except UnicodeDecodeError as error:
            raise self._located(error, is_end=final) from error
        except UnicodeError as error:  # UTF-16 and UTF-32 without a mark where one is due
            raise DecodingError(f"{self._where} is not {self._encoding}: {error}") from error
        if self._counter is not None:
            kept = self._counter.decode(data, final)
            self.replaced += text.count("\ufffd") - kept.count("\ufffd")
            text = kept if self._keep_counted else text
        if is_first and text.startswith(_BOM) and not self.bom_dropped:
            self.bom_dropped = True
            text = text[1:]
        return text

    def _look_for_marks(self, data: bytes) -> None:
        wide = self._encoding.replace("_", "-").startswith(("utf-16", "utf-32"))
        name = next((name for mark, name in _WIDE_MARKS if data.startswith(mark)), None)
        if name and not wide:
            raise DataError(
                f"{self._where} begins with a {name.upper()} byte order mark, so it is not "
                f"{self._encoding}; pass encoding={name}"
            )
        if looks_like := foreign_format(data):
            raise DataError(
                f"{self._where} is not a text: it looks like {looks_like}; give what is in it"
            )
        if not wide and not name and (kind := _zeros_between(data[:_LOOKED_AT])):
            raise DataError(
                f"{self._where} has zero bytes beside each character, as {kind.upper()} has; pass "
                f"encoding={kind}"
            )
        # The codec without a byte order in its name takes the mark away itself.
        self.bom_dropped = bool(name) and self._encoding in {"utf-16", "utf-32"}

    def _located(self, error: UnicodeDecodeError, *, is_end: bool) -> DecodingError:
        # The codec saw what it had kept from before, then the new bytes.
        offset = self._bytes_fed - len(error.object) + error.start
        value = error.object[error.start]
        name = "UTF-8" if self._encoding == "utf-8" else self._encoding
        return DecodingError(
            f"{self._where} is not {name} at byte {offset} (0x{value:02X}: {error.reason}); "
            + self._advice(error, cut=is_end and error.end == len(error.object))
        )

    def _advice(self, error: UnicodeDecodeError, *, cut: bool) -> str:
        """What to do: no other encoding than one that the bytes look like, or it would do harm."""
        data = error.object
        fits = data.decode(self._encoding, "replace")
        n_wrong = fits.count("\ufffd")
        with contextlib.suppress(UnicodeDecodeError):
            if data.decode():
                return "it is UTF-8, so leave encoding out"
        if cut and "end of data" in error.reason:
            return "the file ends inside a character; copy it again, or pass errors=ignore"
        if not self._is_ascii or sum(character > "\x7f" for character in fits) > 2 * n_wrong:
            return "most else is, so the file is damaged there; mend it, or pass errors=replace"
        if not self._alone:
            return "convert this file to UTF-8, or prepare it alone with its encoding"
        around = data[error.start : error.start + _LOOKED_AT]
        with contextlib.suppress(UnicodeDecodeError):
            # In Western languages most letters are plain ones.
            if around.decode("cp1252") and sum(b > 0x7F for b in around) < len(around) / 3:
                return "if it is a Western European text, pass encoding=cp1252, else its own"
        return "pass encoding=NAME with its own, or convert it to UTF-8"


def _zeros_between(data: bytes) -> str | None:
    """The encoding of wide text without a mark: most bytes at the same places of four are zero."""
    if len(data) < _LEAST_WIDE_BYTES:
        return None
    shares = [data[i::4].count(0) / len(data[i::4]) for i in range(4)]
    zeros = "".join("0" if share > 0.5 else "x" for share in shares if not 0.05 < share <= 0.5)
    return _WIDE.get(zeros)
