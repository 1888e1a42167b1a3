"""What a checkpoint must have in common with the run that goes on from it, and what may differ."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch.optim.optimizer import Optimizer
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer

from yocto_train.checkpoint import Checkpoint
from yocto_train.config import TrainConfig
from yocto_train.distributed import World
from yocto_train.errors import CheckpointError, TrainConfigError

STATE_PARTS = {"step", "progress", "optimizers", "scaler", "config", "sampler"}

Changes = dict[str, tuple[object, object]]


def check_data(
    config: GPTConfig,
    train_data: TokenDataset,
    val_data: TokenDataset,
    tokenizer: Tokenizer | None,
) -> None:
    """Whether model, data and tokenizer fit each other.

    Raises:
        TrainConfigError: they do not; both sides are named.
    """
    made_by: dict[str, str] = {}
    for name, data in (("training", train_data), ("validation", val_data)):
        if data.block_size > config.block_size:
            raise TrainConfigError(
                f"the {name} data has windows of {data.block_size} tokens, "
                f"the model's block_size is {config.block_size}"
            )
        if data.vocab_size is not None and data.vocab_size > config.vocab_size:
            raise TrainConfigError(
                f"the {name} data has {data.vocab_size} ids, the model only {config.vocab_size}"
            )
        if data.meta is not None and data.meta.tokenizer.fingerprint is not None:
            made_by[name] = data.meta.tokenizer.fingerprint
    if len(set(made_by.values())) > 1:
        raise TrainConfigError(
            "the training and the validation data come from different tokenizers; "
            "prepare both together"
        )
    if tokenizer is None:
        return
    if tokenizer.vocab_size > config.vocab_size:
        raise TrainConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}"
        )
    if made_by and tokenizer.fingerprint() not in made_by.values():
        raise TrainConfigError(
            f"the data was prepared with another tokenizer than the {tokenizer.kind} tokenizer "
            "given; use the data's own, or prepare the text again"
        )


def check_world(config: TrainConfig, world: World, autocast: torch.dtype | None) -> None:
    """Whether a step's rows can be shared out, and whether this way of training is known to work.

    Raises:
        TrainConfigError: they cannot, or it is not.
    """
    if config.batch_size % (world.size * config.accumulate):
        raise TrainConfigError(
            f"batch_size {config.batch_size} does not divide among {world.size} processes "
            f"with accumulate {config.accumulate}; use a multiple of "
            f"{world.size * config.accumulate}"
        )
    if world.kind == "fsdp" and autocast == torch.float16:
        raise TrainConfigError("float16 does not go with fsdp; use bfloat16, or ddp")


def check_origin(
    checkpoint: Checkpoint, *, data: Mapping[str, str], tokenizer: Tokenizer | None
) -> None:
    """Whether a checkpoint was trained on this data with this tokenizer.

    Raises:
        CheckpointError: it was not.
    """
    if dict(checkpoint.manifest.data) != dict(data):
        raise CheckpointError(
            f"{checkpoint.directory} was trained on other data; use the data it was trained on, "
            "or start a new run"
        )
    now = None if tokenizer is None else tokenizer.fingerprint()
    if checkpoint.manifest.tokenizer != now:
        raise CheckpointError(
            f"{checkpoint.directory} was trained with another tokenizer; use the one it holds"
        )


def load_fitting_model(checkpoint: Checkpoint, config: GPTConfig) -> GPT:
    """The checkpoint's model, if it has these settings.

    Raises:
        CheckpointError: it is damaged, or a setting differs: each is shown as old -> new.
    """
    model = checkpoint.load_model()
    changed = differences(model.config.to_dict(), config.to_dict())
    if changed:
        table = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        raise CheckpointError(
            f"{checkpoint.directory} holds a model with other settings ({table}); keep its settings"
        )
    return model


def load_optimizers(
    optimizers: Sequence[Optimizer], state: Mapping[str, Any], checkpoint: Checkpoint
) -> None:
    """Take over moments and step counts, but keep the present settings.

    Raises:
        CheckpointError: the state is of other optimizers.
    """
    try:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            # Loading replaces the settings of each group by the saved ones, without a word.
            settings = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(saved)
            for group, present in zip(optimizer.param_groups, settings, strict=True):
                group.update(present)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.directory / 'opt.pt'} holds the state of another optimizer; keep it, "
            "or start a new run"
        ) from error


def check_state(state: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Whether a saved state has all its parts.

    Raises:
        CheckpointError: it lacks some.
    """
    missing = sorted(STATE_PARTS - set(state))
    if missing:
        raise CheckpointError(
            f"{checkpoint.directory / 'opt.pt'} lacks {', '.join(missing)}; "
            "use another step's checkpoint"
        )


def saved_settings(state: Mapping[str, Any], checkpoint: Checkpoint) -> TrainConfig:
    """The settings that a checkpoint was made with.

    Raises:
        CheckpointError: they are missing or unusable.
    """
    try:
        return TrainConfig.from_dict(state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.directory / 'opt.pt'} holds unusable settings: {error}"
        ) from error


def differences(saved: Mapping[str, object], now: Mapping[str, object]) -> Changes:
    """Entries that differ: name -> (saved, now); None where one side lacks it."""
    return {
        name: (saved.get(name), now.get(name))
        for name in {**saved, **now}
        if saved.get(name) != now.get(name)
    }


def from_saved(cls: type[Any], values: object, checkpoint: Checkpoint) -> Any:
    """A dataclass from the dict it was saved as, whose keys must be exactly its fields.

    Raises:
        CheckpointError: they are not.
    """
    expected = {field.name for field in fields(cls)}
    if not isinstance(values, dict) or set(values) != expected:
        raise CheckpointError(
            f"{checkpoint.directory / 'opt.pt'} does not hold where the run stood"
        )
    return cls(**values)
