"""From logits to the next id: every filter against a naive float64 version, ties included."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import SamplingError, SamplingOptions
from yocto_model.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_ids,
    penalize_repetition,
)

INF = math.inf
# Few distinct values, so that ties abound, and some that are dropped already.
TIED = st.sampled_from([-INF, -2.0, 0.0, 0.5, 1.0, 3.0])
SPREAD = st.floats(-50, 50, width=32)
NEAR = st.integers(-30, 30).map(lambda tenths: tenths / 10)  # all of them likely to be drawn
ROW = st.one_of(*(st.lists(value, min_size=1, max_size=12) for value in (TIED, SPREAD, NEAR)))
LIVE = ROW.filter(lambda row: max(row) > -INF)
UNIFORM = st.floats(0, 1, exclude_max=True) | st.integers(0, 999).map(lambda n: n / 1000)


def one_row(row: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([row], dtype=dtype)


def kept(logits: Tensor) -> set[int]:
    return {i for i, x in enumerate(logits[0].tolist()) if x > -INF}


def probabilities(row: Sequence[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [w / sum(weights) for w in weights]


def likeliest_first(row: Sequence[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


# --- one filter at a time --------------------------------------------------------------------


@pytest.mark.property
@given(row=ROW, k=st.integers(0, 15))
@example(row=[1.0, 3.0, 3.0, 3.0], k=2)
@example(row=[0.0, -INF, -INF], k=2)
def test_top_k_keeps_exactly_the_k_largest(row: list[float], k: int) -> None:
    """G2: exactly k, the lower id winning a tie; 0 keeps all; what stays is unchanged."""
    out = keep_top_k(one_row(row), k)[0].tolist()
    best = set(likeliest_first(row)[: k or None])
    assert [x if i in best else -INF for i, x in enumerate(row)] == out


@pytest.mark.property
@given(row=LIVE, p=st.floats(0, 1, exclude_min=True))
@example(row=[0.0, 0.0, 0.0, 0.0], p=0.5)
@example(row=[3.0, 3.0, -INF], p=1e-9)
@example(row=[0.0, -800.0], p=1.0)
def test_top_p_keeps_the_smallest_sufficient_set(row: list[float], p: float) -> None:
    """G3: the likeliest tokens, together at least p, less than p without the last; never none."""
    out = keep_top_p(one_row(row), p)
    chosen, order, table = kept(out), likeliest_first(row), probabilities(row)
    if p == 1:
        assert row == out[0].tolist()
        return
    assert chosen
    assert set(order[: len(chosen)]) == chosen
    assert sum(table[i] for i in chosen) >= min(p, 1) - 1e-9
    assert sum(table[i] for i in order[: len(chosen) - 1]) < p + 1e-9
    assert [x if i in chosen else -INF for i, x in enumerate(row)] == out[0].tolist()


@pytest.mark.parametrize(("p", "expected"), [(0.25, {0}), (0.5, {0, 1}), (0.51, {0, 1, 2})])
def test_top_p_that_is_just_reached_is_enough(p: float, expected: set[int]) -> None:
    """G3: with quarters, which floats hold exactly, p = 0.5 takes two of four, the lower ids."""
    assert expected == kept(keep_top_p(one_row([1.0] * 4), p))


def test_top_p_of_a_large_flat_vocabulary_is_exact() -> None:
    """G3: where more tokens are needed than are sorted at first, as many as suffice, lower ids."""
    kept = torch.isfinite(keep_top_p(torch.zeros(2, 2048, dtype=torch.float64), 0.75))
    assert [list(range(1536))] * 2 == [row.nonzero().flatten().tolist() for row in kept]


@pytest.mark.property
@given(row=LIVE, min_p=st.floats(0, 1))
@example(row=[3.0, 3.0, 1.0], min_p=1.0)
def test_min_p_keeps_what_is_likely_enough(row: list[float], min_p: float) -> None:
    """Every token at least `min_p` times as likely as the likeliest, and no other."""
    out = keep_min_p(one_row(row), min_p)
    table = probabilities(row)
    for i, x in enumerate(out[0].tolist()):
        assert x in (row[i], -INF)
        if abs(table[i] - min_p * max(table)) > 1e-9:
            expected = table[i] > min_p * max(table)
            assert expected == (x > -INF) or row[i] == -INF
    assert row.index(max(row)) in kept(out)


@pytest.mark.property
@given(row=ROW, penalty=st.floats(0.1, 10), context=st.lists(st.integers(0, 11), max_size=20))
@example(row=[3.0, -2.0, 1.0], penalty=2.0, context=[0, 1])
def test_the_penalty_touches_seen_tokens_once(
    row: list[float], penalty: float, context: list[int]
) -> None:
    """Positive logits of the context are divided, negative ones multiplied; others stay.

    The argument stays too: it is what log-probabilities are taken from.
    """
    seen = [token for token in context if token < len(row)]
    expected = [
        x if i not in seen else x / penalty if x > 0 else x * penalty for i, x in enumerate(row)
    ]
    logits = one_row(row)
    assert expected == penalize_repetition(logits, [seen], penalty)[0].tolist()
    assert [row] == logits.tolist()


# --- the draw --------------------------------------------------------------------------------


@pytest.mark.property
@given(row=LIVE, u=UNIFORM)
@example(row=[-INF, 0.0, -INF], u=0.0)
@example(row=[0.0, -INF], u=math.nextafter(1, 0))
@example(row=[0.0, -800.0], u=math.nextafter(1, 0))
@example(row=[0.0, 0.0, 0.0, -INF], u=math.nextafter(1, 0))
def test_a_draw_inverts_the_distribution(row: list[float], u: float) -> None:
    """The first id at which the cumulative probability exceeds u; one that can be drawn."""
    token = int(draw(one_row(row), torch.tensor([u], dtype=torch.float64)))
    table = probabilities(row)
    assert row[token] > -INF
    assert table[token] > 0
    assert sum(table[:token]) <= u + 1e-12
    assert u < sum(table[: token + 1]) + 1e-12


# --- all together ----------------------------------------------------------------------------

# Each filter is off half of the time: where all are on, hardly ever are two tokens left.
OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 1.0, 0.7, 2.0]) | st.floats(1e-3, 1e3),
    top_k=st.just(0) | st.integers(0, 8),
    top_p=st.just(1.0) | st.floats(0.01, 1),
    min_p=st.just(0.0) | st.floats(0, 1),
    repetition_penalty=st.just(1.0) | st.floats(0.1, 10),
)


def naive_next_id(row: list[float], options: SamplingOptions, u: float, seen: list[int]) -> int:
    """The documented order in plain Python; -1 where rounding decides, so no claim is made."""
    penalty, near = options.repetition_penalty, False
    row = [x if i not in seen else x / penalty if x > 0 else x * penalty for i, x in enumerate(row)]
    if options.temperature == 0:
        return likeliest_first(row)[0]
    for i in likeliest_first(row)[options.top_k or len(row) :]:
        row[i] = -INF
    row = [(x - max(row)) / options.temperature for x in row]
    before, table = 0.0, probabilities(row)
    for i in likeliest_first(row):
        near |= options.top_p < 1 and abs(before - options.top_p) < 1e-9
        if before >= options.top_p and options.top_p < 1:
            row[i] = -INF
        before += table[i]
    table = probabilities(row)
    if options.min_p > 0:
        near |= any(abs(x - options.min_p * max(table)) < 1e-9 for x in table if 0 < x < max(table))
    row = [x if table[i] >= options.min_p * max(table) else -INF for i, x in enumerate(row)]
    total = 0.0
    for i, x in enumerate(probabilities(row)):
        total += x
        near |= abs(u - total) < 1e-9
        if u < total:
            return -1 if near else i
    return -1


@pytest.mark.property
@given(row=LIVE, options=OPTIONS, u=UNIFORM, data=st.data())
def test_the_next_id_is_the_naive_one(
    row: list[float], options: SamplingOptions, u: float, data: st.DataObject
) -> None:
    """All filters and draws from all over, in float32 logits, equal the plain float64 program."""
    seen = data.draw(st.lists(st.integers(0, len(row) - 1), max_size=4))
    row = one_row(row, torch.float32)[0].tolist()
    uniforms = [min((u + n) / 16, math.nextafter(1, 0)) for n in range(16)]
    expected = [naive_next_id(row, options, each, seen) for each in uniforms]
    logits = torch.tensor([row] * 16, dtype=torch.float32)
    got = next_ids(logits, options, torch.tensor(uniforms).double(), [seen] * 16).tolist()
    assert expected == [
        token if naive >= 0 else -1 for token, naive in zip(got, expected, strict=True)
    ]


@pytest.mark.property
@given(
    row=LIVE,
    temperature=st.floats(0, exclude_min=True, allow_infinity=False),
    u=UNIFORM,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@example(row=[1.0, 1 + 2**-23], temperature=3.0, u=0.0, dtype=torch.float32)
@example(row=[1.0, 1 + 2**-23], temperature=1e300, u=0.0, dtype=torch.float32)
@example(row=[3.0, 0.5], temperature=5e-324, u=0.9, dtype=torch.float32)
def test_top_k_of_one_is_greedy(
    row: list[float], temperature: float, u: float, dtype: torch.dtype
) -> None:
    """G1: with one token left, any temperature gives what temperature 0 gives."""
    logits, uniforms = one_row(row, dtype), torch.tensor([u], dtype=torch.float64)
    greedy = next_ids(logits, SamplingOptions(temperature=0), uniforms, [[0]])
    single = SamplingOptions(temperature=temperature, top_k=1)
    assert greedy.tolist() == next_ids(logits, single, uniforms, [[0]]).tolist()
    assert likeliest_first(logits[0].tolist())[0] == int(greedy)


@pytest.mark.property
@given(
    rows=st.lists(LIVE, min_size=2, max_size=4),
    shift=st.sampled_from([0.0, -2000.0, 2000.0]),
    options=OPTIONS,
    uniforms=st.lists(UNIFORM, min_size=4, max_size=4),
    context=st.lists(st.integers(0, 11), max_size=3),
)
@example(
    rows=[[0.0, 1.0], [1.0, 0.0]], shift=-2000.0, uniforms=[0.5] * 4, context=[],
    options=SamplingOptions(top_p=0.6, min_p=0.1),
)  # fmt: skip
@example(
    rows=[[0.0, 1.0], [1.0, 0.0]], shift=-2000.0, uniforms=[0.5] * 4, context=[],
    options=SamplingOptions(temperature=1e-306),
)  # fmt: skip
@example(
    rows=[[3.0, 1.0, 1.0], [1.0, 1.0, 1.0]], shift=0.0, uniforms=[0.9] * 4, context=[],
    options=SamplingOptions(top_k=2),
)  # fmt: skip
def test_a_row_does_not_know_its_neighbours(
    rows: list[list[float]],
    shift: float,
    options: SamplingOptions,
    uniforms: list[float],
    context: list[int],
) -> None:
    """Drawing from a batch is drawing from each of its rows, even where exp would overflow."""
    width = min(map(len, rows))
    u = torch.tensor(uniforms[: len(rows)], dtype=torch.float64)
    logits = torch.tensor([[max(row), *row[1:width]] for row in rows])
    logits[0] += shift
    contexts = [[(token + b) % width for token in context] for b in range(len(rows))]
    before = logits.clone()
    batch = next_ids(logits, options, u, contexts).tolist()
    assert torch.equal(before, logits)
    single = [
        int(next_ids(logits[b : b + 1], options, u[b : b + 1], contexts[b : b + 1]))
        for b in range(len(rows))
    ]
    assert single == batch


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[INF, 0], [math.nan, 0], [-INF, -INF]])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0}, {"temperature": 0.5}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}],
    ids=str,
)
def test_logits_that_are_not_finite_are_an_error(row: list[float], options: dict[str, Any]) -> None:
    """P6: NaN, infinity or nothing to draw from is said, in any row and under any filter."""
    logits = torch.tensor([[0.0, 1.0], row])
    with pytest.raises(SamplingError, match=r"^the model's output is not finite; "):
        next_ids(logits, SamplingOptions(**options), torch.zeros(2).double(), [[0], [0]])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-1, math.nan, INF, 10**400, "1", None, True]),
        ("top_k", [-1, 2.5, 2.0, INF, math.nan, "3", None, True]),
        ("top_p", [0, -0.1, 1.1, math.nan, "1", None]),
        ("min_p", [-0.1, 1.1, math.nan, "0", None]),
        ("repetition_penalty", [0, -1, math.nan, INF, 10**400, None]),
    ],
)
def test_an_option_out_of_range_is_named(field: str, values: list[Any]) -> None:
    """F3, F4: one line that names the option, what it may be and what it was."""
    for value in values:
        with pytest.raises(SamplingError, match=f"^{field} must be ") as caught:
            SamplingOptions(**{field: value})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 120
