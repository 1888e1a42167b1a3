"""yocto-sample: a model continues a prompt."""

import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from yocto_cli.arguments import CommandArguments, flag, load
from yocto_cli.command import UsageError, run_command
from yocto_cli.model_arguments import ModelArguments, SamplingArguments
from yocto_cli.screen.terminal import VisibleStream, can_show, counted, dim, is_terminal, visible

if TYPE_CHECKING:
    from yocto_model import TextGenerator
    from yocto_train import OpenedModel, Run

PROG = "yocto-sample"
DESCRIPTION = f"""\
Continues a prompt with a trained model. The text goes to stdout, all else to stderr.

Examples:
  {PROG}
  {PROG} --prompt "The soul" --max_new_tokens 200 --temperature 0.8 --seed 7
  echo "The soul" | {PROG} --num_samples 3 > samples.txt"""
_LIMIT_PROMPT_BYTES = 1 << 20
_ROWS_AT_ONCE = 32  # a batch costs memory, and larger ones are hardly faster


@dataclass(frozen=True, kw_only=True)
class SampleArguments(CommandArguments):
    """The flags of yocto-sample."""

    SHORT: ClassVar[tuple[str, ...]] = (
        "prompt", "num_samples", "timelapse", "temperature", "top_k", "max_new_tokens", "stop",
        "seed", "ckpt",
    )  # fmt: skip

    prompt: tuple[str, ...] = flag(
        (), r"texts to continue; \n, \t and \\ mean line end, tab and backslash",
        shown="stdin, or else a new line", escapes=True,
    )  # fmt: skip
    prompt_file: str | None = flag(None, "a file that holds the prompt")
    num_samples: int = flag(1, "texts per prompt; each has the next seed, and --- stands between")
    echo: bool = flag(True, "print the prompt in front of its continuation")
    timelapse: str | None = flag(
        None, "what a run wrote while it learned; with a prompt, what its checkpoints write"
    )
    sampling: SamplingArguments = field(default_factory=SamplingArguments)
    model: ModelArguments = field(default_factory=ModelArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-sample; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv)


def _main(argv: list[str]) -> int:
    arguments = load(SampleArguments, argv, prog=PROG, description=DESCRIPTION)
    prompts = arguments.prompt or [_other_prompt(arguments.prompt_file)]
    several = arguments.num_samples > 1 or len(prompts) > 1
    arguments.sampling.options()  # raises where flags are out of range
    if arguments.num_samples < 1:
        raise UsageError(f"--num_samples must be at least 1, not {arguments.num_samples}")
    seed = arguments.sampling.seed_or_drawn()
    if arguments.timelapse is not None:
        if arguments.model.ckpt or several:
            raise UsageError("--timelapse takes one prompt; leave --ckpt and --num_samples out")
        return _timelapse(arguments, arguments.timelapse, prompts[0], seed)
    from yocto_cli.models import load_generator  # noqa: PLC0415 - not needed to parse flags

    opened, generator = load_generator(arguments.model)
    ids = _introduce(arguments, opened, generator, prompts)
    rows = [row for row in zip(prompts, ids, strict=True) for _ in range(arguments.num_samples)]
    if len(rows) == 1:
        return 0 if _stream(arguments, generator, *rows[0], seed) else 130
    _write_batches(arguments, generator, rows, seed)
    return 0


def _introduce(
    arguments: SampleArguments, opened: "OpenedModel", generator: "TextGenerator",
    prompts: Sequence[str],
) -> list[list[int]]:  # fmt: skip
    """The prompts' ids; says which model it is, and what is worth knowing."""
    from yocto_cli import models  # noqa: PLC0415 - brings torch in

    ids = [models.prompt_ids(generator, prompt) for prompt in prompts]
    talk(models.model_line(opened, generator))
    found = [*opened.notes, models.replaced_dtype(arguments.model.dtype, generator)]
    found += notes(arguments.sampling, generator, max(map(len, ids)))
    for note in filter(None, found):
        talk(f"note: {note}")
    return ids


def notes(sampling: SamplingArguments, generator: "TextGenerator", n_prompt: int) -> list[str]:
    """What is set but does nothing, and what the model does not see."""
    from yocto_model import window_start  # noqa: PLC0415 - brings torch in

    found, config = [], generator.model.config
    filters = (sampling.top_k > 0, sampling.top_p < 1, sampling.min_p > 0)
    if sampling.temperature == 0 and any(filters):
        found.append("temperature 0 picks the likeliest token; top_k, top_p, min_p change nothing")
    elif sampling.top_k > config.vocab_size:
        found.append(f"top_k {sampling.top_k} is all of the model's {config.vocab_size} tokens")
    if n := window_start(n_prompt, config.block_size):
        found.append(f"the model does not see the first {n} of the prompt's {n_prompt} tokens")
    return found


def _timelapse(arguments: SampleArguments, run: str, prompt: str, seed: int) -> int:
    from yocto_train import Run, step_of  # noqa: PLC0415 - only for this

    from yocto_cli.models import load_generator  # noqa: PLC0415 - not needed to parse flags

    if not (arguments.prompt or arguments.prompt_file or prompt):
        return _recorded_samples(Run(run))
    steps = Run(run).steps()
    if not steps:
        raise UsageError(f"no checkpoint in {run}; name the directory of a run")
    for number, directory in enumerate(steps):
        opened, generator = load_generator(replace(arguments.model, ckpt=str(directory)))
        if number == 0:
            (ids,) = _introduce(arguments, opened, generator, [prompt])
        step, val_loss = step_of(directory.name), opened.checkpoint and opened.checkpoint.val_loss
        print(f"--- step {step}" + ("" if val_loss is None else f", val loss {val_loss:.3f}"))
        if not _stream(arguments, generator, prompt, ids, seed):
            return 130
    return 0


