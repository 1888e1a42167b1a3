"""Tokens per second of training at nanoGPT's architecture, batch and optimizer, ours over its.

NANOGPT=... uv run nox -s bench -- steps

NANOGPT may be left out: then only the last table, against transformers, has a peer.

Ours runs in the precision that it chooses for this CPU, in the same with compiled blocks, and in
float32; nanoGPT in float32, not compiled. A last line tells how much of a step is neither forward,
backward nor optimizer, and how much of that is the clipping of gradients, which nanoGPT does as
well.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, prepared, trainer, vocab_size
from peer import Peer, nanogpt
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_model import GPT, GPTConfig
from yocto_train import RECIPES, Trainer, cpu_precision, step

SHAPES = {
    "0.8M, context 64, batch 12": (
        {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 12, 40,
    ),
    "10.6M, context 256, batch 8": (
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, 8, 4,
    ),
}  # fmt: skip
ROUNDS = 5


def ours(data_dir: Path, shape: dict[str, Any], batch: int, kind: str) -> Trainer:
    """A trainer of nanoGPT's variant of GPT-2: no biases, exact GELU."""
    precision, _, compiled = kind.partition(" ")
    train = {**RECIPES["gpt2"].train, "batch_size": batch, "max_iters": 10_000,
             "eval_interval": 100_000, "log_interval": 100_000, "precision": precision,
             "compile": "on" if compiled else "off"}  # fmt: skip
    made = trainer(data_dir, {**shape, "bias": False, "activation": "gelu"}, train, "gpt2")
    made.model.train()
    return made


def seconds_of(made: Trainer, steps: int) -> float:
    """Seconds per step."""
    begun = time.perf_counter()
    for _ in range(steps):
        made._step()  # noqa: SLF001 - a step without the events around it
    return (time.perf_counter() - begun) / steps


def rest_of_a_step(made: Trainer, steps: int) -> tuple[float, float]:
    """The parts of a step's time outside forward, backward and optimizer: in all, and clipping."""
    spent = dict.fromkeys(("_module", "cross_entropy", "backward", "update", "clip"), 0.0)

    def timed(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = call(*arguments, **options)
            spent[name] += time.perf_counter() - begun
            return result

        setattr(owner, name, wrapped)

    for name in ("_module", "backward", "update"):
        timed(made.machine, name)
    for name in ("cross_entropy", "clip"):
        timed(step, name)
    total = seconds_of(made, steps) * steps
    return (total - sum(spent.values()) + spent["clip"]) / total, spent["clip"] / total


def main() -> None:
    machine()
    data_dir = prepared()
    module = nanogpt()
    for name, (shape, batch, steps) in SHAPES.items():
        precision, why = cpu_precision(shape["n_embd"])
        kinds = dict.fromkeys((precision, f"{precision} compiled", "float32"))
        made = {kind: ours(data_dir, shape, batch, kind) for kind in kinds}
        peer = module and Peer(
            module, data_dir, **shape, batch_size=batch, vocab_size=vocab_size(data_dir),
            max_iters=10_000, seed=1337,
        )  # fmt: skip
        seconds: dict[str, list[float]] = {kind: [] for kind in (*made, "nanoGPT")}
        for _ in range(ROUNDS + 1):  # in turns, so that all see the same machine
            for kind, each in made.items():
                seconds[kind].append(seconds_of(each, steps))
            if peer:
                seconds["nanoGPT"].append(peer.train(steps) / steps)
        tokens = batch * shape["block_size"]
        middle = {kind: statistics.median(times[1:]) for kind, times in seconds.items() if times}
        print(f"{name} (auto: {precision}, {why})")
        for kind, each_seconds in middle.items():
            ratio = f", ratio {middle['nanoGPT'] / each_seconds:.2f}" if peer else ""
            print(f"  {kind:18}{tokens / each_seconds:9,.0f} tokens/s{ratio}", flush=True)
        rest, clipping = rest_of_a_step(made[precision], 3 * steps)
        print(
            f"  outside forward, backward and optimizer: {100 * rest:.1f} % of a step, of which "
            f"clipping the gradients {100 * clipping:.1f} %",
            flush=True,
        )
    real_vocabulary()


def real_vocabulary() -> None:
    """The same weights at SmolLM2-135M's shape, 4 x 256, all trained: ours and transformers'."""
    try:
        import transformers
    except ImportError:
        print("peer     transformers skipped: it is not installed")
        return
    config = GPTConfig(
        vocab_size=49_152, block_size=2_048, n_layer=30, n_head=9, n_kv_head=3, n_embd=576,
        n_hidden=1_536, norm="rmsnorm", positions="rotary", activation="swiglu", bias=False,
    )  # fmt: skip
    model = GPT(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    ids = torch.randint(config.vocab_size, (4, 257))
    x, y = ids[:, :-1], ids[:, 1:].contiguous()

    def stepper(call: Callable[[Tensor], Tensor], module: torch.nn.Module, half: bool) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

        def one() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = call(x)
            loss = step.cross_entropy if module is model else F.cross_entropy
            rows = (logits, y) if module is model else (logits.float().flatten(0, 1), y.flatten())
            loss(*rows).backward()  # type: ignore[operator] # either
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return one

    calls = {
        f"{name} {kind}": stepper(call, module, kind == "bfloat16")
        for kind in ("float32", "bfloat16")
        for name, call, module in (
            ("yocto", model.train(), model), ("transformers", lambda x: peer(x).logits, peer),
        )
    }  # fmt: skip
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - begun)
    theirs = min(least["transformers float32"], least["transformers bfloat16"])
    print("135M, 49,152 ids, context 256, batch 4, all weights trained")
    for name, seconds in least.items():
        ratio = theirs / seconds
        print(
            f"  {name:22}{ids[:, 1:].numel() / seconds:9,.0f} tokens/s, ratio {ratio:.2f}",
            flush=True,
        )


main()
