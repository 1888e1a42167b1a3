"""What a checkpoint must have in common with the run that goes on from it, and what may differ."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch.optim.optimizer import Optimizer
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer

from yocto_train.checkpoint import Checkpoint
from yocto_train.config import TrainConfig
from yocto_train.errors import CheckpointError

STATE_PARTS = {"step", "progress", "optimizers", "scaler", "config", "sampler"}

Changes = dict[str, tuple[object, object]]


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
