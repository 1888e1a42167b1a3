"""llama.cpp as a peer: a GPT-2 of ours in a GGUF file, run by llama-cpp-python.

`LLAMA=1 uv run nox -s bench -- generation` installs what it needs; that compiles for some minutes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yocto_model import GPT

PRECISIONS = {"float32": np.float32, "float16": np.float16}


def llama(model: GPT, precision: str) -> Any:
    """The model in llama.cpp with two threads, or None with a line; equal logits are checked."""
    try:
        import llama_cpp
    except ImportError:
        print("peer     llama.cpp skipped: set LLAMA=1 to have llama-cpp-python installed")
        return None
    path = Path(tempfile.mkdtemp()) / f"{precision}.gguf"
    write_gguf(model, path, PRECISIONS[precision])
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
    assert float((theirs - ours).norm() / ours.norm()) < 0.01, "not the same model"
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


def write_gguf(model: GPT, path: Path, dtype: type) -> None:
    """The weights under llama.cpp's names; matrices as `dtype`, the rest as float32."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")  # it loads no model without a vocabulary
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"token{number}" for number in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["t o"])

    def add(name: str, weight: Tensor) -> None:
        kind = dtype if weight.dim() == 2 and name != "position_embd.weight" else np.float32
        writer.add_tensor(name, weight.detach().float().numpy().astype(kind))

    add("token_embd.weight", model.token_emb.weight)
    assert model.pos_emb is not None
    add("position_embd.weight", model.pos_emb.weight)
    names = {
        "attn_norm": "ln_1", "attn_qkv": "attn.qkv", "attn_output": "attn.proj", "ffn_norm": "ln_2",
        "ffn_up": "mlp.up", "ffn_down": "mlp.proj",
    }  # fmt: skip
    modules = {f"blk.{layer}.{name}": f"blocks.{layer}.{ours}"
               for layer in range(config.n_layer) for name, ours in names.items()}  # fmt: skip
    for name, ours in {**modules, "output_norm": "ln_f"}.items():
        for part in ("weight", "bias"):
            add(f"{name}.{part}", model.get_parameter(f"{ours}.{part}"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
