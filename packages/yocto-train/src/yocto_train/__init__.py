"""Train a yocto GPT: optimizers, schedules, checkpoints, exact resume.

Start with step.py; config.py says what can be set, events.py what is reported. How runs are kept on
disk is in runs/, what large machines need in scale/.

Names are imported when they are first used: settings can be read without waiting for torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yocto_train.config import TrainConfig
    from yocto_train.errors import (
        CheckpointError,
        NonFiniteError,
        RunError,
        SaveError,
        TrainConfigError,
        TrainError,
    )
    from yocto_train.evaluation import (
        Evaluation,
        bits_per_byte,
        bytes_per_token,
        evaluate,
        evaluate_ids,
    )
    from yocto_train.events import Evaluated, Event, Sampled, Saved, Started, StepDone, Stopped
    from yocto_train.optimizers import Muon, make_optimizers, orthogonalize
    from yocto_train.recipes import RECIPES, Recipe
    from yocto_train.runs.checkpoint import Checkpoint, save_checkpoint, step_of
    from yocto_train.runs.opening import (
        FoundModel,
        OpenedModel,
        find_checkpoint,
        find_model,
        open_model,
    )
    from yocto_train.runs.run import Run
    from yocto_train.scale.devices import Placement, cpu_precision, place
    from yocto_train.scale.distributed import World, joined
    from yocto_train.scale.planning import (
        SIZES,
        Candidate,
        against_overfitting,
        choose,
        memory_bytes,
    )
    from yocto_train.schedules import lr_factor
    from yocto_train.step import cross_entropy, train_step
    from yocto_train.trainer import Trainer

__version__ = version("yocto-train")

# Where names are looked for, in this order: down to runs.opening without torch.
_MODULES = (
    "errors", "config", "recipes", "events", "scale.planning", "schedules", "runs.checkpoint",
    "runs.run", "runs.opening",
    "step", "optimizers", "evaluation", "scale.devices", "scale.distributed", "trainer",
)  # fmt: skip

__all__ = [
    "RECIPES", "SIZES", "Candidate", "Checkpoint", "CheckpointError", "Evaluated", "Evaluation",
    "Event", "FoundModel", "Muon", "NonFiniteError", "OpenedModel", "Placement", "Recipe", "Run",
    "RunError", "Sampled", "SaveError", "Saved", "Started", "StepDone", "Stopped", "TrainConfig",
    "TrainConfigError", "TrainError", "Trainer", "World", "against_overfitting", "bits_per_byte",
    "bytes_per_token", "choose", "cpu_precision", "cross_entropy", "evaluate",
    "evaluate_ids", "find_checkpoint", "find_model", "joined", "lr_factor", "make_optimizers",
    "memory_bytes", "open_model", "orthogonalize", "place", "save_checkpoint", "step_of",
    "train_step",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = importlib.import_module(f"{__name__}.{module}")
        if hasattr(found, name):
            globals()[name] = getattr(found, name)  # the next look-up finds it at once
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
