"""What has been measured in a run, from its events or from its files: for curves and reports."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from yocto_train import Event, Run

# Beyond this every other point goes: a curve is never wider, and a run may be endless.
_LIMIT_POINTS = 4096
_LIMIT_SAMPLES = 512


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that the model wrote after `step` steps."""

    step: int
    seed: int
    prompt: str
    text: str


@dataclass(kw_only=True)
class History:
    """The course of a run."""

    losses: list[tuple[int, float]] = field(default_factory=list)  # step and smoothed loss
    evaluations: dict[int, float] = field(default_factory=dict)  # validation loss by step
    samples: list[Sample] = field(default_factory=list)  # oldest first
    max_iters: int | None = None  # the step where it ends, if that is known
    n_parameters: int | None = None  # of the model, if that is known

    @classmethod
    def of(cls, run: "Run") -> Self:
        """The history that a run's files hold; what cannot be read is left out."""
        found = cls()
        for file in ("metrics.jsonl", "samples.jsonl"):
            try:
                rows = run.rows(file)
            except OSError:
                continue
            for row in rows:
                found._add(row)
        return found

    def take(self, event: "Event") -> None:
        """Add what an event tells."""
        self._add({"event": type(event).__name__.lower(), **dataclasses.asdict(event)})

    def _add(self, row: Mapping[str, object]) -> None:
        """Add a row as metrics.jsonl and samples.jsonl hold it; values may be anything."""
        match row:
            case {"event": "started", "max_iters": int(max_iters), "n_parameters": int(n)}:
                self.max_iters, self.n_parameters = max_iters, n
            case {"event": "stepdone", "step": int(step), "smoothed_loss": int() | float() as loss}:
                if math.isfinite(loss):
                    self.losses.append((step, loss))
            case {"event": "evaluated", "step": int(step), "loss": int() | float() as loss}:
                if math.isfinite(loss):
                    self.evaluations[step] = loss
            case {"event": "sampled", "step": int(step), "seed": int(seed), "prompt": str(prompt),
                  "text": str(text)}:  # fmt: skip
                self.samples.append(Sample(step=step, seed=seed, prompt=prompt, text=text))
        if len(self.losses) > _LIMIT_POINTS:
            self.losses = self.losses[1::2]
        if len(self.samples) > _LIMIT_SAMPLES:
            self.samples = self.samples[:1] + self.samples[2::2]
