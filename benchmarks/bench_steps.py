"""Tokens per second of training at nanoGPT's architecture, batch and optimizer, ours over its.

NANOGPT=... uv run nox -s bench -- steps
"""

import statistics
import time

from common import machine, prepared, trainer, vocab_size
from peer import Peer, nanogpt
from yocto_train import RECIPES

SHAPES = {
    "0.8M, context 64, batch 12": (
        {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 12, 40,
    ),
    "10.6M, context 256, batch 8": (
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, 8, 4,
    ),
}  # fmt: skip
ROUNDS = 5


def main() -> None:
    machine()
    data_dir = prepared()
    module = nanogpt()
    for name, (shape, batch, steps) in SHAPES.items():
        train = {**RECIPES["gpt2"].train, "batch_size": batch, "max_iters": 10_000,
                 "eval_interval": 100_000, "log_interval": 100_000}  # fmt: skip
        # nanoGPT's variant: no biases, exact GELU.
        run = trainer(data_dir, {**shape, "bias": False, "activation": "gelu"}, train, "gpt2")
        run.model.train()
        peer = module and Peer(
            module, data_dir, **shape, batch_size=batch, vocab_size=vocab_size(data_dir),
            max_iters=10_000, seed=1337,
        )  # fmt: skip
        ours, theirs = [], []
        for _ in range(ROUNDS + 1):  # in turns, so that both see the same machine
            begun = time.perf_counter()
            for _ in range(steps):
                run._step()  # noqa: SLF001 - a step without the events around it
            ours.append((time.perf_counter() - begun) / steps)
            if peer:
                theirs.append(peer.train(steps) / steps)
        tokens = batch * shape["block_size"]
        mine = statistics.median(ours[1:])
        print(f"{name}: yocto {tokens / mine:,.0f} tokens/s", end="")
        if peer:
            print(
                f", nanoGPT {tokens / statistics.median(theirs[1:]):,.0f} tokens/s, "
                f"ratio {statistics.median(theirs[1:]) / mine:.2f}",
                end="",
            )
        print()


main()
