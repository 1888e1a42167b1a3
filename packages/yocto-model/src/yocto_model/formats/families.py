"""Others' names for our settings and weights: Hugging Face's gpt2, llama, qwen2, qwen3, and GGUF's.

A config that none of them expresses, such as rotary positions with LayerNorm, is written as
model_type "yocto": settings and weights under our own names, for this package only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yocto_model.config import GPTConfig
from yocto_model.errors import ModelFileError, quoted

Document = Mapping[str, Any]

ARCHITECTURE_CLASSES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip
# What the modules outside and inside block {n} are called. Names under "transformer." and "model."
# also occur without that prefix, in files of a model saved without its head.
_GPT2_NAMES = {
    "token_emb": ["transformer.wte"],
    "pos_emb": ["transformer.wpe"],
    "ln_f": ["transformer.ln_f"],
    "head": ["lm_head"],
    "ln_1": ["transformer.h.{n}.ln_1"],
    "attn.qkv": ["transformer.h.{n}.attn.c_attn"],
    "attn.proj": ["transformer.h.{n}.attn.c_proj"],
    "ln_2": ["transformer.h.{n}.ln_2"],
    "mlp.up": ["transformer.h.{n}.mlp.c_fc"],
    "mlp.proj": ["transformer.h.{n}.mlp.c_proj"],
}
_LLAMA_NAMES = {
    "token_emb": ["model.embed_tokens"],
    "ln_f": ["model.norm"],
    "head": ["lm_head"],
    "ln_1": ["model.layers.{n}.input_layernorm"],
    "attn.qkv": [f"model.layers.{{n}}.self_attn.{part}_proj" for part in "qkv"],
    "attn.q_norm": ["model.layers.{n}.self_attn.q_norm"],
    "attn.k_norm": ["model.layers.{n}.self_attn.k_norm"],
    "attn.proj": ["model.layers.{n}.self_attn.o_proj"],
    "ln_2": ["model.layers.{n}.post_attention_layernorm"],
    "mlp.up": [f"model.layers.{{n}}.mlp.{part}_proj" for part in ("gate", "up")],
    "mlp.proj": ["model.layers.{n}.mlp.down_proj"],
}
# In GGUF files the families share their names, but for gpt2's fused parts.
_GGUF_NAMES = {
    "token_emb": ["token_embd"],
    "pos_emb": ["position_embd"],
    "ln_f": ["output_norm"],
    "head": ["output"],
    "ln_1": ["blk.{n}.attn_norm"],
    "attn.qkv": [f"blk.{{n}}.attn_{part}" for part in "qkv"],
    "attn.q_norm": ["blk.{n}.attn_q_norm"],
    "attn.k_norm": ["blk.{n}.attn_k_norm"],
    "attn.proj": ["blk.{n}.attn_output"],
    "ln_2": ["blk.{n}.ffn_norm"],
    "mlp.up": [f"blk.{{n}}.ffn_{part}" for part in ("gate", "up")],
    "mlp.proj": ["blk.{n}.ffn_down"],
}
_GGUF_GPT2_NAMES = _GGUF_NAMES | {
    "attn.qkv": ["blk.{n}.attn_qkv"],
    "mlp.up": ["blk.{n}.ffn_up"],
}
_NAMES = {
    "gpt2": _GPT2_NAMES, "nanogpt": _GPT2_NAMES, "gguf gpt2": _GGUF_GPT2_NAMES,
    "llama": _LLAMA_NAMES, "qwen2": _LLAMA_NAMES, "qwen3": _LLAMA_NAMES,
    "gguf llama": _GGUF_NAMES, "gguf qwen2": _GGUF_NAMES, "gguf qwen3": _GGUF_NAMES,
}  # fmt: skip
# Tables that old programs stored with the weights.
COMPUTED = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
PREFIXES = {"gpt2": "transformer.", "yocto": ""}  # of all others: "model."

# Our fields and theirs, which have to be in config.json unless there is a default.
_GPT2_FIELDS = {
    "vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer",
    "n_head": "n_head", "n_embd": "n_embd", "n_hidden": "n_inner",
    "norm_eps": "layer_norm_epsilon", "tie_weights": "tie_word_embeddings",
}  # fmt: skip
_LLAMA_FIELDS = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads", "head_dim": "head_dim", "n_embd": "hidden_size",
    "n_hidden": "intermediate_size", "norm_eps": "rms_norm_eps", "rotary_base": "rope_theta",
    "tie_weights": "tie_word_embeddings",
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "llama": {
        "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "tie_word_embeddings": False,
    },
}  # fmt: skip
_DEFAULTS["qwen2"] = _DEFAULTS["llama"]
_DEFAULTS["qwen3"] = {**_DEFAULTS["llama"], "head_dim": 128}
# The only values of these fields that leave the computation as it is here.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu"),
    "activation_function": (None, "gelu_new", "gelu_pytorch_tanh", "gelu"),
    "partial_rotary_factor": (None, 1),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "add_cross_attention": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
}
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def family_of(config: GPTConfig) -> str:
    """The model_type that computes exactly what a config says."""
    parts = (config.norm, config.positions, config.activation)
    if parts == ("rmsnorm", "rotary", "swiglu"):
        if config.qk_norm:
            return "yocto" if config.bias or config.qkv_bias else "qwen3"
        return "qwen2" if config.qkv_bias and not config.bias else "llama"
    is_gpt2 = (
        parts[:2] == ("layernorm", "learned")
        and config.activation != "swiglu"
        and not config.qk_norm
        and config.kv_heads == config.n_head
        and config.head_width * config.n_head == config.n_embd
    )
    return "gpt2" if is_gpt2 else "yocto"


# --- settings ------------------------------------------------------------------------------------


def to_document(config: GPTConfig) -> dict[str, Any]:
    """The content of config.json; all our own fields are under "yocto" as well."""
    family, ours = family_of(config), {"yocto": config.to_dict()}
    if family == "yocto":
        return {"model_type": family, **ours}
    fields, resolved = _GPT2_FIELDS if family == "gpt2" else _LLAMA_FIELDS, _resolved(config)
    document = {
        "model_type": family,
        "architectures": [ARCHITECTURE_CLASSES[family]],
        **{theirs: resolved[name] for name, theirs in fields.items()},
        # Which ids begin and end a text is the tokenizer's business; gpt2's default is 50,256.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    dropout, attn_dropout = float(config.dropout), float(config.attention_dropout)
    if family == "gpt2":
        document["activation_function"] = "gelu" if config.activation == "gelu" else "gelu_new"
        document |= {"embd_pdrop": dropout, "resid_pdrop": dropout, "attn_pdrop": attn_dropout}
    else:
        # Before transformers 5, rope_theta was beside the other fields; now it is in here.
        rope = {"rope_type": "default", "rope_theta": document["rope_theta"]}
        document |= {"hidden_act": "silu", "attention_bias": config.bias, "mlp_bias": config.bias}
        document |= {"attention_dropout": attn_dropout, "rope_parameters": rope}
    return document | ours


def _resolved(config: GPTConfig) -> dict[str, Any]:
    """All fields, with what None stands for."""
    return {
        **config.to_dict(),
        "n_kv_head": config.kv_heads,
        "head_dim": config.head_width,
        "n_hidden": config.hidden,
        "qkv_bias": config.qkv_bias and not config.bias,
        "norm_eps": float(config.norm_eps),
        "rotary_base": float(config.rotary_base),
    }


def from_document(document: Document) -> GPTConfig:
    """The config that a config.json describes.

    Raises:
        ModelFileError: it needs something that this package lacks; the message names the field.
        ConfigError: a value is out of range.
    """
    family, ours = document.get("model_type"), document.get("yocto")
    if ours is not None and not isinstance(ours, dict):
        raise ModelFileError(f"'yocto' must hold the model's settings, not {quoted(ours)}")
    if family == "yocto":
        return GPTConfig.from_dict(ours or {})
    if not isinstance(family, str) or family not in ARCHITECTURE_CLASSES:
        known = ", ".join(ARCHITECTURE_CLASSES)
        raise ModelFileError(f"model_type is {quoted(family)}; this package supports {known}")
    fields = _fields(document, family)
    if ours is None:
        return GPTConfig.from_dict(fields)
    # Ours say more, such as dropout. But another program may have changed what both say.
    config = GPTConfig.from_dict(ours)
    resolved = _resolved(config)
    return config if {**resolved, **fields} == resolved else config.replace(**fields)


def _fields(document: Document, family: str) -> dict[str, Any]:
    """Our fields, as far as theirs determine them."""
    rope = document.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ModelFileError(f"rope_parameters must be an object, not {quoted(rope)}")
    theirs = {**_DEFAULTS[family], **document}
    theirs["rope_theta"] = rope.get("rope_theta", theirs.get("rope_theta"))
    _refuse_unknown_parts(document, rope, family)
    names = _GPT2_FIELDS if family == "gpt2" else _LLAMA_FIELDS
    missing = [name for name in names.values() if name not in theirs]
    if missing:
        raise ModelFileError(f"{', '.join(missing)} is missing")
    fields = {ours: theirs[name] for ours, name in names.items()}
    if family == "gpt2":
        activation = _ACTIVATIONS[theirs.get("activation_function", "gelu_new")]
        return {**fields, "norm": "layernorm", "positions": "learned", "activation": activation}
    return {
        **fields,
        "norm": "rmsnorm",
        "positions": "rotary",
        "activation": "swiglu",
        "bias": theirs.get("attention_bias", False) if family == "llama" else False,
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
    }


def _refuse_unknown_parts(document: Document, rope: Document, family: str) -> None:
    """Name each field that asks for a computation that we do not support."""
    if (quantization := document.get("quantization_config")) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        named = f" ({quoted(method)[1:-1]})" if isinstance(method, str) else ""
        raise ModelFileError(
            f"its weights are quantized{named}; use the model without quantization"
        )
    refused = {name: document.get(name) for name in _KNOWN}
    refused = {name: value for name, value in refused.items() if value not in _KNOWN[name]}
    window = "sliding_window" if document.get("sliding_window") else "use_sliding_window"
    if document.get("use_sliding_window", window == "sliding_window"):
        refused[window] = document[window]
    if any(kind != "full_attention" for kind in document.get("layer_types") or []):
        refused["layer_types"] = document["layer_types"]
    scaling = document.get("rope_scaling") or {}
    old_rope = scaling if isinstance(scaling, dict) else {"type": scaling}
    for place, fields in (("rope_parameters", rope), ("rope_scaling", old_rope)):
        for name in ("rope_type", "type", "partial_rotary_factor"):
            if fields.get(name) not in (None, "default", 1):
                refused[f"{place}.{name}"] = fields[name]
    # qwen2 has no such field, qwen3 no biases in its MLP, llama one field for each of the two.
    bias, mlp_bias = document.get("attention_bias", False), document.get("mlp_bias", False)
    if (family == "qwen3" and bias) or (family == "llama" and bias != mlp_bias):
        refused |= {"attention_bias": bias, "mlp_bias": mlp_bias}
    if refused:
        shown = ", ".join(f"{name} {quoted(value)}" for name, value in refused.items())
        raise ModelFileError(f"this package does not support {shown}")


# --- weights -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """How one of our weights is stored in a file.

    Attributes:
        names: the tensors it is made of, one below the other.
        rows: how many of its rows each of them has.
        transposed: whether the file has (in, out), as gpt2's Conv1D, instead of (out, in).
    """

    names: list[str]
    rows: list[int]
    transposed: bool


def stored(config: GPTConfig, family: str, name: str, n_rows: int) -> Stored:
    """How a family's file holds our weight `name`, which has `n_rows` rows.

    Beside the families of Hugging Face, there are "nanogpt", and "gguf gpt2" and so on.
    """
    if family == "yocto":
        return Stored([name], [n_rows], False)
    module, _, kind = name.rpartition(".")  # kind: weight or bias
    layer = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
    names = [f"{theirs.format(n=layer)}.{kind}" for theirs in _NAMES[family][module]]
    rows = [n_rows // len(names)] * len(names)
    if len(names) == 3:
        rows = [heads * config.head_width for heads in (config.n_head, *[config.kv_heads] * 2)]
    is_matrix = module in ("attn.qkv", "attn.proj", "mlp.up", "mlp.proj") and kind == "weight"
    return Stored(names, rows, transposed=family == "gpt2" and is_matrix)


def absent_biases(config: GPTConfig, names: list[str]) -> dict[str, str]:
    """The biases that a gpt2's file must have and this model lacks: each with its weight.

    gpt2 always has biases, so those of a model without any are written as zeros.
    """
    if config.bias:
        return {}
    weights = [name for name in names if name.startswith(("blocks.", "ln_f."))]
    pairs = {name.removesuffix("weight") + "bias": name for name in weights}
    return {bias: weight for bias, weight in pairs.items() if bias not in names}
