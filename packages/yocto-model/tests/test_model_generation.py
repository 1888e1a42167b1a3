"""Ids out of a model: equal with and without a cache, in a batch and alone, from equal seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from yocto_model import (
    GPT,
    Context,
    GPTConfig,
    InputError,
    SamplingError,
    SamplingOptions,
    Step,
    stream,
    window_start,
)

MakeModel = Callable[[GPTConfig, int], GPT]
GPT2 = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
MODERN = GPTConfig.from_arch(
    "modern", vocab_size=11, block_size=6, n_layer=2, n_head=4, n_kv_head=2, n_embd=16
)
SEEDS = st.integers(0, 2**40)


def draw_rows(data: st.DataObject, config: GPTConfig, *, most: int = 4) -> list[list[int]]:
    """Prompts of unequal length, some longer than `block_size`."""
    ids = st.integers(0, config.vocab_size - 1)
    row = st.lists(ids, min_size=1, max_size=config.block_size + 3)
    return data.draw(st.lists(row, min_size=1, max_size=most))


def same(expected: Tensor, got: Tensor) -> None:
    np.testing.assert_allclose(got.detach(), expected.detach(), rtol=1e-9, atol=1e-9)


# --- the window ------------------------------------------------------------------------------


@pytest.mark.property
@given(n_tokens=st.integers(1, 10_000), block_size=st.integers(1, 600))
@example(n_tokens=2, block_size=1)
@example(n_tokens=1_025, block_size=1_024)
def test_the_window_is_full_of_the_newest_tokens(n_tokens: int, block_size: int) -> None:
    """It fits, is never less than about three quarters full, and moves in whole hops, forwards."""
    start, hop = window_start(n_tokens, block_size), max(1, block_size // 4)
    shown = n_tokens - start
    assert 1 <= shown <= block_size
    assert start % hop == 0
    if n_tokens <= block_size:
        assert start == 0
    else:
        assert shown > block_size - hop
    assert start <= window_start(n_tokens + 1, block_size) <= start + hop


# --- the laws of generation ------------------------------------------------------------------


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, n=st.integers(0, 14), data=st.data())
@example(config=GPT2, seed=0, n=14, data=None)
@example(config=MODERN, seed=0, n=14, data=None)
def test_the_cache_changes_no_id(
    make_model: MakeModel, config: GPTConfig, seed: int, n: int, data: st.DataObject | None
) -> None:
    """G5: same seed, same ids, cache on or off, also beyond `block_size` and for ragged rows."""
    model = make_model(config, seed)
    rows = [[1], [2, 3, 4]] if data is None else draw_rows(data, config)
    cached, plain = (model.generate(rows, n, seed=seed, use_cache=on) for on in (True, False))
    assert cached.tolist() == plain.tolist()


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, n=st.integers(1, 14), data=st.data())
@example(config=GPT2, seed=0, n=14, data=None)
@example(config=MODERN, seed=0, n=14, data=None)
def test_a_ragged_batch_is_its_rows_one_by_one(
    make_model: MakeModel, config: GPTConfig, seed: int, n: int, data: st.DataObject | None
) -> None:
    """G6: row b of a batch, whatever its neighbours' lengths, is that prompt with seed + b."""
    model = make_model(config, seed)
    rows = [[1], [2, 3, 4], [5] * 8] if data is None else draw_rows(data, config)
    batch = model.generate(rows, n, seed=seed).tolist()
    for b, row in enumerate(rows):
        alone = model.generate([row], n, seed=seed + b)[0].tolist()
        assert alone == batch[b][: len(row) + n]
    assert batch == model.generate(rows, n, seed=[seed + b for b in range(len(rows))]).tolist()


