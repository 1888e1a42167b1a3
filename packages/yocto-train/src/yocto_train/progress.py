"""Where a run stands, and how fast it goes."""

import math
from dataclasses import dataclass

_SMOOTHING = 0.95


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        step: finished optimizer steps.
        evaluated_step: the step of the last complete evaluation.
        val_loss: its loss.
        best_step: the step of the lowest validation loss so far.
        best_loss: that loss.
        stale_evaluations: evaluations since then.
        sampled_step: the step of the last complete sample.
        loss_sum: exponentially weighted sum of training losses.
        loss_weight: the sum of the weights, which corrects the start.
    """

    step: int = 0
    evaluated_step: int | None = None
    val_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    stale_evaluations: int = 0
    sampled_step: int | None = None
    loss_sum: float = 0.0
    loss_weight: float = 0.0

    def smooth(self, loss: float) -> float:
        """Take in a training loss; return the smoothed one."""
        self.loss_sum = _SMOOTHING * self.loss_sum + (1 - _SMOOTHING) * loss
        self.loss_weight = _SMOOTHING * self.loss_weight + (1 - _SMOOTHING)
        return self.loss_sum / self.loss_weight

    def take_evaluation(self, loss: float) -> bool:
        """Take in a validation loss; return whether it is the best, which must be finite."""
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


class Clock:
    """Times of steps and evaluations of this process, for speed and time left."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.evaluation_seconds: list[float] = []
        self._since_report: list[float] = []
        self._usual: float | None = None  # seconds per step, smoothed
        self._steps = 0

    def step(self, seconds: float) -> None:
        """Take in the time of a step."""
        self.train_seconds += seconds
        self._since_report.append(seconds)
        self._steps += 1
        if self._steps > 10:  # the first steps warm caches up and say little
            old = seconds if self._usual is None else self._usual
            self._usual = 0.95 * old + 0.05 * seconds

    def take_mean_step(self) -> float:
        """Seconds per step since this was last asked."""
        mean = sum(self._since_report) / len(self._since_report)
        self._since_report.clear()
        return mean

    def left(self, steps: int, evaluations: float) -> float | None:
        """Seconds that so many steps and evaluations will take; None while there is no telling."""
        if self._usual is None:
            return None
        each = self.evaluation_seconds
        return steps * self._usual + evaluations * (sum(each) / len(each) if each else 0.0)
