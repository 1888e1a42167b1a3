"""Packed matrices: how near each is to the exact product, and in which order it is stored."""

import copy
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from yocto_model import InputError
from yocto_model.fast import inference, packed
from yocto_model.fast.packed import BFloat16, Float16, Float32, Int8, Packed

SEEDS = st.integers(0, 2**40)
# The largest error of an output, as a fraction of |x| times the length of its weights.
TOLERANCE = {Float32: 1e-6, Float16: 1e-3, BFloat16: 1e-2, Int8: 2e-2}
HERE = [packing for packing in TOLERANCE if inference.why_not(packing, "cpu") is None]


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
    torch.testing.assert_close(got, matrix(x), rtol=1e-5, atol=1e-5 * float(x.abs().max()))


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
@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
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
    torch.testing.assert_close(made(x), exact(x).detach())
