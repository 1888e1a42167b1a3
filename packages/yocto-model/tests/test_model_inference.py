"""Inference copies: how near each kind is to the model, and that the model is left alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from yocto_model import (
    GPT,
    INFERENCE_KINDS,
    GPTConfig,
    InferenceGPT,
    InferenceKind,
    InputError,
    KVCache,
    SamplingError,
    SamplingOptions,
    inference_copy,
)
from yocto_model.cache import Reader
from yocto_model.fast import inference
from yocto_model.fast.decoding import OneToken
from yocto_model.fast.packed import BFloat16, Float16, Float32, Int8, Packed
from yocto_model.generate import stream, window_start

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
GREEDY = SamplingOptions(temperature=0)
GPT2 = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch(
    "modern", vocab_size=11, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16
)
KINDS = (Float32, Float16, BFloat16, Int8)
HERE = [packing for packing in KINDS if inference.why_not(packing, "cpu") is None]


def random_ids(config: GPTConfig, rows: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (rows, length), generator=generator)


# --- one token -------------------------------------------------------------------------------


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, rows=st.integers(1, 3), data=st.data())
@example(config=GPT2, seed=0, rows=2, data=None)
@example(config=MODERN, seed=0, rows=1, data=None)
def test_one_token_is_what_the_whole_model_makes_of_it(
    make_model: MakeModel, config: GPTConfig, seed: int, rows: int, data: st.DataObject | None
) -> None:
    """The short way through any model equals `hidden_states`, padded or not, cache and all."""
    model = make_model(config, seed)
    ids = random_ids(config, rows, config.block_size, seed)
    padding = None
    if data is not None and data.draw(st.booleans()):
        pads = st.lists(st.integers(0, config.block_size), min_size=rows, max_size=rows)
        padding = torch.tensor(data.draw(pads))
    caches = [KVCache(config, rows, padding=padding, dtype=torch.float64) for _ in range(2)]
    one_token = OneToken(model)
    with torch.no_grad():
        for token in torch.split(ids, 1, dim=1):
            expected = model.hidden_states(token, cache=caches[0])
            np.testing.assert_allclose(one_token(token, caches[1]), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(caches[1].keys, caches[0].keys, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(caches[1].values, caches[0].values, rtol=1e-9, atol=1e-9)
    assert config.block_size == caches[1].length


# --- copies ----------------------------------------------------------------------------------


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
@example(config=MODERN, seed=0, data=None)
def test_a_float32_copy_has_the_models_logits(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """Up to 1e-5 of the largest, read at once or in any chunks, single tokens among them."""
    model = make_model(config, seed).float()
    fast = inference_copy(model, "float32")
    ids = random_ids(config, 2, config.block_size, seed)
    sizes = [1] * config.block_size if data is None else []
    while sum(sizes) < config.block_size:
        sizes.append(data.draw(st.integers(1, config.block_size - sum(sizes))))  # type: ignore[union-attr] # None only with sizes
    cache = KVCache(config, 2)
    with torch.no_grad():
        expected = make_model(config, seed)(ids)
        atol = 1e-5 * max(1.0, float(expected.abs().max()))
        np.testing.assert_allclose(fast(ids), expected, rtol=0, atol=atol)
        parts = [fast(part, cache=cache) for part in torch.split(ids, sizes, dim=1)]
    np.testing.assert_allclose(torch.cat(parts, dim=1), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", INFERENCE_KINDS)
@pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_a_copy_leaves_the_model_alone(kind: InferenceKind, config: GPTConfig) -> None:
    """Not a bit, gradient or flag of the model changes, and no memory is shared with it."""
    model = GPT(config, generator=torch.Generator().manual_seed(0)).train()
    model(torch.tensor([[1, 2]])).sum().backward()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    gradients = [parameter.grad for parameter in model.parameters()]
    fast = inference_copy(model, kind)
    first = fast.generate([[1, 2]], 12, seed=0)
    assert list(before) == list(model.state_dict())
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert parameter.requires_grad
    assert model.training
    assert not fast.training
    with torch.no_grad():
        for weight in [*model.parameters(), *model.buffers()]:
            weight.fill_(0.1)
    assert torch.equal(first, fast.generate([[1, 2]], 12, seed=0))


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
@example(config=MODERN, seed=0, data=None)
def test_a_copys_batch_is_its_rows_one_by_one(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """Rows of unequal length, beyond the window too, have the logits that each has alone."""
    fast = inference_copy(make_model(config, seed).float(), "float32")
    token = st.integers(0, config.vocab_size - 1)
    row = st.lists(token, min_size=1, max_size=config.block_size + 2)
    rows = data.draw(st.lists(row, min_size=2, max_size=4)) if data else [[1], [2, 3, 4], [5] * 9]
    generators = [torch.Generator().manual_seed(b) for b in range(len(rows))]
    for _, logits in stream(Reader(fast), rows, 6, options=GREEDY, generators=generators):
        for b, ids in enumerate(rows):
            seen = ids[:-1]
            seen = seen[window_start(len(seen), config.block_size) :]
            alone = Reader(fast).next_logits([seen])[0]
            atol = 1e-4 * max(1.0, float(alone.abs().max()))
            np.testing.assert_allclose(logits[b], alone, rtol=0, atol=atol)


def test_a_float64_model_is_copied_too(make_model: MakeModel) -> None:
    """The copy is float32 whatever the model is, so that kinds mean one thing."""
    fast = inference_copy(make_model(MODERN, 0), "float32")
    assert torch.float32 == fast(torch.tensor([[1]])).dtype == fast.token_emb.weight.dtype


# --- which kind ------------------------------------------------------------------------------


def test_what_does_not_work_here_is_replaced_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that fails when tried, or computes nonsense, gives way to the next, with a reason."""

    class Missing(Packed):
        def __init__(self, linear: nn.Linear) -> None:
            raise RuntimeError("no such operator\nand more")

    class Wrong(Float32):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.1

    monkeypatch.setitem(inference._PACKINGS, "int8", (Missing, Wrong, BFloat16))
    fast = inference_copy(GPT(GPT2), "int8")
    assert (fast.kind, "as asked") == ("bfloat16", inference_copy(GPT(GPT2), "bfloat16").reason)
    assert "Missing: no such operator; Wrong: wrong results on this machine" == fast.reason


