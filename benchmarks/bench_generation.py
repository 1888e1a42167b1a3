"""Generation: tokens per second, ours over each peer's, and what each kind of weights costs.

NANOGPT=... uv run nox -s bench -- generation
GENERATION="small large llama limit batch running first exact quality" names the rows to run,
ROUNDS=1 measures once. Peers that are not available are skipped with a line: nanoGPT (NANOGPT names
a checkout), `transformers`, and llama.cpp (LLAMA=1 installs it). All weights are random, which
takes as long as any others, except in the row of quality: it trains a small model first.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import machine, prepared, trainer
from peer import nanogpt
from peer_llama import PRECISIONS, llama, llama_call
from torch import Tensor
from yocto_data import TokenDataset
from yocto_model import (
    GPT,
    INFERENCE_KINDS,
    GPTConfig,
    InferenceGPT,
    RunningBatch,
    SamplingOptions,
    TextGenerator,
    inference_copy,
)
from yocto_model.cache import Reader
from yocto_model.generate import stream
from yocto_train import evaluate

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SMALL = GPTConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384)
LARGE = GPTConfig()  # GPT-2 small: 124M
SPEAKING = GPTConfig(  # the shape of SmolLM2-135M
    vocab_size=49_152, block_size=2_048, n_layer=30, n_head=9, n_kv_head=3, n_embd=576,
    n_hidden=1_536, norm="rmsnorm", positions="rotary", activation="swiglu", bias=False,
)  # fmt: skip
KINDS = ("auto", "float32", "bfloat16", "int8", "int4")
DRAW: dict[str, Any] = {"temperature": 0.8, "seed": 1}
SAMPLE_TOKENS = 500  # what nanoGPT's sample.py draws, twice its window


def in_turns(candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each; in turns, so that all see the same machine, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS + 1):
        for name, call in candidates.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(s[1:] if ROUNDS > 1 else s) for name, s in seconds.items()}


def report(what: str, figures: str, ratio: float, least: float, aim: float | None = None) -> None:
    """One line of the table."""
    target = f"at least {least:g}" + ("" if aim is None else f", aim {aim:g}")
    verdict = "NOT met" if ratio < least else "met" if aim is None or ratio < aim else "aim met"
    print(f"{what}: {figures}, ratio {ratio:.2f}, {target}: {verdict}", flush=True)


def random_model(config: GPTConfig) -> GPT:
    return GPT(config, generator=torch.Generator().manual_seed(0)).eval()


def copies(config: GPTConfig, kinds: tuple[str, ...]) -> dict[str, InferenceGPT]:
    """Inference copies by kind, without those that this machine does not run; says why."""
    model = random_model(config)
    found = {}
    for kind in kinds:
        copy = inference_copy(model, kind)
        if kind != copy.kind:
            print(f"weights  {kind}: {copy.kind}, {copy.reason}")
        if kind in ("auto", copy.kind):
            found[kind] = copy
    return found


def prompt_of(config: GPTConfig, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))


def hugging_face(config: GPTConfig) -> Any:
    """GPT-2 of this shape as `transformers` has it, or None with a line."""
    try:
        import transformers
    except ImportError:
        print("peer     Hugging Face skipped: `transformers` is not installed")
        return None
    transformers.logging.set_verbosity_error()
    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(shape).eval()


def hugging_face_call(peer: Any, ids: Tensor, n: int) -> Callable[[], object]:
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def call() -> None:
        out = peer.generate(
            ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=True,
            temperature=0.8, top_k=0, use_cache=True, pad_token_id=0,
        )  # fmt: skip
        assert out.shape[1] == ids.shape[1] + n

    return call


def against(  # noqa: PLR0917 - a row of the table, in its order
    what: str, ours: Mapping[str, Callable[[], object]], peer: Callable[[], object], name: str,
    n: int, least: float, aim: float,
) -> None:  # fmt: skip
    """Rows of all our kinds against one peer; `n` tokens are made by each call."""
    seconds = in_turns({**ours, name: peer})
    for kind in ours:
        figures = f"yocto {n / seconds[kind]:,.0f} tok/s, {name} {n / seconds[name]:,.0f} tok/s"
        report(f"{what}, {kind}", figures, seconds[name] / seconds[kind], least, aim)


# --- the rows --------------------------------------------------------------------------------


def small() -> None:
    ours = copies(SMALL, KINDS)
    print(f"weights  10.65M: auto takes {ours['auto'].kind}: {ours['auto'].reason}")
    module = nanogpt()
    if module is not None:
        shape = {
            "block_size": 256, "vocab_size": 65, "n_layer": 6, "n_head": 6, "n_embd": 384,
            "dropout": 0.0, "bias": False,
        }  # fmt: skip
        peer, start = module.GPT(module.GPTConfig(**shape)).eval(), torch.zeros(1, 1).long()
        against(
            f"10.65M, {SAMPLE_TOKENS} tokens, beyond the window",
            {
                kind: lambda copy=copy: copy.generate(start, SAMPLE_TOKENS, **DRAW)
                for kind, copy in ours.items()
            },
            lambda: peer.generate(start, SAMPLE_TOKENS, temperature=0.8, top_k=None),
            "nanoGPT", SAMPLE_TOKENS, 15, 25,
        )  # fmt: skip
    with_hugging_face("10.65M", SMALL, ours, prompt_of(SMALL, 16), 240, 3, 6)


def large() -> None:
    ours = copies(LARGE, KINDS)
    print(f"weights  124M: auto takes {ours['auto'].kind}: {ours['auto'].reason}")
    with_hugging_face("124M", LARGE, ours, prompt_of(LARGE, 64), 32, 2, 4)


def with_hugging_face(  # noqa: PLR0917 - a row of the table, in its order
    what: str, config: GPTConfig, ours: Mapping[str, InferenceGPT], ids: Tensor, n: int,
    least: float, aim: float,
) -> None:  # fmt: skip
    peer = hugging_face(config)
    if peer is not None:
        against(
            f"{what}, {n} tokens after {ids.shape[1]}",
            {
                kind: lambda copy=copy: copy.generate(ids, n, **DRAW)
                for kind, copy in ours.items()
            },
            hugging_face_call(peer, ids, n), "Hugging Face", n, least, aim,
        )  # fmt: skip


def against_llama() -> None:
    for what, config, n, length in (
        ("10.65M", SMALL, 200, 16),
        ("124M", LARGE, 32, 16),
        ("135M", SPEAKING, 64, 16),
        ("135M", SPEAKING, 1, 1_000),
    ):
        ids = prompt_of(config, length)
        for kind in PRECISIONS:
            peer = llama(random_model(config), kind)
            copy = inference_copy(random_model(config), kind)  # type: ignore[arg-type]
            if peer is not None and copy.kind == kind:
                ours = {kind: functools.partial(copy.generate, ids, n, **DRAW)}
                call = llama_call(peer, ids, n)
                name = f"{what}, {n} tokens after {length}"
                against(name, ours, call, "llama.cpp", n, 1.0, 1.5)


def decoding(copy: InferenceGPT, n: int) -> Callable[[], object]:
    """A call that makes n tokens after the first, of which the prompt's reading is not a part."""
    options = SamplingOptions(temperature=0.8)

    def call() -> None:
        generators = [torch.Generator()]
        for _ in stream(Reader(copy), [[1]], n, options=options, generators=generators):
            pass

    return call


