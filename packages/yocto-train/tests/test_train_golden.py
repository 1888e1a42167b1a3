"""Golden losses: what training computes changes on purpose only.

In float64 and on any machine the losses agree to many digits. A change of initial weights, batches,
dropout, schedule or optimizer moves them; who means to make one puts the new figures here.
"""

from collections.abc import Callable

import pytest
import torch
from yocto_train import StepDone, Trainer

GOLDEN: dict[tuple[str, str], list[float]] = {
    ("gpt2", "adamw"): [
        3.69064522, 3.6626935, 3.57412148, 3.54933023, 3.43015575, 3.37162399, 3.36989331,
        3.27991199,
    ],
    ("modern", "muon"): [
        3.68887949, 3.67578506, 3.65335584, 3.64396882, 3.59880662, 3.56746626, 3.59136224,
        3.49357414,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("arch", "optimizer"), list(GOLDEN))
def test_losses_are_the_golden_ones(
    arch: str, optimizer: str, make_trainer: Callable[..., Trainer]
) -> None:
    """Eight steps with dropout, two parts a step, clipping, warm-up and decay."""
    trainer = make_trainer(
        arch, optimizer=optimizer, dtype=torch.float64, dropout=0.1, max_iters=8, lr=0.01
    )
    losses = [event.loss for event in trainer.run() if isinstance(event, StepDone)]
    assert GOLDEN[arch, optimizer] == pytest.approx(losses, rel=1e-6)
