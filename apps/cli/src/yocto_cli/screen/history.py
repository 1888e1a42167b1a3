"""What has been measured in a run, from its events or from its files: for curves and reports."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeGuard

if TYPE_CHECKING:
    from yocto_train import Event, Run

Row = dict[str, object]

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
    """The course of a run.

    Attributes:
        losses: step and smoothed training loss of each report.
        evaluations: step and validation loss; the last one of a step counts.
        samples: what the model wrote, oldest first.
        max_iters: the step where it ends, if that is known.
        n_parameters: of the model, if that is known.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: dict[int, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    max_iters: int | None = None
    n_parameters: int | None = None

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
                found._take_row(row)
        return found

    def take(self, event: "Event") -> None:
        """Take in what an event tells."""
        from yocto_train import Evaluated, Sampled, Started, StepDone  # noqa: PLC0415 - brings torch in

        if isinstance(event, StepDone):
            self._add_loss(event.step, event.smoothed_loss)
        elif isinstance(event, Evaluated):
            self.evaluations[event.step] = event.loss
        elif isinstance(event, Started):
            self.max_iters, self.n_parameters = event.max_iters, event.n_parameters
        elif isinstance(event, Sampled):
            self._add_sample(
                Sample(step=event.step, seed=event.seed, prompt=event.prompt, text=event.text)
            )

    def _take_row(self, row: Row) -> None:
        step, kind = row.get("step"), row.get("event")
        if not isinstance(step, int):
            return
        if kind == "stepdone" and _is_number(loss := row.get("smoothed_loss")):
            self._add_loss(step, loss)
        elif kind == "evaluated" and _is_number(loss := row.get("loss")):
            self.evaluations[step] = loss
        elif kind == "started":
            max_iters, n_parameters = row.get("max_iters"), row.get("n_parameters")
            self.max_iters = max_iters if isinstance(max_iters, int) else None
            self.n_parameters = n_parameters if isinstance(n_parameters, int) else None
        elif kind == "sampled":
            seed = row.get("seed")
            self._add_sample(
                Sample(
                    step=step,
                    seed=seed if isinstance(seed, int) else 0,
                    prompt=str(row.get("prompt", "")),
                    text=str(row.get("text", "")),
                )
            )

    def _add_loss(self, step: int, loss: float) -> None:
        self.losses.append((step, loss))
        if len(self.losses) > _LIMIT_POINTS:
            self.losses = self.losses[1::2]

    def _add_sample(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) > _LIMIT_SAMPLES:
            self.samples = self.samples[:1] + self.samples[2::2]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
