"""From the flags of yocto-train to a trainer, restored if it is to be, and its run.

This module is imported after the flags have been parsed: it brings torch in.
"""

import contextlib
import dataclasses
from pathlib import Path

import torch
from torch.distributed import is_torchelastic_launched
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer
from yocto_train import Checkpoint, Run, TrainConfig, Trainer, World, joined

from yocto_cli.arguments import dump_toml
from yocto_cli.command import describe_error
from yocto_cli.errors import UsageError
from yocto_cli.plan import described, planned
from yocto_cli.report import tensorboard
from yocto_cli.report.summary import resumed, summary
from yocto_cli.screen.display import say
from yocto_cli.screen.terminal import one_line
from yocto_cli.train import TORCHRUN, run_of
from yocto_cli.train_arguments import RunFlags, TrainArguments, from_dict, resolved, settings
from yocto_cli.training_data import data_directory, open_data
from yocto_cli.training_loop import train

_ATTEMPTS = 20


def start(arguments: TrainArguments, resume: Path | None) -> int:
    """Train, alone or as one of the processes that torchrun started; returns the exit code.

    Args:
        arguments: the flags.
        resume: the run, or the step directory, to go on from.
    """
    parallel = arguments.run.parallel
    if parallel and not is_torchelastic_launched():
        raise UsageError(
            f"--parallel {parallel} needs torchrun; run: {TORCHRUN} --parallel {parallel}"
        )
    if resume is not None and arguments.training.minutes is not None:
        raise UsageError("--resume goes on to a step, not for a time; give --max_iters instead")
    if arguments.run.tensorboard:
        tensorboard.require()  # before any work
    with joined(parallel or "ddp", device=arguments.run.device) as world:
        try:
            return _train(arguments, resume, world)
        except Exception as error:
            if world.is_main:
                raise
            return describe_error(error)[0]  # the first process says it, for all of them


def _train(arguments: TrainArguments, resume: Path | None, world: World) -> int:
    data_dir = Path(world.on_main(lambda: str(data_directory(arguments.data))))
    meta, tokenizer = open_data(arguments.data, data_dir)
    splits = [TokenDataset(data_dir / file, 1) for file in ("train.bin", "val.bin")]
    for split in splits:
        split.verify()
    if resume is None:
        plan = world.on_main(lambda: dataclasses.asdict(planned(arguments, splits[0], splits[1])))
        arguments = from_dict(plan)
    model, config = settings(
        arguments,
        vocab_size=meta.vocab_size,
        shortest_split=min(meta.train.tokens, meta.val.tokens),
    )
    name = data_dir.name
    claims = resume is None and not arguments.run.plan
    path = world.on_main(lambda: str(_run_path(arguments.run, name, resume, claims=claims)))
    run = Run(path)
    if config.compile == "on" and world.is_main:
        say("compiling the model; this takes up to a minute")
    try:
        trainer = _trainer(arguments, model, config, data_dir, tokenizer, run=run, world=world)
    except BaseException:
        if claims and world.is_main:
            with contextlib.suppress(OSError):
                run.path.rmdir()  # nothing is in it yet
        raise
    if arguments.run.plan:
        seconds = trainer.time_step()  # by all processes: each step is shared
        if world.is_main:
            say(summary(trainer, run, data_dir))
            say(described(model, config, seconds))
        return 0
    return _recorded(arguments, trainer, run, data_dir, resume)


def _recorded(
    arguments: TrainArguments, trainer: Trainer, run: Run, data_dir: Path, resume: Path | None
) -> int:
    """Restore what is to be restored, say what will happen, and train, as the run's only writer."""
    world, model, config = trainer.world, trainer.model.config, trainer.config
    with world.lock(run), contextlib.ExitStack() as stack:
        lines = [summary(trainer, run, data_dir)]
        if resume:
            checkpoint = run.latest() if resume == run.path else Checkpoint.open(resume)
            changes = trainer.restore(checkpoint)
            lines.insert(0, resumed(checkpoint, changes, max_iters=config.max_iters))
        full = resolved(arguments, model, config, data_dir=str(data_dir), run_name=run.name)
        text = dump_toml(full)
        if world.is_main:
            run.write_config(text)
            say("\n".join(lines))
        board = None
        if arguments.run.tensorboard and world.is_main:
            board = stack.enter_context(tensorboard.opened(run.path, step=trainer.progress.step))
        return train(trainer, run, config=text, data_dir=data_dir, board=board)


def _run_path(flags: RunFlags, name: str, resume: Path | None, *, claims: bool) -> Path:
    """The directory of the run; a new one is made at once, if it is to be claimed.

    Two trainings that begin at the same moment thus get two names.
    """
    if resume is not None:
        return run_of(resume)
    if flags.run_name and (flags.run_name == ".." or Path(flags.run_name).name != flags.run_name):
        raise UsageError(
            f"--run_name {one_line(flags.run_name)} must be the name of one directory; "
            "--ckpt_dir says where it is"
        )
    for _ in range(_ATTEMPTS):
        run = Run.new(flags.ckpt_dir, flags.run_name or name)
        if flags.run_name and run.name != flags.run_name:
            taken = one_line(str(Path(flags.ckpt_dir) / flags.run_name))
            raise UsageError(
                f"{taken} is there; go on with --resume {taken}, or choose another name"
            )
        if not claims:
            break
        try:
            run.path.mkdir(parents=True)
            break
        except FileExistsError:  # another training was faster
            continue
        except OSError:  # said better when the run is locked
            break
    return run.path


def _trainer(
    arguments: TrainArguments,
    model: GPTConfig,
    config: TrainConfig,
    data_dir: Path,
    tokenizer: Tokenizer,
    *,
    run: Run,
    world: World,
) -> Trainer:
    return Trainer(
        GPT(model, generator=torch.Generator().manual_seed(config.seed)),
        TokenDataset(data_dir / "train.bin", model.block_size),
        TokenDataset(data_dir / "val.bin", model.block_size),
        config,
        run=run,
        tokenizer=tokenizer,
        device=arguments.run.device,
        world=world,
    )
