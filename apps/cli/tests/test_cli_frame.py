"""Frames of the training screen at every size: nothing too wide, nothing too tall."""

import io
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from yocto_cli.screen.curve import History, Sample
from yocto_cli.screen.frame import Frame
from yocto_cli.screen.ladder import Baseline
from yocto_cli.screen.terminal import one_line
from yocto_train import StepDone, TrainConfig

BASELINES = (
    Baseline(name="uniform", loss=4.17),
    Baseline(name="letter frequencies", loss=3.31),
    Baseline(name="letter pairs", loss=2.46),
)
HISTORY = History(
    losses=[(i, 1.7 + 2.4 * math.exp(-i / 250)) for i in range(12, 1221, 12)],
    evaluations={250: 2.3, 1100: 1.858},
    samples=[Sample(step=1200, seed=7, prompt="The soul", text=" of the world is a thing. " * 9)],
)
RUN = "checkpoints/philosophy-char-003"


def lines(
    width: int = 80,
    height: int = 24,
    *,
    history: History = HISTORY,
    encoding: str = "utf-8",
    sample_interval: int = 100,
    **changes: Any,
) -> list[str]:
    """What a terminal of this size shows, with changes to the frame or the trainer's progress."""
    progress: dict[str, Any] = {
        "step": 1220, "loss_sum": 1.742, "loss_weight": 1.0, "val_loss": 1.861, "best_loss": 1.858,
        "best_step": 1100, "stale_evaluations": 1,
    }  # fmt: skip
    progress |= {name: changes.pop(name) for name in progress.keys() & changes.keys()}
    trainer: Any = SimpleNamespace(
        config=TrainConfig(max_iters=2000, lr=1e-3, sample_interval=sample_interval),
        model=SimpleNamespace(config=SimpleNamespace(n_layer=4, n_embd=128, n_parameters=820_000)),
        placement=SimpleNamespace(device="cpu"),
        progress=SimpleNamespace(**progress),
        tokenizer=SimpleNamespace(kind="char"),
    )
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    usual = {"run": RUN, "baselines": BASELINES, "keys": True, "begun": time.monotonic() - 182}
    frame = Frame(trainer=trainer, history=history, stream=stream, **{**usual, **changes})
    if progress["step"]:
        frame.reported = StepDone(
            step=1210, loss=1.7, smoothed_loss=1.7, lr=1e-3, grad_norm=0.9, epoch=1.0,
            tokens_per_second=41_200, seconds_left=115.4,
        )  # fmt: skip
    console = Console(file=stream, width=width, height=height, force_terminal=True, no_color=True)
    segments = console.render(frame)
    text = "".join(segment.text for segment in segments if not segment.control)
    return [line.rstrip() for line in text.removesuffix("\n").split("\n")]


def test_the_figures_of_a_frame() -> None:
    """At 91 columns everything is there, as in the example of the documentation."""
    shown = lines(91)
    assert f" yocto-train  {RUN}  4 layers · 128 wide · 0.82M · cpu" == shown[0]
    assert shown[1].endswith(" 61%  1220/2000  1m54s left  3m02s gone  41.2k tok/s")
    assert shown[2].startswith(" loss 1.742  val 1.861  best 1.858 @1100  2.68 bits/char  lr ")
    assert shown[2].endswith("grad 0.9")
    assert shown[3].startswith("  4.0 ┤")
    assert shown[3].endswith("4.17  uniform            passed")
    assert any(line.endswith("1.86  you are here") for line in shown)
    assert any('sample @1200 · seed 7 · "The soul"' in line for line in shown)
    keys = " s sample  e evaluate  c checkpoint  q finish and save  Ctrl-C stop and save"
    assert keys == shown[-1]
    for height in (24, 15, 40, 60):  # the whole window, but for the last line
        assert height - 1 == len(lines(91, height))


@pytest.mark.parametrize(("height", "curve", "sample"), [
    (24, True, True), (13, True, True), (12, True, False), (10, True, False), (9, False, False),
    (5, False, False), (2, False, False),
])  # fmt: skip
def test_the_sample_goes_first_then_the_curve(height: int, curve: bool, sample: bool) -> None:
    """With fewer rows the figures stay."""
    shown = lines(80, height)
    assert len(shown) < height
    assert curve == any("┤" in line for line in shown)
    assert sample == any("sample @" in line for line in shown)
    assert "yocto-train" in shown[0]


LOSSES = st.floats(0, 1e4)
TEXTS = st.text("ab \t\n漢字e\u0301👩\u200d👧\x1b[]", max_size=300)
HISTORIES = st.builds(
    History,
    losses=st.just([]) | st.tuples(st.just(1), LOSSES).map(lambda point: [point]),
    evaluations=st.just({}) | st.dictionaries(st.just(5), LOSSES | st.just(math.nan)),
    samples=st.just([])
    | st.builds(Sample, step=st.just(9), seed=st.integers(), prompt=TEXTS, text=TEXTS).map(
        lambda sample: [sample]
    ),
)


