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


class Packed(nn.Module):
    """In place of a trained `nn.Linear`: float32 (..., in) -> (..., out), without a gradient.

    Kinds: float32; float16 and bfloat16; int8, with a scale per output, by which its largest
    magnitude becomes 127; int4, with scale and least weight of each 32 in bfloat16.

    Args:
        linear: what it replaces.
        kind: how weights are rounded.
        library: the compiled kernel for this kind, for a few rows. Without, torch multiplies.

    Attributes:
        n_bytes: how many bytes are read when all weights are read once.
    """

    def __init__(self, linear: nn.Linear, kind: Kind, library: ctypes.CDLL | None = None) -> None:
        super().__init__()
        self.kind, self._library = kind, library
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Plain attributes: looking up a buffer takes as long as a small operation.
        self.scale: Tensor | None = None
        self.groups: Tensor | None = None
        bias: Tensor | None = linear.bias
        self.bias = None if bias is None else bias.detach().float().clone()
        weight = F.pad(linear.weight.detach().float(), (0, -self.in_features % kernel.STEP))
        if kind == "int8":
            self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,)
            self.weight = (weight / self.scale[:, None]).round_().to(torch.int8)
        elif kind == "int4":
            self.weight, self.groups = _four_bits(weight)
        else:
            self.weight = weight.to(getattr(torch, kind)).clone()
        parts = (self.weight, self.scale, self.groups)
        self.n_bytes = sum(part.nbytes for part in parts if part is not None)
        self._matrix = kernel.matrix(self)

    def forward(self, x: Tensor) -> Tensor:
        n = x.numel() // self.in_features
        if self._library is None or not 0 < n <= kernel.MOST_ROWS:
            return self._many(x)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        self._library.linear(
            ctypes.byref(self._matrix), ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(self.in_features), n, ctypes.c_void_p(y.data_ptr()),
            kernel.n_threads(self.n_bytes),
        )  # fmt: skip
        return y

    def _many(self, x: Tensor) -> Tensor:
        if self.kind == "bfloat16" and self._library is None:  # the only fast way, then
            y = F.linear(x.bfloat16(), self.weight[:, : self.in_features]).float()
            return y if self.bias is None else y.add_(self.bias)
        return F.linear(x, self.restored(), self.bias)

    def __deepcopy__(self, _: object) -> "Packed":
        return self  # nothing in it ever changes

    def restored(self) -> Tensor:
        """The weights as they were rounded, float32 (out, in)."""
        weight = self.weight
        if self.groups is not None:
            scale = (self.groups & -65536).view(torch.float32)[..., None]  # (out, groups, 1)
            least = (self.groups << 16).view(torch.float32)[..., None]
            both = torch.cat((weight & 15, weight >> 4), dim=2)  # (out, groups, 32)
            weight = (both * scale + least).flatten(1)
        elif self.scale is not None:
            weight = weight * self.scale[:, None]
        return weight.float()[:, : self.in_features]


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 (out, in) as uint8 (out, groups, 16) and int32 (out, groups).

    A byte holds weights i and i + 16 of its group; the upper half of a group's int32 is its scale,
    the lower its least weight.
    """
    parts = weight.view(len(weight), -1, kernel.STEP)
    least = parts.amin(dim=2).bfloat16()
    scale = ((parts.amax(dim=2) - least.float()) / 15).clamp(min=1e-30).bfloat16()
    steps = (parts - least.float()[..., None]) / scale.float()[..., None]
    low, high = steps.round().clamp(0, 15).to(torch.uint8).chunk(2, dim=2)
    bits = [half.view(torch.int16).int() for half in (scale, least)]
    return low | high << 4, (bits[0] << 16) | (bits[1] & 0xFFFF)
