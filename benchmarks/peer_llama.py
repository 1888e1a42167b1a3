"""llama.cpp as a peer: a model of ours in a GGUF file, run by llama-cpp-python.

`LLAMA=1 uv run nox -s bench -- generation` installs what it needs; that compiles for some minutes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yocto_model import GPT, write_gguf

PRECISIONS: dict[str, Any] = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int8": "q8_0",
}


def llama(model: GPT, precision: str) -> Any:
    """The model in llama.cpp with two threads, or None with a line; equal logits are checked."""
    try:
        import llama_cpp
    except ImportError:
        print("peer     llama.cpp skipped: set LLAMA=1 to have llama-cpp-python installed")
        return None
    path = Path(tempfile.mkdtemp()) / f"{precision}.gguf"
    names = [f"token{number}" for number in range(model.config.vocab_size)]
    fields = {  # it loads no model without a vocabulary
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": [1] * len(names),
        "tokenizer.ggml.merges": ["t o"],
    }  # fmt: skip
    write_gguf(path, model, kind=PRECISIONS[precision], fields=fields, name="random")
    threads = torch.get_num_threads()
    peer = llama_cpp.Llama(
        str(path), n_ctx=model.config.block_size, n_threads=threads, n_threads_batch=threads,
        n_gpu_layers=0, verbose=False,
    )  # fmt: skip
    path.unlink()
    ids = torch.arange(1, 17)
    peer.eval(ids.tolist())
    pointer = llama_cpp.llama_get_logits_ith(peer.ctx, -1)
    theirs = torch.tensor(np.ctypeslib.as_array(pointer, (model.config.vocab_size,)))
    ours = model(ids[None])[0, -1].detach()
    assert float((theirs - ours).norm() / ours.norm()) < 0.05, "not the same model"
    return peer


def llama_call(peer: Any, ids: Tensor, n: int) -> Callable[[], object]:
    """A call that reads the prompt (1, T) and draws n tokens, as llama.cpp's own sampler does."""

    def call() -> None:
        peer.reset()
        peer.eval(ids[0].tolist())
        for _ in range(n):
            token = peer.sample(top_k=0, top_p=1.0, min_p=0.0, temp=0.8, repeat_penalty=1.0)
            peer.eval([token])

    return call