def test_a_weight_beyond_float16_is_not_clipped() -> None:
    """Such a model is packed as bfloat16, which reaches as far as float32, and that is said."""
    model = GPT(GPT2)
    with torch.no_grad():
        model.head.weight[0, 0] = 1e5
    fast = inference_copy(model, "float16")
    assert ("bfloat16", "float16: a weight is too large") == (fast.kind, fast.reason)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({Float32: 2.0, Float16: 1.0, BFloat16: 0.9}, "float16"),  # not clearly faster than that
        ({Float32: 2.0, Float16: 1.7, BFloat16: 1.5}, "bfloat16"),
        ({Float32: 2.0, Float16: 1.7, BFloat16: 1.7}, "float32"),
    ],
)
def test_auto_takes_what_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, measured: dict[type[Packed], float], expected: str
) -> None:
    """From fine to coarse, a quarter faster at least; never 8 bits; the reason has the figures."""
    monkeypatch.setattr(inference, "_SMALL_WEIGHTS", 0)
    monkeypatch.setattr(inference, "why_not", lambda *_: None)
    block, head = (24 + 8 + 2 * 32) * 8, 11 * 8
    share = block / (2 * block + head)
    monkeypatch.setattr(
        inference, "_milliseconds", lambda matrices, _: measured[type(matrices[0])] * share
    )
    fast = inference_copy(GPT(GPT2), "auto")
    if set(measured) <= set(HERE):
        assert expected == fast.kind
    assert f"float32 {measured[Float32]:.2f}" in fast.reason


def test_auto_measures_a_model_of_some_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model stays float32 unmeasured; else the copy is of a kind that was measured."""
    small = inference_copy(GPT(GPT2))
    assert ("float32", "a small model") == (small.kind, small.reason)
    monkeypatch.setattr(inference, "_SMALL_WEIGHTS", 1)
    fast = inference_copy(GPT(GPT2))
    assert f"{fast.kind} " in fast.reason
    assert 0 < fast.bytes_per_token <= 4 * GPT2.n_parameters


@pytest.mark.parametrize("part", ["ln_f.weight", "blocks.0.mlp.up.weight"])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_a_damaged_weight_is_not_hidden_by_8_bits(part: str, damage: float) -> None:
    """Their operator drops what is not a number: such a model is packed otherwise, and refused."""
    model = GPT(GPT2).eval()
    with torch.no_grad():
        model.get_parameter(part).flatten()[5] = damage
    fast = inference_copy(model, "int8")
    assert "int8: a weight is not finite" in fast.reason
    with pytest.raises(SamplingError, match="not finite"):
        fast.generate([[3]], 4)


def test_a_matrix_too_wide_for_sums_of_32_bits_is_not_packed_in_8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "WIDEST_INT8", 31)  # the MLP's projection has 32 inputs
    assert "int8: a matrix is too wide" in inference_copy(GPT(GPT2), "int8").reason
    monkeypatch.setattr(inference, "WIDEST_INT8", 32)
    assert "too wide" not in inference_copy(GPT(GPT2), "int8").reason


@pytest.mark.property
@pytest.mark.parametrize("kind", INFERENCE_KINDS)
@given(seed=SEEDS)
def test_deep_copies_speak_alike(kind: InferenceKind, seed: int) -> None:
    """Whatever the kind of weights."""
    fast = inference_copy(GPT(MODERN, generator=torch.Generator().manual_seed(seed)), kind)
    text = fast.generate([[1, 2]], 5, seed=seed)
    assert torch.equal(text, copy.deepcopy(fast).generate([[1, 2]], 5, seed=seed))


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda fast, path: fast.save(path), "cannot be saved"),
        (lambda fast, _: fast.double(), "cannot be moved or converted"),
        (lambda fast, _: fast.to("cpu"), "cannot be moved or converted"),
        (lambda fast, _: inference_copy(fast), "inference copy already"),
        (
            lambda _, __: inference_copy(GPT(GPT2).to("meta")),
            "no weights yet: it is on torch's meta",
        ),
        (lambda _, __: inference_copy(GPT(GPT2), "int4"), "'int4'; choose from auto, float32"),  # type: ignore[arg-type] # it is wrong
    ],
)
def test_what_a_copy_cannot_do_is_refused(
    act: Callable[[InferenceGPT, Path], Any], said: str, tmp_path: Path
) -> None:
    """In one line, and no file is written."""
    with pytest.raises(InputError, match=said):
        act(inference_copy(GPT(GPT2), "float32"), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
