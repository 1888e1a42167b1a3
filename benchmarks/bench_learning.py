"""Learning on a CPU: seconds to nanoGPT's loss; the loss in nanoGPT's seconds, and in 8 minutes.

NANOGPT=... TEXT=tinyshakespeare.txt uv run nox -s bench -- learning
LEARNING="reach time long" names the rows to run; "long" takes 8 minutes for each seed and is left
out unless named. SEEDS="1337" uses one seed instead of three.

Seconds are those of training: without evaluation, import and preparation. What torch.compile takes
counts, in the row that uses it, "long". Losses are over the whole validation split. nanoGPT's
recipe is the one for CPUs in its README, uncompiled, in float32.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Any

from common import machine, prepared, trainer, vocab_size
from peer import Peer, nanogpt
from yocto_train import Evaluated, Stopped, cpu_precision

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "1337 1338 1339").split()]
ROWS = os.environ.get("LEARNING", "reach time").split()
NANOGPT_LOSS = 1.918
NANOGPT_SECONDS = 89.0  # measured on two cores; replaced by this run's figure
BASE = {
    "optimizer": "muon", "muon_iterations": 4, "lr": 0.02, "muon_momentum": 0.9,
    "schedule": "wsd", "warmup_iters": 10, "decay_fraction": 0.9, "min_lr_fraction": 0.0,
    "weight_decay": 0.0, "grad_clip": 0.0, "muon_warmup_iters": 0, "sampling": "epoch",
    "eval_interval": 1_000_000, "log_interval": 1_000_000,
}  # fmt: skip
# Each row: the model, and its training.
REACH = (
    {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 64},
    {"max_iters": 220, "batch_size": 12, "muon_lr": 0.06, "sampling": "random"},
)
TIME = (
    {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 256},
    {"batch_size": 8, "muon_lr": 0.05},
)
LONG = (
    {"n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 256, "dropout": 0.05},
    {"batch_size": 16, "muon_lr": 0.03, "lr": 0.01, "compile": "on"},
)

Settings = tuple[dict[str, Any], dict[str, Any]]


def peer_seconds(data_dir: Path) -> list[float]:
    """Seconds of nanoGPT's training, once for each seed; none if it is not available."""
    module = nanogpt()
    seconds = []
    for seed in SEEDS if module is not None else []:
        peer = Peer(
            module, data_dir, n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12,
            vocab_size=vocab_size(data_dir), max_iters=2_000, seed=seed,
        )  # fmt: skip
        peer.train(2_000)
        seconds.append(peer.seconds)
        print(
            f"nanoGPT  seed {seed}: {peer.seconds:.1f} s, loss {peer.validation_loss():.4f}",
            flush=True,
        )
    return seconds


def run(data_dir: Path, settings: Settings, seed: int) -> tuple[float, float]:
    """Train once; returns seconds and loss."""
    model, train = settings
    precision, _ = cpu_precision(model["n_embd"])
    config = {**BASE, **train, "seed": seed, "precision": precision}
    loss = 0.0
    begun = time.perf_counter()
    made = trainer(data_dir, model, config, "modern")
    seconds = time.perf_counter() - begun  # includes compiling, if that is on
    for event in made.run():
        if isinstance(event, Evaluated):
            loss = event.loss
        if isinstance(event, Stopped):
            seconds += event.train_seconds
    shape = f"{model['n_layer']} layers, {model['n_embd']} wide, context {model['block_size']}"
    print(
        f"yocto    seed {seed}: {seconds:.1f} s, loss {loss:.4f} "
        f"({shape}, {config['max_iters']} steps of {config['batch_size']} rows, {precision})",
        flush=True,
    )
    return seconds, loss


def fitted(data_dir: Path, settings: Settings, seconds: float) -> Settings:
    """The settings with as many steps as fit, and a little less: the machine may get busier."""
    model, train = settings
    precision, _ = cpu_precision(model["n_embd"])
    begun = time.perf_counter()
    probe = trainer(
        data_dir, model, {**BASE, **train, "max_iters": 1_000, "precision": precision}, "modern"
    )
    seconds -= time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(20):
        probe.time_step(1)  # three steps
    per_step = (time.perf_counter() - begun) / 60
    return model, {**train, "max_iters": int(0.95 * seconds / per_step)}


def spread(what: str, values: list[float], form: str) -> None:
    """One line: the median, and the seeds' range."""
    middle, low, high = (form % v for v in (statistics.median(values), min(values), max(values)))
    print(f"{what}: median {middle}, from {low} to {high}", flush=True)


def main() -> None:
    machine()
    data_dir = prepared()
    theirs = peer_seconds(data_dir)
    budget = statistics.median(theirs) if theirs else NANOGPT_SECONDS
    if "reach" in ROWS:
        results = [run(data_dir, REACH, seed) for seed in SEEDS]
        reached = [seconds for seconds, loss in results if loss <= NANOGPT_LOSS]
        print(f"{len(reached)} of {len(results)} seeds reached {NANOGPT_LOSS}")
        spread("seconds ", [seconds for seconds, _ in results], "%.1f")
        if theirs:
            spread("ratio   ", [budget / seconds for seconds, _ in results], "%.1f")
    for row, settings, seconds in (("time", TIME, budget), ("long", LONG, 480.0)):
        if row in ROWS:
            fitting = fitted(data_dir, settings, seconds)
            losses = [run(data_dir, fitting, seed)[1] for seed in SEEDS]
            spread(f"loss in {seconds:.0f} s", losses, "%.4f")


main()
