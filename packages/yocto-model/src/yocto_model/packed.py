"""Packed matrices: the weights of a linear layer, stored the way one row reads them fastest.

Making one token multiplies every matrix by a single row (per text), so its time is the time to read
the weights: fewer bytes, or an order that the processor reads faster, is all that helps. Each class
here takes the place of a trained `nn.Linear`, takes and gives float32, and has no gradient.
"""

import functools
import math
import time
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

_LARGEST_TRIED = 50_000_000  # weights of a matrix, 200 MB, that are tried in both orders


class Packed(nn.Module):
    """Base of the packed matrices.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        n_bytes: what reading the weights once reads.
    """

    bytes_per_weight: int

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.n_bytes = linear.weight.numel() * self.bytes_per_weight
        trained: Tensor | None = linear.bias
        bias = None if trained is None else trained.detach().float().clone()
        self.register_buffer("bias", bias, persistent=False)

    bias: Tensor | None


class Float32(Packed):
    """The same weights in the faster of two orders: see `transposes`."""

    bytes_per_weight = 4
    weight: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        if weight.device.type == "cpu" and transposes(self.in_features, self.out_features):
            weight = weight.t().clone(memory_format=torch.contiguous_format).t()
        else:
            weight = weight.clone(memory_format=torch.contiguous_format)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, in) -> (..., B, out)."""
        return F.linear(x, self.weight, self.bias)


@functools.cache
def transposes(n_in: int, n_out: int) -> bool:
    """Whether a float32 matrix is stored (in, out) rather than (out, in), on this CPU.

    For a single row of x, the longer side should be the contiguous one on some processors: 9
    against 17 GB/s for 384 -> 1152, 14 against 9 for 1536 -> 384 (torch 2.15 on an AMD EPYC); on
    others it makes no difference (an Intel Xeon). Sixteen rows are faster in (in, out), by a third
    there. So that is the order, unless it makes a single row clearly slower here.
    """
    if n_out > n_in or n_in * n_out > _LARGEST_TRIED:
        return n_out > n_in
    x, took = torch.ones(1, n_in), [math.inf, math.inf]
    weights = [torch.ones(n_out, n_in), torch.ones(n_in, n_out).t()]
    with torch.inference_mode():
        for _ in range(12):
            for order, weight in enumerate(weights):
                begun = time.perf_counter()
                F.linear(x, weight)
                took[order] = min(took[order], time.perf_counter() - begun)
    return took[1] < 1.2 * took[0]


class Float16(Packed):
    """Weights rounded to float16, multiplied by float32: half the bytes, and 11 bits of mantissa.

    torch's operator packs the weights into blocks for its kernels (FBGEMM) and takes activations
    as they are, so nothing but the weights is rounded. It would clip those for which
    `fits_float16` is false. CPU only.
    """

    bytes_per_weight = 2

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float().contiguous()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, self.bias)
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, in) -> (..., B, out)."""
        y: Tensor = self._multiply(x, self._packed)
        return y


def fits_float16(weight: Tensor) -> bool:
    """Whether no weight is beyond the largest float16, 65,504."""
    return bool((weight.abs() <= torch.finfo(torch.float16).max).all())


class BFloat16(Packed):
    """Weights and activations rounded to bfloat16: half the bytes, 8 bits of mantissa."""

    bytes_per_weight = 2
    weight: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().to(torch.bfloat16, memory_format=torch.contiguous_format)
        self.register_buffer("weight", weight.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, in) -> (..., B, out)."""
        y = F.linear(x.bfloat16(), self.weight).float()
        return y if self.bias is None else y.add_(self.bias)


class Int8(Packed):
    """Weights rounded to 8 bits with a scale per output, activations with a scale per row.

    Both scales are symmetric: the largest magnitude becomes 127 (LLM.int8(), Dettmers et al. 2022,
    without its exceptions). The sums are whole numbers, so a row's result does not depend on the
    rows beside it. CPU only.

    torch's `_weight_int8pack_mm`, which keeps activations in bfloat16, is no alternative: it takes
    twice as long for wide matrices and crashes on some of uneven shape (torch 2.15).
    """

    bytes_per_weight = 1

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float().contiguous()
        scales = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,)
        zeros = torch.zeros_like(scales, dtype=torch.int64)
        with warnings.catch_warnings():  # that such tensors are to go one day: then we fall back
            warnings.simplefilter("ignore")
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None)
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, in) -> (..., B, out)."""
        largest = torch.linalg.vector_norm(x, math.inf, -1, keepdim=True).clamp_(min=1e-30)
        y: Tensor = self._multiply(x / largest, 1 / 127, 128, self._packed)
        return y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)
