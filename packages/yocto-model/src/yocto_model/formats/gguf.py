"""GGUF, the file that llama.cpp and its kin run: settings, tokenizer and weights in one.

The package `gguf` writes, and knows quantized types; headers are read by gguf_header.py.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from yocto_model.config import GPTConfig
from yocto_model.errors import ConfigError, InputError, ModelFileError, quoted
from yocto_model.formats.assembly import (
    CHUNK_VALUES,
    Entry,
    assemble,
    check_is_file,
    is_finite,
    read_values,
)
from yocto_model.formats.families import (
    ARCHITECTURE_CLASSES,
    absent_biases,
    family_of,
    stored,
)
from yocto_model.formats.gguf_header import PLAIN, Header, TensorPlace, package
from yocto_model.gpt import GPT

GGUFKind = Literal["f32", "f16", "bf16", "q8_0"]

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}

# Our fields and theirs, which follow the architecture's name.
_FIELDS = {
    "block_size": "context_length", "n_layer": "block_count", "n_head": "attention.head_count",
    "n_embd": "embedding_length", "n_hidden": "feed_forward_length",
}  # fmt: skip
_LLAMA_FIELDS = {
    "n_kv_head": "attention.head_count_kv", "head_dim": "attention.key_length",
    "rotary_base": "rope.freq_base",
}  # fmt: skip
_NORM_EPS = {"gpt2": "attention.layer_norm_epsilon"}  # of all others:
_RMS_EPS = "attention.layer_norm_rms_epsilon"
# The only values of these fields that leave the computation as it is here.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
}


def read_gguf(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[GPT, dict[str, Any]]:
    """Read a GGUF file of a gpt2, llama, qwen2 or qwen3; the model is in evaluation mode.

    Weights are unpacked a few rows at a time, straight to where they belong.

    Args:
        path: the file.
        device: where the weights go.
        dtype: convert the weights; None keeps the smallest type that holds all of them exactly,
            which is float32 for quantized ones.

    Returns:
        The model, and all fields of the file as plain values, the tokenizer's among them.

    Raises:
        ModelFileError: not such a file, damaged, or not a model that this package can compute; or
            the package `gguf` is needed and missing.
        OSError: the file could not be read.
    """
    path = Path(path)
    check_is_file(path)
    with path.open("rb") as file:
        fields, tensors = Header(path, file).read()
        arch = fields.get("general.architecture")
        if not isinstance(arch, str) or arch not in ARCHITECTURE_CLASSES:
            known = ", ".join(ARCHITECTURE_CLASSES)
            raise ModelFileError(
                f"{path} has the architecture {quoted(arch)}; this package supports {known}"
            )
        try:
            config = _config(arch, fields, tensors)
        except (ConfigError, ModelFileError) as error:
            raise ModelFileError(f"{path}: {error}") from error
        # Only llama's heads are stored in another order than ours.
        heads = {"attn_q": config.n_head, "attn_k": config.kv_heads} if arch == "llama" else {}
        entries = {}
        for name, tensor in tensors.items():
            n_heads = heads.get(name.split(".")[-2], 0) if name.startswith("blk.") else 0
            read = functools.partial(_read, file, tensor, n_heads)
            kind = PLAIN.get(tensor.kind, torch.float32)
            entries[name] = Entry(kind, tensor.shape, read)
        form = functools.partial(stored, config, f"gguf {arch}")
        model = assemble(GPT, path, config, entries, form, device=device, dtype=dtype)
    return model, fields


def _config(arch: str, fields: Mapping[str, Any], tensors: Mapping[str, TensorPlace]) -> GPTConfig:
    """What the fields of a file mean; a ModelFileError names those that we do not support."""
    own = {key.removeprefix(f"{arch}."): value for key, value in fields.items()}
    refused = [name for name, fine in _KNOWN.items() if own.get(name, fine[0]) not in fine]
    names = {**_FIELDS, "norm_eps": _NORM_EPS.get(arch, _RMS_EPS)}
    missing = [f"{arch}.{name}" for name in names.values() if name not in own]
    missing += [name for name in ("token_embd.weight",) if name not in tensors]
    if missing:
        raise ModelFileError(f"{', '.join(missing)} is missing")
    settings = {ours: own[theirs] for ours, theirs in names.items()}
    settings |= {"vocab_size": tensors["token_embd.weight"].shape[0]}
    settings |= {"tie_weights": "output.weight" not in tensors}
    if arch == "gpt2":
        config = GPTConfig.from_arch("gpt2", **settings)
    else:
        settings |= {ours: own[theirs] for ours, theirs in _LLAMA_FIELDS.items() if theirs in own}
        config = GPTConfig(
            **settings,
            norm="rmsnorm",
            positions="rotary",
            activation="swiglu",
            bias=arch == "llama" and "blk.0.attn_output.bias" in tensors,
            qkv_bias=arch == "qwen2",
            qk_norm=arch == "qwen3",
        )
    widths = () if arch == "gpt2" else ("rope.dimension_count", "attention.value_length")
    width = config.head_width
    refused += [name for name in widths if own.get(name, width) != width]
    refused = [f"{arch}.{name} {quoted(own[name])}" for name in refused]
    refused += [name for name in tensors if name.startswith("rope_")]  # scaled wave lengths
    if refused:
        raise ModelFileError(f"this package does not support {', '.join(refused)}")
    tokens = fields.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != config.vocab_size:
        raise ModelFileError(
            f"it has {len(tokens)} tokens, but {config.vocab_size} rows of token_embd.weight"
        )
    return config


# --- weights -------------------------------------------------------------------------------------


def _read(file: BufferedReader, tensor: TensorPlace, n_heads: int, target: Tensor) -> None:
    """Copy a tensor of the file; `n_heads` is 0 if its rows are in our order."""
    if tensor.kind in PLAIN:
        read_values(file, tensor.start, PLAIN[tensor.kind], target)
    else:
        _unpack(file, tensor, target)
    if n_heads:
        # The two members of a rotary pair are neighbours there, and half a head apart here.
        pairs = target.view(n_heads, -1, 2, *target.shape[1:])
        target.copy_(pairs.transpose(1, 2).reshape(target.shape))


def _unpack(file: BufferedReader, tensor: TensorPlace, target: Tensor) -> None:
    """The same as `read_values` for a type of several values that share their scale."""
    gguf = package()
    kind, rows = gguf.GGMLQuantizationType(tensor.kind), target.view(-1, tensor.shape[-1])
    row_bytes, step = tensor.n_bytes // len(rows), max(1, CHUNK_VALUES // rows.shape[1])
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        packed = torch.empty(len(part), row_bytes, dtype=torch.uint8)
        read_values(file, tensor.start + first * row_bytes, torch.uint8, packed)
        part.copy_(torch.from_numpy(gguf.quants.dequantize(packed.numpy(), kind)))


def write_gguf(
    path: str | os.PathLike[str],
    model: GPT,
    *,
    kind: GGUFKind,
    fields: Mapping[str, Any],
    name: str,
) -> None:
    """Write a model as a GGUF file, which appears whole or not at all.

    There may be more tokens than the model has rows, such as the 256 bytes for characters it never
    saw. Their rows are the mean of the real ones: whatever the context, such a token's logit is the
    mean of all real logits, which the largest exceeds, and llama.cpp is told to suppress it. Where
    the embedding is not the head too, they are read like the unknown token, if there is one. Rows
    without a token are left out. GGUF has no word for GPT-2's GELU being exact: llama.cpp computes
    the tanh form, which differs by at most 5e-4.

    Args:
        path: the file.
        model: of a family that llama.cpp knows.
        kind: of its matrices; norms and biases stay float32. In q8_0, 32 numbers of a row share a
            scale: a matrix whose rows 32 does not divide is stored as f16.
        fields: the tokenizer's fields and others: texts, numbers, truth values, lists of them.
        name: what the model is called.

    Raises:
        InputError: no architecture of GGUF expresses the model, or `kind` cannot hold its weights.
        ModelFileError: the package `gguf` is missing.
        OSError: the file could not be written.
    """
    gguf, path, config, arch = package(), Path(path), model.config, family_of(model.config)
    if kind not in get_args(GGUFKind):
        raise InputError(f"kind must be one of {', '.join(get_args(GGUFKind))}, not {quoted(kind)}")
    if arch == "yocto" or (arch == "qwen2" and config.n_head * config.head_width != config.n_embd):
        raise InputError("GGUF has no architecture with this model's mixture of parts")
    n_tokens = len(fields.get("tokenizer.ggml.tokens", ())) or config.vocab_size
    padding = list(range(config.vocab_size, n_tokens))
    described = _described(config, arch, kind, n_tokens) | {"general.name": name} | dict(fields)
    if padding:
        described["tokenizer.ggml.suppress_tokens"] = padding
    tensors = list(_tensors(model, arch, n_tokens, fields.get("tokenizer.ggml.unknown_token_id")))
    types = {name: _type_of(name, weight, kind) for name, weight, _ in tensors}
    if kind == "q8_0" and kind not in types.values():
        raise InputError(f"q8_0 needs widths that 32 divides, not n_embd {config.n_embd}; take f16")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(temporary, arch)
    for key, value in described.items():
        writer.add_key_value(key, *_typed(gguf, value))
    for key, weight, _ in tensors:
        type_of = gguf.GGMLQuantizationType[types[key].upper()]
        n_values, n_bytes = gguf.GGML_QUANT_SIZES[type_of]
        size = weight.numel() // n_values * n_bytes
        writer.add_tensor_info(key, weight.shape, np.dtype(np.float32), size, type_of)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, weight, n_heads in tensors:
            writer.write_tensor_data(_packed(gguf, key, weight, n_heads, types[key]))
        writer.flush()
        os.fsync(writer.fout[0].fileno())
        writer.close()
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # what is left in its buffer fails once more
            writer.close()
        temporary.unlink(missing_ok=True)


def _described(config: GPTConfig, arch: str, kind: str, n_tokens: int) -> dict[str, Any]:
    """The fields that say what the model is, without its name and its tokenizer."""
    ours = {**config.to_dict(), "n_hidden": config.hidden}
    own: dict[str, Any] = {theirs: ours[name] for name, theirs in _FIELDS.items()}
    own |= {"vocab_size": n_tokens, "attention.head_count_kv": config.kv_heads}
    own[_NORM_EPS.get(arch, _RMS_EPS)] = float(config.norm_eps)
    if arch != "gpt2":
        own["rope.freq_base"] = float(config.rotary_base)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            own[name] = config.head_width
    described = {f"{arch}.{name}": value for name, value in own.items()}
    return described | {"general.file_type": _FILE_TYPES[kind], "general.quantization_version": 2}


def _tensors(
    model: GPT, arch: str, n_tokens: int, unknown: int | None
) -> Iterator[tuple[str, Tensor, int]]:
    """Each tensor's name, its values, and how many heads have to be reordered in it."""
    config, weights = model.config, model.state_dict()
    absent = absent_biases(config, list(weights)) if arch == "gpt2" else {}
    zeros = {
        bias: weights[weight].new_zeros(len(weights[weight])) for bias, weight in absent.items()
    }
    heads = [config.n_head, config.kv_heads, 0] if arch == "llama" else [0, 0, 0]
    for name, weight in {**weights, **zeros}.items():
        if name == "head.weight" and config.tie_weights:
            continue
        whole = weight.detach()
        if name in ("token_emb.weight", "head.weight"):
            row = whole.float().mean(dim=0).to(whole.dtype)
            is_input = name == "token_emb.weight" and not config.tie_weights
            if is_input and unknown is not None and unknown < len(whole):
                row = whole[unknown]
            more = row.expand(max(0, n_tokens - len(whole)), -1)
            whole = torch.cat((whole[:n_tokens], more))
        form = stored(config, f"gguf {arch}", name, len(whole))
        turned = heads if ".attn.qkv." in name else [0, 0, 0]
        yield from zip(form.names, whole.split_with_sizes(form.rows), turned, strict=False)


