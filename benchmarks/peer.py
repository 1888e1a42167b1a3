"""nanoGPT as a peer: its model, its optimizer, its way of making batches and steps.

The environment variable NANOGPT names its checkout; nothing of it is part of this project.
"""

import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch


def nanogpt() -> ModuleType | None:
    """nanoGPT's model.py, or None with a line that says how to name it."""
    folder = os.environ.get("NANOGPT")
    if folder is None or not (Path(folder) / "model.py").is_file():
        print("peer     skipped: set NANOGPT to a checkout of nanoGPT")
        return None
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Peer:
    """nanoGPT training on token files, step by step as its train.py does on a CPU."""

    def __init__(
        self, module: ModuleType, data_dir: Path, *, n_layer: int, n_head: int, n_embd: int,
        block_size: int, batch_size: int, vocab_size: int, max_iters: int, seed: int,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.data_dir, self.block_size, self.batch_size = data_dir, block_size, batch_size
        self.max_iters, self.step, self.seconds = max_iters, 0, 0.0
        config = module.GPTConfig(
            block_size=block_size, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head,
            n_embd=n_embd, dropout=0.0, bias=False,
        )  # fmt: skip
        self.model = module.GPT(config)
        self.optimizer = self.model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        self.batch = self._get_batch()

    def _get_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        # As nanoGPT does it: a new map for every batch, windows one by one.
        data = np.memmap(self.data_dir / "train.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - self.block_size, (self.batch_size,))
        x, y = (
            torch.stack(
                [
                    torch.from_numpy(data[i + shift : i + shift + self.block_size].astype(np.int64))
                    for i in starts
                ]
            )
            for shift in (0, 1)
        )
        return x, y

    def train(self, steps: int) -> float:
        """Run steps; returns their seconds."""
        begun = time.perf_counter()
        for _ in range(steps):
            warm, floor, peak = 100, 1e-4, 1e-3
            if self.step < warm:
                lr = peak * (self.step + 1) / (warm + 1)
            else:
                done = (self.step - warm) / max(1, self.max_iters - warm)
                lr = floor + 0.5 * (1 + np.cos(np.pi * min(1.0, done))) * (peak - floor)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            _, loss = self.model(*self.batch)
            self.batch = self._get_batch()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()
            self.step += 1
        seconds = time.perf_counter() - begun
        self.seconds += seconds
        return seconds

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Over the whole split, in consecutive windows, as our `evaluate` does."""
        from yocto_data import TokenDataset, evaluation_batches

        data = TokenDataset(self.data_dir / "val.bin", self.block_size)
        self.model.eval()
        total = 0.0
        for x, y in evaluation_batches(data, 32):
            _, loss = self.model(x, y.contiguous())
            total += float(loss) * y.numel()
        self.model.train()
        return total / (data.n_tokens - 1)
