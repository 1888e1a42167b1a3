"""Somebody else's program, with every package in it: mypy --strict checks it on the wheels."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from yocto_cli.screen.terminal import visible
from yocto_data import BatchSampler, DataMeta, TokenDataset, prepare
from yocto_model import GPT, GPTConfig, SamplingOptions, TextGenerator
from yocto_tokenizers import CharTokenizer, Tokenizer, load_tokenizer
from yocto_train import Evaluated, Event, Run, Stopped, TrainConfig, Trainer

TEXT = "The owl and the pussycat went to sea in a beautiful pea-green boat.\n" * 40


def prepared(directory: Path) -> tuple[Tokenizer, DataMeta]:
    """A text as token files, and the tokenizer that reads them."""
    path = directory / "poem.txt"
    path.write_text(TEXT, encoding="utf-8")
    meta = prepare(path, directory / "data", tokenizer=CharTokenizer.train(TEXT))
    return load_tokenizer(directory / "data"), meta


def losses(events: Iterator[Event]) -> Iterator[float]:
    """The validation losses among a trainer's events."""
    for event in events:
        if isinstance(event, Evaluated):
            yield event.loss
        elif isinstance(event, Stopped):
            print(visible(f"{event.reason} after {event.step} steps"))


def main(directory: Path) -> None:
    """Prepare, train, save, load, speak."""
    tokenizer, meta = prepared(directory)
    train, val = (TokenDataset(directory / "data" / f"{name}.bin", 16) for name in ("train", "val"))
    x, y = BatchSampler(train, 4, seed=1).batch(0)
    shapes: tuple[torch.Size, torch.Size] = (x.shape, y.shape)
    assert shapes == (torch.Size([4, 16]), torch.Size([4, 16]))
    config = GPTConfig.from_arch(
        "modern", vocab_size=meta.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16
    )
    run = Run.new(directory / "checkpoints", "poem")
    run.create()
    with run.lock():
        trainer = Trainer(
            GPT(config), train, val, TrainConfig(max_iters=5, warmup_iters=1, batch_size=4),
            run=run, tokenizer=tokenizer,
        )  # fmt: skip
        print([round(loss, 2) for loss in losses(trainer.run())])
    model = GPT.load(run.path / "latest")
    options = SamplingOptions(temperature=0.8, top_k=5)
    for token in TextGenerator(model, tokenizer).stream("The owl", 20, options=options, seed=1):
        print(visible(token.text), end="")
    print()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
