"""Packed matrices and copies of models made of them: how near they are to what was trained."""

import copy
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from yocto_model.fast import inference, packed
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
# The largest error of an output, as a fraction of |x| times the length of its weights.
TOLERANCE = {Float32: 1e-6, Float16: 1e-3, BFloat16: 1e-2, Int8: 2e-2}
HERE = [packing for packing in TOLERANCE if inference.why_not(packing, "cpu") is None]


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
    """Up to 1e-5 of the largest, read at once or in chunks; a float64 model's copy is float32."""
    model = make_model(config, seed)
    fast = inference_copy(model, "float32")
    assert torch.float32 == fast(torch.tensor([[1]])).dtype == fast.token_emb.weight.dtype
    ids = random_ids(config, 2, config.block_size, seed)
    sizes = [1] * config.block_size if data is None else []
    while sum(sizes) < config.block_size:
        sizes.append(data.draw(st.integers(1, config.block_size - sum(sizes))))  # type: ignore[union-attr] # None only with sizes
    cache = KVCache(config, 2)
    with torch.no_grad():
        expected = model(ids)
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


# --- which kind ------------------------------------------------------------------------------


def test_what_does_not_work_here_is_replaced_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that fails when tried, or computes nonsense, gives way to the next, with a reason."""

    class Missing(Packed):
        kind = "int4"

        def __init__(self, linear: nn.Linear) -> None:
            raise RuntimeError("no such operator\nand more")

    class Wrong(Float32):
        kind = "int6"

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.1

    monkeypatch.setitem(inference._PACKINGS, "int8", (Missing, Wrong, BFloat16))
    fast = inference_copy(GPT(GPT2), "int8")
    assert (fast.kind, "as asked") == ("bfloat16", inference_copy(GPT(GPT2), "bfloat16").reason)
    assert "int4: no such operator; int6: wrong results on this machine" == fast.reason


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


@pytest.mark.parametrize("kind", INFERENCE_KINDS)
def test_deep_copies_speak_alike(kind: InferenceKind) -> None:
    """Whatever the kind of weights."""
    fast = inference_copy(GPT(MODERN, generator=torch.Generator().manual_seed(0)), kind)
    text = fast.generate([[1, 2]], 5, seed=0)
    assert torch.equal(text, copy.deepcopy(fast).generate([[1, 2]], 5, seed=0))


# --- packed matrices --------------------------------------------------------------------------


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n_in: int, n_out: int, seed: int, *, bias: bool) -> nn.Linear:
    made = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        for number, weight in enumerate(made.parameters()):
            weight.copy_(random(*weight.shape, seed=seed + number))
    return made


@pytest.mark.property
@pytest.mark.parametrize("packing", HERE)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.booleans()),
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    seed=SEEDS,
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@example(shape=(64, 192, True), rows=[1], seed=0, scale=1.0)
@example(shape=(192, 64, False), rows=[2, 3], seed=0, scale=1.0)
def test_a_packed_matrix_is_as_near_as_it_says(
    packing: type[Packed],
    shape: tuple[int, int, bool],
    rows: list[int],
    seed: int,
    scale: float,
) -> None:
    """Each output is within its kind's tolerance of the exact product, whatever the shape."""
    n_in, n_out, bias = shape
    exact = linear(n_in, n_out, seed, bias=bias)
    x = random(*rows, n_in, seed=seed + 7) * scale
    got = packing(exact)(x)
    wide = copy.deepcopy(exact).double()
    error = (wide(x.double()) - got.double()).abs()
    size = x.double().norm(dim=-1, keepdim=True) * wide.weight.norm(dim=1)
    offset = wide.bias.abs() if bias else 0.0
    assert torch.float32 == got.dtype
    assert (*rows, n_out) == got.shape
    assert bool((error <= TOLERANCE[packing] * size + 1e-6 * offset).all())


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="needs FBGEMM"
)
def test_where_torch_has_the_operators_every_kind_works() -> None:
    """Nothing above is left out in silence because a packing computes nonsense."""
    assert list(TOLERANCE) == HERE


