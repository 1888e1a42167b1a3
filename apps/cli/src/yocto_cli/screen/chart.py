"""What a chart of losses shows, in the terminal and in report.html alike."""

from dataclasses import dataclass

from yocto_cli.screen.ladder import Baseline

Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Losses by step.

    Attributes:
        losses: step and smoothed training loss.
        evaluations: step and validation loss.
        max_iters: the step at the right edge.
        baselines: the loss ladder.
    """

    losses: Points
    evaluations: Points
    max_iters: int
    baselines: tuple[Baseline, ...]