@pytest.mark.property
@given(
    config=st.from_type(GPTConfig),
    seed=SEEDS,
    n_eos=st.tuples(st.integers(0, 12), st.integers(0, 3)),
    data=st.data(),
)
def test_the_output_is_the_prompt_and_then_what_was_made(
    make_model: MakeModel,
    config: GPTConfig,
    seed: int,
    n_eos: tuple[int, int],
    data: st.DataObject,
) -> None:
    """G4: it begins with the prompt, adds at most n ids, and stops a row at its first end token."""
    n, eos = n_eos
    model = make_model(config, seed)
    rows = draw_rows(data, config)
    free = model.generate(rows, n, seed=seed)
    ended = model.generate(rows, n, seed=seed, eos_token=eos)
    assert torch.int64 == free.dtype == ended.dtype
    expected = []
    for row, full in zip(rows, free.tolist(), strict=True):
        assert row == full[: len(row)]
        made = full[len(row) : len(row) + n]
        assert [0] * (len(full) - len(row) - n) == full[len(row) + n :]
        assert all(0 <= token < config.vocab_size for token in made)
        expected.append(row + (made[: made.index(eos) + 1] if eos in made else made))
    longest = max(map(len, expected))
    assert [row + [eos] * (longest - len(row)) for row in expected] == ended.tolist()


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, temperature=st.floats(1e-5, 100), data=st.data())
def test_greedy_needs_no_luck(
    make_model: MakeModel, config: GPTConfig, seed: int, temperature: float, data: st.DataObject
) -> None:
    """G1: temperature 0, or top-k 1 at any other, takes the likeliest id, whatever the seed."""
    model = make_model(config, seed)
    rows = draw_rows(data, config)
    greedy = model.generate(rows, 6, temperature=0, seed=1).tolist()
    assert greedy == model.generate(rows, 6, temperature=0, seed=2).tolist()
    assert greedy == model.generate(rows, 6, temperature=temperature, top_k=1, seed=3).tolist()
    for row, full in zip(rows, greedy, strict=True):
        seen = full[: len(row)]
        visible = seen[window_start(len(seen), config.block_size) :]
        assert int(model(torch.tensor([visible]))[0, -1].argmax()) == full[len(row)]


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, k=st.integers(1, 5), data=st.data())
def test_every_id_comes_from_the_top_k(
    make_model: MakeModel, config: GPTConfig, seed: int, k: int, data: st.DataObject
) -> None:
    """G2: each step's ids are among the k likeliest of the logits it reports."""
    model = make_model(config, seed)
    context = Context(model, draw_rows(data, config))
    generators = [torch.Generator().manual_seed(b) for b in range(len(context.rows))]
    options = SamplingOptions(top_k=k, repetition_penalty=1.0)
    for step in stream(context, 5, options=options, generators=generators):
        for b, token in enumerate(step.ids):
            better = int((step.logits[b] > step.logits[b, token]).sum())
            assert better < k
            expected = float(step.logits[b].float().log_softmax(dim=-1)[token])
            assert expected == step.logprobs()[b]


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
def test_a_penalty_forgets_what_the_model_forgets(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """The repetition penalty looks at the ids in the window, and at no others."""
    context = Context(
        make_model(config, seed),
        [list(range(11))] if data is None else draw_rows(data, config, most=1),
    )
    ids, options = list(context.rows[0]), SamplingOptions(temperature=0, repetition_penalty=20.0)
    for step in stream(context, 12, options=options, generators=[torch.Generator()]):
        visible = set(ids[window_start(len(ids), config.block_size) :])
        table = step.logits[0].tolist()
        for token in visible:
            table[token] = table[token] / 20 if table[token] > 0 else table[token] * 20
        assert table.index(max(table)) == step.ids[0]
        ids += step.ids


def test_equal_seeds_give_equal_ids_and_leave_the_global_generator() -> None:
    """Randomness is an argument; without one, torch's global generator decides."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first = model.generate([[1], [1]], 20, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, model.generate([[1], [1]], 20, seed=7))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, model.generate([[1], [1]], 20, seed=9))
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(model.generate([[1]], 20))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("training", [True, False])
def test_generating_leaves_the_model_as_it_was(training: bool) -> None:
    """Dropout is off while it generates, and mode, weights and gradients are as before."""
    model = GPT(GPT2.replace(dropout=0.5)).train(training)
    model(torch.tensor([[1, 2]])).sum().backward()
    before = {name: (p.detach().clone(), p.grad) for name, p in model.named_parameters()}
    first = model.generate([[1, 2]], 8, seed=3)
    assert torch.equal(first, model.generate([[1, 2]], 8, seed=3))
    assert training == model.training == model.drop.training
    for name, weight in model.named_parameters():
        assert torch.equal(before[name][0], weight)
        assert before[name][1] is weight.grad
    with pytest.raises(InputError):
        model.generate([[99]], 1)
    assert training == model.training


def test_prompts_come_as_tensors_lists_or_arrays() -> None:
    """A tensor, lists, and rows of NumPy integers are the same prompt."""
    model = GPT(GPT2)
    expected = model.generate([[1, 2], [3, 4]], 3, seed=0).tolist()
    ids = np.array([[1, 2], [3, 4]], dtype=np.uint16)
    assert expected == model.generate(torch.tensor([[1, 2], [3, 4]]), 3, seed=0).tolist()
    assert expected == model.generate(list(ids), 3, seed=0).tolist()
    assert [[1, 2], [3, 0]] == model.generate([[1, 2], [3]], 0).tolist()


# --- the context -----------------------------------------------------------------------------


class ContextMachine(RuleBasedStateMachine):
    """A context that is extended, restarted and read in any order, against a fresh one."""

    make: MakeModel

    @initialize(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
    def start(self, config: GPTConfig, seed: int, data: st.DataObject) -> None:
        self.model = type(self).make(config, seed)
        self.rows = draw_rows(data, config, most=2)
        self.context = Context(self.model, self.rows)

    def ids(self, data: st.DataObject, n: int) -> list[int]:
        token = st.integers(0, self.model.config.vocab_size - 1)
        return data.draw(st.lists(token, min_size=n, max_size=n))

    @rule(data=st.data(), times=st.integers(1, 3))
    def append(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            ids = self.ids(data, len(self.rows))
            self.context.append(ids)
            self.rows = [[*row, token] for row, token in zip(self.rows, ids, strict=True)]

    @rule(data=st.data(), keep=st.integers(0, 20), more=st.integers(0, 4))
    def restart(self, data: st.DataObject, keep: int, more: int) -> None:
        ids = self.rows[0][:keep] + self.ids(data, more)
        if not ids:
            with pytest.raises(InputError):
                self.context.restart(ids)
            return
        self.context.restart(ids)
        self.rows = [ids]

    @rule()
    def read(self) -> None:
        expected = Context(self.model, self.rows, use_cache=False).next_logits()
        same(expected, self.context.next_logits())

    @rule(data=st.data())
    def read_after_a_bad_prompt(self, data: st.DataObject) -> None:
        with pytest.raises(InputError):
            self.context.restart([self.model.config.vocab_size])
        self.read()

    @invariant()
    def shows_its_rows(self) -> None:
        assert self.rows == self.context.rows


@pytest.mark.property
def test_a_context_always_knows_what_a_fresh_one_would(make_model: MakeModel) -> None:
    """Prefix reuse: `restart` and the cache never change a logit, in any order of calls."""
    ContextMachine.make = staticmethod(make_model)
    run_state_machine_as_test(ContextMachine)


def counting(model: GPT) -> list[int]:
    """The list to which every pass will add how many tokens it read."""
    read: list[int] = []
    forward = model.hidden_states

    def hidden_states(idx: Tensor, **more: Any) -> Tensor:
        read.append(idx.shape[1])
        return forward(idx, **more)

    model.hidden_states = hidden_states  # type: ignore[method-assign] # to watch it
    return read


def test_what_is_known_is_not_read_again(make_model: MakeModel) -> None:
    """The prompt is read once, then one token a step; a restart reads only what is new."""
    model = make_model(MODERN.replace(block_size=64), 0)
    read = counting(model)
    context = Context(model, [[1, 2, 3, 4, 5]])
    generators = [torch.Generator().manual_seed(0)]
    list(stream(context, 4, options=SamplingOptions(), generators=generators))
    assert [5, 1, 1, 1] == read
    read.clear()
    context.restart([*context.rows[0], 1, 2, 3])
    context.next_logits()
    assert [4] == read  # the id that was drawn last had not been read, and three new ones
    read.clear()
    context.restart([1, 2, 9])
    context.next_logits()
    context.restart([1, 2, 9])
    context.next_logits()
    assert [1, 1] == read  # of a prompt that is known whole, the last id: its logits are wanted
    read.clear()
    model.generate([[1], [1, 2, 3]], 3)
    assert [3, 1, 1] == read


def test_beyond_the_window_most_steps_still_read_one_token(make_model: MakeModel) -> None:
    """The window moves in hops of a quarter, and only a hop costs a full pass."""
    model = make_model(GPT2.replace(block_size=16), 0)
    read = counting(model)
    model.generate([[1]], 48)
    assert read.count(1) == 48 - len([n for n in read if n > 1])
    assert all(n == 13 for n in read if n > 1)
    assert len(read) == 48
    assert sum(n > 1 for n in read) == 8


def test_a_stream_may_be_left_at_any_point() -> None:
    """The context holds exactly what was yielded, and another stream goes on from there."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))
    options = SamplingOptions(temperature=0)

    def steps(context: Context, n: int) -> Sequence[Step]:
        generators = [torch.Generator()]
        return list(stream(context, n, options=options, generators=generators))

    whole = Context(model, [[1, 2]])
    steps(whole, 10)
    parted = Context(model, [[1, 2]])
    for part in (0, 1, 3, 6):
        before = list(parted.rows[0])
        assert before + [step.ids[0] for step in steps(parted, part)] == parted.rows[0]
    assert whole.rows == parted.rows


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "no prompt"),
        ([[]], "row 0 is empty"),
        ([[1], []], "row 1 is empty"),
        ([[1, 11]], r"id 11 in row 0 is outside 0\.\.10"),
        ([[-1]], "id -1 in row 0"),
        ([[2**70]], "in row 0 is outside"),
        ([1, 2], "rows of whole numbers"),
        ([[1.0]], "rows of whole numbers"),
        (["ab"], "rows of whole numbers"),
        (torch.tensor([1, 2]), r"shape \(batch, tokens\)"),
        (torch.zeros(1, 1, 1).long(), r"shape \(batch, tokens\)"),
        (torch.zeros(0, 2).long(), "no prompt"),
        (torch.zeros(2, 0).long(), "row 0 is empty"),
        (torch.zeros(1, 2), "rows of whole numbers"),
    ],
)
def test_a_prompt_that_is_none_is_refused(prompts: Any, said: str) -> None:
    """Wrong shape, kind or range is one line that says where."""
    with pytest.raises(InputError, match=said) as caught:
        GPT(GPT2).generate(prompts, 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "seed", [2**64, -(2**63) - 1, 10**30, 1.5, "1", [1, 2], [], [1.5], [2**64]]
)
def test_a_seed_out_of_range_is_refused(seed: Any) -> None:
    """F8: whole numbers of 64 bits, one in all or one per row."""
    with pytest.raises(InputError, match="seed"):
        GPT(GPT2).generate([[1]], 1, seed=seed)


@pytest.mark.parametrize("number", [-1, 1.5, "3", None, True])
def test_a_number_of_tokens_out_of_range_is_refused(number: Any) -> None:
    """It is a whole number from 0 on."""
    with pytest.raises(InputError, match="max_new_tokens must be a whole number >= 0"):
        GPT(GPT2).generate([[1]], number)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3}])
def test_damaged_weights_are_said_not_sampled(options: dict[str, Any]) -> None:
    """P6: NaN logits are an error of this package, and the model can be used again after repair."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))
    weight = model.token_emb.weight.detach().clone()
    with torch.no_grad():
        model.token_emb.weight[3] = torch.nan
    with pytest.raises(SamplingError, match="not finite"):
        model.generate([[1, 3]], 3, **options)
    with torch.no_grad():
        model.token_emb.weight.copy_(weight)
    assert model.generate([[1, 3]], 3, **options).shape == (1, 5)
