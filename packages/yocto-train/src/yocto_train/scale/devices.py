"""Where and in what precision to compute, and why: each choice comes with its reason in words."""

import time
from dataclasses import dataclass
from typing import Literal

import torch

from yocto_train.config import Precision
from yocto_train.errors import TrainConfigError

# Around the products there are conversions: bfloat16 must gain this much on the products alone.
_WORTHWHILE = 1.5


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
            `measure_precision` tells what pays on a CPU.

    Raises:
        TrainConfigError: the device is not available, or does not support the precision.
    """
    chosen, why = _device(device)
    autocast, why_precision = _autocast(chosen, precision)
    return Placement(device=chosen, autocast=autocast, reasons=(why, why_precision))


def measure_precision(n_embd: int) -> tuple[Literal["float32", "bfloat16"], str]:
    """Whether bfloat16 pays on this CPU: times a product of a model's width in both.

    A CPU with instructions for bfloat16 multiplies about twice as fast; without them it is up to 90
    times slower. The answer may differ on the next machine: to make a run repeatable, write it into
    the settings instead of "auto".

    Returns:
        The precision, and the reason in words.
    """

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(512, n_embd, dtype=dtype)
        weight = torch.ones(4 * n_embd, n_embd, dtype=dtype)
        begun = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        return time.perf_counter() - begun

    # In turns, and the fastest of each counts: other work on the machine only adds time.
    rounds = [(seconds(torch.float32), seconds(torch.bfloat16)) for _ in range(8)]
    full, half = (min(times) for times in zip(*rounds, strict=True))
    if full / half >= _WORTHWHILE:
        return "bfloat16", f"its products run {full / half:.1f} times as fast here"
    return "float32", f"products in bfloat16 run only {full / half:.1f} times as fast here"


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
