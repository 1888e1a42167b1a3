"""The training that faults are injected into, and what must hold after each of them."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yocto_data import TokenDataset, prepare
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import CharTokenizer, load_tokenizer
from yocto_train import Evaluated, Event, Run, Saved, StepDone, TrainConfig, Trainer

TEXT = "Nobody asked the lighthouse whether it wished to turn. It turned, and the ships went home. "
START = 4  # the step that a run to be disturbed stands at
STEPS = 8


def make_data(root: Path) -> Path:
    """A small data set at character level."""
    (root / "text.txt").write_text(TEXT * 8)
    tokenizer = CharTokenizer.train(TEXT)
    prepare(root / "text.txt", root / "data", tokenizer=tokenizer, val_ratio=0.2)
    return root / "data"


def make_trainer(data: Path, run: Run, **settings: Any) -> Trainer:
    """Everything on that could go wrong; the weights take several writes."""
    tokenizer = load_tokenizer(data)
    model = GPTConfig.from_arch(
        "modern", vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=32,
        dropout=0.1,
    )  # fmt: skip
    defaults: dict[str, Any] = {
        "max_iters": STEPS, "batch_size": 4, "accumulate": 2, "warmup_iters": 2, "keep": 2,
        "eval_interval": 2, "sample_interval": 4, "sample_tokens": 2, "log_interval": 1,
        "optimizer": "muon", "sampling": "epoch", "seed": 11,
    }  # fmt: skip
    return Trainer(
        GPT(model, generator=torch.Generator().manual_seed(3)),
        TokenDataset(data / "train.bin", 8),
        TokenDataset(data / "val.bin", 8),
        TrainConfig(**{**defaults, **settings}),
        run=run,
        tokenizer=tokenizer,
        device="cpu",
    )


def train(
    data: Path,
    path: Path,
    *,
    resume: bool | None = None,
    until: int | None = None,
    saved: Callable[[int], object] = lambda step: None,
    **settings: Any,
) -> Trainer:
    """Begin or go on, up to a step or to the end.

    Args:
        data: the data directory.
        path: the run directory.
        resume: whether there is something to go on from; None to look.
        until: where to stop, after a save.
        saved: told each step that was reported as saved.
        settings: of the trainer.
    """
    run = Run(path)
    resume = any(path.glob("step-????????")) if resume is None else resume
    run.create()
    with run.lock():
        trainer = make_trainer(data, run, **settings)
        if resume:
            trainer.restore(run.latest())
        for event in trainer.run():
            record(run, event)
            if isinstance(event, Saved):
                saved(event.step)
                if event.step == until:
                    trainer.request_stop()
    return trainer


def record(run: Run, event: Event) -> None:
    """A row of metrics.jsonl; that the disk is full stops no training."""
    if isinstance(event, StepDone | Evaluated):
        row = {"kind": type(event).__name__, "step": event.step, "loss": event.loss.hex()}
        with contextlib.suppress(OSError):
            run.record("metrics.jsonl", row)


def up_to_the_save(data: Path, path: Path) -> Iterator[Event]:
    """Go on until the next save is due, as the first event; the second one is that save."""
    run = Run(path)
    with run.lock():
        trainer = make_trainer(data, run)
        trainer.restore(run.latest())
        for event in trainer.run():
            record(run, event)
            if isinstance(event, Evaluated | Saved):
                yield event


@dataclass(frozen=True)
class Stage:
    """A run that stands at step 4, and what it comes to undisturbed."""

    data: Path
    start: Path
    expected: dict[str, str]

    @classmethod
    def build(cls, root: Path) -> "Stage":
        data = make_data(root)
        train(data, root / "start", until=START)
        train(data, root / "whole", until=START)
        train(data, root / "whole")
        return cls(data, root / "start", snapshot(root / "whole"))

    def problem(
        self, path: Path, reported: list[int], *, rows: bool, may_put_aside: bool
    ) -> str | None:
        """What is lost in a run directory after a fault, or None; the run is brought to its end.

        Args:
            path: the run directory.
            reported: steps that were said to be saved.
            rows: whether metrics.jsonl must be whole, too; a row that cannot be written is lost.
            may_put_aside: whether a step may have been unreadable for a while, and passed over.
        """
        run = Run(path)
        newest = run.latest()
        if newest.skipped:
            return f"half a checkpoint: {newest.skipped[0]}"
        if newest.step < max(reported, default=START):
            return f"step {max(reported)} was reported as saved, step {newest.step} is the newest"
        if run.pointed("latest") is None or run.pointed("best") is None:
            return "a pointer that leads nowhere"
        train(self.data, path)
        left, right = dict(self.expected), snapshot(path)
        if may_put_aside:
            right = {name: value for name, value in right.items() if ".old-" not in name}
        if not rows:
            del left["metrics.jsonl"], right["metrics.jsonl"]
        wrong = sorted(name for name in {**left, **right} if left.get(name) != right.get(name))
        return f"not what the undisturbed run is: {', '.join(wrong)}" if wrong else None


def snapshot(directory: Path) -> dict[str, str]:
    """Names and content of all files but the lock.

    Rows count once: an evaluation that is made up for after a kill is reported again.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif name in {"latest", "best"}:  # where links could not be had
            found[name] = path.read_text().strip()
        elif path.suffix == ".jsonl":
            found[name] = "".join(dict.fromkeys(path.read_text().splitlines(keepends=True)))
        elif path.is_file() and not path.name.startswith(".lock"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
