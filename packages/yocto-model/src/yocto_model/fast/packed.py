"""Packed matrices: weights rounded to fewer bytes, the activations left as they are.

Making one token multiplies every matrix by a single row (per text), so its time is the time to read
the weights: fewer bytes are all that helps. Whatever the kind, only weights are rounded; so a text
is the same with and without a cache, alone and in a batch, up to the order of float32 sums.
"""

import ctypes
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from yocto_model.fast import kernel

Kind = Literal["float32", "float16", "bfloat16", "int8", "int4"]


class Plain(nn.Module):
    """In place of a trained `nn.Linear` where there is no kernel: as torch multiplies.

    Float32 (..., in) -> (..., out), without a gradient. With kind "bfloat16" the activations are
    rounded as well, which torch needs to be fast.
    """

    def __init__(self, linear: nn.Linear, kind: Kind) -> None:
        super().__init__()
        self.dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        # Plain attributes: looking up a buffer takes as long as a small operation.
        self.weight = linear.weight.detach().to(self.dtype, copy=True)
        bias: Tensor | None = linear.bias
        self.bias = None if bias is None else bias.detach().to(self.dtype, copy=True)
        self.n_bytes = self.weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias).float()


class Packed(nn.Module):
    """In place of a trained `nn.Linear` on a CPU: float32 (..., in) -> (..., out), no gradient.

    Kinds: float32; float16 and bfloat16; int8, with a scale per output, by which its largest
    magnitude becomes 127; int4, with scale and least weight of each 32 in bfloat16.

    Args:
        linear: what it replaces.
        kind: how weights are rounded.
        library: the compiled kernel for this kind.

    Attributes:
        n_bytes: how many bytes are read when all weights are read once.
    """

    def __init__(self, linear: nn.Linear, kind: Kind, library: ctypes.CDLL) -> None:
        super().__init__()
        self._library = library
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias: Tensor | None = linear.bias
        padding = (0, -self.in_features % kernel.STEP, 0, -self.out_features % kernel.OUTPUTS)
        self.bias = None if bias is None else F.pad(bias.detach().float(), padding[2:]).clone()
        self.scale: Tensor | None = None
        self.groups: Tensor | None = None
        weight = F.pad(linear.weight.detach().float(), padding)
        if kind == "int8":
            self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,)
            weight = (weight / self.scale[:, None]).round_()
        # Some outputs lie side by side: (out / OUTPUTS, in, OUTPUTS).
        tiles = weight.view(-1, kernel.OUTPUTS, weight.shape[1]).transpose(1, 2)
        if kind == "int4":
            self.weight, self.groups = _four_bits(tiles)
        else:
            self.weight = tiles.to(getattr(torch, kind)).clone(
                memory_format=torch.contiguous_format
            )
        stored = (self.weight, self.scale, self.groups)
        self.n_bytes = sum(part.nbytes for part in stored if part is not None)
        self._matrix = kernel.matrix(self)

    def forward(self, x: Tensor) -> Tensor:
        n = x.numel() // self.in_features
        if not 0 < n <= kernel.MOST_ROWS:
            bias = None if self.bias is None else self.bias[: self.out_features]
            return F.linear(x, self.restored(), bias)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        self._library.linear(
            ctypes.byref(self._matrix), ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(self.in_features), n, ctypes.c_void_p(y.data_ptr()),
            kernel.n_threads(self.n_bytes),
        )  # fmt: skip
        return y

    def __deepcopy__(self, _: object) -> "Packed":
        return self  # nothing in it ever changes

    def restored(self) -> Tensor:
        """The weights as they were rounded, float32 (out, in)."""
        tiles = self.weight.float()
        if self.groups is not None:
            scale = (self.groups & -65536).view(torch.float32)[:, :, None]
            least = (self.groups << 16).view(torch.float32)[:, :, None]
            numbers = torch.stack((self.weight & 15, self.weight >> 4), dim=2).flatten(1, 2)
            numbers = numbers.view(len(numbers), -1, kernel.STEP, kernel.OUTPUTS)
            tiles = (numbers * scale + least).flatten(1, 2)
        weight = tiles.transpose(1, 2).flatten(0, 1)[: self.out_features, : self.in_features]
        return weight if self.scale is None else weight * self.scale[: self.out_features, None]


def _four_bits(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 (n, in, 32) as uint8 (n, in / 2, 32) and int32 (n, in / 32, 32).

    A byte holds the weights of two inputs; the upper half of an int32 is the scale of an output's
    weights of 32 inputs, the lower the least of them.
    """
    groups = tiles.reshape(len(tiles), -1, kernel.STEP, kernel.OUTPUTS)  # (n, in / 32, 32, 32)
    least = groups.amin(dim=2).bfloat16()
    scale = ((groups.amax(dim=2) - least.float()) / 15).clamp(min=1e-30).bfloat16()
    numbers = (groups - least.float()[:, :, None]) / scale.float()[:, :, None]
    numbers = numbers.round().clamp(0, 15).to(torch.uint8).flatten(1, 2)
    bits = [half.view(torch.int16).int() for half in (scale, least)]
    both = numbers[:, ::2] | numbers[:, 1::2] << 4
    return both.contiguous(), ((bits[0] << 16) | (bits[1] & 0xFFFF)).contiguous()
