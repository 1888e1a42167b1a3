"""What a checkpoint holds of a training run, and how a run continues from it."""

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from yocto_data import BatchSampler
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer

from yocto_train.config import TrainConfig
from yocto_train.errors import CheckpointError
from yocto_train.runs.checkpoint import STATE, Checkpoint, trained
from yocto_train.scale.machine import Machine

Changes = dict[str, tuple[object, object]]

_SMOOTHING = 0.95
_PARTS = {"step", "progress", "scaler", "config", "sampler", "moments"}


@dataclass(kw_only=True)
class Progress:
    """How far a run is; saved with every checkpoint."""

    step: int = 0  # finished optimizer steps
    evaluated_step: int | None = None  # the step of the last complete evaluation
    val_loss: float | None = None  # its loss
    best_step: int | None = None  # the step of the lowest validation loss so far
    best_loss: float | None = None  # that loss
    stale_evaluations: int = 0  # evaluations since then
    sampled_step: int | None = None  # the step of the last complete sample
    loss_sum: float = 0.0  # exponentially weighted sum of training losses
    loss_weight: float = 0.0  # the sum of the weights, which corrects the start

    def smooth(self, loss: float) -> float:
        """Count a training loss; returns the smoothed one."""
        self.loss_sum = _SMOOTHING * self.loss_sum + (1 - _SMOOTHING) * loss
        self.loss_weight = _SMOOTHING * self.loss_weight + (1 - _SMOOTHING)
        return self.loss_sum / self.loss_weight

    def count_evaluation(self, loss: float) -> bool:
        """Count a validation loss; returns whether it is the best, which must be finite."""
        self.evaluated_step, self.val_loss = self.step, loss
        is_best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if is_best:
            self.best_step, self.best_loss = self.step, loss
        self.stale_evaluations = 0 if is_best else self.stale_evaluations + 1
        return is_best

    @property
    def is_best(self) -> bool:
        """Whether no step so far had a lower validation loss than this one."""
        return self.best_step == self.step

    @property
    def loss_here(self) -> float | None:
        """The validation loss at this very step, if it is known and finite."""
        if self.evaluated_step != self.step or self.val_loss is None:
            return None
        return self.val_loss if math.isfinite(self.val_loss) else None


def state_of(machine: Machine, sampler: BatchSampler, progress: Progress) -> dict[str, Any]:
    """What resuming needs besides the weights; all ranks must call this."""
    return {
        "step": progress.step,
        "progress": asdict(progress),
        "scaler": machine.scaler.state_dict(),
        "config": machine.config.to_dict(),
        "sampler": sampler.state(progress.step),
        "moments": machine.world.moments(machine.model, machine.optimizers),
    }


def environment_of(machine: Machine) -> dict[str, str | int]:
    """What the bits of a result depend on, besides settings, data and weights."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(machine.device),
        "dtype": str(machine.placement.autocast or torch.float32).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "parallel": machine.world.kind,
        "processes": machine.world.size,
    }


def restore(
    machine: Machine,
    checkpoint: Checkpoint,
    *,
    data: Mapping[str, str],
    tokenizer: Tokenizer | None,
    block_size: int,
) -> tuple[Progress, Changes]:
    """Put a checkpoint's weights, moments and loss scale in place.

    The checkpoint must be of the same model, data (sha256 of the splits by name) and tokenizer;
    `block_size` is the length of the windows that are trained on.

    Returns:
        How far the run was, and what differs from when it was saved: name -> (saved, now).

    Raises:
        CheckpointError: it is damaged, or of another model, data set or tokenizer.
    """
    _check_origin(checkpoint, data, tokenizer)
    state = checkpoint.load_state()
    where = checkpoint.directory / STATE
    if missing := sorted(_PARTS - set(state)):
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; use another step's checkpoint")
    model = _fitting_model(checkpoint, machine.model.config)
    values = state["progress"]
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Progress)}:
        raise CheckpointError(f"{where} does not say how far the run was")
    try:
        saved = TrainConfig.from_dict(state["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} holds unusable settings: {error}") from error
    changes = {
        **differences(saved.to_dict(), machine.config.to_dict()),
        **differences(
            {"block_size": state["sampler"].get("block_size")}, {"block_size": block_size}
        ),
        **differences(checkpoint.manifest.environment, environment_of(machine)),
    }
    for name in {"optimizer", "lora_rank", "lora_alpha"} & set(changes):
        raise CheckpointError(
            f"{where} was trained with {name} {changes[name][0]}, which must stay as it was; "
            "keep it, or start a new run"
        )
    try:
        machine.world.load_moments(machine.model, machine.optimizers, state["moments"])
    except ValueError as error:
        raise CheckpointError(f"{where} holds the state of another model: {error}") from error
    if state["scaler"] and machine.scaler.is_enabled():
        machine.scaler.load_state_dict(state["scaler"])
    weights = model.state_dict()
    if saved.save_dtype != "float32" or saved.lora_rank:  # the model's file has them otherwise
        if set(state["weights"]) != set(trained(machine.model)):
            raise CheckpointError(f"{where} lacks the weights; use another step's checkpoint")
        weights = {"head.weight": state["weights"]["token_emb.weight"], **state["weights"]}
    machine.world.load_weights(machine.model, weights)
    return Progress(**values), changes


def _check_origin(
    checkpoint: Checkpoint, data: Mapping[str, str], tokenizer: Tokenizer | None
) -> None:
    """Whether a checkpoint was trained on this data with this tokenizer."""
    if dict(checkpoint.manifest.data) != dict(data):
        raise CheckpointError(
            f"{checkpoint.directory} was trained on other data; use the data it was trained on, "
            "or start a new run"
        )
    if checkpoint.manifest.tokenizer != (tokenizer and tokenizer.fingerprint()):
        raise CheckpointError(
            f"{checkpoint.directory} was trained with another tokenizer; use the one it holds"
        )


def _fitting_model(checkpoint: Checkpoint, config: GPTConfig) -> GPT:
    """The checkpoint's model, if it has these settings."""
    model = checkpoint.load_model()
    changed = differences(model.config.to_dict(), config.to_dict())
    if changed:
        table = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        raise CheckpointError(
            f"{checkpoint.directory} holds a model with other settings ({table}); keep its settings"
        )
    return model


def differences(saved: Mapping[str, object], now: Mapping[str, object]) -> Changes:
    """Entries that differ: name -> (saved, now); None where one side lacks it."""
    return {
        name: (saved.get(name), now.get(name))
        for name in {**saved, **now}
        if saved.get(name) != now.get(name)
    }
