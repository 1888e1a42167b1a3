"""The memorisation meter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_chat.inside import longest_stretch, report, training_text
from yocto_cli.command import UsageError
from yocto_data import prepare
from yocto_tokenizers import CharTokenizer


@pytest.mark.property
@given(st.text("ab", max_size=14), st.text("ab", max_size=40))
def test_the_stretch_is_the_longest(reply: str, text: str) -> None:
    """It stands in both, and no longer part of the reply stands in the text."""
    begin, end = longest_stretch(reply, text)
    assert reply[begin:end] in text
    every = [(b, e) for b in range(len(reply)) for e in range(b, len(reply) + 1)]
    longest = max((e - b for b, e in every if reply[b:e] in text), default=0)
    assert longest == end - begin


def test_the_report_shows_share_and_stretch() -> None:
    """A bar as long as the share, the two numbers, and the words themselves."""
    lines = report("the soul of", "I say the soul is", unicode=True)
    assert lines[0] == "█" * 25 + "░" * 5 + " 9 of 11 characters"
    assert lines[2] == '"the soul "'
    assert report("", "", unicode=False)[0] == "." * 30 + " 0 of 0 characters"


@pytest.fixture
def trained(make_talk: Any, tmp_path: Path) -> Any:
    """A model with a run directory that names its data."""
    text = tmp_path / "text.txt"
    text.write_text("abc " * 50)
    tokenizer = CharTokenizer("abc ")
    prepare(text, tmp_path / "data", tokenizer=tokenizer, val_ratio=0.5)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(f'[data]\ndata_dir = "{tmp_path / "data"}"\n')
    return replace(make_talk().chat.model, run=run, tokenizer=tokenizer)


def test_the_training_text_is_found_through_the_run(trained: Any) -> None:
    """config.toml names the data; its training split, and not the rest, is the text."""
    assert training_text(trained) == "abc " * 25


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        *((config, "does not name the data") for config in (None, "not toml", "")),
        ('[data]\ndata_dir = "/nowhere"', "the training text cannot be read"),
    ],
)
def test_data_that_is_not_there(trained: Any, config: str | None, reason: str) -> None:
    """One line says what is missing."""
    path = trained.run / "config.toml"
    path.unlink() if config is None else path.write_text(config)
    with pytest.raises(UsageError, match=reason):
        training_text(trained)


def test_data_of_another_model_is_refused(trained: Any) -> None:
    """A data directory that was prepared anew with another alphabet is not searched."""
    with pytest.raises(UsageError, match="holds other data now than this model was trained on"):
        training_text(replace(trained, tokenizer=CharTokenizer("xyz")))
