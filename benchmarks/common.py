"""What the benchmarks share: the data, the machine, a trainer."""

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from yocto_data import DataMeta, TokenDataset, prepare
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import CharTokenizer
from yocto_train import TrainConfig, Trainer

ROOT = Path(__file__).parent.parent


def text_path() -> Path:
    """The text to measure on: the environment variable TEXT, or the default corpus."""
    return Path(os.environ.get("TEXT", ROOT / "data" / "philosophy.txt"))


def prepared() -> Path:
    """The text at character level, in a temporary directory."""
    directory = Path(tempfile.mkdtemp()) / "char"
    tokenizer = CharTokenizer.train(text_path().read_text(encoding="utf-8"))
    meta = prepare([text_path()], directory, tokenizer=tokenizer)
    print(
        f"text     {text_path().name}: {meta.train.tokens:,} / {meta.val.tokens:,} characters, "
        f"{meta.vocab_size} ids"
    )
    return directory


def machine() -> None:
    """Say what this ran on."""
    print(
        f"machine  {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}"
    )


def vocab_size(data_dir: Path) -> int:
    """Number of ids of prepared data."""
    return DataMeta.load(data_dir).vocab_size


def trainer(data_dir: Path, model: dict[str, Any], train: dict[str, Any], arch: str) -> Trainer:
    """A trainer that saves nothing."""
    config = GPTConfig.from_arch(arch, vocab_size=vocab_size(data_dir), **model)
    generator = torch.Generator().manual_seed(train.get("seed", 1337))
    splits = [
        TokenDataset(data_dir / f"{name}.bin", config.block_size) for name in ("train", "val")
    ]
    return Trainer(
        GPT(config, generator=generator), splits[0], splits[1], TrainConfig.from_dict(train)
    )
