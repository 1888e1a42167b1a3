"""report.html: a page without scripts, whatever the model wrote."""

import dataclasses
import html.parser
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli.report.page import Report, page
from yocto_cli.screen.curve import History, Sample
from yocto_cli.screen.ladder import Baseline

HOSTILE = "</p><script>alert(1)</script>&amp;\"'<img src=x onerror=y>\x1b[2J\ud800"
VOID = {"meta", "br", "hr"}


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text, and notices tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert [] == reader.open
    return reader


def report(text: str = "a sample", **changes: Any) -> Report:
    history = History(
        losses=[(1, 3.0), (2, 2.5), (3, math.nan)], evaluations={2: 2.6, 3: 2.4},
        samples=[Sample(step=2, seed=1, prompt="The ", text=text)],
    )  # fmt: skip
    usual = Report(
        name="run", status="training", history=history, max_iters=4, best_step=3, best_loss=2.4,
        baselines=(Baseline(name="uniform", loss=4.0), Baseline(name="letter pairs", loss=2.5)),
        unit="character", n_parameters=812_345, details=[("data", "d")], config="seed = 1\n",
        commands=[("Talk to it", "uv run yocto-chat --ckpt r")],
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


@pytest.mark.property
@given(st.text() | st.just(HOSTILE))
@example(HOSTILE)
@example("")
def test_text_from_outside_stays_text(text: str) -> None:
    """No text adds a tag or an attribute, in any of the places where it can stand."""
    pairs = [(text, text)]
    changed = report(text, name=text, status=text, details=pairs, commands=pairs, config=text)
    assert read(page(report())).tags == read(page(changed)).tags


def test_the_page_is_alone_and_says_what_it_should() -> None:
    """No script, no handler, no address: it opens offline, and reads on a phone and at night."""
    text = page(report(HOSTILE))
    reader = read(text)
    assert {"script", "link", "img", "iframe", "a"}.isdisjoint(tag for tag, _ in reader.tags)
    names = {name for _, attributes in reader.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href")}
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    for words in ("2.400", "3.46", "0.81 M", "uniform", "uv run yocto-chat --ckpt r", "step 2"):
        assert words in reader.text
    assert "\u241b[2J" in reader.text
    text.encode()


def test_the_curve_is_where_the_figures_are() -> None:
    """One line for training, one for validation, one per baseline; the best point is larger."""
    tags = read(page(report())).tags
    kinds = [attributes.get("class") for tag, attributes in tags if tag in ("polyline", "line")]
    assert ["baseline", "baseline", "train", "val"] == kinds
    dots = [attributes["class"] for tag, attributes in tags if tag == "path"]
    assert ["dot", "dot best"] == dots
    points = next(a["points"] for _, a in tags if a.get("class") == "train") or ""
    assert [250, 500] == sorted({float(point.split(",")[0]) for point in points.split()})


def test_a_run_that_has_just_begun_has_a_page() -> None:
    """Nothing measured, nothing written: it says so instead of failing."""
    empty = report(history=History(), best_loss=None, best_step=None, baselines=())
    text = read(page(empty)).text
    assert "Nothing has been measured yet." in text
    assert "No sample has been written yet." in text


def test_of_many_samples_some_are_shown() -> None:
    """The first, the last, and others spread between them."""
    samples = [Sample(step=i, seed=1, prompt="", text="t") for i in range(1, 501)]
    text = read(page(report(history=History(samples=samples)))).text
    steps = [s for s in samples if f"step {s.step}t" in text]
    assert 25 == len(steps)
    assert (1, 500) == (steps[0].step, steps[-1].step)
