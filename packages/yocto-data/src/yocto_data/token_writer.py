"""Writing one .bin file: bytes in, and at the end its record for meta.json."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from yocto_data import fsops
from yocto_data.meta import SplitMeta


class TokenWriter:
    """A new .bin file. Leaving the ``with`` block syncs it, or after an error just closes it.

    Raises:
        WriteError: the system refused.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._dtype = dtype
        self._max_id = 0
        self.documents = 0
        with fsops.translated(path):
            self._file = fsops.HashingFile(path)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._file.abandon()
            return
        try:
            with fsops.translated(self._path):
                self._file.close()
        except BaseException:
            self._file.abandon()
            raise

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return self._file.bytes_written // self._dtype.itemsize

    def write(self, data: bytes) -> None:
        """Append tokens, as bytes of the file's own type."""
        if not data:
            return
        self._max_id = max(self._max_id, int(np.frombuffer(data, dtype=self._dtype).max()))
        with fsops.translated(self._path):
            self._file.write(data)

    def record(self, *, documents: int | None) -> SplitMeta:
        """What meta.json says of the file."""
        return SplitMeta(
            file=self._path.name,
            tokens=self.tokens,
            bytes=self._file.bytes_written,
            sha256=self._file.sha256,
            max_id=self._max_id,
            documents=documents,
        )
