"""Where and in what precision to compute, and why: each choice comes with its reason in words."""

from dataclasses import dataclass

import torch

from yocto_train.config import Precision
from yocto_train.errors import TrainConfigError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A device, a precision, and the reasons for them.

    Attributes:
        device: where the model lives.
        autocast: dtype of matrix products, or None for the weights' own float32.
        reasons: one phrase per choice, for people.
    """

    device: torch.device
    autocast: torch.dtype | None
    reasons: tuple[str, ...]


def place(device: str, precision: Precision) -> Placement:
    """Choose device and precision.

    Args:
        device: "auto", or what torch calls a device: "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", or a dtype's name.

    Raises:
        TrainConfigError: the device is not here, or cannot do the precision.
    """
    chosen, why = _device(device)
    autocast, why_precision = _autocast(chosen, precision)
    return Placement(device=chosen, autocast=autocast, reasons=(why, why_precision))


def _device(name: str) -> tuple[torch.device, str]:
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        best = next(kind for kind in ("cuda", "mps", "cpu") if kind in available)
        threads = f", {torch.get_num_threads()} threads" if best == "cpu" else ""
        why = "the only device here" if len(available) == 1 else "the fastest kind here"
        return torch.device(best), f"{best} ({why}{threads})"
    if name not in available:
        raise TrainConfigError(f"device {name!r} is not here; available: {', '.join(available)}")
    return torch.device(name), f"{name} (asked for)"


def _autocast(device: torch.device, precision: Precision) -> tuple[torch.dtype | None, str]:
    if precision == "float32":
        return None, "float32 (asked for)"
    if precision == "auto":
        if device.type != "cuda":
            return None, f"float32 (autocast does not pay for small models on {device.type})"
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bfloat16 (this GPU has it)"
        return torch.float16, "float16 (this GPU has no bfloat16)"
    if precision == "float16" and device.type != "cuda":
        raise TrainConfigError(
            f"float16 trains only on cuda, and the device is {device.type}; use float32 or bfloat16"
        )
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return dtype, f"{precision} (asked for)"
