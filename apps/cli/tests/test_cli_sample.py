"""yocto-sample: text on stdout, talk on stderr, one line for what cannot be."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yocto_model.fast.kernel
from yocto_cli import models, sample
from yocto_cli.arguments import load
from yocto_cli.model_arguments import ModelArguments, SamplingArguments
from yocto_cli.sample import SampleArguments, main, stats_line
from yocto_model import SamplingOptions, TextGenerator, Token

Pipe = Callable[[bytes], None]


@pytest.fixture(autouse=True)
def pipe_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pipe]:
    """Makes bytes the content of stdin; nobody pipes anything in unless a test does."""
    with contextlib.ExitStack() as opened:

        def pipe(content: bytes, path: Path = tmp_path / "piped") -> None:
            path.write_bytes(content)
            stream = opened.enter_context(path.open(encoding="utf-8"))
            monkeypatch.setattr(sys, "stdin", stream)

        stream = opened.enter_context(Path(os.devnull).open(encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", stream)
        yield pipe


def test_stdout_is_prompt_and_continuation_and_nothing_else(run: Any, runs: Path) -> None:
    """Off a terminal the text is exactly the generator's, and ends with a line end."""
    words = [f"--ckpt={runs / 'char'}", "--prompt=The soul", "--max_new_tokens=40", "--seed=7"]
    result = run(main, words)
    _, generator = models.load_generator(ModelArguments(ckpt=str(runs / "char")))
    options = SamplingOptions(temperature=0.8)
    expected = generator.generate("The soul", 40, options=options, seed=7)
    assert (0, f"The soul{expected}\n") == (result.code, result.out)
    assert re.search(r"^40 tokens . \d+ tok/s . seed 7 . length$", result.err, re.MULTILINE)
    assert result.err.startswith("char step 10, ")
    assert expected + "\n" == run(main, [*words, "--no_echo"]).out


