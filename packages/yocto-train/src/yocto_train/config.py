"""TrainConfig: how a model is trained. This module does not import torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from yocto_model.settings import problems, setting

from yocto_train.errors import TrainConfigError

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["cosine", "wsd"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
SaveDtype = Literal["float32", "bfloat16", "float16"]
Sampling = Literal["random", "epoch"]
Compile = Literal["auto", "on", "off"]


def _count(default: int, text: str, *, low: int = 0) -> Any:
    return setting(default, text, low=low, high=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run that is not the model's shape or the data.

    The defaults are nanoGPT's for a small model on a CPU. Each field carries its help and its
    range (`dataclasses.fields(TrainConfig)`); the command line takes its flags from them.

    Raises:
        TrainConfigError: settings are out of range; the message names all of them.
    """

    # Step directories have eight digits.
    max_iters: int = setting(2_000, "optimizer steps", low=0, high=10**8 - 1)
    batch_size: int = _count(12, "rows per step, over all micro-batches and all processes", low=1)
    accumulate: int = _count(
        1, "micro-batches that a step is cut into to save memory; the result is the same", low=1
    )
    sampling: Sampling = setting(
        "random", "draw windows with replacement (random), or visit each once per epoch (epoch)"
    )
    optimizer: OptimizerName = setting(
        "adamw",
        "AdamW for everything (adamw; Loshchilov & Hutter 2019), or Muon for the matrices inside "
        "the blocks and AdamW for the others (muon; Jordan et al. 2024)",
    )
    lr: float = setting(1e-3, "peak learning rate of AdamW", above=0, high=1e3)
    muon_lr: float = setting(
        0.03,
        "peak learning rate of Muon, about the size of each update's singular values",
        above=0,
        high=1e3,
    )
    muon_momentum: float = setting(
        0.95, "momentum of Muon after its warm-up, which starts from 0.85", low=0, high=0.9999
    )
    muon_warmup_iters: int = _count(300, "steps over which Muon's momentum rises")
    muon_iterations: int = _count(5, "Newton-Schulz iterations per update of Muon", low=1)
    schedule: ScheduleName = setting(
        "cosine",
        "learning rate after warm-up: half a cosine (cosine; Loshchilov & Hutter 2017), or flat "
        "and then a line down (wsd: warm-up, stable, decay)",
    )
    warmup_iters: int = _count(100, "steps over which the learning rate rises from near zero")
    decay_fraction: float = setting(0.9, "part of max_iters over which wsd decays", above=0, high=1)
    min_lr_fraction: float = setting(
        0.1, "where the schedule ends, as a fraction of the peak", low=0, high=1
    )
    weight_decay: float = setting(
        0.1,
        "decoupled decay of tensors with two or more dimensions; with muon, of the matrices "
        "inside the blocks only",
        low=0,
        high=1e3,
    )
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient", low=0, high=0.999999)
    beta2: float = setting(0.99, "AdamW's decay of the mean squared gradient", low=0, high=0.999999)
    eps: float = setting(1e-8, "AdamW's guard against division by zero", above=0, high=1)
    grad_clip: float = setting(
        1.0, "largest norm of the gradient (Pascanu et al. 2013); 0 does not clip", low=0, high=1e9
    )
    eval_interval: int = _count(
        250, "steps between evaluations; the last step is always evaluated", low=1
    )
    eval_iters: int = _count(
        0, "batches per evaluation, spread over the validation split; 0 means the whole split"
    )
    eval_whole: bool = setting(
        True, "measure on the whole validation split after the last step, whatever eval_iters is"
    )
    save_interval: int = _count(0, "steps between checkpoints; 0 saves at each evaluation")
    keep: int = _count(
        3, "newest checkpoints to keep, in addition to the best one; at least two stay", low=1
    )
    save_dtype: SaveDtype = setting(
        "float32",
        "type of the weights in model.safetensors; half precision halves what is given away, and "
        "opt.safetensors keeps them whole for resuming",
    )
    patience: int = _count(
        0, "stop after this many evaluations in a row without a new best; 0 never stops"
    )
    log_interval: int = _count(10, "steps between reports", low=1)
    seed: int = setting(1337, "decides batches, dropout and samples", low=0, high=2**63 - 1)
    lora_rank: int = setting(
        0, "train adapters of this rank beside frozen matrices (LoRA, Hu et al. 2021); 0: none",
        low=0, high=4096,
    )  # fmt: skip
    lora_alpha: float = setting(
        32.0, "what adapters add is multiplied by this over their rank", above=0, high=1e6
    )
    precision: Precision = setting(
        "auto",
        "type of matrix products; auto: half precision on a GPU, else float32 or what a plan finds",
    )
    compile: Compile = setting(
        "auto",
        "let torch.compile fuse the operations inside the blocks; auto does so on a GPU. On a CPU "
        "it takes up to half a minute, and steps are then 1.1 to 1.4 times as fast",
    )
    grad_checkpointing: bool = setting(
        False, "compute each block again in the backward pass: a third more time, far less memory"
    )
    sample_interval: int = _count(0, "steps between samples of text; 0 writes none")
    sample_prompt: str = setting("", "what the samples continue; empty means a newline")
    sample_tokens: int = _count(200, "length of a sample in tokens", low=1)

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
        """All fields as plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {name: v.item() if hasattr(v, "item") else v for name, v in values.items()}

    def __post_init__(self) -> None:
        found = problems(self) or self._contradictions()
        if found:
            raise TrainConfigError("; ".join(found))

    def _contradictions(self) -> list[str]:
        found = []
        if 0 < self.max_iters <= self.warmup_iters:
            found.append(
                f"warmup_iters {self.warmup_iters} must be below max_iters {self.max_iters}"
            )
        if self.batch_size % self.accumulate:
            found.append(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
            )
        if self.lora_rank and self.optimizer != "adamw":
            found.append("lora_rank needs the optimizer adamw")
        return found
