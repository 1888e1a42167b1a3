"""Learning rate and momentum as pure functions of the step.

A scheduler object that counts its own calls has to be saved, restored and kept in step with the
training. A function of the step's number needs none of that: ask it again, and it answers the same.

Each schedule returns a factor in [0, 1] of the peak; `step` counts finished steps, so the first
update of a run uses `step = 0`.
"""

import math

from yocto_train.config import TrainConfig


def warmup(step: int, warmup_iters: int) -> float:
    """Linear rise: 1/(w+1) at step 0, and 1 from step w on (nanoGPT)."""
    # AdamW divides by the root of a mean of squared gradients, which knows little at first:
    # full-sized updates this early would go astray.
    return min(1.0, (step + 1) / (warmup_iters + 1))


def cosine(step: int, *, max_iters: int, warmup_iters: int, min_fraction: float) -> float:
    """Warm-up, then half a cosine down to `min_fraction` at `max_iters` (SGDR, 2017)."""
    if step < warmup_iters:
        return warmup(step, warmup_iters)
    # Large steps first, to get far; small ones at the end, to settle: near a minimum the noise of
    # single batches keeps the weights hopping about, and the higher the rate, the longer the hops.
    done = min(1.0, (step - warmup_iters) / max(1, max_iters - warmup_iters))
    return min_fraction + (1 - min_fraction) * 0.5 * (1 + math.cos(math.pi * done))


def wsd(
    step: int, *, max_iters: int, warmup_iters: int, decay_fraction: float, min_fraction: float
) -> float:
    """Warm-up, stable, decay (MiniCPM, Hu et al. 2024): flat, then a line down to `min_fraction`.

    The decay takes the last `decay_fraction` of the run.
    """
    # Unlike a cosine, the flat part does not know how long the run is, so a run can be extended
    # without having decayed too early.
    decay_iters = decay_fraction * max_iters
    left = min(1.0, max(0.0, max_iters - step) / max(1.0, decay_iters))
    return min(warmup(step, warmup_iters), min_fraction + (1 - min_fraction) * left)


def lr_factor(step: int, config: TrainConfig) -> float:
    """The configured schedule's factor at `step`."""
    sizes = {"max_iters": config.max_iters, "warmup_iters": config.warmup_iters}
    if config.schedule == "cosine":
        return cosine(step, **sizes, min_fraction=config.min_lr_fraction)
    return wsd(
        step, **sizes, decay_fraction=config.decay_fraction, min_fraction=config.min_lr_fraction
    )


def muon_momentum(step: int, config: TrainConfig) -> float:
    """Muon's momentum: a line from 0.85 to its value over `muon_warmup_iters` (modded-nanogpt)."""
    # Early gradients point elsewhere a few steps later, so at first the past should count less.
    start = min(0.85, config.muon_momentum)
    done = min(1.0, step / max(1, config.muon_warmup_iters))
    return start + (config.muon_momentum - start) * done