def _recorded_samples(run: "Run") -> int:
    """Print what a run wrote while it was trained, the oldest first; its record has it all."""
    from yocto_cli.screen.curve import History  # noqa: PLC0415 - brings NumPy in

    history = History.of(run)
    if not history.samples:
        raise UsageError(f"no samples in {run.path}; give a --prompt for its checkpoints")
    talk("what it wrote while it learned; with --prompt, its checkpoints continue that")
    for sample in history.samples:
        loss = history.evaluations.get(sample.step)
        print(f"--- step {sample.step}" + ("" if loss is None else f", val loss {loss:.3f}"))
        text = sample.prompt + sample.text
        print(visible(text) if is_terminal(sys.stdout) else text)
    return 0


def _stream(
    arguments: SampleArguments, generator: "TextGenerator", prompt: str, ids: list[int], seed: int
) -> bool:
    """Print one continuation as it is made; False if Ctrl-C ended it."""
    sampling = arguments.sampling
    stream = generator.stream(
        ids, sampling.max_new_tokens, options=sampling.options(), stop=sampling.stop, seed=seed
    )
    # On a terminal nothing a model writes may act; in a pipe or file the text is exact.
    safe = VisibleStream().push if is_terminal(sys.stdout) else str
    started, finished = time.perf_counter(), True
    _write_prompt(arguments, prompt)
    try:
        for token in stream:
            sys.stdout.write(safe(token.text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        finished = False
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    seconds = time.perf_counter() - started
    talk(stats_line(len(stream.tokens), seconds, str(seed), stream.finish_reason or "stopped"))
    return finished


def _write_batches(
    arguments: SampleArguments, generator: "TextGenerator", rows: Sequence[tuple[str, list[int]]],
    seed: int,
) -> None:  # fmt: skip
    """Print a continuation of each row, many made at a time: each is what it would be alone."""
    sampling, n_tokens, started = arguments.sampling, 0, time.perf_counter()
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        batch = rows[first : first + _ROWS_AT_ONCE]
        completions = generator.batch(
            [ids for _, ids in batch], sampling.max_new_tokens, options=sampling.options(),
            stop=sampling.stop, seed=seed + first,
        )  # fmt: skip
        for number, (row, completion) in enumerate(zip(batch, completions, strict=True), first):
            if number:
                print("---")
            _write_prompt(arguments, row[0])
            print(visible(completion.text) if is_terminal(sys.stdout) else completion.text)
            n_tokens += len(completion.tokens)
    seeds, seconds = f"{seed} to {seed + len(rows) - 1}", time.perf_counter() - started
    talk(stats_line(n_tokens, seconds, seeds, counted(len(rows), "sample")))


def _write_prompt(arguments: SampleArguments, prompt: str) -> None:
    if arguments.echo and prompt:
        shown = visible(prompt) if is_terminal(sys.stdout) else prompt
        sys.stdout.write(dim(shown, sys.stdout))


def stats_line(n_tokens: int, seconds: float, seed: str, end: str) -> str:
    """`38 tokens · 61 tok/s · seed 1337 · length`, in ASCII where the terminal wants it."""
    speed = n_tokens / seconds if seconds > 0 else 0.0
    dot = " · " if can_show(sys.stderr, "·") else ", "
    return dot.join((counted(n_tokens, "token"), f"{speed:.0f} tok/s", f"seed {seed}", end))


def talk(line: str) -> None:
    """A line for people, faint, on stderr."""
    print(dim(visible(line), sys.stderr), file=sys.stderr, flush=True)


# --- what is piped in, or in a file --------------------------------------------------------------


def _other_prompt(path: str | None) -> str:
    """What --prompt_file holds, else what is piped in, else nothing."""
    if path is None:
        return piped_text(talk) if _stdin_has_text() else ""
    from yocto_data.prep.files import open_regular  # noqa: PLC0415 - only for this

    try:
        with open_regular(Path(path)) as file:
            return _text_of(file.read(_LIMIT_PROMPT_BYTES + 1), path, talk)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; check --prompt_file") from error


def piped_text(note: Callable[[str], object]) -> str:
    r"""The text on stdin, with `\n` for line ends, and without one at the end, which `echo` adds.

    Args:
        note: is told if bytes had to be replaced.

    Raises:
        UsageError: it is no text of at most 1 MiB.
    """
    content = sys.stdin.buffer.read(_LIMIT_PROMPT_BYTES + 1) if sys.stdin else b""
    return _text_of(content, "stdin", note)


def _text_of(content: bytes, where: str, note: Callable[[str], object]) -> str:
    if len(content) > _LIMIT_PROMPT_BYTES:
        raise UsageError(f"{where} holds more than 1 MiB; a prompt is a short text")
    if b"\0" in content:
        raise UsageError(f"{where} is binary, not text; give a text as the prompt")
    text = content.decode("utf-8-sig", "replace")
    if text.count("\ufffd") != content.count("\ufffd".encode()):
        note("bytes that are not UTF-8 were replaced by U+FFFD")
    return text.replace("\r\n", "\n").removesuffix("\n")


def _stdin_has_text() -> bool:
    """Whether stdin is a pipe or a file; a terminal or the null device is not a prompt."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something without one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
