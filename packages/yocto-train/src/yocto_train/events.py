"""What a Trainer yields. Displays, log files and reports are made from these events."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

StopReason = Literal["finished", "requested", "no progress"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened after `step` finished optimizer steps."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Training begins, or goes on from `step`."""

    max_iters: int  # the step at which it ends
    n_parameters: int  # distinct weights
    tokens_per_step: int  # targets per optimizer step, over all ranks
    train_tokens: int  # tokens in the training split
    val_tokens: int  # tokens in the validation split
    placement: tuple[str, ...]  # device and precision, with reasons


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """A step was made, and is reported."""

    loss: float  # mean cross-entropy of the step's batch, in nats per token
    smoothed_loss: float  # exponential mean of `loss`, corrected for its start
    lr: float  # learning rate that the next step will have
    grad_norm: float  # of the whole gradient, before clipping
    tokens_per_second: float  # of training, over the last report interval, evaluation excluded
    seconds_left: float | None  # an estimate; None during the first steps
    epoch: float  # how often each token, or chat, has been seen so far, on average


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The model was measured on the validation split."""

    loss: float  # mean cross-entropy in nats per token
    bits_per_byte: float | None  # comparable between tokenizers; None without a tokenizer
    tokens: int  # targets it was measured on
    whole: bool  # whether that was all of the split
    is_best: bool  # lowest loss of the run so far; a loss that is not finite never is
    best_step: int | None  # the step of the lowest loss, or None if none was finite
    best_loss: float | None  # that loss
    seconds: float  # how long it took


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """A sample of what the model writes."""

    prompt: str  # what it continues
    text: str  # the continuation
    seed: int  # of the sampling


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint is safely on disk."""

    path: Path  # the step directory
    is_best: bool  # whether `best` points to it
    # what a person should know: what was put aside, what could not be removed
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """Training is over; the last event."""

    # "finished" (max_iters reached), "requested", or "no progress" (early stopping)
    reason: StopReason
    best_step: int | None  # the step of the lowest validation loss, if there was an evaluation
    best_loss: float | None  # that loss
    train_seconds: float  # time spent in steps of this process, evaluation and saving excluded