@pytest.mark.parametrize("packing", HERE)
def test_a_row_of_zeros_gives_the_bias(packing: type[Packed]) -> None:
    """No scale is divided by zero: neither that of a row nor that of an output without weights."""
    exact = linear(8, 5, 0, bias=True)
    with torch.no_grad():
        exact.weight[2] = 0
    y, bias = packing(exact)(torch.stack([torch.zeros(8), torch.ones(8)])), exact.bias.detach()
    np.testing.assert_allclose(y[0], bias, rtol=1e-6)
    np.testing.assert_allclose(y[1, 2], bias[2], rtol=1e-6)


@pytest.mark.skipif(Int8 not in HERE, reason="needs torch's 8-bit operators")
@pytest.mark.property
@given(
    seed=SEEDS,
    n=st.integers(2, 5),
    loud=st.floats(1, 1e4),
    shift=st.floats(-1e4, 1e4),
    flat=st.booleans(),
)
def test_an_8_bit_row_does_not_depend_on_its_neighbours(
    seed: int, n: int, loud: float, shift: float, flat: bool
) -> None:
    """Its own scale, whole-number sums: to the bit the same, beside however loud a row."""
    matrix, x = Int8(linear(24, 17, seed, bias=True)), random(n + 1, 24, seed=seed)
    x[2:] = 0 if flat else x[2:] * loud + shift
    assert torch.equal(matrix(x[:2]), matrix(x)[:2])
    assert torch.equal(matrix(x[:2])[1], matrix(x[[1, -1]])[0])


@pytest.mark.skipif(Int8 not in HERE, reason="needs torch's 8-bit operators")
@pytest.mark.property
@given(seed=SEEDS, exponent=st.integers(-30, 90), rows=st.integers(1, 3))
@example(seed=0, exponent=90, rows=1)
@example(seed=0, exponent=-30, rows=1)
def test_the_size_of_an_8_bit_row_does_not_matter(seed: int, exponent: int, rows: int) -> None:
    """From 1e-9 to 1e27: a row that is 2^n times as large gives 2^n times the result."""
    matrix, x = Int8(linear(24, 17, seed, bias=False)), random(rows, 24, seed=seed)
    got = matrix(x * 2.0**exponent) / 2.0**exponent
    assert torch.allclose(got, matrix(x), rtol=1e-5, atol=1e-5 * float(x.abs().max()))


class Clipping(Packed):
    """8-bit products of a processor that adds two of them in 16 bits, which it may clip."""

    bytes_per_weight = 1
    clips: Callable[[int], bool]

    def __init__(self, exact: nn.Linear) -> None:
        super().__init__(exact)
        weight = exact.weight.detach()
        self.scales = weight.abs().amax(dim=1) / 127
        self.rounded = (weight / self.scales[:, None]).round()

    def forward(self, x: Tensor) -> Tensor:
        low = x.amin(dim=-1, keepdim=True).clamp(max=0)
        scale = (x.amax(dim=-1, keepdim=True) - low) / 255
        q = ((x - low) / scale).round()
        products = q[:, None] * self.rounded  # (B, out, in)
        products = products[..., ::2] + products[..., 1::2]
        if type(self).clips(len(x)):
            products = products.clamp(-(2**15), 2**15 - 1)
        y = products.sum(dim=2) * scale + low * self.rounded.sum(dim=1)
        return y * self.scales if self.bias is None else y * self.scales + self.bias


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        (lambda _: False, None),
        (lambda rows: rows == 1, "wrong results on this machine"),
        (lambda rows: rows > 1, "wrong results on this machine"),
    ],
)
def test_an_operator_that_clips_its_sums_is_not_used(
    monkeypatch: pytest.MonkeyPatch, clips: Callable[[int], bool], said: str | None
) -> None:
    """Whether it does so for one row or for several."""
    monkeypatch.setattr(Clipping, "clips", clips, raising=False)
    assert said == inference.why_not(Clipping, "cpu")


