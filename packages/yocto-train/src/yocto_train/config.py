"""TrainConfig: how a model is trained."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yocto_train.errors import TrainConfigError

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["cosine", "wsd"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Sampling = Literal["random", "epoch"]
Compile = Literal["auto", "on", "off"]

_HIGHEST = {"seed": 2**63, "max_iters": 10**8}  # step directories have eight digits


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run that is not the model's shape or the data.

    The defaults are nanoGPT's for a small model on a CPU.

    Attributes:
        max_iters: optimizer steps.
        batch_size: rows per step, over all micro-batches and all ranks.
        accumulate: micro-batches a step is cut into, to save memory; the step stays the same.
        sampling: "random" draws windows with replacement, "epoch" visits each once per epoch.
        optimizer: "adamw" (Loshchilov & Hutter 2019) for everything, or "muon" (Jordan 2024) for
            the matrices inside the blocks and AdamW for the rest.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon; each update has singular values near this.
        muon_momentum: momentum of Muon, reached after `muon_warmup_iters` steps from 0.85.
        muon_warmup_iters: steps over which the momentum rises.
        muon_iterations: Newton-Schulz iterations per update.
        schedule: "cosine" (Loshchilov & Hutter 2017) or "wsd": warm-up, stable, linear decay.
        warmup_iters: steps over which the learning rate rises linearly from near zero.
        decay_fraction: the part of `max_iters` over which "wsd" decays.
        min_lr_fraction: where the schedule ends, as a fraction of the peak.
        weight_decay: decoupled decay of tensors with two or more dimensions; with "muon", of the
            matrices inside the blocks alone.
        beta1: AdamW's decay of the mean of gradients.
        beta2: AdamW's decay of the mean of squared gradients.
        eps: AdamW's guard against dividing by zero.
        grad_clip: the gradient's norm is cut down to this (Pascanu et al. 2013); 0 leaves it.
        eval_interval: steps between evaluations; the last step is always evaluated.
        eval_iters: batches per evaluation, always the same, spread over the split; 0 means the
            whole split, which is what figures to compare should use.
        save_interval: steps between checkpoints; 0 saves at each evaluation.
        keep: newest checkpoints to keep, beside the best one; two at least stay in all.
        patience: stop after this many evaluations in a row without a new best; 0 never does.
        log_interval: steps between reports.
        seed: decides batches, dropout and samples; the caller draws the initial weights.
        precision: "auto" takes bfloat16 on GPUs that have it, float16 on other CUDA GPUs, and
            float32 elsewhere.
        compile: whether torch.compile fuses the operations inside the blocks; "auto" does on GPUs.
            On a CPU it takes up to half a minute, and then makes steps 1.1 to 1.4 times as fast.
            Where it fails, the run goes on without it.
        grad_checkpointing: keep only what enters each block, and compute the rest again when it is
            needed (Chen et al. 2016): a third more time, far less memory, the same gradients.
        sample_interval: steps between samples of text; 0 takes none.
        sample_prompt: what the samples continue; empty means a newline.
        sample_tokens: length of a sample.

    Raises:
        TrainConfigError: settings are out of range; the message names all of them.
    """

    max_iters: int = 2_000
    batch_size: int = 12
    accumulate: int = 1
    sampling: Sampling = "random"
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.03
    muon_momentum: float = 0.95
    muon_warmup_iters: int = 300
    muon_iterations: int = 5
    schedule: ScheduleName = "cosine"
    warmup_iters: int = 100
    decay_fraction: float = 0.9
    min_lr_fraction: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    grad_clip: float = 1.0
    eval_interval: int = 250
    eval_iters: int = 0
    save_interval: int = 0
    keep: int = 3
    patience: int = 0
    log_interval: int = 10
    seed: int = 1337
    precision: Precision = "auto"
    compile: Compile = "auto"
    grad_checkpointing: bool = False
    sample_interval: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 200

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`.

        Raises:
            TrainConfigError: a field is unknown or a value out of range.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TrainConfigError(f"unknown training setting: {', '.join(map(str, unknown))}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

    def __post_init__(self) -> None:
        problems = [
            *self._whole_numbers(),
            *self._real_numbers(),
            *self._choices(),
        ]
        if not problems:
            problems = self._contradictions()
        if problems:
            raise TrainConfigError("; ".join(problems))

    def _whole_numbers(self) -> list[str]:
        lowest = {
            "max_iters": 0, "batch_size": 1, "accumulate": 1, "muon_warmup_iters": 0,
            "muon_iterations": 1, "warmup_iters": 0, "eval_interval": 1, "eval_iters": 0,
            "save_interval": 0, "keep": 1, "patience": 0, "log_interval": 1, "seed": 0,
            "sample_interval": 0, "sample_tokens": 1,
        }  # fmt: skip
        problems = []
        for name, low in lowest.items():
            value = getattr(self, name)
            high = _HIGHEST.get(name, 2**31)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and low <= value < high):
                up_to = "" if name not in _HIGHEST else f" to {high - 1:,}"
                problems.append(f"{name} must be a whole number from {low}{up_to}, not {value!r}")
        return problems

    def _real_numbers(self) -> list[str]:
        ranges = {  # (low, low included, high included)
            "lr": (0, False, 1e3), "muon_lr": (0, False, 1e3), "muon_momentum": (0, True, 0.9999),
            "decay_fraction": (0, False, 1), "min_lr_fraction": (0, True, 1),
            "weight_decay": (0, True, 1e3), "beta1": (0, True, 0.999999),
            "beta2": (0, True, 0.999999), "eps": (0, False, 1), "grad_clip": (0, True, 1e9),
        }  # fmt: skip
        problems = []
        for name, (low, included, high) in ranges.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and low <= value <= high) or (
                value == low and not included
            ):
                above = "from" if included else "above"
                problems.append(f"{name} must be {above} {low} to {high:g}, not {value!r}")
        return problems

    def _choices(self) -> list[str]:
        problems = []
        for name, choices in (
            ("sampling", Sampling),
            ("optimizer", OptimizerName),
            ("schedule", ScheduleName),
            ("precision", Precision),
            ("compile", Compile),
        ):
            if getattr(self, name) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                problems.append(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        switch: object = self.grad_checkpointing
        if not isinstance(switch, bool):
            problems.append(f"grad_checkpointing must be true or false, not {switch!r}")
        return problems

    def _contradictions(self) -> list[str]:
        problems = []
        if 0 < self.max_iters <= self.warmup_iters:
            problems.append(
                f"warmup_iters {self.warmup_iters} must be below max_iters {self.max_iters}"
            )
        if self.batch_size % self.accumulate:
            problems.append(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
            )
        return problems
