"""Sources at an address, such as https:// or s3://: files that fsspec reads, as streams.

A connection that breaks is taken up again where it ended. All that is known of a file is its size,
if the server says it; whether two readings are the same, their hash tells.
"""

import glob
import io
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from yocto_data.errors import DataError, WorkError, shorten

# Seconds before each further attempt; what arrives in between makes their count begin again.
_WAITS = (1.0, 2.0, 4.0, 8.0)
_SILENCE = 30.0  # seconds without a byte from an HTTP server that count as a broken connection


def optional(module: str, extra: str, what: str) -> Any:
    """A module that comes with one of the extras of this package."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(
            f"{what} needs the package {package}; install yocto-data[{extra}]"
        ) from error


@dataclass(frozen=True)
class Address:
    """A file on a server. `files` is the fsspec file system, `path` what it calls the file."""

    url: str
    files: Any
    path: str
    size: int | None

    @property
    def is_http(self) -> bool:
        """Whether it is read by plain HTTP, in which nothing can be listed."""
        return "https" in self.files.protocol

    @property
    def name(self) -> str:
        """Its last part, which says by its ending what the file holds."""
        path = urlsplit(self.path).path if self.is_http else self.path
        return path.rstrip("/").rpartition("/")[2] or "index"

    def open(self) -> Any:
        """The file for random access; only what is asked for is fetched."""
        try:
            return self.files.open(self.path, "rb", cache_type="none")
        except Exception as error:  # each file system has errors of its own
            raise DataError(f"cannot read {shorten(self.url)}: {_cause(error)}") from error


def is_address(name: str) -> bool:
    """Whether a source is named by an address and not by a path."""
    return "://" in name


def addresses(url: str, endings: tuple[str, ...]) -> list[Address]:
    """The files that an address stands for: one, or those of a directory or glob, sorted.

    Raises:
        DataError: there are none, or nobody can be asked.
    """
    fsspec, options = optional("fsspec", "remote", shorten(url)), {}
    is_http = url.lower().startswith(("http://", "https://"))
    if is_http:
        aiohttp = optional("aiohttp", "remote", shorten(url))
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        options = {"client_kwargs": {"timeout": limits}}
    try:
        files, path = fsspec.url_to_fs(url, **options)
        if not is_http and glob.has_magic(path) and not files.exists(path):
            found = files.glob(path, detail=True)
        else:
            found = {path: files.info(path)}
            if found[path]["type"] == "directory":  # over HTTP nothing is: links are no files
                found = files.find(path, detail=True)
                found = {n: found[n] for n in found if n.lower().endswith(endings)}
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"cannot read {shorten(url)}: {_cause(error)}") from error
    if not (found := {n: info for n, info in found.items() if info["type"] == "file"}):
        raise DataError(f"{shorten(url)} holds no {', '.join(endings)} file; name the files")
    return [
        Address(files.unstrip_protocol(name), files, name, info["size"])
        for name, info in sorted(found.items())
    ]


class RemoteFile(io.RawIOBase):
    """A remote file from its beginning to its end; a connection that breaks is taken up again."""

    def __init__(self, address: Address) -> None:
        self._address, self._position = address, 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes into a buffer; how many: none at the end.

        Raises:
            DataError: there is no such file any more, or it must not be read.
            WorkError: it ends early or late, or the connection breaks again and again.
        """
        shown, whole = shorten(self._address.url), self._address.size
        for wait in (*_WAITS, None):
            try:
                if self._file is None:
                    self._open()
                data: bytes = self._file.read(len(buffer))
                if not data and whole is not None and self._position < whole:
                    raise EOFError(f"it ended behind byte {self._position} of {whole}")
                break
            except (FileNotFoundError, PermissionError) as error:
                raise DataError(f"cannot read {shown}: {_cause(error)}") from error
            except Exception as error:  # each file system has errors of its own
                self._hang_up()
                if wait is None:
                    raise WorkError(
                        f"the connection to {shown} broke {len(_WAITS) + 1} times at byte "
                        f"{self._position} ({_cause(error)}); try again later"
                    ) from error
                time.sleep(wait)
        self._position += len(data)
        if whole is not None and self._position > whole:
            raise WorkError(f"{shown} is longer than the {whole} bytes that its server has named")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        """Open the file where reading has come to."""
        address, rest = self._address, self._position
        if not address.is_http:
            self._file = address.files.open(address.path, "rb")
            self._file.seek(rest)
            return
        # One answer, as long as the file. Asked for the rest, a server may send the whole again.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={rest}-"} if rest else {})
        self._file = address.files.open(address.path, block_size=0, headers=headers)
        answer = self._file.r
        if answer.status == 206 and f" {rest}-" in answer.headers.get("Content-Range", ""):
            return
        while rest:
            if not (data := self._file.read(min(rest, 1 << 20))):
                raise EOFError(f"it ended {rest} bytes before where it had broken")
            rest -= len(data)


def _cause(error: BaseException) -> str:
    """What lies behind an error, in one line."""
    while error.__cause__ is not None and not isinstance(error, ImportError):
        error = error.__cause__
    text = " ".join(str(error).split())
    known = isinstance(error, OSError | ValueError | ImportError) and text
    return shorten(text if known else f"{type(error).__name__}: {text}".removesuffix(": "), 200)
