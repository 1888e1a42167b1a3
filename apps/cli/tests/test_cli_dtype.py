"""--dtype: the weights a command writes with, and what it says of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yocto_model.inference
from yocto_cli.sample import main

WORDS = ["--prompt=we", "--max_new_tokens=9", "--seed=3"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_each_dtype_writes_and_is_named(dtype: str, run: Any, runs: Path) -> None:
    """The model's line ends in the weights' kind, or a note says what took its place."""
    result = run(main, [*WORDS, f"--ckpt={runs / 'char'}", f"--dtype={dtype}"])
    assert result.code == 0
    line, *notes = result.err.splitlines()
    kind = re.fullmatch(r".*, (\w+) weights", line)
    assert kind
    if kind[1] != dtype:
        assert notes[0].startswith(f"note: --dtype {dtype} is {kind[1]} here: ")


def test_a_small_model_stays_as_it_was_trained(run: Any, runs: Path) -> None:
    """Without the flag such a model is float32: the same text on every machine of its kind."""
    plain = run(main, [*WORDS, f"--ckpt={runs / 'char'}"])
    asked = run(main, [*WORDS, f"--ckpt={runs / 'char'}", "--dtype=float32"])
    assert ", float32 weights\n" in plain.err
    assert asked.out == plain.out


def test_what_cannot_be_had_is_said(run: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch lacks a kind, the next finer one writes, and a note gives the reason."""
    monkeypatch.setattr(yocto_model.inference, "why_not", lambda *_: "no\x1b such operator")
    result = run(main, [*WORDS, f"--ckpt={runs / 'char'}", "--dtype=int8"])
    assert result.code == 0
    assert "note: --dtype int8 is float32 here: int8: no␛ such operator; bfloat16" in result.err


def test_an_unknown_dtype_is_refused(refused: Any, runs: Path) -> None:
    """In one line that lists what there is."""
    line = refused(main, [f"--ckpt={runs / 'char'}", "--dtype=int4"])
    assert "--dtype" in line
    assert "bfloat16" in line
