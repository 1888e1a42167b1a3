"""yocto-train: train a model on a text, save it, and say how to talk to it."""

from collections.abc import Sequence
from pathlib import Path

from yocto_cli.arguments import UsageError, load, run_command
from yocto_cli.screen.terminal import one_line
from yocto_cli.train_arguments import RunFlags, TrainArguments

PROG = "yocto-train"
TORCHRUN = f"uv run torchrun --nproc-per-node 2 --no-python {PROG}"
_DESCRIPTION = f"""\
Train a small GPT on a text and save it.

With no flags: prepares data/philosophy.txt, trains a model for a few minutes, and prints the
command to talk to it.

Examples:
  {PROG}
  {PROG} --text_path my.txt --minutes 10
  {PROG} --resume
  {PROG} --list
  {TORCHRUN} --parallel ddp"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-train; returns the exit code."""
    return run_command(run, prog=PROG, argv=argv)


def run(argv: list[str]) -> int:
    """Parse, prepare, train; returns the exit code."""
    arguments = load(TrainArguments, argv, prog=PROG, description=_DESCRIPTION)
    if arguments.run.list:
        from yocto_cli.runs import print_runs  # noqa: PLC0415 - after parsing

        return print_runs(Path(arguments.run.ckpt_dir))
    resume = _to_resume(arguments.run)
    if resume is not None:
        if arguments.config is not None:
            raise UsageError("--resume takes the run's own settings; leave --config out")
        # The run's own settings, and the flags given now on top.
        words = ["--config", str(run_of(resume) / "config.toml"), *argv]
        arguments = load(TrainArguments, words, prog=PROG)
    from yocto_cli.training_run import start  # noqa: PLC0415 - after parsing

    return start(arguments, resume)


def _to_resume(flags: RunFlags) -> Path | None:
    """The run or the step directory that --resume means, or None."""
    name = flags.resume
    if name is None:
        return None
    from yocto_train import Run, RunError  # noqa: PLC0415 - after parsing

    try:
        path = Run.newest(flags.ckpt_dir).path if name == "latest" else Path(name)
    except RunError as error:
        raise UsageError(f"nothing to resume: {error}") from error
    if path.suffix == ".pt":  # a pointer in a run, or the model in a step
        directory = path.parent if path.name == "model.pt" else Run(path.parent).pointed(path.name)
        if directory is None:
            raise UsageError(f"nothing to resume: {one_line(name)} points to no checkpoint")
        path = directory
    if not (run_of(path) / "config.toml").is_file():
        raise UsageError(
            f"nothing to resume: {one_line(str(path))} is no run; {PROG} --list shows them"
        )
    return path


def run_of(path: Path) -> Path:
    """The run directory of a run, or of one of its step directories."""
    from yocto_train import step_of  # noqa: PLC0415 - after parsing

    return path if step_of(path.name) is None else path.parent
