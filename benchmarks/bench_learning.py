"""Seconds of training to the loss that nanoGPT's CPU recipe reaches, nanoGPT's over ours.

NANOGPT=... TEXT=tinyshakespeare.txt uv run nox -s bench -- learning
"""

import statistics

from common import machine, prepared, trainer, vocab_size
from peer import Peer, nanogpt
from yocto_train import Evaluated, Stopped

SEEDS = (1337, 1338, 1339)
MODEL = {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 64}
TRAIN = {
    "max_iters": 220, "batch_size": 12, "optimizer": "muon", "muon_iterations": 4, "lr": 0.02,
    "muon_lr": 0.06,
    "muon_momentum": 0.9, "schedule": "wsd", "warmup_iters": 10, "min_lr_fraction": 0.0,
    "weight_decay": 0.0, "grad_clip": 0.0, "muon_warmup_iters": 0, "eval_interval": 10_000,
    "log_interval": 10_000,
}  # fmt: skip


def main() -> None:
    machine()
    data_dir = prepared()
    module = nanogpt()
    peers = []
    if module is not None:
        for seed in SEEDS[:1]:
            peer = Peer(
                module, data_dir, n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12,
                vocab_size=vocab_size(data_dir), max_iters=2_000, seed=seed,
            )  # fmt: skip
            peer.train(2_000)
            peers.append(peer.seconds)
            print(f"nanoGPT  seed {seed}: {peer.seconds:.1f} s, loss {peer.validation_loss():.4f}")
    ours = []
    for seed in SEEDS:
        run = trainer(data_dir, MODEL, {**TRAIN, "seed": seed}, "modern")
        loss = seconds = 0.0
        for event in run.run():
            if isinstance(event, Evaluated):
                loss = event.loss
            if isinstance(event, Stopped):
                seconds = event.train_seconds
        ours.append(seconds)
        print(f"yocto    seed {seed}: {seconds:.1f} s, loss {loss:.4f}")
    if peers:
        print(f"ratio    {statistics.median(peers) / statistics.median(ours):.1f}")


main()
