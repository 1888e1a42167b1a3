"""Packed matrices: the weights of a linear layer, stored the way one row reads them fastest.

Making one token multiplies every matrix by a single row (per text), so its time is the time to read
the weights: fewer bytes, or an order that the processor reads faster, is all that helps. Each class
here replaces a trained `nn.Linear`; it maps float32 to float32, (..., B, in) -> (..., B, out), and
has no gradient.
"""

import functools
import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from yocto_model.errors import InputError

_LARGEST_TRIED = 50_000_000  # weights of a matrix, 200 MB, that are tried in both orders


class Packed(nn.Module):
    """Base of the packed matrices.

    Attributes:
        kind: the name by which it is chosen.
        in_features: width of the input.
        n_bytes: how many bytes are read when all weights are read once.
    """

    kind: str
    bytes_per_weight: int

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.n_bytes = linear.weight.numel() * self.bytes_per_weight
        trained: Tensor | None = linear.bias
        # Plain attributes, here and below: looking up a buffer takes as long as a small operation.
        self.bias = None if trained is None else trained.detach().float().clone()


class Float32(Packed):
    """The same weights in the faster of two orders: see `transposes`."""

    kind = "float32"
    bytes_per_weight = 4

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        if weight.device.type == "cpu" and transposes(linear.in_features, linear.out_features):
            self.weight = weight.t().clone(memory_format=torch.contiguous_format).t()
        else:
            self.weight = weight.clone(memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@functools.cache
def transposes(n_in: int, n_out: int) -> bool:
    """Whether a float32 matrix is stored (in, out) rather than (out, in), on this CPU.

    For a single row the longer side should be contiguous on some processors: 9 against 17 GB/s for
    384 -> 1152 (torch 2.15 on an AMD EPYC); on others it makes no difference (an Intel Xeon).
    Sixteen rows are faster in (in, out), by a third on the EPYC. So that is the order, unless it
    makes a single row clearly slower here. The sums of the two differ in their last bits.
    """
    if n_out > n_in or n_in * n_out > _LARGEST_TRIED:
        return n_out > n_in
    place: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x, took = torch.ones(1, n_in, **place), [math.inf, math.inf]
    weights = [torch.ones(n_out, n_in, **place), torch.ones(n_in, n_out, **place).t()]
    with torch.inference_mode():
        for _ in range(12):
            for order, weight in enumerate(weights):
                begun = time.perf_counter()
                F.linear(x, weight)
                took[order] = min(took[order], time.perf_counter() - begun)
    return took[1] < 1.2 * took[0]


class Float16(Packed):
    """Weights rounded to float16, multiplied by float32: half the bytes, and 11 bits of mantissa.

    torch's operator (FBGEMM) packs the weights into blocks and leaves activations as they are. It
    would clip weights beyond the largest float16, 65,504. CPU only.
    """

    kind = "float16"
    bytes_per_weight = 2

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float().contiguous()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, self.bias)
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._multiply(x, self._packed)
        return y


class BFloat16(Packed):
    """Weights and activations rounded to bfloat16: half the bytes, 8 bits of mantissa."""

    kind = "bfloat16"
    bytes_per_weight = 2

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().to(torch.bfloat16, memory_format=torch.contiguous_format)
        self.weight = weight.clone()

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.bfloat16(), self.weight).float()
        return y if self.bias is None else y.add_(self.bias)


# FBGEMM's steps are never smaller than 6e-5, too coarse for a row of small values. A power of two,
# so that nothing else is rounded; between 1e-9 and 1e29 a row's size does not matter.
_LIFT = 2.0**24
WIDEST_INT8 = 2**31 // (255 * 127)  # inputs whose products 32 bits can sum


class Int8(Packed):
    """Weights and activations rounded to 8 bits: half as many bytes as float16.

    Weights have a scale per output, by which its largest magnitude becomes 127; activations have a
    scale per row, as in LLM.int8() (Dettmers et al. 2022), without its exceptions, but spread over
    0 to 255. The sums are whole numbers. CPU only (FBGEMM).

    If there are several rows, each is rounded between its smallest and largest value, so that none
    depends on the others. A single row is left to the operator, whose range includes 0: that is as
    exact and takes a quarter less time per token, but the result is not bit for bit the same.

    torch's newer operators need longer for a token: a call of those for quantized tensors costs 15
    to 30 us rather than 3 before it reads a weight, and `_weight_int8pack_mm` crashes on some
    matrices of uneven shape (torch 2.15).

    Raises:
        RuntimeError: not on a CPU, or torch lacks the operators.
    """

    kind = "int8"
    bytes_per_weight = 1

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        if linear.weight.device.type != "cpu":
            raise RuntimeError("8-bit products need a CPU")  # the operators would read from it
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-30) / largest_int8()  # (out,)
        self._operands = _pack((weight / scales[:, None]).round_().to(torch.int8))
        totals = self._operands[2]
        self.scales, self.lowered, self.sums = scales, scales / _LIFT, totals * scales

    def forward(self, x: Tensor) -> Tensor:
        bias, multiply = self.bias, torch.fbgemm_linear_int8_weight_fp32_activation
        y: Tensor
        if x.numel() == self.in_features:
            y = multiply(x * _LIFT, *self._operands)
            return y.mul_(self.lowered) if bias is None else torch.addcmul(bias, y, self.lowered)
        low = x.amin(dim=-1, keepdim=True)  # `aminmax` takes ten times as long as the two apart
        span = (x.amax(dim=-1, keepdim=True) - low).clamp_(min=1e-30)
        # Every row is moved into 0 to 1, and its result back.
        y = multiply((x - low).div_(span), *self._operands).mul_(self.scales)
        offset = low * self.sums if bias is None else torch.addcmul(bias, low, self.sums)
        return offset.addcmul_(y, span)

    def __deepcopy__(self, _: object) -> "Int8":
        return self  # nothing in it ever changes, and torch cannot copy what FBGEMM packed

    def __reduce__(self) -> str:
        raise InputError("8-bit weights cannot be pickled; pickle the model they were made from")


def _pack(rounded: Tensor) -> tuple[Tensor, Tensor, Tensor, float, int, Tensor]:
    """The 8-bit operator's other arguments beside the activations, for int8 weights (out, in)."""
    shape = rounded[:1, :1].clone().expand(rounded.shape)  # it looks at nothing else of the weights
    zeros = torch.zeros(len(rounded), dtype=torch.float32, device="cpu")
    with warnings.catch_warnings():  # that these operators will be removed: then we fall back
        warnings.simplefilter("ignore")
        packed = torch.fbgemm_pack_quantized_matrix(rounded.contiguous())
        operands = (shape, packed, rounded.sum(dim=1, dtype=torch.int32), 1.0, 0, zeros)
        one_row = torch.zeros(1, rounded.shape[1], dtype=torch.float32, device="cpu")
        torch.fbgemm_linear_int8_weight_fp32_activation(one_row, *operands)  # warns once
    return operands


@functools.cache
def largest_int8() -> int:
    """The largest rounded weight: 127, or 64 where the processor adds two products in 16 bits.

    Those without VNNI do (AVX2): 2 * 255 * 127 would be clipped, 2 * 255 * 64 is not.
    """
    weights = torch.full((32, 64), 127, dtype=torch.int8, device="cpu")
    x = torch.ones(1, 64, dtype=torch.float32, device="cpu")
    y = torch.fbgemm_linear_int8_weight_fp32_activation(x, *_pack(weights))
    return 127 if abs(float(y[0, 0]) / (64 * 127) - 1) < 0.01 else 64
