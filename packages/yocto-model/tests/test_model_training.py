"""What training adds to a model: dropout, bfloat16, and gradients from less memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from yocto_model import ARCHITECTURES, GPT, GPTConfig
from yocto_model.fast.training import Dropout
from yocto_model.layers import CausalSelfAttention

SEEDS = st.integers(0, 2**31)
SIZES = {"vocab_size": 13, "block_size": 8, "n_head": 2, "n_embd": 16}


# --- dropout ---------------------------------------------------------------------------------


@given(p=st.floats(0.01, 0.95), seed=SEEDS)
def test_a_share_p_becomes_zero_and_the_others_grow_so_that_the_mean_stays(
    p: float, seed: int
) -> None:
    torch.manual_seed(seed)
    n = 40_001  # not a multiple of four
    y = Dropout(p)(torch.ones(n, dtype=torch.float64))
    zeros = int((y == 0).sum())
    assert abs(zeros / n - p) < 6 * (p * (1 - p) / n) ** 0.5  # six deviations
    assert torch.allclose(y[y != 0], torch.full((n - zeros,), 1 / (1 - p), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 33, dtype=dtype, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert torch.allclose(x.grad * x, y, rtol=4 * torch.finfo(dtype).eps)


@given(seed=SEEDS)
def test_neighbours_are_independent(seed: int) -> None:
    """Four draws share one random word: each pair of its quarters must agree half the time."""
    torch.manual_seed(seed)
    kept = (Dropout(0.5)(torch.ones(20_000)) != 0).view(-1, 4)
    for a in range(4):
        for b in range(a):
            agree = (kept[:, a] == kept[:, b]).double().mean()
            assert abs(float(agree) - 0.5) < 6 * 0.5 / 5_000**0.5


def test_the_seed_decides() -> None:
    x, drop = torch.ones(1_000), Dropout(0.4)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@pytest.mark.parametrize("attn_dropout", [None, 0.0, 0.4])
def test_a_model_in_training_drops_in_every_place_it_says(
    arch: str, attn_dropout: float | None
) -> None:
    config = GPTConfig.from_arch(
        arch, vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=8, dropout=0.4,
        attn_dropout=attn_dropout,
    )  # fmt: skip
    model = GPT(config)
    places = [m for m in model.modules() if isinstance(m, Dropout)]
    assert [m.p for m in places] == [0.4] * 3  # the embedding, and one for each block's branches
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    expected = 0.4 if attn_dropout is None else attn_dropout
    attentions = [m for m in model.modules() if isinstance(m, CausalSelfAttention)]
    assert [attention.dropout for attention in attentions] == [expected] * 2


# --- bfloat16 --------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_bfloat16_changes_little(arch: str) -> None:
    """Logits and gradients in bfloat16 are those of float32, to its 8 bits, on a CPU."""
    config = GPTConfig.from_arch(
        arch, vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16, zero_init=False
    )
    generator = torch.Generator().manual_seed(1)
    model = GPT(config, generator=generator)
    idx = torch.randint(11, (3, 16), generator=generator)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(idx)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), idx.flatten())
        loss.backward()  # type: ignore[no-untyped-call] # torch has no type here
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append(
            (logits.detach().float(), torch.cat([g.flatten() for g in gradients if g is not None]))
        )
    (logits, gradient), (half_logits, half_gradient) = results
    assert not torch.equal(logits, half_logits)
    assert torch.allclose(half_logits, logits, rtol=0, atol=0.05 * float(logits.detach().std()))
    assert torch.nn.functional.cosine_similarity(gradient, half_gradient, dim=0) > 0.999


def test_attention_stays_in_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 its backward pass takes twice as long there, and the products gain."""
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return original(query, *args, **options)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
    config = GPTConfig.from_arch(
        "modern", vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=16
    )
    with torch.autocast("cpu", torch.bfloat16):
        GPT(config)(torch.zeros(1, 4, dtype=torch.int64))
    assert [(torch.float32, False)] == seen


# --- gradient checkpointing ------------------------------------------------------------------


def gradients(model: GPT, ids: torch.Tensor, *, checkpointing: bool) -> dict[str, torch.Tensor]:
    model.grad_checkpointing = checkpointing
    model.zero_grad()
    torch.manual_seed(5)
    model(ids).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@given(
    arch=st.sampled_from(sorted(ARCHITECTURES)),
    n_layer=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.4]),
    rows=st.integers(1, 3),
    seed=SEEDS,
)
def test_gradients_are_the_same(
    arch: str, n_layer: int, dropout: float, rows: int, seed: int
) -> None:
    """Dropout included: what is computed again drops the same values."""
    config = GPTConfig.from_arch(
        arch, **{**SIZES, "n_layer": n_layer, "dropout": dropout, "zero_init": False}
    )
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator=generator).double()
    ids = torch.randint(13, (rows, 8), generator=generator)
    kept, recomputed = (gradients(model, ids, checkpointing=on) for on in (False, True))
    assert kept.keys() == recomputed.keys() == dict(model.named_parameters()).keys()
    for name, gradient in kept.items():
        assert torch.allclose(recomputed[name], gradient, rtol=1e-12, atol=1e-15), name


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_a_block_keeps_what_enters_it_and_no_more(arch: str) -> None:
    """Each further layer keeps B T C floats; without checkpointing, many times that."""

    def kept_bytes(n_layer: int, *, checkpointing: bool) -> int:
        model = GPT(GPTConfig.from_arch(arch, **{**SIZES, "n_layer": n_layer}))
        model.grad_checkpointing = checkpointing
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        weights |= {b.untyped_storage().data_ptr() for b in model.buffers()}
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(torch.zeros(4, 8, dtype=torch.int64)).sum()
        assert loss.requires_grad
        return sum(kept.values())

    entering = 4 * 8 * 16 * 4
    more = kept_bytes(4, checkpointing=True) - kept_bytes(2, checkpointing=True)
    assert more <= 2 * entering + 64
    assert kept_bytes(4, checkpointing=False) - kept_bytes(2, checkpointing=False) > 10 * entering


def test_generation_is_as_before() -> None:
    """With a cache, or without gradients, nothing is kept anyhow."""
    model = GPT(GPTConfig.from_arch("modern", **{**SIZES, "n_layer": 2})).eval()
    ids = torch.tensor([[1, 2, 3]])
    before = model.generate(ids, 4, seed=1)
    model.grad_checkpointing = True
    assert torch.equal(before, model.generate(ids, 4, seed=1))