def limit() -> None:
    n, memory = 32, torch.ones(100_000_000)  # too large for any cache
    ours = copies(LARGE, tuple(kind for kind in INFERENCE_KINDS if kind != "auto"))
    calls: dict[str, Callable[[], object]] = {k: decoding(copy, n) for k, copy in ours.items()}
    seconds = in_turns({**calls, "memory": memory.sum})
    rate = memory.nbytes / seconds["memory"]
    for kind, copy in ours.items():
        size, took = copy.bytes_per_token, seconds[kind] / n
        figures = (
            f"{took * 1e3:.2f} ms/token for {size / 1e6:.0f} MB, {size / took / 1e9:.1f} of "
            f"{rate / 1e9:.1f} GB/s"
        )
        report(
            f"124M, share of the memory read rate, {kind}", figures, size / took / rate, 0.5, 0.8
        )


def batch() -> None:
    n, prompts = 100, [[row + 1] * 16 for row in range(16)]
    for kind, copy in copies(SMALL, KINDS).items():
        calls = {
            "one": functools.partial(copy.generate, prompts[:1], n, **DRAW),
            "all": functools.partial(copy.generate, prompts, n, **DRAW),
        }
        seconds, rows = in_turns(calls), len(prompts)
        figures = (
            f"{rows * n / seconds['all']:,.0f} tok/s together, {n / seconds['one']:,.0f} tok/s "
            f"alone ({copy.kind})"
        )
        ratio = rows * seconds["one"] / seconds["all"]
        report(f"10.65M, {rows} prompts at once, {kind}", figures, ratio, 6, 10)


