"""Shared by the tests of this package: small files, and commands run in this process."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from yocto_cli import train

if TYPE_CHECKING:
    from yocto_train import Trainer


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., int]
Runner = Callable[[Command, Sequence[str]], Result]

POEM = "The soul of the world is the thing that we know.\nWhat is it, and who are we?\n" * 30
TINY = [
    "--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=16", "--batch_size=2",
    "--device=cpu", "--sample_tokens=8",
]  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """Runs the main function of a command and gives what it returned and wrote."""

    def runner(main: Command, words: Sequence[str]) -> Result:
        capsys.readouterr()
        code = main(list(words))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return runner


class Terminal(io.TextIOWrapper):
    """A terminal that remembers what it was sent."""

    def __init__(self) -> None:
        self._sent = io.BytesIO()
        super().__init__(self._sent, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return self._sent.getvalue().decode()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Makes stdout a terminal, with nobody at the keyboard."""

    def make(no_color: str = "", term: str = "xterm-256color") -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        for name, value in (("NO_COLOR", no_color), ("TERM", term)):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
        return terminal

    return make


@pytest.fixture
def refused(run: Runner) -> Callable[[Command, Sequence[str]], str]:
    """Runs a command that must refuse: exit code 2, one safe line on stderr, which is returned."""

    def runner(main: Command, words: Sequence[str]) -> str:
        result = run(main, words)
        assert result.code == 2, result
        assert result.out == ""
        assert result.err.count("\n") == 1
        assert result.err.endswith("\n")
        assert len(result.err) <= 320
        assert "Traceback" not in result.err
        assert result.err[:-1].isprintable(), result.err
        return result.err

    return runner


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    """A text file."""
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs: `char` with two steps, and `bpe`; their models are untrained."""
    import torch
    from yocto_model import GPT, GPTConfig
    from yocto_tokenizers import CharTokenizer, SentencePieceTokenizer
    from yocto_train import Run, save_checkpoint

    root = tmp_path_factory.mktemp("runs")
    tokenizers = {
        "char": CharTokenizer.train(POEM),
        "bpe": SentencePieceTokenizer.train(POEM, vocab_size=300),
    }
    for name, tokenizer in tokenizers.items():
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=8, block_size=16
        )
        for step in (5, 10):
            torch.manual_seed(step)
            (root / name).mkdir(exist_ok=True)
            save_checkpoint(
                root / name, GPT(config), {"step": step}, tokenizer=tokenizer, data={},
                val_loss=3.5 - step / 10, environment={},
            )  # fmt: skip
        Run(root / name).point("latest", root / name / "step-00000010")
    return root


@pytest.fixture(scope="session")
def char_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The poem at character level."""
    from yocto_data import prepare
    from yocto_tokenizers import CharTokenizer

    root = tmp_path_factory.mktemp("prepared")
    (root / "poem.txt").write_text(POEM, encoding="utf-8")
    tokenizer = CharTokenizer.train(POEM)
    prepare(root / "poem.txt", root / "poem", tokenizer=tokenizer, val_ratio=0.2)
    return root / "poem"


@pytest.fixture
def make_trainer(char_data: Path, tmp_path: Path) -> "Callable[..., Trainer]":
    """Makes trainers of a tiny model; keywords are settings of the training."""

    def make(**settings: Any) -> "Trainer":
        import torch
        from yocto_data import TokenDataset
        from yocto_model import GPT, GPTConfig
        from yocto_tokenizers import load_tokenizer
        from yocto_train import Run, TrainConfig, Trainer

        tokenizer = load_tokenizer(char_data)
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=8, block_size=16
        )
        defaults: dict[str, Any] = {
            "max_iters": 8, "batch_size": 2, "warmup_iters": 0, "eval_interval": 4,
            "eval_iters": 1, "sample_interval": 4, "sample_tokens": 8, "log_interval": 2,
        }  # fmt: skip
        return Trainer(
            GPT(config, generator=torch.Generator().manual_seed(1)),
            TokenDataset(char_data / "train.bin", config.block_size),
            TokenDataset(char_data / "val.bin", config.block_size),
            TrainConfig(**{**defaults, **settings}), run=Run(tmp_path / "runs" / "tiny"),
            tokenizer=tokenizer, device="cpu",
        )  # fmt: skip

    return make


@pytest.fixture
def home(tmp_path: Path, char_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to be in; training there needs no preparation."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def training(run: Any, char_data: Path, home: Path) -> Callable[..., Any]:
    """Trains a tiny model; gives exit code and output."""
    return lambda *words: run(train.main, [*TINY, f"--data_dir={char_data}", *words])
