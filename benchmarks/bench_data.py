"""Preparing data and making batches: time and memory, ours over a peer's or over our own.

uv run nox -s bench -- data
TEXT names another text to shuffle; LARGE=1 adds the row that prepares 1 GB (some minutes, 2 GB of
temporary files); SCALE=0.05 shrinks all sizes, to try it out.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Workers import this file again, so nothing heavy is imported here.
from bench_tokenizers import SCALE, VOCAB_SIZE, in_turns, report, report_speed, shuffled_copies
from yocto_data import prepare
from yocto_tokenizers import SentencePieceTokenizer, load_tokenizer

WORKERS = 2
ROUNDS = 3
ROWS, LENGTH = 64, 256
BATCHES = 100


def write_text(path: Path, text: str, size_bytes: float) -> str:
    """Shuffled copies of a text, as one file; returns its size in words."""
    left = int(size_bytes)
    with path.open("wb") as file:
        for copy in shuffled_copies(text):
            left -= file.write(copy[:left].encode())
            if left <= 0:
                return f"{size_bytes / 1e6:,g} MB of text"
    raise AssertionError


def prepare_here(source: str, out: str, tokenizer: str, workers: str) -> None:
    """In a process of its own: prepare, then print the seconds and the peak of memory in bytes."""
    loaded = load_tokenizer(tokenizer)
    begun = time.perf_counter()
    prepare(source, out, tokenizer=loaded, workers=int(workers))
    print(time.perf_counter() - begun, peak_bytes(int(workers)))


def peak_bytes(workers: int) -> int:
    """The most memory this process held, plus that of its largest worker for each worker."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        # A Linux process inherits ru_maxrss from whoever started it; this figure is its own.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        own = int(line.split()[1])
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if workers > 1 else 0
    return (own + workers * largest) * unit


def prepared(source: Path, out: Path, tokenizer: Path, workers: int) -> tuple[float, int]:
    """Prepare in a child process; returns its seconds and its peak of memory in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, __file__, str(source), str(out), str(tokenizer), str(workers)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


def preparing(source: Path, folder: Path, tokenizer: Path, size: str) -> int:
    """Two workers against one, in turns; returns the peak of memory with two."""
    results: dict[int, list[tuple[float, int]]] = {WORKERS: [], 1: []}
    for _ in range(ROUNDS):
        for workers, so_far in results.items():
            so_far.append(prepared(source, folder / f"by-{workers}", tokenizer, workers))
    metas = {(folder / f"by-{workers}" / "meta.json").read_bytes() for workers in results}
    assert len(metas) == 1  # sums of all files are in there: workers change no byte
    two, one = ([statistics.median(c) for c in zip(*r, strict=True)] for r in results.values())
    what = f"bpe prepare, {size}, {WORKERS} workers on {os.cpu_count()} cores"
    report_speed(what, (two[0], one[0]), "1 worker", 1.6, unit=1.0)
    return int(two[1])


def memory(folder: Path, tokenizer: Path, text: str, small: tuple[str, int]) -> None:
    what = f"peak memory of preparing with {WORKERS} workers"
    if os.environ.get("LARGE") != "1":
        print(f"{what}, 1 GB of text over 100 MB: NOT MEASURED, set LARGE=1, target 1.1 or less")
        return
    size = write_text(folder / "large.txt", text, 1e9 * SCALE)
    _, peak = prepared(folder / "large.txt", folder / "large", tokenizer, WORKERS)
    ours, other = (f"{mine / 1e6:.1f} MB for {of}" for of, mine in ((size, peak), small))
    ratio = peak / small[1]
    report(what, ours, other, ratio, "1.1 or less", met=ratio <= 1.1)


def batches(train_bin: Path) -> None:
    import numpy as np
    import torch
    from yocto_data import BatchSampler, TokenDataset

    dataset = TokenDataset(train_bin, LENGTH)
    sampler = BatchSampler(dataset, ROWS, seed=1337)

    def nanogpt_batch(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # nanoGPT's way: a new map for every batch, then window by window.
        tokens = np.memmap(train_bin, dtype=dataset.dtype, mode="r")
        x, y = (
            torch.stack(
                [torch.from_numpy(tokens[i + k : i + k + LENGTH].astype(np.int64)) for i in starts]
            )
            for k in (0, 1)
        )
        return x, y

    def ours(steps: range) -> None:
        for step in steps:
            sampler.batch(step)

    def theirs(steps: range) -> None:
        for _ in steps:
            nanogpt_batch(torch.randint(len(dataset), (ROWS,)))

    same = nanogpt_batch(torch.from_numpy(sampler.starts(0)))
    assert all(map(torch.equal, same, sampler.batch(0)))
    rounds = [range(first, first + BATCHES) for first in range(0, 8 * BATCHES, BATCHES)]
    seconds, peers = in_turns(ours, theirs, rounds)
    what = f"batch of {ROWS} x {LENGTH} from a memmap of {dataset.n_tokens:,} tokens"
    report_speed(what, (seconds / BATCHES, peers / BATCHES), "nanoGPT's way", 50, unit=1e-6)


def main() -> None:
    from common import machine, text_path

    machine()
    text = text_path().read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        learned = SentencePieceTokenizer.train(text, vocab_size=VOCAB_SIZE, shrink=True)
        tokenizer = learned.save(folder)
        size = write_text(folder / "text.txt", text, 1e8 * SCALE)
        peak = preparing(folder / "text.txt", folder, tokenizer, size)
        batches(folder / "by-1" / "train.bin")
        memory(folder, tokenizer, text, (size, peak))


if __name__ == "__main__":
    if sys.argv[1:]:
        prepare_here(*sys.argv[1:])
    else:
        main()