class Letters:
    """The least of a tokenizer."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [0] * len(text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"a" * len(ids)


def running() -> None:
    options, rows, n = SamplingOptions(temperature=0.8), 16, 50
    for config in (SMALL, LARGE):
        for kind, copy in copies(config, KINDS).items():
            tokenizer = Letters(config.vocab_size)

            def alone(copy: GPT = copy, tokenizer: Letters = tokenizer) -> None:
                TextGenerator(copy, tokenizer).generate([1] * 16, n, options=options, seed=1)

            def together(copy: GPT = copy, tokenizer: Letters = tokenizer) -> None:
                batch = RunningBatch(copy, tokenizer, max_rows=rows)
                for row in range(rows):  # no beginning is shared
                    batch.add([row + 1] * 16, n, options=options, seed=row)
                while not batch.idle:
                    batch.step()

            seconds = in_turns({"alone": alone, "together": together})
            figures = (
                f"{rows * n / seconds['together']:,.0f} tok/s together, "
                f"{n / seconds['alone']:,.0f} tok/s alone ({copy.kind})"
            )
            ratio = rows * seconds["alone"] / seconds["together"]
            report(f"{config_size(copy)}, {rows} texts running, {kind}", figures, ratio, 4, 8)


def first() -> None:
    ids, peer = prompt_of(LARGE, 1_000), hugging_face(LARGE)
    ours = copies(LARGE, KINDS)
    calls = {kind: lambda copy=copy: copy.generate(ids, 1, **DRAW) for kind, copy in ours.items()}
    if peer is None:
        return
    seconds = in_turns({**calls, "peer": hugging_face_call(peer, ids, 1)})
    for kind in calls:
        figures = f"yocto {seconds[kind] * 1e3:.0f} ms, Hugging Face {seconds['peer'] * 1e3:.0f} ms"
        ratio = seconds["peer"] / seconds[kind]
        report(f"124M, first token after 1,000, {kind}", figures, ratio, 1)


def exact() -> None:
    for arch in ("gpt2", "modern"):
        config = GPTConfig.from_arch(
            arch, vocab_size=65, block_size=64, n_layer=3, n_head=4, n_embd=64, zero_init=False
        )
        model = random_model(config).double()
        texts = [
            model.generate([[1], [2, 3]], 200, seed=5, use_cache=on).tolist()
            for on in (True, False)
        ]
        assert texts[0] == texts[1]
    print("text with the cache and without, float64, 200 tokens, window 64: identical", flush=True)


def quality() -> None:
    data_dir = prepared()
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128}
    steps = {"max_iters": 300, "batch_size": 16, "optimizer": "muon", "lr": 0.01, "muon_lr": 0.03,
             "eval_interval": 10_000, "log_interval": 10_000}  # fmt: skip
    run = trainer(data_dir, shape, steps, "modern")
    for _ in run.run():
        pass
    model, val = run.model.eval(), TokenDataset(data_dir / "val.bin", 128)
    prompts = [val[start][0][:32].tolist() for start in range(0, 16 * 500, 500)]
    expected = model.generate(prompts, 96, temperature=0)
    loss = evaluate(model, val).loss
    print(f"quality  {config_size(model)} trained for 300 steps: loss {loss:.5f} as trained")
    for kind, copy in ((k, inference_copy(model, k)) for k in INFERENCE_KINDS if k != "auto"):
        lossy = evaluate(copy, val).loss
        # Texts part for good at the first token that differs, so count up to there.
        same = copy.generate(prompts, 96, temperature=0).eq(expected)[:, 32:]
        before = same.long().cumprod(dim=1).sum(dim=1).double().mean()
        print(
            f"quality  {kind} (as {copy.kind}): loss {lossy:.5f}, {lossy - loss:+.5f}; of 16 "
            f"greedy texts of 96 tokens {int(same.all(dim=1).sum())} the same, equal for "
            f"{before:.0f} tokens on average",
            flush=True,
        )


def config_size(model: GPT) -> str:
    return f"{model.config.n_parameters / 1e6:.2f}M"


ROWS: dict[str, Callable[[], None]] = {
    row.__name__: row for row in (small, large, limit, batch, running, first, exact, quality)
} | {"llama": against_llama}


def main() -> None:
    machine()
    for name in os.environ.get("GENERATION", " ".join(ROWS)).split():
        ROWS[name]()


if __name__ == "__main__":
    main()
