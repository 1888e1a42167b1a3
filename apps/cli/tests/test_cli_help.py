"""Help and shell completion, made from a command's dataclass."""

from dataclasses import dataclass

import pytest
from yocto_cli.arguments import CommandArguments, load, load_one_of
from yocto_cli.prepare import COMMANDS


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model."""

    n_layer: int = 4
    """How many layers."""


@dataclass(frozen=True, kw_only=True)
class Example(CommandArguments):
    """A flag and a group."""

    lr: float = 1e-3
    """Learning rate."""
    model: Model = Model()


def parse(*words: str) -> Example:
    return load(Example, words, prog="x")


def test_help_comes_from_the_dataclass(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags with underscores and their texts, groups as boxes, the description as it was given."""
    with pytest.raises(SystemExit) as stop:
        load(
            Example, ["--lr=x", "--help"], prog="x", description="Does it.\n\nExamples:\n  x --lr 1"
        )
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("Examples:\n  x --lr 1", "--n_layer INT", "How many layers.", "model options"):
        assert part in text
    with pytest.raises(SystemExit):
        load_one_of(COMMANDS, ["--help"], prog="x")
    assert "bpe" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", [[], ["char"]])
def test_shell_completion_is_printed(prefix: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """For a command, and for a command with a first word."""
    with pytest.raises(SystemExit):
        load_one_of(COMMANDS, [*prefix, "--tyro-print-completion", "bash"], prog="x")
    assert "--val_ratio" in capsys.readouterr().out


def test_no_color_is_honoured_in_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tyro is told through TERM, which is as it was afterwards."""
    import os

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    seen = []
    monkeypatch.setattr(
        "yocto_cli.arguments.tyro.cli", lambda *_, **__: seen.append(os.environ["TERM"])
    )
    parse()
    assert ["dumb"] == seen
    assert os.environ["TERM"] == "xterm-256color"
