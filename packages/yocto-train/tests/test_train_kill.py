"""K2: `kill -9` at random moments, resumed each time, ends where the run that was let alone ends.

YOCTO_KILL_ROUNDS sets how often; run as a script, this file is the process that is killed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import load_tokenizer
from yocto_train import Run, StepDone, TrainConfig, Trainer

ROUNDS = int(os.environ.get("YOCTO_KILL_ROUNDS", "6"))
STEPS = 60 + 20 * ROUNDS


def train(data: Path, path: Path, steps: int) -> Trainer:
    """Begin or go on, to the end; a checkpoint after every step."""
    tokenizer = load_tokenizer(data)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.1
    )
    run = Run(path)
    run.create()
    with run.lock():
        trainer = Trainer(
            GPT(config, generator=torch.Generator().manual_seed(3)),
            TokenDataset(data / "train.bin", 8), TokenDataset(data / "val.bin", 8),
            TrainConfig(
                max_iters=steps, batch_size=4, accumulate=2, warmup_iters=5, eval_interval=7,
                save_interval=1, log_interval=1, optimizer="muon", sampling="epoch",
            ),
            run=run, tokenizer=tokenizer, device="cpu",
        )  # fmt: skip
        if any(path.glob("step-????????")):
            trainer.restore(run.latest())
        for event in trainer.run():
            if isinstance(event, StepDone):
                run.record("metrics.jsonl", {"step": event.step, "loss": event.loss.hex()})
    return trainer


@pytest.mark.slow
def test_killed_at_random_moments(data_dir: Path, tmp_path: Path, tied: dict[str, Any]) -> None:
    """Each round finds a sound checkpoint, at least as late as the one before, and clears up alone.

    In the end weights, losses and the files in the run directory are those of the run that was let
    alone.
    """
    straight = train(data_dir, tmp_path / "straight", STEPS)
    command = [sys.executable, __file__, str(data_dir), str(tmp_path / "run"), str(ROUNDS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False,
        timeout=300 + 20 * ROUNDS, **tied,
    )  # fmt: skip
    assert 0 == result.returncode, result.stderr[-2000:]
    rounds = [line.split() for line in result.stdout.splitlines()]
    assert ROUNDS == sum(how == str(-signal.SIGKILL) for how, _ in rounds)
    steps = [int(step) for _, step in rounds]
    assert sorted(steps) == steps
    assert STEPS == steps[-1]

    run, other = Run(tmp_path / "run"), Run(tmp_path / "straight")
    expected, weights = straight.model.state_dict(), run.latest().load_model().state_dict()
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    assert other.rows("metrics.jsonl") == run.rows("metrics.jsonl")
    assert sorted(p.name for p in other.path.iterdir()) == sorted(
        p.name for p in run.path.iterdir()
    )


def newest(path: Path) -> int:
    """The step of the newest sound checkpoint; 0 if there is none yet."""
    return Run(path).latest().step if any(path.glob("step-????????")) else 0


def main() -> None:
    """Fork a training and kill it after a while; again; at last let it end."""
    torch.set_num_threads(1)
    data, path, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    train(data, path.with_name("warm"), 6)  # what torch loads on first use, no child has to
    begun = time.perf_counter()
    train(data, path.with_name("timed"), 20)
    each = (time.perf_counter() - begun) / 20
    moments = random.Random(rounds)  # noqa: S311 - no secret
    for turn in range(rounds + 1):
        child = os.fork()
        if child == 0:
            signal.alarm(300)  # whatever happens to the process that waits for it
            train(data, path, STEPS)
            os._exit(0)
        if turn < rounds:
            # Some twenty steps a round at most, so that none comes to the end by itself.
            time.sleep(moments.uniform(0.0, 20 * each))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), newest(path), flush=True)


if __name__ == "__main__":
    main()