def test_without_flags_the_newest_run_writes_from_a_new_line(
    run: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The seed is drawn and printed, and typing it again gives the same text."""
    (tmp_path / "checkpoints").symlink_to(runs)
    monkeypatch.chdir(tmp_path)
    first = run(main, [])
    assert first.code == 0
    found = re.search(r"^\d+ tokens . \d+ tok/s . seed (\d+) . \w+$", first.err, re.MULTILINE)
    assert found
    assert first.out == run(main, [f"--seed={found[1]}"]).out
    assert first.out == run(main, [f"--seed={found[1]}", "--prompt=\n", "--no_echo"]).out


@pytest.mark.parametrize("at_once", [1, 3, 32])
@pytest.mark.parametrize("prompts", [["we"], ["we", "", "The soul\nof the world is what we know"]])
def test_several_samples_and_prompts_have_seeds_that_count_up(
    prompts: list[str], at_once: int, run: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is what its own prompt and seed give alone, however many are made at once."""
    monkeypatch.setattr(sample, "_ROWS_AT_ONCE", at_once)
    words = [f"--ckpt={runs / 'char'}", "--max_new_tokens=9", "--stop=wh"]
    named = [f"--prompt={prompt}" for prompt in prompts]
    several = run(main, [*words, *named, "--num_samples=2", "--seed=3"])
    alone = [
        run(main, [*words, f"--prompt={prompt}", f"--seed={seed}"]).out
        for seed, prompt in enumerate((p for p in prompts for _ in range(2)), start=3)
    ]
    assert "---\n".join(alone) == several.out
    assert f"seed 3 to {2 + len(alone)} . {len(alone)} samples\n" in several.err.replace("·", ".")
    joined = ["--prompt", *prompts]
    assert several.out == run(main, [*words, *joined, "--num_samples=2", "--seed=3"]).out


def test_a_prompt_can_be_piped_or_in_a_file(
    run: Any, runs: Path, pipe_in: Pipe, tmp_path: Path
) -> None:
    """The same bytes give the same text; one line end at the end is not part of the prompt."""
    words = [f"--ckpt={runs / 'char'}", "--max_new_tokens=9", "--seed=3"]
    expected = run(main, [*words, "--prompt=we\nare"]).out
    for content in (b"we\nare\n", b"we\nare", b"\xef\xbb\xbfwe\nare", b"we\r\nare\r\n"):
        path = tmp_path / "prompt.txt"
        path.write_bytes(content)
        pipe_in(content)
        assert expected == run(main, words).out
        assert expected == run(main, [*words, f"--prompt_file={path}"]).out
    assert "are" not in run(main, [*words, "--prompt=wh"]).out  # a flag wins over a pipe


def test_line_ends_can_be_typed(run: Any, runs: Path) -> None:
    r"""`\n`, `\t` and `\\` in --prompt and --stop; what a file or a pipe holds stays as it is."""
    words = [f"--ckpt={runs / 'char'}", "--max_new_tokens=30", "--seed=3"]
    typed = run(main, [*words, r"--prompt=we\nare", r"--stop=\n"]).out
    assert typed == run(main, [*words, "--prompt=we\nare", "--stop=\n"]).out
    assert typed.startswith("we\nare")
    found = load(SampleArguments, [r"--prompt=a\\nb\tc\d\\"], prog="x")
    assert ("a\\nb\tc\\d\\",) == found.prompt


def test_a_stop_text_ends_the_sample_and_is_not_shown(run: Any, runs: Path) -> None:
    """And the stats say why it ended."""
    words = [f"--ckpt={runs / 'char'}", "--prompt=w", "--seed=5", "--max_new_tokens=60"]
    whole = run(main, words).out
    stop = whole[10:12]
    result = run(main, [*words, "--stop", stop, "no such text"])
    assert whole[: 1 + whole[1:].index(stop)] + "\n" == result.out
    assert re.search(r"seed 5 . stop$", result.err, re.MULTILINE)


def test_a_timelapse_shows_every_step_with_one_seed(run: Any, runs: Path) -> None:
    """The text of each checkpoint, in order, under its step and loss."""
    words = ["--prompt=we", "--max_new_tokens=9", "--seed=3"]
    steps = [run(main, [*words, f"--ckpt={runs}/char/step-{n:08d}"]).out for n in (5, 10)]
    expected = f"--- step 5, val loss 3.000\n{steps[0]}--- step 10, val loss 2.500\n{steps[1]}"
    assert expected == run(main, [*words, f"--timelapse={runs / 'char'}"]).out


def test_a_timelapse_without_a_prompt_is_the_record_of_the_run(run: Any, tmp_path: Path) -> None:
    """All that it wrote, its checkpoints kept or not; nothing of it acts on a terminal."""
    rows = [
        ("metrics", {"event": "evaluated", "step": 4, "loss": 2.5}),
        *(("samples", {"event": "sampled", "step": step, "prompt": "we", "text": text, "seed": 1})
          for step, text in ((2, " x"), (4, " are"))),
    ]  # fmt: skip
    for name, row in rows:
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    expected = "--- step 2\nwe x\n--- step 4, val loss 2.500\nwe are\n"
    assert expected == run(main, [f"--timelapse={tmp_path}"]).out


@pytest.mark.parametrize("named", [
    "", "/step-00000010", "/step-00000010/model.pt", "/latest", "/latest.pt",
    "/step-00000010/model.safetensors",
])  # fmt: skip
def test_matching_flags_are_welcome(named: str, run: Any, runs: Path) -> None:
    """A run, a step or a file; mode and tokenizer may be said where they are true."""
    step = runs / "char" / "step-00000010"
    words = [
        f"--ckpt={runs / 'char'}{named}", "--mode=char", f"--vocab_path={step / 'vocab.json'}",
        f"--tokenizer_path={step}", "--max_new_tokens=3", "--seed=1", "--device=cpu",
    ]  # fmt: skip
    expected = run(main, [f"--ckpt={runs / 'char'}", "--max_new_tokens=3", "--seed=1"]).out
    assert expected == run(main, words).out


OUT_OF_RANGE = [
    ("--num_samples", 0), ("--temperature", -1), ("--top_k", -1), ("--top_p", 0), ("--top_p", 1.1),
    ("--min_p", 2), ("--repetition_penalty", 0), ("--max_new_tokens", 0), ("--seed", -1),
    ("--seed", 2**64), ("--stop", ""),
]  # fmt: skip


@pytest.mark.parametrize(("words", "what"), [
    ("--ckpt_dir={runs}/none", "no checkpoint in"),
    ("--ckpt={runs}/none", "does not exist"),
    ("--ckpt={runs}/a\0b", "a\u2400b"),
    ("--ckpt={runs}", "holds runs; name one, such as the newest, "),
    ("--ckpt={runs}/char/vocab.json", "does not exist"),
    ("--ckpt={runs}/char --mode=token", "--mode token, but"),
    ("--ckpt={runs}/bpe --mode=char", "--mode char, but"),
    ("--ckpt={runs}/char --tokenizer_path={runs}/bpe/step-00000005", "does not belong to"),
    ("--ckpt={runs}/char --vocab_path={runs}/bpe/step-00000005", "--tokenizer_path"),
    ("--vocab_path={runs}/char/step-00000005 --tokenizer_path={runs}/bpe/step-00000005", "only"),
    ("--ckpt={runs}/char --tokenizer_path={runs}/none", "none"),
    ("--ckpt={runs}/char --prompt=é", "'é' (U+00E9) is not among the model's 23 characters"),
    ("--ckpt={runs}/char --prompt=\x1b", "'\u241b' (U+001B) is not among"),
    ("--ckpt={runs}/char --device=cuda:9", "is not available; choose from cpu"),
    ("--ckpt={runs}/char --device=tpu", "is not available; choose from cpu"),
    ("--ckpt={runs}/char --prompt_file={runs}/none", "No such file"),
    ("--ckpt={runs}/char --prompt_file={runs}", "Is a directory"),
    ("--ckpt={runs}/char --timelapse={runs}/char", "leave --ckpt and --num_samples out"),
    ("--timelapse={runs}", "no samples in"),
    ("--timelapse={runs} --prompt=we", "no checkpoint in"),
    *((f"{flag}={value}", f"{flag} must ") for flag, value in OUT_OF_RANGE),
    ("--temperature=-1 --top_p=2 --seed=-1", "; --seed must be"),
])  # fmt: skip
def test_what_cannot_be_is_refused(words: str, what: str, refused: Any, runs: Path) -> None:
    """Before any text is written: exit code 2 and one line that says what to change."""
    assert what in refused(main, words.format(runs=runs).split())


def test_a_piped_prompt_must_be_a_short_text(
    refused: Any, run: Any, runs: Path, pipe_in: Pipe
) -> None:
    """Binary, or far too long; what is not UTF-8 is replaced, and that is said."""
    for content, what in (
        (b"ab\0", "stdin is binary"),
        (b"a" * (2 << 20), "more than 1 MiB"),
    ):
        pipe_in(content)
        assert what in refused(main, [f"--ckpt={runs / 'char'}"])
    pipe_in(b"we\xff")
    done = run(main, [f"--ckpt={runs / 'char'}"])
    assert done.err.startswith("bytes that are not UTF-8 were replaced by U+FFFD\n")
    assert "'\ufffd' (U+FFFD) is not among the model's" in done.err


@pytest.mark.parametrize(("words", "note"), [
    ("--temperature=0 --top_k=3", "temperature 0 picks the likeliest token"),
    ("--top_k=1000000000", "top_k 1000000000 is all of the model's 23 tokens"),
    ("--prompt=" + "w" * 30, "does not see the first 16 of the prompt's 30 tokens"),
])  # fmt: skip
def test_what_changes_nothing_or_is_not_seen_is_said(
    words: str, note: str, run: Any, runs: Path
) -> None:
    """Once, on stderr; the sample is made all the same."""
    result = run(main, [f"--ckpt={runs / 'char'}", "--max_new_tokens=2", *words.split()])
    assert result.code == 0
    assert result.err.count(note) == 1
    assert result.err.count("note: ") == 1


def write(pieces: Sequence[str | BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model write these pieces, one token each, or fail in between."""

    class Stream:
        finish_reason = None
        tokens = (1, 2)

        def __iter__(self) -> Iterator[Token]:
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield Token(id=0, text=piece)

    monkeypatch.setattr(TextGenerator, "stream", lambda *_, **__: Stream())


NASTY = ("\x1b", "[2J", "[/x]", ":smile:", "\x9b", "👩", "\u202e", "e\u0301")


def test_text_is_exact_in_a_pipe_and_harmless_on_a_terminal(
    run: Any, runs: Path, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that writes escape codes, markup and half an emoji moves nothing on the screen."""
    write(NASTY, monkeypatch)
    words = [f"--ckpt={runs / 'char'}", "--prompt=we"]
    assert "we" + "".join(NASTY) + "\n" == run(main, words).out
    shown = "\u241b[2J[/x]:smile:<009B>👩<202E>e\u0301\n"
    for no_color, prompt in (("1", "we"), ("", "\x1b[2mwe\x1b[22m")):
        terminal = screen(no_color)
        assert main(words) == 0
        assert prompt + shown == terminal.text()


def test_ctrl_c_keeps_what_was_written(
    run: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text so far stays, the line ends, no further sample begins, exit code 130."""
    write(["one", KeyboardInterrupt()], monkeypatch)
    result = run(main, [f"--timelapse={runs / 'char'}", "--prompt=we", "--seed=1"])
    assert (130, "--- step 5, val loss 3.000\nweone\n") == (result.code, result.out)
    assert re.search(r"seed 1 . stopped$", result.err, re.MULTILINE)


def test_sampling_flags_are_the_models_options() -> None:
    """Off is off: the flags' neutral values are the neutral options."""
    neutral = SamplingArguments(temperature=1.0)
    assert SamplingOptions() == neutral.options()
    assert neutral.problems() == []
    assert 0 <= neutral.seed_or_drawn() < 2**31
    assert SamplingArguments(seed=5).seed_or_drawn() == 5


def test_stats_are_ascii_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoding error on an ASCII stderr."""
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert stats_line(38, 2.0, "7", "stop") == "38 tokens, 19 tok/s, seed 7, stop"
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert stats_line(1, 0.0, "7", "stop") == "1 token · 0 tok/s · seed 7 · stop"


# --- the type of the weights ---------------------------------------------------------------------

WORDS = ["--prompt=we", "--max_new_tokens=9", "--seed=3"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_each_dtype_writes_and_is_named(dtype: str, run: Any, runs: Path) -> None:
    """The model's line ends in the kind of weights, if it is not float32; a note tells a change.

    A small model stays as it was trained: without the flag it is float32, on every machine.
    """
    plain = run(main, [*WORDS, f"--ckpt={runs / 'char'}"])
    result = run(main, [*WORDS, f"--ckpt={runs / 'char'}", f"--dtype={dtype}"])
    assert result.code == 0
    assert ", cpu\n" in plain.err
    assert dtype != "float32" or plain.out == result.out
    line, *notes = result.err.splitlines()
    named = re.fullmatch(r".*, (\w+) weights", line)
    kind = named[1] if named else "float32"
    if kind != dtype:
        assert notes[0].startswith(f"note: --dtype {dtype} is {kind} on this machine: ")


def test_what_cannot_be_had_is_said(run: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a kind of weights cannot be had, another writes, and a note gives the reason."""

    def load(*_: object, **__: object) -> None:
        raise RuntimeError("no\x1b compiler")

    monkeypatch.setattr(yocto_model.fast.kernel, "load", load)
    result = run(main, [*WORDS, f"--ckpt={runs / 'char'}", "--dtype=int8"])
    assert result.code == 0
    assert " on this machine: int8: no\u241b compiler" in result.err
