"""Where and in what precision to compute, and why: each choice comes with its reason in words."""

from dataclasses import dataclass
from typing import Literal

import torch

from yocto_train.config import Precision
from yocto_train.errors import TrainConfigError

_WIDE = 64  # narrower models were not measured


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A device, a precision, and the reasons for them."""

    device: torch.device
    autocast: torch.dtype | None  # of matrix products; None for the weights' own float32
    reasons: tuple[str, ...]  # one phrase per choice, for people


def place(device: str, precision: Precision) -> Placement:
    """Choose device and precision.

    Args:
        device: "auto", or what torch calls a device: "cpu", "cuda", "cuda:1", "mps".
        precision: a dtype's name, or "auto": half precision on a GPU that has it, else float32.
            `cpu_precision` tells what pays on a CPU.

    Raises:
        TrainConfigError: the device is not available, or does not support the precision.
    """
    chosen, why = _device(device)
    autocast, why_precision = _autocast(chosen, precision)
    return Placement(device=chosen, autocast=autocast, reasons=(why, why_precision))


def cpu_precision(n_embd: int) -> tuple[Literal["float32", "bfloat16"], str]:
    """The precision that suits this CPU and a model of this width.

    Only the processor decides, and nothing is timed: equal commands train equal models, also where
    other programs compute. With instructions for products of bfloat16, steps of models 64 to 384
    wide took 0.45 to 0.75 of their time in float32; without them products are up to 90 times
    slower. To repeat a run on another machine, write the answer into the settings.

    Returns:
        The precision, and the reason in words.
    """
    has_products = any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    if has_products and n_embd >= _WIDE:
        return "bfloat16", "this processor multiplies it faster"
    return "float32", "so narrow a model gains nothing" if has_products else "no bfloat16 here"


def _device(name: str) -> tuple[torch.device, str]:
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        best = next(kind for kind in ("cuda", "mps", "cpu") if kind in available)
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)}" if best == "cpu" else ""
        why = "the only device" if len(available) == 1 else "the fastest device"
        return torch.device(best), f"{best} ({why}{threads})"
    if name not in available:
        raise TrainConfigError(
            f"device {name!r} is not available; choose from {', '.join(available)}"
        )
    return torch.device(name), f"{name} (as set)"


def _autocast(device: torch.device, precision: Precision) -> tuple[torch.dtype | None, str]:
    if precision == "float32":
        return None, "float32"
    if precision == "auto":
        if device.type != "cuda":
            return None, f"float32 (the default on {device.type})"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16 (this GPU has it)"
        return torch.float16, "float16 (this GPU has no bfloat16)"
    if precision == "float16" and device.type != "cuda":
        raise TrainConfigError(
            f"float16 trains only on cuda, and the device is {device.type}; use float32 or bfloat16"
        )
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return dtype, precision
