"""What must hold of any model of ours, whatever its settings and weights. All in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from yocto_model import GPT, GPTConfig
from yocto_model.layers import CausalSelfAttention

MakeModel = Callable[[GPTConfig, int], GPT]
Array = NDArray[np.float64]
SEEDS = st.integers(0, 2**40)
GPT2 = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch(
    "modern", vocab_size=11, block_size=6, n_layer=2, n_head=4, n_kv_head=2, n_embd=16
)


def draw_ids(data: st.DataObject | None, config: GPTConfig, *, rows: int | None = None) -> Tensor:
    """int64 (B, T), T up to `block_size`."""
    if data is None:
        return torch.tensor([[1, 2, 3, 4, 5, 6]] * (rows or 2))
    length = data.draw(st.integers(1, config.block_size))
    row = st.lists(st.integers(0, config.vocab_size - 1), min_size=length, max_size=length)
    n = rows or data.draw(st.integers(1, 3))
    return torch.tensor(data.draw(st.lists(row, min_size=n, max_size=n)))


def same(expected: Tensor, got: Tensor, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(got.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def every_config(law: Callable[..., None]) -> Callable[..., None]:
    """Check a law for models of every kind, and for both architectures in any case."""
    law = given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())(law)
    for config in (GPT2, MODERN):
        law = example(config=config, seed=0, data=None)(law)
    return pytest.mark.property(law)


@every_config
def test_logits_have_shape_and_dtype(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M1: ids (B, T) give finite logits (B, T, vocab_size) in the weights' dtype."""
    model, ids = make_model(config, seed), draw_ids(data, config)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits = model.to(dtype)(ids)
        assert (*ids.shape, config.vocab_size) == logits.shape
        assert dtype == logits.dtype
        assert bool(torch.isfinite(logits).all())