EIGHT_BITS = """
import torch
from yocto_model.fast.packed import Int8, largest_int8

torch.manual_seed(0)
exact, x = torch.nn.Linear(96, 64), torch.randn(4, 96)
torch.nn.init.constant_(exact.weight[:9], 1.0)
x[0, 1:] = x[1] = 1.0
made = Int8(exact)
with torch.no_grad():
    y, expected = torch.cat((made(x), made(x[1:2]))), exact(x[[0, 1, 2, 3, 1]])
print(largest_int8(), float((y - expected).norm() / expected.norm()))
"""


@pytest.mark.skipif(Int8 not in HERE, reason="needs torch's 8-bit operators")
@pytest.mark.parametrize("processor", ["AVX2", pytest.param("AVX512", marks=pytest.mark.slow)])
def test_8_bits_work_without_vnni(processor: str) -> None:
    """Smaller weights, which no sum of two products clips, where FBGEMM uses older instructions."""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EIGHT_BITS],
        env={**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": processor},
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout  # fmt: skip
    largest, error = out.split()
    assert int(largest) in {64, 127}
    assert float(error) < 0.02


@pytest.mark.parametrize("packing", HERE)
def test_a_deep_copy_works(packing: type[Packed]) -> None:
    """As any module's; one that cannot be pickled says so."""
    matrix, x = packing(linear(8, 5, 0, bias=True)), random(2, 8, seed=1)
    assert torch.equal(matrix(x), copy.deepcopy(matrix)(x))
    if packing is Int8:
        with pytest.raises(InputError, match=r"^8-bit weights cannot be pickled; pickle the model"):
            pickle.dumps(matrix)


def test_8_bits_elsewhere_than_on_a_cpu_are_refused() -> None:
    """Before an operator is called, which would read from wherever the weights are."""
    with pytest.raises(RuntimeError, match=r"^8-bit products need a CPU$"):
        Int8(nn.Linear(4, 4, device="meta"))


@pytest.mark.parametrize(
    ("seconds", "expected"), [((1.0, 1.0), True), ((1.0, 1.1), True), ((1.0, 1.3), False)]
)
def test_a_narrowing_matrix_is_transposed_unless_one_row_pays(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], expected: bool
) -> None:
    """(in, out) costs a widening matrix nothing anywhere; others are tried once per shape."""
    now, orders = [0.0], []

    def product(_: Tensor, weight: Tensor) -> None:
        orders.append(weight.is_contiguous())
        now[0] += seconds[0] if orders[-1] else seconds[1]

    monkeypatch.setattr(
        "yocto_model.fast.packed.time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    monkeypatch.setattr("yocto_model.fast.packed.F", SimpleNamespace(linear=product))
    transposes = functools.cache(packed.transposes.__wrapped__)
    assert transposes(4, 5)
    assert not orders
    assert expected == transposes(5, 4) == transposes(5, 4)
    assert {True, False} == set(orders)
    assert 24 == len(orders)
    assert not transposes(10**6, 10**5)  # a trial would take too long


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_a_matrix_is_the_same_in_either_order(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], transposed: bool
) -> None:
    """What differs is how it lies in memory."""
    monkeypatch.setattr(packed, "transposes", lambda *_: transposed)
    exact, x = linear(*shape, 0, bias=True), random(2, shape[0], seed=3)
    made = Float32(exact)
    assert transposed == made.weight.t().is_contiguous() != made.weight.is_contiguous()
    np.testing.assert_allclose(made(x), exact(x).detach(), rtol=1e-6, atol=1e-5)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda fast, path: fast.save(path), "cannot be saved"),
        (lambda fast, _: fast.double(), "cannot be moved or converted"),
        (lambda fast, _: fast.to("cpu"), "cannot be moved or converted"),
        (lambda fast, _: inference_copy(fast), "already is an inference copy"),
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