def _type_of(name: str, weight: Tensor, kind: str) -> str:
    """How a tensor is stored: as llama.cpp's own programs do it, and as float16 if it must."""
    if weight.dim() == 1 or name == "position_embd.weight":
        return "f32"
    return "f16" if kind == "q8_0" and weight.shape[1] % 32 else kind


def _packed(gguf: Any, name: str, weight: Tensor, n_heads: int, kind: str) -> Any:
    """A weight as an array of the bytes that its type has in the file."""
    weight = weight.detach().float().cpu()
    if n_heads:  # see `_read`
        pairs = weight.view(n_heads, 2, -1, *weight.shape[1:])
        weight = pairs.transpose(1, 2).reshape(weight.shape)
    if kind in ("f16", "bf16"):
        weight = weight.to(torch.float16 if kind == "f16" else torch.bfloat16)
    weight = weight.contiguous()
    if not is_finite(weight):
        raise InputError(f"{name} has values that {kind} cannot hold, or that are not finite")
    if kind == "q8_0":
        return gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    return weight.view(torch.uint8).numpy()


def _typed(gguf: Any, value: Any) -> tuple[Any, Any]:
    """A field's value with its type, as llama.cpp expects it: ids and sizes without a sign."""
    types = gguf.GGUFValueType
    if isinstance(value, bool):
        return value, types.BOOL
    if isinstance(value, int):
        return value, types.UINT32 if 0 <= value < 2**32 else types.INT64
    if isinstance(value, float):
        return value, types.FLOAT32
    if isinstance(value, str):
        return value, types.STRING
    if any(isinstance(number, float) for number in value):
        value = [float(number) for number in value]
    return list(value), types.ARRAY
