"""Ids out of a model: equal with and without a cache, in a batch and alone, from equal seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT, GPTConfig, InputError, SamplingOptions, window_start
from yocto_model.cache import Reader
from yocto_model.generate import stream

MakeModel = Callable[[GPTConfig, int], GPT]
Counting = Callable[[GPT], list[int]]
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


def first_cut(made: list[int], stops: list[list[int]]) -> int | None:
    """Where `made` is cut: at the beginning of the stop that is complete first."""
    for end in range(1, len(made) + 1):
        begins = [end - len(s) for s in stops if len(s) <= end and made[end - len(s) : end] == s]
        if begins:
            return min(begins)
    return None


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, n=st.integers(0, 12), data=st.data())
def test_what_a_row_gains_ends_before_the_first_stop(
    make_model: MakeModel, config: GPTConfig, seed: int, n: int, data: st.DataObject
) -> None:
    """Of stops that end at once, the longest; one that began in the prompt is none."""
    model = make_model(config, seed)
    rows = draw_rows(data, config)
    free = model.generate(rows, n, seed=seed).tolist()
    made = [full[len(row) : len(row) + n] for row, full in zip(rows, free, strict=True)]
    some = st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=3)
    if n:  # mostly such as do occur, or nearly: with the end of the prompt
        tail = [row[-1:] + new for row, new in zip(rows, made, strict=True)]
        part = st.tuples(st.sampled_from(tail), st.integers(0, n - 1), st.integers(1, 3))
        some |= part.map(lambda t: t[0][t[1] : t[1] + t[2]])
    stops = data.draw(st.lists(some, max_size=3))
    if data.draw(st.booleans()):  # such as end at once
        stops += [stop[1:] for stop in stops if len(stop) > 1]
    last = [stop[-1] for stop in stops]
    eos = data.draw(st.sampled_from([None, *last, *range(config.vocab_size)]))
    expected = []
    for row, new in zip(rows, made, strict=True):
        end = new.index(eos) + 1 if eos in new else n  # a stop that is complete with it counts
        expected.append(row + new[:end][: first_cut(new[:end], stops)])
    longest, fill = max(map(len, expected)), eos or 0
    stopped = model.generate(rows, n, seed=seed, stop=stops, eos_token=eos)
    assert [row + [fill] * (longest - len(row)) for row in expected] == stopped.tolist()


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
def test_greedy_needs_no_luck(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject
) -> None:
    """G1: temperature 0 takes the likeliest id, whatever the seed."""
    model = make_model(config, seed)
    rows = draw_rows(data, config)
    greedy = model.generate(rows, 6, temperature=0, seed=1).tolist()
    assert greedy == model.generate(rows, 6, temperature=0, seed=2).tolist()
    for row, full in zip(rows, greedy, strict=True):
        visible = row[window_start(len(row), config.block_size) :]
        assert int(model(torch.tensor([visible]))[0, -1].argmax()) == full[len(row)]


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
def test_a_penalty_forgets_what_the_model_forgets(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """The repetition penalty looks at the ids in the window, and at no others."""
    model = make_model(config, seed)
    rows = [list(range(11))] if data is None else draw_rows(data, config, most=1)
    ids, options = list(rows[0]), SamplingOptions(temperature=0, repetition_penalty=20.0)
    steps = stream(Reader(model), rows, 12, options=options, generators=[torch.Generator()])
    for drawn, logits in steps:
        visible = set(ids[window_start(len(ids), config.block_size) :])
        table = logits[0].tolist()
        for token in visible:
            table[token] = table[token] / 20 if table[token] > 0 else table[token] * 20
        assert table.index(max(table)) == drawn[0]
        ids += drawn


# --- the reader ------------------------------------------------------------------------------


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
def test_a_reader_always_knows_what_a_fresh_one_would(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject
) -> None:
    """Whatever rows were read before, extended, cut or others, the logits are those of a pass."""
    model = make_model(config, seed)
    token = st.integers(0, config.vocab_size - 1)
    reader, rows = Reader(model), draw_rows(data, config)
    for _ in range(data.draw(st.integers(1, 8))):
        how = data.draw(st.sampled_from(["append", "append", "cut", "other"]))
        if how == "append":
            rows = [[*row, data.draw(token)] for row in rows]
        elif how == "cut":
            rows = [row[: data.draw(st.integers(1, len(row)))] for row in rows]
        else:
            rows = draw_rows(data, config)
        rows = [row[-config.block_size :] for row in rows]
        for row, logits in zip(rows, reader.next_logits(rows), strict=True):
            same(model(torch.tensor([row]))[0, -1], logits)


# --- what is read ----------------------------------------------------------------------------


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


def test_what_is_known_is_not_read_again(make_model: MakeModel, counting: Counting) -> None:
    """The prompt is read once, then one token a step; a restart reads only what is new."""
    model = make_model(MODERN.replace(block_size=64), 0)
    read = counting(model)
    reader, rows = Reader(model), [[1, 2, 3, 4, 5]]
    generators = [torch.Generator().manual_seed(0)]
    list(stream(reader, rows, 4, options=SamplingOptions(), generators=generators))
    assert [5, 1, 1, 1] == read
    read.clear()
    reader.next_logits([[*rows[0], 1, 2, 3]])
    assert [4] == read  # the id that was drawn last had not been read, and three new ones
    read.clear()
    reader.next_logits([[1, 2, 9]])
    reader.next_logits([[1, 2, 9]])
    assert [1, 1] == read  # of a prompt that is known whole, the last id: its logits are wanted
    read.clear()
    model.generate([[1], [1, 2, 3]], 3)
    assert [3, 1, 1] == read


def test_beyond_the_window_most_steps_still_read_one_token(
    make_model: MakeModel, counting: Counting
) -> None:
    """The window moves in hops of a quarter, and only a hop costs a full pass."""
    model = make_model(GPT2.replace(block_size=16), 0)
    read = counting(model)
    model.generate([[1]], 48)
    assert read.count(1) == 48 - len([n for n in read if n > 1])
    assert all(n <= 13 for n in read)  # fewer where a window begins like the one before
    assert len(read) == 48
    assert sum(n > 1 for n in read) <= 8


def test_a_stream_may_be_left_at_any_point() -> None:
    """The rows hold exactly what was yielded, and another stream goes on from there."""
    model = GPT(GPT2, generator=torch.Generator().manual_seed(0))

    def steps(rows: list[list[int]], n: int) -> list[int]:
        options, generators = SamplingOptions(temperature=0), [torch.Generator()]
        made = stream(Reader(model), rows, n, options=options, generators=generators)
        return [ids[0] for ids, _ in made]

    whole, parted = [[1, 2]], [[1, 2]]
    steps(whole, 10)
    for part in (0, 1, 3, 6):
        before = list(parted[0])
        assert before + steps(parted, part) == parted[0]
    assert whole == parted


def test_a_cache_is_no_larger_than_it_need_be(make_model: MakeModel) -> None:
    """A model that could read a million tokens asks for memory as its context grows."""
    model = make_model(MODERN.replace(block_size=20_000), 0)
    reader = Reader(model)
    for n_tokens, capacity in ((3, 4096), (4097, 8194)):
        reader.next_logits([[1] * n_tokens])
        assert reader._cache is not None
        assert capacity == reader._cache.capacity


# --- calls of `generate` ---------------------------------------------------------------------


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


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("idx", [[], torch.zeros(0, 2).long()], "no prompt"),
        ("idx", [[[]], torch.zeros(2, 0).long()], "row 0 is empty"),
        ("idx", [[[1], []]], "row 1 is empty"),
        ("idx", [[[1, 11]]], r"^id 11 in row 0 is outside 0\.\.10"),
        ("idx", [[[-1]], [[2**70]]], "in row 0 is outside"),
        ("idx", [[1, 2], [[1.0]], ["ab"], torch.zeros(1, 2)], "rows of whole numbers"),
        ("idx", [torch.tensor([1, 2]), torch.zeros(1, 1, 1).long()], r"shape \(batch, tokens\)"),
        ("stop", [[5], [["a"]], 5, None], "a stop must be rows"),
        ("stop", [[[]]], "a stop needs at least one"),
        ("stop", [[[99]]], "^id 99 in stop 0 is"),
        ("seed", [2**64, -(2**63) - 1, 10**30, 1.5, "1", [1.5], [2**64]], "a seed must be a whole"),
        ("seed", [[1, 2], []], "rows 1, seeds"),
        ("max_new_tokens", [-1, 1.5, "3", None, True], "max_new_tokens must be a whole number >="),
    ],
)
def test_what_cannot_be_generated_is_refused(name: str, values: list[Any], said: str) -> None:
    """F8: wrong shape, kind or range is one line that says where, before anything is made."""
    arguments: dict[str, Any] = {"idx": [[1]], "max_new_tokens": 2}
    for value in values:
        with pytest.raises(InputError, match=said) as caught:
            GPT(GPT2).generate(**{**arguments, name: value})
        assert str(caught.value).isprintable()
