"""What a Trainer yields. Displays, log files and reports are readers of these."""

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
    """Training begins, or goes on from `step`.

    Attributes:
        max_iters: the step at which it ends.
        n_parameters: distinct weights.
        tokens_per_step: targets per optimizer step, over all ranks.
        train_tokens: tokens in the training split.
        val_tokens: tokens in the validation split.
        placement: device and precision, with reasons.
    """

    max_iters: int
    n_parameters: int
    tokens_per_step: int
    train_tokens: int
    val_tokens: int
    placement: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """A step that is reported.

    Attributes:
        loss: mean cross-entropy of the step's batch, in nats per token.
        smoothed_loss: exponential mean of `loss`, corrected for its start.
        lr: learning rate that the next step will have.
        grad_norm: of the whole gradient, before clipping.
        tokens_per_second: of training, over the last report interval, evaluation excluded.
        seconds_left: estimate, or None while there is nothing to base it on.
        epoch: how often each token has been seen so far, on average.
    """

    loss: float
    smoothed_loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float | None
    epoch: float


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The model was measured on the validation split.

    Attributes:
        loss: mean cross-entropy in nats per token.
        bits_per_byte: the same per byte of text, comparable between tokenizers; None when the
            tokenizer is not known.
        tokens: targets it was measured on.
        whole: whether that was all of the split.
        is_best: lowest loss of the run so far; a loss that is not finite never is.
        best_step: the step of the lowest loss, or None if none was finite.
        best_loss: that loss.
        seconds: how long it took.
    """

    loss: float
    bits_per_byte: float | None
    tokens: int
    whole: bool
    is_best: bool
    best_step: int | None
    best_loss: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """A sample of what the model writes.

    Attributes:
        prompt: what it continues.
        text: the continuation.
        seed: of the sampling.
    """

    prompt: str
    text: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint is safely on disk.

    Attributes:
        path: the step directory.
        is_best: whether best.pt points to it.
        notes: what a person should know: what was put aside, what could not be removed.
    """

    path: Path
    is_best: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """Training is over; the last event.

    Attributes:
        reason: "finished" (max_iters reached), "requested", or "no progress" (early stopping).
        best_step: the step of the lowest validation loss, if there was an evaluation.
        best_loss: that loss.
        train_seconds: time spent in steps of this process, evaluation and saving excluded.
    """

    reason: StopReason
    best_step: int | None
    best_loss: float | None
    train_seconds: float
