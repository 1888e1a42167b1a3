"""Packed matrices and copies of models made of them: how near they are to what was trained."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
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
from yocto_model.fast import inference, kernel
from yocto_model.fast.decoding import OneToken
from yocto_model.fast.packed import Kind, Packed
from yocto_model.generate import stream, window_start

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
GREEDY = SamplingOptions(temperature=0)
GPT2 = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch(
    "modern", vocab_size=11, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16
)


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


# --- a few rows in compiled code -------------------------------------------------------------


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
@example(config=MODERN, seed=0, data=None)
def test_compiled_rows_are_what_the_whole_model_makes_of_them(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """One token or several of each row, of one cache or two, padded or not; the cache's too."""
    exact = make_model(config, seed)
    fast = inference_copy(exact, "float32")
    few = compiled(fast)
    size = config.block_size
    sizes, padding = [1] * size, None
    if data is not None:
        sizes = []
        while sum(sizes) < size:
            sizes.append(data.draw(st.integers(1, size - sum(sizes))))
        padding = torch.tensor(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2)))
    rows = [2, 1]
    ids = random_ids(config, sum(rows), size, seed)
    kept = [KVCache(config, n, padding=p) for n, p in zip(rows, (padding, None), strict=True)]
    wide = [
        KVCache(config, n, padding=p, dtype=torch.float64)
        for n, p in zip(rows, (padding, None), strict=True)
    ]
    with torch.no_grad():
        for part in torch.split(ids, sizes, dim=1):
            expected = [
                exact.hidden_states(x, cache=c)
                for x, c in zip(torch.split(part, rows), wide, strict=True)
            ]
            near(torch.cat(expected), few(part, *kept), config)
    for one, other in zip(wide, kept, strict=True):
        assert size == other.length
        near(one.keys, other.keys, config)
        near(one.values, other.values, config)


def near(expected: Tensor, got: Tensor, config: GPTConfig) -> None:
    # A LayerNorm of a few nearly equal numbers makes a rounding up to 1 / sqrt(eps) larger.
    is_sharp = config.norm == "layernorm" and config.n_embd < 8
    atol = (1e-3 if is_sharp else 1e-5) * max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def compiled(fast: InferenceGPT) -> kernel.FewRows:
    """Its layers in compiled code, or the test is skipped."""
    few = fast.one_token
    if not isinstance(few, kernel.FewRows):
        pytest.skip("needs a C++ compiler")
    return few


@pytest.mark.property
@pytest.mark.parametrize("kind", kernel.KINDS)
@given(config=st.from_type(GPTConfig), seed=SEEDS, n=st.integers(2, 20))
@example(config=MODERN, seed=0, n=5)
@example(config=MODERN, seed=0, n=17)
def test_a_row_is_the_same_alone_and_beside_others(
    make_model: MakeModel, kind: InferenceKind, config: GPTConfig, seed: int, n: int
) -> None:
    """To the bit, whatever the kind of weights and however many threads: layers and head."""
    fast = inference_copy(make_model(config, seed).float(), kind)
    few = compiled(fast)
    ids = random_ids(config, n, config.block_size, seed)
    together, alone = [[KVCache(config) for _ in range(n)] for _ in range(2)]
    for token in torch.split(ids, 1, dim=1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "n_threads", lambda _: 1 + n % 3)
            logits = fast.logits(few(token, *together))
        rows = zip(torch.split(token, 1), alone, strict=True)
        assert torch.equal(logits, torch.cat([fast.logits(few(*row)) for row in rows]))


# --- which kind ------------------------------------------------------------------------------


@pytest.mark.parametrize("instead", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", kernel.KINDS)
def test_without_a_compiler_torch_multiplies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: InferenceKind, instead: str
) -> None:
    """In bfloat16 where that is fast, else in float32; it is said, also if a compiler fails."""
    monkeypatch.setattr(kernel, "_path", lambda _: tmp_path / "kernel.so")
    monkeypatch.setattr(inference, "_multiplies_bfloat16", lambda _: instead == "bfloat16")
    expected = kind if kind == "float32" else instead
    for compiler, said in ((None, "there is no C++ compiler"), ("/bin/false", "compiler failed")):
        monkeypatch.setattr("shutil.which", lambda _, found=compiler: found)
        fast = inference_copy(GPT(GPT2), kind)
        assert expected == fast.kind
        assert (f"{kind}: " in fast.reason and said in fast.reason) == (kind != expected)
        assert (1, 6) == fast.generate([[1, 2]], 4).shape
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", INFERENCE_KINDS)
def test_a_first_copy_on_a_machine_is_as_the_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: InferenceKind
) -> None:
    """To the bit: whether the kernel was compiled before changes nothing."""
    monkeypatch.setattr(kernel, "_path", lambda kind: tmp_path / f"{kind}.so")
    model = GPT(MODERN, generator=torch.Generator().manual_seed(0))
    first, second = (inference_copy(model, kind) for _ in range(2))
    assert type(first.one_token) is type(second.one_token)
    ids = random_ids(MODERN, 2, 3, seed=0)
    logits = [copied(ids, cache=KVCache(MODERN, 2)) for copied in (first, second)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("weight", "kind", "expected", "reason"),
    [
        (1e5, "float16", "bfloat16", "float16: a weight is too large"),
        (torch.nan, "int8", "bfloat16", "int8: a weight is not finite"),
        (torch.inf, "int4", "bfloat16", "int4: a weight is not finite"),
    ],
)
def test_a_weight_that_a_kind_cannot_hold_is_not_hidden(
    weight: float, kind: InferenceKind, expected: str, reason: str
) -> None:
    """Such a model is packed otherwise, that is said, and one that is damaged is refused."""
    model = GPT(GPT2)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.up.weight")[0, 0] = weight
    fast = inference_copy(model, kind)
    assert (expected, reason) == (fast.kind, fast.reason)
    if weight != 1e5:
        with pytest.raises(SamplingError, match="not finite"):
            fast.generate([[3]], 4)