@pytest.mark.property
@given(
    st.sampled_from([(80, 24), (60, 15), (200, 50), (79, 23), (40, 10), (20, 6), (10, 3), (1, 1)])
    | st.tuples(st.integers(1, 220), st.integers(1, 60)),
    HISTORIES,
    st.sampled_from(["utf-8", "ascii", "latin-1"]),
    st.fixed_dictionaries({
        "run": TEXTS.map(one_line), "keys": st.booleans(),
        "baselines": st.just(BASELINES) | st.just(()), "step": st.sampled_from([0, 5, 2000]),
        "loss_weight": st.sampled_from([0.0, 1.0]), "loss_sum": LOSSES,
        "val_loss": st.none() | LOSSES | st.just(math.nan),
        "sample_interval": st.sampled_from([0, 7]),
        "stale_evaluations": st.sampled_from([0, 3]), "best_step": st.just(1),
    }),
)  # fmt: skip
@example((80, 24), HISTORY, "utf-8", {})
@example((60, 15), HISTORY, "ascii", {})
def test_every_frame_fits(
    size: tuple[int, int], history: History, encoding: str, options: dict[str, Any]
) -> None:
    """Whatever is shown, in cells and lines; the last column and the last line stay free."""
    width, height = size
    shown = lines(width, height, history=history, encoding=encoding, **options)
    assert 1 <= len(shown) <= max(height - 1, 1)
    assert max(map(cell_len, shown)) <= max(width - 1, 1)
    "\n".join(shown).encode(encoding)
    assert "\x1b" not in "".join(shown)


def test_a_text_is_text() -> None:
    """No markup, no emoji codes, no escapes; lines break between words."""
    text = "[/x] :smile: [bold] \x1b[2J\nnext " + "long " * 40
    history = History(samples=[Sample(step=1, seed=1, prompt="", text=text)])
    for encoding, side, escape in (("utf-8", "│", "\u241b"), ("ascii", "|", "\\u241b")):
        shown = "\n".join(lines(history=history, encoding=encoding))
        assert f"{side} [/x] :smile: [bold] {escape}[2J  " in shown
        assert f"{side} next long long" in shown


@pytest.mark.parametrize("width", [77, 76, 60, 40, 20])
def test_the_ways_out_are_named_at_any_width(width: int) -> None:
    """And a key that was heard is marked until it has had its effect."""
    shown = lines(width, 10)[-1]
    assert "q finish" in shown
    assert "stop" in shown
    assert "!" not in shown
    assert "q finish" + (" and save!" if width > 76 else "!") in lines(width, 10, pending={"q"})[-1]
    assert " Ctrl-C stops and saves"[: width - 1] == lines(width, keys=False)[-1]


@pytest.mark.parametrize(("loss", "expected"), [
    (5.0, ["here", "uniform", "frequencies", "pairs"]),
    (3.0, ["uniform passed", "frequencies passed", "here", "pairs"]),
    (2.0, ["uniform passed", "frequencies passed", "pairs passed", "here"]),
])  # fmt: skip
def test_the_ladder_shows_where_the_model_stands(loss: float, expected: list[str]) -> None:
    """Baselines above it are passed, in words and not only in colour."""
    for words, line in zip(expected, lines(val_loss=loss)[3:], strict=False):
        assert all(word in line for word in words.split())
        assert ("passed" in words) == ("passed" in line)
    assert "validation" not in lines(history=History())[8]
    assert any("training loss" in line for line in lines(val_loss=None))


@pytest.mark.parametrize(("stale", "losses", "said"), [
    (3, [(2, 2.0), (8, 1.0)], True), (2, [(2, 2.0), (8, 1.0)], False),
    (3, [(2, 2.0), (8, 2.5)], False), (3, [], False),
])  # fmt: skip
def test_overfitting_is_said(stale: int, losses: list[tuple[int, float]], said: bool) -> None:
    """After three evaluations without a new best, while training still improves; not before."""
    history = History(losses=losses)
    shown = lines(150, history=history, best_step=2, stale_evaluations=stale)[3]
    assert said == ("step 2 was best" in shown)
    assert said == (f"--ckpt {RUN}/best" in shown)


@pytest.mark.parametrize(("step", "first"), [(0, 100), (99, 100), (100, 100), (101, 200)])
def test_before_the_first_sample_its_step_is_named(step: int, first: int) -> None:
    """At such a step itself it is about to be written; without samples there is no place."""
    options: dict[str, Any] = {"history": History(), "step": step}
    shown = "\n".join(lines(**options))
    assert f"the first one comes after step {first}; press s for one now" in shown
    assert "sample ─" not in "\n".join(lines(**options, sample_interval=0))
