"""yocto-train: train a model on a text, save it, and say how to talk to it."""

from collections.abc import Sequence
from pathlib import Path

from yocto_cli.arguments import load
from yocto_cli.command import UsageError, run_command
from yocto_cli.threads import use_threads
from yocto_cli.train_settings import PROG, TORCHRUN, RunFlags, TrainArguments, run_directory

_DESCRIPTION = f"""\
Train a small GPT on a text and save it.

With no flags: prepares data/philosophy.txt, trains a model for a few minutes, and prints the
command to talk to it.

Examples:
  {PROG}
  {PROG} --text_path my.txt --minutes 10
  {PROG} --text_path chats.jsonl --tokenizer bpe --vocab_size 1000
  {PROG} --init_from hf:HuggingFaceTB/SmolLM2-135M --minutes 10 --lora_rank 16
  {PROG} --resume
  {PROG} --list
  {TORCHRUN} --parallel ddp"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-train; returns the exit code."""
    return run_command(run, prog=PROG, argv=argv, rephrase=_in_flags)


def _in_flags(message: str) -> str:
    """A package's message, with the flag that does what it advises."""
    return message.replace("use the data it", "say with --data_dir where the data is that it")


def run(argv: list[str]) -> int:
    """Parse, prepare, train; returns the exit code."""
    arguments = load(TrainArguments, argv, prog=PROG, description=_DESCRIPTION)
    if arguments.run.list or arguments.run.remove_unused_data:
        from yocto_cli.report.listing import print_runs  # noqa: PLC0415 - brings NumPy in

        root = Path(arguments.run.ckpt_dir)
        return print_runs(root, remove=arguments.run.remove_unused_data)
    resume = _to_resume(arguments.run)
    if resume is not None:
        if arguments.config is not None:
            raise UsageError("--resume uses the run's own settings; leave --config out")
        # The run's own settings, and the flags given now on top.
        config = str(run_directory(resume) / "config.toml")
        arguments = load(TrainArguments, ["--config", config, *argv], prog=PROG)
    use_threads(arguments.run.threads or 0)
    from yocto_cli.training import start  # noqa: PLC0415 - brings torch in

    return start(arguments, resume)


def _to_resume(flags: RunFlags) -> Path | None:
    """The run or the step directory that --resume means, or None."""
    if flags.resume is None:
        return None
    from yocto_train import Run, TrainError, find_checkpoint  # noqa: PLC0415 - only for this

    path = Path(flags.resume)
    try:
        if flags.resume == "latest":
            path = Run.newest(flags.ckpt_dir).path
        elif not (path / "config.toml").is_file():  # a step, or best or latest in a run
            path = find_checkpoint(path).directory
    except TrainError as error:
        raise UsageError(f"nothing to resume: {error}") from error
    if not (run_directory(path) / "config.toml").is_file():
        raise UsageError(f"nothing to resume: {path} is not in a run; {PROG} --list shows all runs")
    return path
