"""Frames of the training screen at every size: nothing too wide, nothing too tall."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from yocto_cli.screen.frame import Facts, duration, frame
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.panels import ASCII, UNICODE, Line, ladder_lines, wrapped

BASELINES = (
    Baseline(name="uniform", loss=4.17),
    Baseline(name="letter frequencies", loss=3.31),
    Baseline(name="letter pairs", loss=2.46),
)
FACTS = Facts(
    run="checkpoints/philosophy-char-003",
    model=("4 layers", "128 wide", "0.82M", "cpu"),
    step=1220,
    max_iters=2000,
    loss=1.742,
    val_loss=1.861,
    best_loss=1.858,
    best_step=1100,
    bits=2.68,
    lr=6.1e-4,
    grad_norm=0.9,
    tokens_per_second=41_200,
    seconds_left=114,
    losses=tuple((i, 1.7 + 2.4 * math.exp(-i / 250)) for i in range(12, 1221, 12)),
    evaluations=((250, 2.3), (1100, 1.858)),
    baselines=BASELINES,
    sample=(1200, 7, "The soul", "The soul of the world is the thing that we know. " * 9),
    keys=True,
)


def texts(lines: Sequence[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def test_the_figures_of_a_frame() -> None:
    """At 80 columns everything is there, as in the example of the documentation."""
    shown = texts(frame(FACTS, 80, 23))
    assert (
        " yocto-train  checkpoints/philosophy-char-003  4 layers · 128 wide · 0.82M · cpu"
        == (shown[0])
    )
    assert shown[1].endswith(" 61%  1220/2000  1m54s left  41.2k tok/s")
    assert (
        " loss 1.742  val 1.861  best 1.858 @1100  2.68 bits/char  lr 6.1e-04  grad 0.9"
        == (shown[2])
    )
    assert shown[3].startswith("  4.0 ┤")
    assert shown[3].endswith("4.17  uniform            passed")
    assert any(line.endswith("1.86  you are here") for line in shown)
    assert any('sample @1200 · seed 7 · "The soul"' in line for line in shown)
    assert (
        " s sample  e evaluate  c checkpoint  q finish and save  Ctrl-C stop and save"
        == (shown[-1])
    )
    assert 23 == len(shown)


@pytest.mark.parametrize(("rows", "curve", "sample"), [
    (23, True, True), (12, True, True), (11, True, False), (9, True, False), (8, False, False),
    (4, False, False), (1, False, False),
])  # fmt: skip
def test_the_sample_goes_first_then_the_curve(rows: int, curve: bool, sample: bool) -> None:
    """With fewer rows the figures stay."""
    shown = texts(frame(FACTS, 80, rows))
    assert len(shown) <= rows
    assert curve == any("┤" in line for line in shown)
    assert sample == any("sample @" in line for line in shown)
    assert "yocto-train" in shown[0]


SIZES = [(80, 24), (60, 15), (200, 50), (79, 23), (40, 10), (20, 6), (10, 3), (1, 1)]


LOSSES = st.floats(0, 1e4)
TEXTS = st.text("ab \t\n漢字e\u0301👩\u200d👧", max_size=300)
ANY_FACTS = st.builds(
    Facts,
    run=st.text("ab漢 ", max_size=40),
    model=st.just(("1 layer", "cpu")),
    step=st.sampled_from([0, 5, 2000]),
    max_iters=st.just(2000),
    loss=LOSSES | st.none(),
    val_loss=LOSSES | st.none(),
    losses=st.just(()) | st.tuples(st.tuples(st.just(1), LOSSES)),
    evaluations=st.just(()) | st.tuples(st.tuples(st.just(5), LOSSES | st.just(math.nan))),
    baselines=st.just(BASELINES) | st.just(()),
    sample=st.none()
    | st.tuples(st.integers(0, 9), st.integers(), st.text("ab", max_size=9), TEXTS),
    no_sample=st.just("") | st.just("the first one comes later"),
    advice=st.just("") | st.just("best was step 5"),
    keys=st.booleans(),
)


@pytest.mark.property
@given(
    st.sampled_from(SIZES) | st.tuples(st.integers(1, 220), st.integers(1, 60)),
    ANY_FACTS,
    st.booleans(),
)
@example((80, 24), FACTS, True)
@example((60, 15), FACTS, False)
def test_every_frame_fits(size: tuple[int, int], facts: Facts, plain: bool) -> None:
    """Whatever is shown, in cells and lines; and ASCII frames of ASCII texts are ASCII."""
    width, rows = size
    lines = texts(frame(facts, width, rows, ASCII if plain else UNICODE))
    assert 1 <= len(lines) <= rows
    assert max(map(cell_len, lines)) <= width
    if plain and facts.run.isascii() and (facts.sample is None or facts.sample[3].isascii()):
        assert "".join(lines).isascii()


def test_a_key_that_waits_is_marked() -> None:
    """Between the key and the step's end something must show that it was heard."""
    waiting = Facts(run="r", model=(), step=1, max_iters=9, keys=True, pending=frozenset("e"))
    assert " e evaluate! " in texts(frame(waiting, 80, 10))[-1]


def test_without_keys_only_ctrl_c_is_named() -> None:
    """Where stdin is no terminal, no key would do anything."""
    silent = Facts(run="r", model=(), step=1, max_iters=9)
    assert " Ctrl-C stops and saves" == texts(frame(silent, 80, 10))[-1]


@pytest.mark.parametrize(("loss", "expected"), [
    (5.0, ["here", "uniform", "frequencies", "pairs"]),
    (3.0, ["uniform passed", "frequencies passed", "here", "pairs"]),
    (2.0, ["uniform passed", "frequencies passed", "pairs passed", "here"]),
])  # fmt: skip
def test_the_ladder_shows_where_the_model_stands(loss: float, expected: list[str]) -> None:
    """Baselines above it are passed, in words and not only in colour."""
    shown = texts(ladder_lines(BASELINES, ("you are here", loss)))
    assert len(expected) == len(shown)
    for words, line in zip(expected, shown, strict=True):
        assert all(word in line for word in words.split())
        assert ("passed" in words) == ("passed" in line)


@pytest.mark.parametrize(("seconds", "expected"), [
    (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (114, "1m54s"), (7500, "2h05m"), (273600, "3d04h"),
    (-3, "0s"),
])  # fmt: skip
def test_durations(seconds: float, expected: str) -> None:
    """Two units at most."""
    assert expected == duration(seconds)


def test_text_is_broken_between_words() -> None:
    """A word that is longer than a line is cut; line ends of the text stay."""
    assert ("the soul", "of the", "world") == wrapped("the soul of the world", 8, 9)
    assert ("abcdefgh", "ij", "", "k") == wrapped("abcdefghij\n\nk", 8, 9)
    assert ("漢字漢字", "漢") == wrapped("漢字漢字漢", 8, 9)
    assert ("a", "b") == wrapped("a\nb\nc", 8, 2)
