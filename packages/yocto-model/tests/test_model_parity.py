"""The same weights in Hugging Face's models give the same logits. Nothing is downloaded."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT, GPTConfig, KVCache

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about its own dependencies
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
BOOLEANS = st.booleans()


@st.composite
def gpt2_configs(draw: st.DrawFn) -> GPTConfig:
    n_head = draw(st.integers(1, 3))
    return GPTConfig(
        vocab_size=draw(st.integers(2, 30)),
        block_size=draw(st.integers(1, 12)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * draw(st.sampled_from([2, 5, 8])),
        n_hidden=draw(st.sampled_from([None, 7])),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh"])),
        norm_eps=draw(st.sampled_from([1e-5, 1e-2])),
        bias=draw(BOOLEANS),
        tie_weights=draw(BOOLEANS),
    )


@st.composite
def modern_configs(draw: st.DrawFn) -> GPTConfig:
    n_head = draw(st.sampled_from([1, 2, 4, 6]))
    return GPTConfig.from_arch(
        "modern",
        vocab_size=draw(st.integers(2, 30)),
        block_size=draw(st.integers(1, 12)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_kv_head=draw(st.sampled_from([k for k in range(1, n_head + 1) if n_head % k == 0])),
        n_embd=n_head * draw(st.sampled_from([2, 4, 8])),
        n_hidden=draw(st.sampled_from([None, 7])),
        norm_eps=draw(st.sampled_from([1e-6, 1e-2])),
        rotary_base=draw(st.sampled_from([10_000.0, 50.0])),
        tie_weights=draw(BOOLEANS),
    )


GPT2 = GPTConfig(vocab_size=30, block_size=12, n_layer=3, n_head=3, n_embd=24)
GROUPED = GPTConfig.from_arch(
    "modern", vocab_size=30, block_size=12, n_layer=3, n_head=6, n_kv_head=2, n_embd=48
)


# --- GPT-2 -----------------------------------------------------------------------------------


def gpt2_twin(config: GPTConfig) -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.hidden,
            activation_function="gelu" if config.activation == "gelu" else "gelu_new",
            layer_norm_epsilon=config.norm_eps,
            tie_word_embeddings=config.tie_weights,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


def gpt2_names(config: GPTConfig) -> list[tuple[str, str, bool]]:
    """(our name, its name, transposed): GPT-2 stores the matrices of its blocks input by output."""
    names = [("token_emb.weight", "transformer.wte.weight", False)]
    names += [("pos_emb.weight", "transformer.wpe.weight", False)]
    names += [("head.weight", "lm_head.weight", False)]
    parts = {"attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "mlp.up": "mlp.c_fc"}
    parts |= {"mlp.proj": "mlp.c_proj", "ln_1": "ln_1", "ln_2": "ln_2"}
    for layer in range(config.n_layer):
        for part, its in parts.items():
            ours, theirs = f"blocks.{layer}.{part}", f"transformer.h.{layer}.{its}"
            names += [(f"{ours}.weight", f"{theirs}.weight", not part.startswith("ln_"))]
            names += [(f"{ours}.bias", f"{theirs}.bias", False)]
    return [*names, *[(f"ln_f.{x}", f"transformer.ln_f.{x}", False) for x in ("weight", "bias")]]


def to_gpt2(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    out = {}
    for ours, theirs, transposed in gpt2_names(config):
        if ours in weights:
            out[theirs] = weights[ours].T if transposed else weights[ours]
        else:  # GPT-2 always has biases; a model without has zeros
            out[theirs] = torch.zeros(len(weights[ours.replace(".bias", ".weight")]))
    return out


def from_gpt2(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    return {
        ours: weights[theirs].T if transposed else weights[theirs]
        for ours, theirs, transposed in gpt2_names(config)
        if config.bias or not ours.endswith(".bias")
    }


# --- Qwen3 -----------------------------------------------------------------------------------


def qwen3_twin(config: GPTConfig) -> Any:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.block_size,
            hidden_size=config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.hidden,
            hidden_act="silu",
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rotary_base,
            attention_bias=config.bias,
            tie_word_embeddings=config.tie_weights,
            pad_token_id=None,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


def qwen3_names(config: GPTConfig) -> dict[str, list[str]]:
    """Our name to its names, which are stacked in ours, by rows."""
    names = {
        "token_emb.weight": ["model.embed_tokens.weight"],
        "ln_f.weight": ["model.norm.weight"],
        "head.weight": ["lm_head.weight"],
    }
    parts = {
        "ln_1": ["input_layernorm"],
        "ln_2": ["post_attention_layernorm"],
        "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attn.q_norm": ["self_attn.q_norm"],
        "attn.k_norm": ["self_attn.k_norm"],
        "attn.proj": ["self_attn.o_proj"],
        "mlp.up": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.proj": ["mlp.down_proj"],
    }
    for layer in range(config.n_layer):
        for ours, theirs in parts.items():
            full = [f"model.layers.{layer}.{part}.weight" for part in theirs]
            names[f"blocks.{layer}.{ours}.weight"] = full
    return names


def to_qwen3(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    query, pair = config.n_head * config.head_dim, config.kv_heads * config.head_dim
    for ours, theirs in qwen3_names(config).items():
        sizes = {3: [query, pair, pair], 2: [config.hidden] * 2}.get(len(theirs))
        parts = torch.split(weights[ours], sizes) if sizes else [weights[ours]]
        out |= dict(zip(theirs, parts, strict=True))
    return out


def from_qwen3(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    return {
        ours: torch.cat([weights[part] for part in theirs])
        for ours, theirs in qwen3_names(config).items()
    }


# --- the comparison --------------------------------------------------------------------------


def compare(model: GPT, twin: Any, weights: dict[str, Tensor], seed: int) -> None:
    """Full logits, and logits read through our cache in two parts, against the twin's."""
    twin.load_state_dict(weights)  # strict: no name is missing, none is left over
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (2, config.block_size), generator=generator)
    with torch.no_grad():
        expected = twin(ids).logits
        close(expected, model(ids))
        cache, cut = KVCache(config, 2), config.block_size // 2
        parts = [model(part, cache=cache) for part in (ids[:, :cut], ids[:, cut:]) if part.numel()]
        close(expected, torch.cat(parts, dim=1))


