"""Many clients of one server: tokens per second together, and the wait for the first one.

uv run nox -s bench -- serve

Against one text drawn in this process, as yocto-sample draws it, in the same run. The models have
random weights, which take as long as any others; the texts are streamed.
"""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine
from yocto_cli.model_arguments import ModelArguments
from yocto_cli.models import load_generator
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import CharTokenizer
from yocto_train import save_checkpoint

PROMPT = "What is the meaning of all this? "
CLIENTS = (1, 4, 8, 16, 32)
MODELS: dict[str, tuple[dict[str, Any], int]] = {  # sizes, and tokens of a text
    "default": ({"block_size": 256, "n_layer": 5, "n_head": 4, "n_embd": 128}, 200),
    "SmolLM2's shape": (
        {"block_size": 2048, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576,
         "n_hidden": 1536, "qk_norm": False, "tie_weights": True, "vocab_size": 49_152},
        40,
    ),
}  # fmt: skip


def saved(root: Path, sizes: dict[str, Any]) -> Path:
    """A run with one checkpoint."""
    tokenizer = CharTokenizer("\n" + "".join(map(chr, range(0x20, 0x7F))))
    fields = {"vocab_size": tokenizer.vocab_size, **sizes, "zero_init": False}
    config = GPTConfig.from_arch("modern", **fields)
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    (root / "run").mkdir()
    save_checkpoint(
        root / "run", model, {"step": 1}, tokenizer=tokenizer, data={}, val_loss=None,
        environment={},
    )  # fmt: skip
    return root / "run"


async def client(port: int, n_tokens: int, seed: int) -> tuple[float, float]:
    """Seconds to the first token and to the last of one text."""
    body = {"prompt": PROMPT, "max_tokens": n_tokens, "seed": seed, "stream": True}
    content = json.dumps(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}"
    writer.write(f"{head}\r\nConnection: close\r\n\r\n{content}".encode())
    await reader.readuntil(b"data: ")
    first = time.perf_counter() - started
    rest = await reader.read(-1)
    assert b"[DONE]" in rest
    writer.close()
    return first, time.perf_counter() - started


async def measured(port: int, n_clients: int, n_tokens: int) -> tuple[float, list[float]]:
    """Tokens per second of all clients together, and each one's wait for the first."""
    started = time.perf_counter()
    found = await asyncio.gather(*(client(port, n_tokens, seed) for seed in range(n_clients)))
    seconds = time.perf_counter() - started
    return n_clients * n_tokens / seconds, [first for first, _ in found]


def alone(run: Path, n_tokens: int) -> float:
    """Tokens per second of one text in this process."""
    _, generator = load_generator(ModelArguments(ckpt=str(run), device="cpu"))
    speeds = []
    for seed in range(3):
        started = time.perf_counter()
        list(generator.stream(PROMPT, n_tokens, seed=seed))
        speeds.append(n_tokens / (time.perf_counter() - started))
    return statistics.median(speeds)


def main() -> None:
    machine()
    for name, (sizes, n_tokens) in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            run = saved(Path(place), sizes)
            reference = alone(run, n_tokens)
            print(f"\n{name}: one text in a process of its own {reference:8.1f} tokens/s")
            started = time.perf_counter()
            code = "from yocto_serve import main; main()"
            command = [sys.executable, "-c", code, "--ckpt", str(run), "--port", "0"]
            with subprocess.Popen(
                [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True,
            ) as server:  # fmt: skip
                assert server.stdout
                match = re.search(r"127\.0\.0\.1:(\d+)", server.stdout.readline())
                assert match
                port = int(match[1])
                asyncio.run(client(port, 1, 0))
                print(f"from command to first answer {time.perf_counter() - started:.2f} s")
                print("clients  tokens/s  over 1  over alone  first token: median  95 % (ms)")
                one = 0.0
                for n_clients in CLIENTS:
                    runs = [asyncio.run(measured(port, n_clients, n_tokens)) for _ in range(3)]
                    speed = statistics.median(speed for speed, _ in runs)
                    waits = sorted(1e3 * wait for _, each in runs for wait in each)
                    one = one or speed
                    late = waits[min(len(waits) - 1, int(0.95 * len(waits)))]
                    print(
                        f"{n_clients:7} {speed:9.1f} {speed / one:7.2f} {speed / reference:11.2f}"
                        f" {statistics.median(waits):20.0f} {late:5.0f}"
                    )
                server.terminate()


main()