@every_config
def test_no_gradient_flows_back_from_later_tokens(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M2: the gradient of a logit with respect to later tokens' embeddings is exactly 0."""
    model, ids = make_model(config, seed), draw_ids(data, config, rows=1)
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    model.token_emb.register_forward_hook(keep)
    place = ids.shape[1] // 2
    model(ids)[0, place].square().sum().backward()
    gradient = kept[0].grad
    assert gradient is not None
    assert not gradient[0, place + 1 :].any()
    assert gradient.shape == (1, ids.shape[1], config.n_embd)
    assert bool(torch.isfinite(gradient).all())


@every_config
def test_a_prefix_has_the_logits_of_the_whole(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M2, M3: whatever follows, a prefix's logits are the same; and what follows has its own."""
    model, ids = make_model(config, seed), draw_ids(data, config)
    whole = model(ids)
    for length in range(1, ids.shape[1] + 1):
        same(whole[:, :length], model(ids[:, :length]))
    cut = ids.shape[1] // 2
    ids[:, cut:] = (ids[:, cut:] + 1) % config.vocab_size
    changed = model(ids)
    same(whole[:, :cut], changed[:, :cut])
    assert not torch.equal(whole[:, cut:], changed[:, cut:])


@every_config
def test_rows_do_not_know_each_other(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M5: a row's logits are those it has alone, and reordering the batch reorders them."""
    model, ids = make_model(config, seed), draw_ids(data, config, rows=3)
    logits = model(ids)
    same(logits.flip(0), model(ids.flip(0)))
    same(logits, torch.cat([model(row[None]) for row in ids]))


@every_config
def test_tied_weights_are_one_tensor(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M7: the head is the embedding where it is tied, also after a change of dtype; else not."""
    model = make_model(config, seed).float()
    assert config.tie_weights == (model.head.weight is model.token_emb.weight)
    model(draw_ids(data, config)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


# --- the ten-line reference ------------------------------------------------------------------


def naive_norm(x: Array, norm: Any, eps: float) -> Array:
    if norm is None or isinstance(norm, torch.nn.Identity):
        return x
    if isinstance(norm, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdims=True)
    out: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * array(norm.weight)
    bias = getattr(norm, "bias", None)
    return out if bias is None else out + array(bias)


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def naive_linear(x: Array, linear: torch.nn.Linear) -> Array:
    bias: Tensor | None = linear.bias  # torch declares it always there
    out: Array = x @ array(linear.weight).T
    return out if bias is None else out + array(bias)


def naive_turn(x: Array, place: int, base: float) -> Array:
    """Pairs as complex numbers, turned by exp(i angle)."""
    half = len(x) // 2
    pairs = x[:half] + 1j * x[half:]
    pairs = pairs * np.exp(1j * place * base ** (-np.arange(half) / half))
    return np.concatenate((pairs.real, pairs.imag))


def naive_attention(x: Array, layer: CausalSelfAttention, config: GPTConfig) -> Array:
    """(T, C) -> (T, C), one query of one head at a time."""
    heads, groups, width = config.n_head, config.kv_heads, config.head_width
    q, k, v = np.split(naive_linear(x, layer.qkv), [heads * width, (heads + groups) * width], 1)
    out = np.zeros((len(x), heads * width))
    for h in range(heads):
        g = h // (heads // groups)
        here, there = slice(h * width, h * width + width), slice(g * width, g * width + width)
        queries = naive_norm(q[:, here], layer.q_norm, config.norm_eps)
        keys = naive_norm(k[:, there], layer.k_norm, config.norm_eps)
        if config.positions == "rotary":
            queries, keys = (
                np.stack([naive_turn(row, t, config.rotary_base) for t, row in enumerate(z)])
                for z in (queries, keys)
            )
        for t in range(len(x)):
            weights = np.exp(keys[: t + 1] @ queries[t] / math.sqrt(width))
            out[t, here] = weights @ v[: t + 1, there] / weights.sum()
    return naive_linear(out, layer.proj)


def naive_bend(x: Array, config: GPTConfig) -> Array:
    if config.activation == "swiglu":
        gate, x = np.split(x, 2, axis=-1)
        bent = gate / (1 + np.exp(-gate))
    elif config.activation == "gelu":
        bent = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)
    else:
        bent = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.asarray(bent * x)


def naive_logits(model: GPT, ids: list[int]) -> Array:
    """The whole model on one row, written from the papers."""
    config = model.config
    x = array(model.token_emb.weight)[ids]
    if model.pos_emb is not None:
        x = x + array(model.pos_emb.weight)[: len(ids)]
    for block in model.blocks:
        parts: dict[str, Any] = dict(block.named_children())
        x = x + naive_attention(
            naive_norm(x, parts["ln_1"], config.norm_eps), parts["attn"], config
        )
        y = naive_linear(naive_norm(x, parts["ln_2"], config.norm_eps), parts["mlp"].up)
        x = x + naive_linear(naive_bend(y, config), parts["mlp"].proj)
    return naive_linear(naive_norm(x, model.ln_f, config.norm_eps), model.head)


@every_config
def test_the_model_is_its_papers(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M10: logits equal a plain NumPy program; with rotary, as far as float32 tables allow."""
    model, ids = make_model(config, seed), draw_ids(data, config, rows=1)
    expected = torch.from_numpy(naive_logits(model, ids[0].tolist()))
    same(expected, model(ids)[0].detach(), 1e-9 if config.positions == "learned" else 1e-4)


@every_config
def test_shared_heads_are_repeated_heads(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """M9: as many key/value heads as heads is plain attention; fewer is plain with copies."""
    model, ids = make_model(config, seed), draw_ids(data, config)
    plain = make_model(config.replace(n_kv_head=None), seed)
    shares = config.n_head // config.kv_heads
    weights = dict(model.state_dict())
    for name in [name for name in weights if ".qkv." in name]:
        parts = weights[name].split(CausalSelfAttention(config, 0).sizes)
        wide = [
            part.unflatten(0, (-1, config.head_width)).repeat_interleave(shares, 0).flatten(0, 1)
            for part in parts[1:]
        ]
        weights[name] = torch.cat([parts[0], *wide])
    plain.load_state_dict(weights)
    same(model(ids), plain(ids))
    explicit = make_model(config.replace(n_kv_head=config.n_head), seed)
    assert torch.equal(explicit(ids), make_model(config.replace(n_kv_head=None), seed)(ids))


# --- dropout ---------------------------------------------------------------------------------


@every_config
def test_dropout_acts_in_training_only(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """In evaluation a model with dropout is the same model without; in training it is not."""
    ids = draw_ids(data, config)
    plain = make_model(config, seed)
    lossy = GPT(config.replace(dropout=0.9)).double().eval()
    lossy.load_state_dict(plain.state_dict())
    assert torch.equal(plain(ids), lossy(ids))
    assert torch.equal(plain(ids), plain.train()(ids))
    torch.manual_seed(0)
    runs = [lossy.train()(ids) for _ in range(8)]
    assert any(not torch.equal(runs[0], run) for run in runs[1:])
