"""Train a yocto GPT: optimizers, schedules, checkpoints, exact resume.

Start with trainer.py; config.py says what can be set, events.py what is reported.
"""

from importlib.metadata import version

from yocto_train.checkpoint import Checkpoint, step_of
from yocto_train.config import TrainConfig
from yocto_train.devices import Placement, measure_precision, place
from yocto_train.distributed import World, joined
from yocto_train.errors import (
    CheckpointError,
    NonFiniteError,
    RunError,
    SaveError,
    TrainConfigError,
    TrainError,
)
from yocto_train.evaluate import Evaluation, bits_per_byte, bytes_per_token, evaluate
from yocto_train.events import Evaluated, Event, Sampled, Saved, Started, StepDone, Stopped
from yocto_train.finding import find_checkpoint, load_checkpoint
from yocto_train.optimizers import Muon, make_optimizers, orthogonalize
from yocto_train.planning import SIZES, Candidate, choose, compile_pays, dropout_for, memory_bytes
from yocto_train.recipes import RECIPES, Recipe
from yocto_train.run_directory import Run
from yocto_train.saving import Written, save_checkpoint
from yocto_train.schedules import lr_factor
from yocto_train.trainer import Trainer

__version__ = version("yocto-train")

__all__ = [
    "RECIPES",
    "SIZES",
    "Candidate",
    "Checkpoint",
    "CheckpointError",
    "Evaluated",
    "Evaluation",
    "Event",
    "Muon",
    "NonFiniteError",
    "Placement",
    "Recipe",
    "Run",
    "RunError",
    "Sampled",
    "SaveError",
    "Saved",
    "Started",
    "StepDone",
    "Stopped",
    "TrainConfig",
    "TrainConfigError",
    "TrainError",
    "Trainer",
    "World",
    "Written",
    "bits_per_byte",
    "bytes_per_token",
    "choose",
    "compile_pays",
    "dropout_for",
    "evaluate",
    "find_checkpoint",
    "joined",
    "load_checkpoint",
    "lr_factor",
    "make_optimizers",
    "measure_precision",
    "memory_bytes",
    "orthogonalize",
    "place",
    "save_checkpoint",
    "step_of",
]
