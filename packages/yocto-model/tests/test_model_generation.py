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


@pytest.mark.parametrize("stop", [[[]], [5], [[99]], [["a"]], 5, None])
def test_a_stop_that_cannot_be_is_refused(make_model: MakeModel, stop: Any) -> None:
    """In one line, before anything is made."""
    config = GPTConfig(vocab_size=7, block_size=4, n_layer=1, n_head=1, n_embd=4)
    with pytest.raises(InputError, match=r"a stop (must be rows|needs at)|^id 99 in stop 0 is"):
        make_model(config, 0).generate([[1]], 2, stop=stop)


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
    rows = draw_rows(data, config)
    generators = [torch.Generator().manual_seed(b) for b in range(len(rows))]
    options = SamplingOptions(top_k=k)
    for ids, logits in stream(Reader(model), rows, 5, options=options, generators=generators):
        for b, token in enumerate(ids):
            assert int((logits[b] > logits[b, token]).sum()) < k
            assert token == rows[b][-1]


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