def close(expected: Tensor, got: Tensor) -> None:
    assert expected.shape == got.shape
    assert float((expected - got).abs().max()) <= 1e-4


def small(make_model: MakeModel, config: GPTConfig, seed: int) -> GPT:
    """Random float32 weights of a trained model's size, so that 1e-4 is a strict measure."""
    model = make_model(config, seed).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(0.4)
    return model


@pytest.mark.property
@given(config=gpt2_configs(), seed=SEEDS)
@example(config=GPT2, seed=0)
@example(config=GPT2.replace(bias=False, activation="gelu", tie_weights=False), seed=0)
def test_gpt2_is_hugging_faces_gpt2(make_model: MakeModel, config: GPTConfig, seed: int) -> None:
    """`gpt2` and `GPT2LMHeadModel`, with the same random weights, agree to 1e-4 in float32."""
    model = small(make_model, config, seed)
    compare(model, gpt2_twin(config), to_gpt2(model.state_dict(), config), seed)


@pytest.mark.property
@given(config=modern_configs(), seed=SEEDS)
@example(config=GROUPED, seed=0)
@example(config=GROUPED.replace(n_kv_head=6, tie_weights=True), seed=0)
def test_modern_is_hugging_faces_qwen3(make_model: MakeModel, config: GPTConfig, seed: int) -> None:
    """`modern`, grouped heads too, and `Qwen3ForCausalLM` agree to 1e-4 in float32."""
    model = small(make_model, config, seed)
    compare(model, qwen3_twin(config), to_qwen3(model.state_dict(), config), seed)


@pytest.mark.property
@given(gpt2=gpt2_configs(), modern=modern_configs(), seed=SEEDS)
def test_conversion_and_back_changes_no_bit(
    make_model: MakeModel, gpt2: GPTConfig, modern: GPTConfig, seed: int
) -> None:
    """M11: to Hugging Face's names and back is the same state dict."""
    for config, there, back in ((gpt2, to_gpt2, from_gpt2), (modern, to_qwen3, from_qwen3)):
        weights = make_model(config, seed).state_dict()
        again = back(there(weights, config), config)
        assert weights.keys() == again.keys()
        assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_our_greedy_text_is_theirs(make_model: MakeModel) -> None:
    """Generated with both caches, the likeliest continuation is the same."""
    for config, twin, convert in ((GPT2, gpt2_twin, to_gpt2), (GROUPED, qwen3_twin, to_qwen3)):
        model = make_model(config, 1).float()
        other = twin(config)
        other.load_state_dict(convert(model.state_dict(), config))
        other.generation_config.eos_token_id = None
        ids = torch.tensor([[1, 2, 3]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = other.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)
        assert expected.tolist() == model.generate(ids, 9, temperature=0).tolist()
