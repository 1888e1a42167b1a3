"""Laws of evaluation: every target once, nothing changed, bits per byte."""

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_data import TokenDataset
from yocto_model import GPT
from yocto_tokenizers import CharTokenizer
from yocto_train import bits_per_byte, bytes_per_token, cross_entropy, evaluate, evaluate_ids
from yocto_train.scale import losses

MakeModel = Callable[..., GPT]
MakeData = Callable[..., TokenDataset]


class Recorder(GPT):
    """A GPT that remembers what it was asked."""

    inputs: list[Tensor]

    def forward(self, idx: Tensor, **kwargs: object) -> Tensor:
        self.inputs.append(idx.clone())
        return super().forward(idx)


def recorder(model: GPT) -> Recorder:
    result = Recorder(model.config)
    result.load_state_dict(model.state_dict())
    result.inputs = []
    return result


@pytest.fixture(scope="module")
def tokens_of(tmp_path_factory: pytest.TempPathFactory) -> MakeData:
    """`tokens_of(n, block_size)`: a data set of n tokens, each id below 32."""
    directory = tmp_path_factory.mktemp("tokens")

    def make(n: int, block_size: int) -> TokenDataset:
        path = directory / f"{n}.bin"
        if not path.exists():
            (np.arange(n) * 7 % 32).astype("<u2").tofile(path)
        return TokenDataset(path, block_size, dtype="uint16", vocab_size=32)

    return make


@pytest.mark.property
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3), length=st.integers(1, 5))
@example(seed=0, rows=1, length=1)
@example(seed=1, rows=3, length=5)
def test_the_loss_is_the_papers(seed: int, rows: int, length: int) -> None:
    """M6: minus the logarithm of the softmax at each target, in float64 by NumPy, mean or sum."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, length, 7, generator=generator)
    targets = torch.randint(7, (rows, length), generator=generator)
    exponents = np.exp(logits.numpy().astype(np.float64))
    probability = exponents / exponents.sum(-1, keepdims=True)
    chosen = np.take_along_axis(probability, targets.numpy()[..., None], -1)
    assert -np.log(chosen).mean() == pytest.approx(
        cross_entropy(logits, targets).item(), rel=1e-5, abs=1e-6
    )
    total = cross_entropy(logits, targets, reduction="sum").item()
    assert -np.log(chosen).sum() == pytest.approx(total, rel=1e-5)


@pytest.mark.property
@given(n=st.integers(2, 60), block_size=st.integers(1, 8), batch_size=st.integers(1, 9))
@example(n=60, block_size=8, batch_size=3)
@example(n=9, block_size=8, batch_size=1)
def test_each_target_counts_once(
    n: int, block_size: int, batch_size: int, tokens_of: MakeData, make_model: MakeModel
) -> None:
    """The inputs are the split without its last token, in order; the loss is its targets' mean."""
    block_size = min(block_size, n - 1)
    data = tokens_of(n, block_size)
    model = recorder(make_model(dropout=0.3)).double()
    result = evaluate(model, data, batch_size=batch_size)
    assert result is not None
    ids, _ = data.window(0, n - 1)
    assert torch.equal(ids, torch.cat([x.flatten() for x in model.inputs]))
    assert (n - 1, True) == (result.tokens, result.whole)
    total = 0.0
    with torch.no_grad():
        for start in range(0, n - 1, block_size):
            x, y = data.window(start, min(block_size, n - 1 - start))
            logits = model.eval()(x[None])
            total -= float(logits[0].log_softmax(-1).gather(1, y[:, None]).sum())
    assert result.loss == pytest.approx(total / (n - 1), rel=1e-9)


@pytest.mark.property
@given(n=st.integers(20, 60), batch_size=st.integers(1, 4), n_batches=st.integers(1, 6))
@example(n=60, batch_size=2, n_batches=2)
@example(n=20, batch_size=4, n_batches=6)
def test_a_subset_is_fixed(
    n: int, batch_size: int, n_batches: int, tokens_of: MakeData, make_model: MakeModel
) -> None:
    """A limited evaluation sees as many windows as it says, the same ones each time.

    If it would not be smaller than the split, it is the split.
    """
    data = tokens_of(n, 4)
    model = recorder(make_model())
    first = evaluate(model, data, batch_size=batch_size, n_batches=n_batches)
    seen, model.inputs = model.inputs, []
    second = evaluate(model, data, batch_size=batch_size, n_batches=n_batches)
    assert first is not None
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(seen, model.inputs, strict=True))
    windows = (n - 1) // 4
    assert first.whole == (n_batches * batch_size >= windows)
    if not first.whole:
        assert n_batches * batch_size * 4 == first.tokens


