"""A run's course, from events and from files; its curve, and that no point is lost."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli.screen.curve import MARK, Chart, History, Sample, Scale, curve
from yocto_cli.training import run_to_end
from yocto_train import Event, Run, Sampled, StepDone, Trainer

SCALE = Scale(low=0, high=1, last=10)


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """The dots of braille, column and row, decoded independently of how they are made."""
    order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]
    return {
        (2 * x + dx, 4 * y + dy)
        for y, line in enumerate(lines)
        for x, character in enumerate(line)
        if character != " "
        for bit, (dx, dy) in enumerate(order)
        if (ord(character) - 0x2800) >> bit & 1
    }


def test_a_straight_line_by_hand() -> None:
    """From the top left to the bottom right, through 4 columns of 4 dots: the diagonal."""
    points = [(0, 1.0), (10, 0.0)]
    lines = curve(points, SCALE, 2, 1)
    assert {(0, 0), (1, 1), (2, 2), (3, 3)} == dots(lines)
    assert ["\u2811\u2884"] == lines
    assert ["* ", " *"] == curve(points, SCALE, 2, 2, braille=False)


def test_a_steep_curve_has_no_gap() -> None:
    """The column to the right of a drop is filled from the next dot on."""
    lines = curve([(0, 1.0), (5, 0.0)], SCALE, 1, 2)
    assert {(0, 0), *((1, row) for row in range(1, 8))} == dots(lines)


@pytest.mark.parametrize(("points", "width", "expected"), [
    ([(1, 0.0), (2, 1.0)], 1, [" ", "*", " "]),  # in one column: their mean
    ([(4, 0.5), (7, 0.5)], 5, ["     ", "  ** ", "     "]),  # nothing before the first or after
    ([], 5, ["     "] * 3),
])  # fmt: skip
def test_pictures_in_stars(
    points: list[tuple[int, float]], width: int, expected: list[str]
) -> None:
    """A run that is half done has half a curve."""
    assert expected == curve(points, SCALE, width, 3, braille=False)


@pytest.mark.property
@given(
    st.lists(st.tuples(st.integers(-5, 15), st.floats(-1, 2)), max_size=30),
    st.integers(1, 12),
    st.integers(1, 6),
    st.booleans(),
)
@example([(0, 0.0), (10, 1.0)], 3, 2, True)
def test_the_size_holds_and_each_lone_point_shows(
    points: list[tuple[int, float]], width: int, height: int, braille: bool
) -> None:
    """Always `height` lines of `width` characters; a point alone is in the step's column."""
    lines = curve(points, SCALE, width, height, braille=braille)
    assert height == len(lines)
    assert {width} == {len(line) for line in lines}
    for step, loss in points[:1]:
        alone = curve([(step, loss)], SCALE, width, height, braille=braille)
        column = next(i for i in range(width) if any(line[i] != " " for line in alone))
        assert SCALE.column(step, width) == column


@pytest.mark.property
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
@example([0.0, 1.0, 0.0])
def test_a_curve_is_connected(values: list[float]) -> None:
    """Neighbouring columns touch: no dot is further than one row from the column before."""
    found = dots(curve(list(enumerate(values)), Scale(low=0, high=1, last=len(values)), 8, 3))
    rows = {x: {row for column, row in found if column == x} for x in range(16)}
    columns = [x for x in range(16) if rows[x]]
    assert columns == list(range(columns[0], columns[-1] + 1))
    for x in columns[1:]:
        assert min(abs(a - b) for a in rows[x] for b in rows[x - 1]) <= 1
        assert rows[x] == set(range(min(rows[x]), max(rows[x]) + 1))


def test_what_is_not_finite_is_left_out() -> None:
    """A run that has gone astray still has a chart, and evaluations are marked on it."""
    history = History(
        losses=[(1, 3.01), (2, math.nan), (3, 2.39)], evaluations={3: 2.5, 4: math.inf}
    )
    chart = Chart(history, max_iters=4)
    assert Scale(low=2.3, high=3.1, last=4) == chart.scale()
    assert Scale(low=2.3, high=4.2, last=4) == chart.scale(4.17)
    assert 1 == "".join(chart.lines(8, 4)).count(MARK)
    assert [[" " * 8] * 2, Scale(low=0, high=1, last=1)] == [
        Chart(History(), max_iters=0).lines(8, 2), Chart(History(), max_iters=0).scale(),
    ]  # fmt: skip


@pytest.mark.property
@given(st.floats(0, 15), st.floats(0.01, 12))
@example(0.0, 0.01)
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    """At most seven labels, none beyond the axis."""
    found = Scale(low=low, high=low + width, last=1).ticks()
    assert len(found) <= 7
    assert sorted(set(found)) == found
    assert all(low - 0.01 <= tick <= low + width + 0.01 for tick in found)


# --- what was measured ---------------------------------------------------------------------------


def test_files_tell_what_events_told(make_trainer: Any, tmp_path: Path) -> None:
    """A resumed run knows the same curve, evaluations and samples as one that was not stopped."""
    trainer: Trainer = make_trainer()
    run, told, plain = Run(tmp_path / "runs" / "tiny"), History(), trainer.run

    def watched() -> Iterator[Event]:
        for event in plain():
            told.take(event)
            yield event

    trainer.run = watched  # type: ignore[method-assign] # the trainer, overheard
    run.create()
    assert run_to_end(trainer, run, config="", data_dir=tmp_path) == 0
    read = History.of(run)
    assert told == read
    assert [2, 4, 6, 8] == [step for step, _ in read.losses]
    assert [4, 8] == sorted(read.evaluations) == [sample.step for sample in read.samples]
    assert (8, trainer.model.config.n_parameters) == (read.max_iters, read.n_parameters)


@pytest.mark.parametrize("line", [
    "", "{", "[]", "null", '{"event": "stepdone"}', '{"event": "stepdone", "step": "x"}',
    '{"event": "stepdone", "step": 1, "smoothed_loss": null}',
    '{"event": "evaluated", "step": 1, "loss": "low"}', '{"event": 3, "step": 1}',
    '{"event": "started", "step": 0, "max_iters": "many"}',
])  # fmt: skip
def test_rows_that_make_no_sense_are_left_out(line: str, tmp_path: Path) -> None:
    """Nothing in a file is taken for granted."""
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert History() == History.of(Run(tmp_path))


def test_a_history_stays_small() -> None:
    """Of very many reports every other one goes, again and again; the newest stays."""
    history, told = History(), {"lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 1.0, "epoch": 0.0}
    for step in range(1, 20_001):
        history.take(StepDone(step=step, loss=1.0, smoothed_loss=1.0, seconds_left=None, **told))
        history.take(Sampled(step=step, prompt="", text="t", seed=1))
    steps = [step for step, _ in history.losses]
    assert 1000 < len(steps) <= 4096
    assert sorted(set(steps)) == steps
    assert 20_000 == steps[-1]
    assert 100 < len(history.samples) <= 512
    assert Sample(step=1, seed=1, prompt="", text="t") == history.samples[0]
