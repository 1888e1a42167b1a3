"""yocto-sample: a model continues a prompt."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yocto_cli.arguments import (
    CommandArguments,
    UsageError,
    WorkFailedError,
    load,
    run_command,
)
from yocto_cli.model_arguments import ModelArguments
from yocto_cli.prompts import read_prompt
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_cli.screen.terminal import VisibleStream, can_show, dim, is_terminal, visible

if TYPE_CHECKING:
    from yocto_model import TextGenerator, TextStream
    from yocto_train import Checkpoint

PROG = "yocto-sample"
DESCRIPTION = f"""\
Continues a prompt with a trained model. The text goes to stdout, all talk to stderr.

Examples:
  {PROG}
  {PROG} --prompt "The soul" --max_new_tokens 200 --temperature 0.8 --seed 7
  echo "The soul" | {PROG} --num_samples 3 > samples.txt"""


@dataclass(frozen=True, kw_only=True)
class SampleArguments(CommandArguments):
    """The flags of yocto-sample."""

    prompt: str | None = None
    """The text to continue; without it, what is piped in, or else a new line."""
    prompt_file: str | None = None
    """A file that holds the prompt; a line end at its end is dropped."""
    num_samples: int = 1
    """How many continuations, with seeds that count up; lines of --- part them."""
    echo: bool = True
    """Print the prompt in front of its continuation."""
    timelapse: str | None = None
    """A run: the same prompt and seed over each of its checkpoints."""
    sampling: SamplingArguments = field(default_factory=SamplingArguments)
    model: ModelArguments = field(default_factory=ModelArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-sample; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv)


def _main(argv: list[str]) -> int:
    arguments = load(SampleArguments, argv, prog=PROG, description=DESCRIPTION)
    prompt = read_prompt(arguments.prompt, arguments.prompt_file)
    _check(arguments)
    seed = arguments.sampling.seed_or_drawn()
    if arguments.timelapse is not None:
        return _timelapse(arguments, arguments.timelapse, prompt, seed)
    checkpoint, generator = arguments.model.open()
    ids = _introduce(arguments, checkpoint, generator, prompt)
    for number in range(arguments.num_samples):
        if number:
            print("---")
        if not _one_sample(arguments, generator, prompt, ids, seed + number):
            return 130
    return 0


def _check(arguments: SampleArguments) -> None:
    problems = arguments.sampling.problems()
    if arguments.num_samples < 1:
        problems.append(f"--num_samples must be at least 1, not {arguments.num_samples}")
    if arguments.timelapse is not None and (arguments.model.ckpt or arguments.num_samples > 1):
        problems.append("--timelapse takes every checkpoint once; drop --ckpt and --num_samples")
    if problems:
        raise UsageError(problems)


def _introduce(
    arguments: SampleArguments, checkpoint: "Checkpoint", generator: "TextGenerator", prompt: str
) -> list[int]:
    """The prompt's ids; says which model it is, and what is worth knowing."""
    from yocto_cli import models  # noqa: PLC0415 - brings torch in

    ids = models.prompt_ids(generator, prompt)
    say(models.model_line(checkpoint, generator))
    found = [models.replaced_dtype(arguments.model.dtype, generator)]
    found += notes(arguments.sampling, generator, len(ids))
    for note in filter(None, found):
        say(f"note: {note}")
    return ids


def _timelapse(arguments: SampleArguments, run: str, prompt: str, seed: int) -> int:
    from yocto_cli import models  # noqa: PLC0415 - brings torch in

    for number, directory in enumerate(models.steps_of(run)):
        checkpoint, generator = arguments.model.open(ckpt=str(directory))
        if number == 0:
            ids = _introduce(arguments, checkpoint, generator, prompt)
        loss = "" if checkpoint.val_loss is None else f", val loss {checkpoint.val_loss:.3f}"
        print(f"--- step {checkpoint.step}{loss}")
        if not _one_sample(arguments, generator, prompt, ids, seed):
            return 130
    return 0


def notes(sampling: SamplingArguments, generator: "TextGenerator", n_prompt: int) -> list[str]:
    """What is set but does nothing, and what the model does not see."""
    from yocto_cli.models import unseen_tokens  # noqa: PLC0415 - brings torch in

    found = []
    config = generator.model.config
    filters = (sampling.top_k > 0, sampling.top_p < 1, sampling.min_p > 0)
    if sampling.temperature == 0 and any(filters):
        found.append("temperature 0 takes the likeliest token; top_k, top_p, min_p change nothing")
    elif sampling.top_k > config.vocab_size:
        found.append(f"top_k {sampling.top_k} is all of the model's {config.vocab_size} tokens")
    if unseen := unseen_tokens(n_prompt, config.block_size):
        found.append(
            f"the first {unseen} of the prompt's {n_prompt} tokens are out of the model's sight"
        )
    return found


def _one_sample(
    arguments: SampleArguments, generator: "TextGenerator", prompt: str, ids: list[int], seed: int
) -> bool:
    """Print one continuation as it is made; False if Ctrl-C ended it."""
    sampling = arguments.sampling
    stream = generator.stream(
        ids,
        sampling.max_new_tokens,
        options=sampling.options(),
        stop=sampling.stop,
        seed=seed,
    )
    started = time.perf_counter()
    finished = _print_stream(stream, prompt if arguments.echo else "")
    seconds = time.perf_counter() - started
    say(stats_line(len(stream.tokens), seconds, seed, stream.finish_reason or "stopped"))
    return finished


def _print_stream(stream: "TextStream", prompt: str) -> bool:
    from yocto_model import SamplingError  # noqa: PLC0415 - brings torch in

    # On a terminal nothing a model writes may act; in a pipe or file the text is exact.
    safe = VisibleStream().push if is_terminal(sys.stdout) else str
    shown = visible(prompt) if is_terminal(sys.stdout) else prompt
    sys.stdout.write(dim(shown, sys.stdout) if shown else "")
    try:
        for piece in stream:
            sys.stdout.write(safe(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return False
    except SamplingError as error:
        raise WorkFailedError(str(error)) from error
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return True


def stats_line(n_tokens: int, seconds: float, seed: int, reason: str) -> str:
    """`38 tokens · 61 tok/s · seed 1337 · length`, in ASCII where the terminal wants it."""
    speed = n_tokens / seconds if seconds > 0 else 0.0
    dot = " · " if can_show(sys.stderr, "·") else ", "
    return dot.join((f"{n_tokens} tokens", f"{speed:.0f} tok/s", f"seed {seed}", reason))


def say(line: str) -> None:
    """A line of talk, faint, on stderr."""
    print(dim(line, sys.stderr), file=sys.stderr, flush=True)
