"""What this package's tests share: a small data set, a tiny model, a trainer of it, and runs."""

import ctypes
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import register_random
from yocto_data import TokenDataset, prepare
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import CharTokenizer
from yocto_train import Evaluated, Event, Run, StepDone, TrainConfig, Trainer, World

TEXT = """\
Nobody asked the lighthouse whether it wished to turn. It turned, and the ships went home.
"What is it for?" said the gull. "For going round," said the lamp; “and for being seen”.
Seven keepers came and seven left; the eighth stayed — he liked the quiet, and the stairs.
In winter the sea wrote its name on the rocks, and in spring it could not read it any more.
A light says one thing only — here I am. The rest, “whether near or far”, is yours to find out.
"""


SPLITS = "train", "val"


class _TorchRandom:
    """torch's global generator, as Hypothesis wants to seed and restore it."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


# Hypothesis keeps only a weak reference: the name keeps the object alive.
TORCH_RANDOM = _TorchRandom()
register_random(TORCH_RANDOM)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Forcing data to the disk matters when the power fails, and costs most of a test's time.

    That and when it is asked for is a test of its own, which looks at the calls.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tied() -> dict[str, Any]:
    """Options for subprocess: what is started ends with this process, however that ends."""
    if sys.platform != "linux":
        return {}
    return {"preexec_fn": lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM)}  # PR_SET_PDEATHSIG


@pytest.fixture(scope="session")
def tokenizer() -> CharTokenizer:
    return CharTokenizer.train(TEXT)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: CharTokenizer) -> Path:
    """A data directory of a few hundred tokens, prepared as a user would."""
    root = tmp_path_factory.mktemp("data")
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare(root / "text.txt", root / "char", tokenizer=tokenizer, val_ratio=0.2)
    return root / "char"


@pytest.fixture(scope="session")
def make_model(tokenizer: CharTokenizer) -> Callable[..., GPT]:
    """`make_model(arch, seed=..., **fields)`: two layers, 16 wide, the same weights each time."""

    def make(arch: str = "gpt2", *, seed: int = 1, **fields: Any) -> GPT:
        sizes = {"vocab_size": tokenizer.vocab_size, "block_size": 8, "n_layer": 2, "n_head": 2}
        config = GPTConfig.from_arch(arch, **{**sizes, "n_embd": 16, **fields})
        return GPT(config, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def make_trainer(
    data_dir: Path, tokenizer: CharTokenizer, make_model: Callable[..., GPT]
) -> Callable[..., Trainer]:
    """`make_trainer(arch, run=..., dropout=..., **settings)`: everything that matters is on."""

    def make(
        arch: str = "gpt2",
        *,
        run: Run | None = None,
        model: GPT | None = None,
        dropout: float = 0.1,
        dtype: torch.dtype = torch.float32,
        data: Path = data_dir,
        with_tokenizer: bool = True,
        world: World | None = None,
        **settings: Any,
    ) -> Trainer:
        model = model or make_model(arch, dropout=dropout)
        defaults: dict[str, Any] = {
            "max_iters": 12, "batch_size": 4, "accumulate": 2, "warmup_iters": 3, "grad_clip": 0.5,
            "eval_interval": 5, "log_interval": 1, "muon_warmup_iters": 6, "seed": 5,
        }  # fmt: skip
        train, val = (TokenDataset(data / f"{s}.bin", model.config.block_size) for s in SPLITS)
        return Trainer(
            model.to(dtype), train, val, TrainConfig(**{**defaults, **settings}), run=run,
            tokenizer=tokenizer if with_tokenizer else None, device="cpu", world=world,
        )  # fmt: skip

    return make


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """An empty run directory, locked."""
    run = Run(tmp_path / "run")
    run.create()
    with run.lock():
        yield run


@pytest.fixture(scope="session")
def trained(make_trainer: Callable[..., Trainer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the steps 2, 4 and 6; the last is the best. Not to be changed."""
    run = Run(tmp_path_factory.mktemp("trained") / "run")
    run.create()
    list(make_trainer(run=run, max_iters=6, eval_interval=2, lr=0.05, warmup_iters=0).run())
    return run.path


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed, in a directory of runs."""
    shutil.copytree(trained, tmp_path / "runs" / "run", symlinks=True)
    return tmp_path / "runs" / "run"


@pytest.fixture(scope="session")
def story() -> Callable[[list[Event]], list[str]]:
    """`story(events)`: what a run reported of steps and evaluations, floats as hexadecimal."""

    def story(events: list[Event]) -> list[str]:
        lines = []
        for e in events:
            if isinstance(e, StepDone):
                numbers = e.loss, e.smoothed_loss, e.lr, e.grad_norm, e.epoch
                lines.append(f"step {e.step} " + " ".join(map(float.hex, numbers)))
            elif isinstance(e, Evaluated):
                lines.append(f"eval {e.step} {e.loss.hex()} {e.best_step} {e.is_best}")
        return lines

    return story
