"""The header of a GGUF file: all its fields, and where its tensors are.

Format: docs/gguf.md of github.com/ggml-org/ggml. The package `gguf` reads headers, too, but for a
vocabulary of 49,152 tokens that takes seconds and 160 MB.
"""

import functools
import math
import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yocto_model.errors import ModelFileError, quoted
from yocto_model.formats.assembly import what_it_is

# What a number in a header is, as `struct` calls it. The other two kinds are texts and lists.
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_FLOAT32, _TEXT, _LIST = 6, 8, 9
_LARGEST_HEADER_BYTES = 2**27  # a vocabulary of 262,144 tokens takes about 2^23
# Types of tensors that are read without the package: their numbers, dtypes.
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is: its type's number, its shape, and its bytes in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class Header:
    """Everything before the weights. No size in it is believed before the file has that much."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size

    def read(self) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
        """All fields, and where each tensor is."""
        if self.file.read(4) != b"GGUF":
            raise ModelFileError(f"{self.path} is no GGUF file: it is {what_it_is(self.path)}")
        [version] = self._numbers("I", 1)
        if version not in (2, 3):
            raise ModelFileError(
                f"{self.path} is GGUF of version {version}, or of another byte order; this package "
                "reads 2 and 3"
            )
        n_tensors, n_fields = self._numbers("Q", 2)
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            name = self._text()
            if name in fields:
                raise self._damage(f"it has two fields {quoted(name)}")
            fields[name] = self._value(*self._numbers("I", 1))
        if fields.get("split.count", 1) not in (0, 1):
            raise ModelFileError(
                f"{self.path} is one of {quoted(fields['split.count'])} parts; join them first "
                "(llama.cpp: llama-gguf-split --merge)"
            )
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise self._damage(f"general.alignment is {quoted(alignment)}")
        return fields, self._tensors(n_tensors, alignment)

    def _tensors(self, n_tensors: int, alignment: int) -> dict[str, TensorPlace]:
        infos: dict[str, tuple[int, tuple[int, ...], int]] = {}
        for _ in range(n_tensors):
            name = self._text()
            if name in infos:
                raise self._damage(f"it has two tensors {quoted(name)}")
            [n_axes] = self._numbers("I", 1)
            shape = self._numbers("Q", n_axes)[::-1]  # the fastest axis comes first
            infos[name] = (*self._numbers("I", 1), shape, *self._numbers("Q", 1))
        found, end = {}, -(-self.file.tell() // alignment) * alignment
        begin = end
        for name, (kind, shape, offset) in infos.items():
            n_values, n_bytes = _block(self.path, kind)
            if not shape or 0 in shape or shape[-1] % n_values:
                raise self._damage(f"tensor {quoted(name)} has shape {shape}")
            found[name] = TensorPlace(kind, shape, end, math.prod(shape) // n_values * n_bytes)
            # Each begins where the one before ends, so that together they fit into the file.
            if begin + offset != end or end + found[name].n_bytes > self.size:
                raise self._damage(f"tensor {quoted(name)} does not lie where it should")
            end += -(-found[name].n_bytes // alignment) * alignment
        return found

    def _value(self, kind: int) -> Any:
        if kind == _LIST:
            [kind], [count] = self._numbers("I", 1), self._numbers("Q", 1)
            if kind in _NUMBERS:
                return list(self._numbers(_NUMBERS[kind], count))
            if kind == _TEXT and count <= self.size:
                return [self._text() for _ in range(count)]
            raise self._damage(f"it has a list of {count} values of kind {kind}")
        if kind == _TEXT:
            return self._text()
        if kind not in _NUMBERS:
            raise self._damage(f"it has a value of kind {kind}")
        [number] = self._numbers(_NUMBERS[kind], 1)
        # 1e-5 as a float32, not the digits that follow from making it a float64.
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def _text(self) -> str:
        try:
            return self._bytes(*self._numbers("Q", 1)).decode()
        except UnicodeDecodeError as error:
            raise self._damage("it has a text that is not UTF-8") from error

    def _numbers(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self._bytes(count * struct.calcsize(f"<{code}")))

    def _bytes(self, count: int) -> bytes:
        if count > min(self.size, _LARGEST_HEADER_BYTES) - self.file.tell():
            raise self._damage("it ends within its header, or that is far too long")
        return self.file.read(count)

    def _damage(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is damaged or cut off: {what}")


@functools.cache
def _block(path: Path, kind: int) -> tuple[int, int]:
    """How many values of a type of tensor are stored together, and in how many bytes."""
    if kind in PLAIN:
        return 1, PLAIN[kind].itemsize
    gguf = package()
    try:
        name = gguf.GGMLQuantizationType(kind)
        sizes: tuple[int, int] = gguf.GGML_QUANT_SIZES[name]
        gguf.quants.dequantize(np.zeros((1, sizes[1]), dtype=np.uint8), name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelFileError(
            f"{path} has tensors of a type that cannot be read: {error}"
        ) from error
    return sizes


def package() -> Any:
    """The package gguf, which takes a while to import and is not always installed."""
    try:
        import gguf  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ModelFileError(
            "this needs the package gguf: pip install 'yocto-model[gguf]'"
        ) from error
    return gguf