@pytest.mark.property
@given(n=st.integers(2, 70), window=st.integers(1, 8), data=st.data())
@example(n=60, window=8, data=None)
@example(n=2, window=8, data=None)
def test_overlapping_windows_count_each_target_once(
    n: int, window: int, data: st.DataObject | None, tokens_of: MakeData, make_model: MakeModel
) -> None:
    """Windows i * stride: a target counts in the first one that has it; the loss is their mean.

    With a stride as long as the window it is the loss that training reports. Rows without an id
    have no probability, if they are told.
    """
    stride = data.draw(st.integers(1, window)) if data else max(1, window // 3)
    at_once = data.draw(st.integers(1, 30)) if data else 9
    ids, model = torch.arange(n) * 7 % 32, make_model().double().eval()
    total = 0.0
    with torch.no_grad():
        for target in range(1, n):
            start = -(-max(0, target - window) // stride) * stride
            logits = model(ids[None, start:target])
            total -= float(logits[0, -1, :32].log_softmax(-1)[ids[target]])
    found = evaluate_ids(
        model, ids, window=window, stride=stride, vocab_size=32, tokens_at_once=at_once
    )
    assert (n - 1, True) == (found.tokens, found.whole)
    assert found.loss == pytest.approx(total / (n - 1), rel=1e-9)
    consecutive = evaluate(model, tokens_of(n, min(window, n - 1)))
    assert consecutive
    ours = evaluate_ids(model, ids, window=window, tokens_at_once=at_once)
    assert ours.loss == pytest.approx(consecutive.loss, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool, make_model: MakeModel, tokens_of: MakeData) -> None:
    """R6: weights, mode and the generators of torch, NumPy and Python stay as they were."""

    def generators() -> str:
        numpy = np.random.get_state()  # noqa: NPY002 - the global one
        return str((torch.get_rng_state().tolist(), numpy, random.getstate()))

    model = make_model(dropout=0.5).train(training)
    weights, before = copy.deepcopy(model.state_dict()), generators()
    evaluate(model, tokens_of(50, 8))
    assert before == generators()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert training is model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off(make_model: MakeModel, tokens_of: MakeData) -> None:
    """Evaluations of a model with dropout equal each other, and that of the model without any."""
    with_dropout, without = make_model(dropout=0.5), make_model(dropout=0.0)
    data = tokens_of(50, 8)
    assert evaluate(without, data) == evaluate(with_dropout, data) == evaluate(with_dropout, data)


def test_a_stop_request_ends_it(make_model: MakeModel, tokens_of: MakeData) -> None:
    """It is asked before each batch; after a yes there is no result, and the mode is restored."""
    model = recorder(make_model()).train()
    asked = iter([False, False, True])
    assert evaluate(model, tokens_of(50, 4), batch_size=1, should_stop=lambda: next(asked)) is None
    assert 2 == len(model.inputs)
    assert model.training


@pytest.mark.property
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    n=st.integers(1, 9), n_rows=st.integers(1, 4), seed=st.integers(0, 2**32), wide=st.booleans(),
)  # fmt: skip
@example(dtype=torch.bfloat16, n=7, n_rows=3, seed=0, wide=True)
def test_a_loss_computed_in_parts_is_the_whole_ones(
    dtype: torch.dtype, n: int, n_rows: int, seed: int, *, wide: bool
) -> None:
    """A large vocabulary or half precision: loss and gradient are those of float32 or better."""
    generator = torch.Generator().manual_seed(seed)
    v = losses.LARGE if wide else 50
    logits = (5 * torch.randn(1, n, v, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(v, (1, n), generator=generator)
    targets[:, 1::3] = -100
    exact = logits.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    expected = F.cross_entropy(exact[0], targets[0], reduction="sum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_n_rows", lambda _: n_rows)
        total = cross_entropy(logits, targets, reduction="sum")
        torch.autograd.backward(total * 0.5)
    mean = cross_entropy(logits, targets)
    torch.autograd.backward(expected * 0.5)
    assert logits.grad is not None
    assert exact.grad is not None
    assert (total.dtype, logits.grad.dtype) == (exact.dtype, dtype)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(mean, expected / (targets >= 0).sum())
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype), atol=1e-6, rtol=1e-2)


def test_bytes_per_token(data_dir: Path, tokenizer: CharTokenizer) -> None:
    """It is the UTF-8 length of the text that the targets decode to, over their number."""
    data = TokenDataset(data_dir / "val.bin", 8)
    _, targets = data.window(0, data.n_tokens - 1)
    text = tokenizer.decode(targets.tolist())
    expected = len(text.encode()) / (data.n_tokens - 1)
    assert expected == bytes_per_token(tokenizer, data)
    assert len(text.encode()) > len(text)  # it holds characters of three bytes


def test_bits_per_byte() -> None:
    """One bit per byte is ln 2 nats per one-byte token; tokens of two bytes halve it."""
    assert bits_per_byte(math.log(2), 1.0) == pytest.approx(1)
    assert bits_per_byte(math.log(2), 2.0) == pytest.approx(0.5)
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