def test_auto_rounds_nothing_that_it_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model stays float32; a large one is float16, or bfloat16 if it is that already."""
    small = inference_copy(GPT(GPT2))
    assert ("float32", "a small model") == (small.kind, small.reason)
    monkeypatch.setattr(inference, "_SMALL_WEIGHTS", 1)
    fast = inference_copy(GPT(GPT2))
    assert fast.kind == inference_copy(GPT(GPT2), "float16").kind
    assert 0 < fast.bytes_per_token
    rounded = GPT(GPT2).bfloat16()
    assert "bfloat16" == inference_copy(rounded).kind == inference_copy(rounded.float()).kind


@pytest.mark.parametrize("kind", INFERENCE_KINDS)
def test_deep_copies_speak_alike(kind: InferenceKind) -> None:
    """Whatever the kind of weights, also when the first copy is gone."""
    fast = inference_copy(GPT(MODERN, generator=torch.Generator().manual_seed(0)), kind)
    text, other = fast.generate([[1, 2]], 5, seed=0), copy.deepcopy(fast)
    del fast
    gc.collect()
    assert torch.equal(text, other.generate([[1, 2]], 5, seed=0))


# --- packed matrices --------------------------------------------------------------------------


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n_in: int, n_out: int, seed: int, *, bias: bool) -> nn.Linear:
    made = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        for number, weight in enumerate(made.parameters()):
            weight.copy_(random(*weight.shape, seed=seed + number))
    return made


def packing(exact: nn.Linear, kind: Kind) -> Packed:
    """With its kernel, or the test is skipped."""
    try:
        library = kernel.load(kind)
    except RuntimeError:
        pytest.skip("needs a C++ compiler")
    assert library is not None
    return Packed(exact, kind, library)


@pytest.mark.property
@pytest.mark.parametrize("kind", kernel.KINDS)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.booleans()),
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    seed=SEEDS,
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@example(shape=(64, 192, True), rows=[1], seed=0, scale=1.0)
@example(shape=(192, 64, False), rows=[4, 5], seed=0, scale=1.0)
def test_a_packed_matrix_is_as_near_as_it_says(
    kind: Kind, shape: tuple[int, int, bool], rows: list[int], seed: int, scale: float
) -> None:
    """Each weight within its kind's tolerance, each output the product of what they became."""
    n_in, n_out, bias = shape
    exact = linear(n_in, n_out, seed, bias=bias)
    x = random(*rows, n_in, seed=seed + 7) * scale
    packed = packing(exact, kind)
    weight = exact.weight.detach()
    if kind == "int4":  # half of a fifteenth of a group's range, and what bfloat16 does to that
        groups = F.pad(weight, (0, -n_in % 32)).view(n_out, -1, 32)
        span = groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)
        room = (span / 25 + groups.abs().amax(2, keepdim=True) / 250).expand(groups.shape)
        room = room.flatten(1)[:, :n_in]
    else:
        room = weight.abs() * 2.0 ** {"float32": -24, "float16": -11}.get(kind, -8)
        if kind == "int8":
            room = weight.abs().amax(1, keepdim=True) / 250
    assert bool(((packed.restored() - weight).abs() <= room + 1e-7).all())
    got = packed(x)
    wide = F.linear(x.double(), packed.restored().double(), exact.bias.double() if bias else None)
    size = x.double().norm(dim=-1, keepdim=True) * weight.double().norm(dim=1)
    least = exact.bias.abs() if bias else 0.0
    assert torch.float32 == got.dtype
    assert (*rows, n_out) == got.shape
    assert bool(((wide - got).abs() <= 1e-6 * (size + least)).all())


@pytest.mark.parametrize("kind", kernel.KINDS)
def test_a_row_of_zeros_gives_the_bias(kind: Kind) -> None:
    """No scale is divided by zero, that of an output without weights."""
    exact = linear(8, 5, 0, bias=True)
    with torch.no_grad():
        exact.weight[2] = 0
    x, bias = torch.stack([torch.zeros(8), torch.ones(8)]), exact.bias.detach()
    y = packing(exact, kind)(x)
    np.testing.assert_allclose(y[0], bias, rtol=1e-6)
    np.testing.assert_allclose(y[1, 2], bias[2], rtol=1e-6)


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
        (lambda _, __: inference_copy(GPT(GPT2), "int5"), "'int5'; choose from auto, float32"),  # type: ignore[arg-type] # it is wrong
    ],
)
def test_what_a_copy_cannot_do_is_refused(
    act: Callable[[InferenceGPT, Path], Any], said: str, tmp_path: Path
) -> None:
    """In one line, and no file is written."""
    with pytest.raises(InputError, match=said):
        act(inference_copy(GPT(GPT2), "float32"), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
