"""Recipes: named settings for a model and its training that are known to work together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that belong together; whatever a caller sets wins over them."""

    arch: str  # the architecture, a key of `yocto_model.ARCHITECTURES`
    model: Mapping[str, Any]  # fields of `GPTConfig`
    train: Mapping[str, Any]  # fields of `TrainConfig`


# For a model that already speaks. Few tokens are seen, and each of its weights knows something: low
# rates, a line up and a line down. docs/finetuning.md says how they were found.
TUNING: Mapping[str, Any] = {
    "max_iters": 100,
    "batch_size": 2,
    "sampling": "epoch",
    "optimizer": "adamw",
    "lr": 1e-4,
    "schedule": "wsd",
    "warmup_iters": 10,
    "decay_fraction": 1.0,
    "min_lr_fraction": 0.0,
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "keep": 2,  # a checkpoint is several times as large as the model
    "sample_tokens": 80,
}
# Adapters begin at nothing, so they can move further.
LORA: Mapping[str, Any] = {**TUNING, "lr": 1e-3}

RECIPES: Mapping[str, Recipe] = {
    # Ours. Muon learns more from each step than AdamW does, so the model can be shallow and the
    # run short; the long linear decay is what makes so few steps enough.
    "modern": Recipe(
        arch="modern",
        model={"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "dropout": 0.0},
        train={
            "max_iters": 1_200,
            "batch_size": 8,
            "sampling": "epoch",
            "optimizer": "muon",
            "lr": 0.02,
            "muon_lr": 0.05,
            "muon_momentum": 0.9,
            "schedule": "wsd",
            "warmup_iters": 10,
            "decay_fraction": 0.9,
            "min_lr_fraction": 0.0,
            "weight_decay": 0.0,
            "grad_clip": 0.0,
        },
    ),
    # nanoGPT's settings for a laptop's CPU, from its README.
    "gpt2": Recipe(
        arch="gpt2",
        model={"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0},
        train={
            "max_iters": 2_000,
            "batch_size": 12,
            "sampling": "random",
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "cosine",
            "warmup_iters": 100,
            "min_lr_fraction": 0.1,
            "weight_decay": 0.1,
            "beta2": 0.99,
            "grad_clip": 1.0,
        },
    ),
}
