"""From the flags of yocto-train to its data, a trainer, and the run.

This module is imported after the flags have been parsed: it brings torch in.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch.distributed import is_torchelastic_launched
from yocto_data import verify_tokens
from yocto_tokenizers import Tokenizer
from yocto_train import Checkpoint, Run, StepDone, Stopped, Trainer, World, joined
from yocto_train.runs.opening import tokenizer_note
from yocto_train.tune.adapter import save_adapter

from yocto_cli.arguments import dump_toml
from yocto_cli.chats import ends_of, template_of
from yocto_cli.command import UsageError, WorkFailedError, describe_error, handling
from yocto_cli.origin import Origin
from yocto_cli.plan import Data, check_flags, compared, described, planned
from yocto_cli.report.recorder import Recorder, tensorboard
from yocto_cli.report.summary import farewell, resumed, summary
from yocto_cli.screen.curve import History
from yocto_cli.screen.display import line_of, live_display
from yocto_cli.screen.ladder import ladder_of
from yocto_cli.screen.terminal import say
from yocto_cli.train_data import data_directory, open_data
from yocto_cli.train_settings import (
    TORCHRUN,
    RunFlags,
    TrainArguments,
    given_flags,
    resolved,
    run_directory,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_ATTEMPTS = 20


def start(arguments: TrainArguments, resume: Path | None) -> int:
    """Train, alone or as one of the processes that torchrun started; returns the exit code.

    Args:
        arguments: the flags.
        resume: the run, or the step directory, to continue from.
    """
    parallel, given = arguments.run.parallel, given_flags(arguments)
    if parallel and not is_torchelastic_launched():
        command = f"{TORCHRUN} --parallel {parallel}"
        raise UsageError(f"--parallel {parallel} needs torchrun; run: {command}")
    if resume is not None and "minutes" in given:
        raise UsageError("--resume continues up to a step; give --max_iters instead of --minutes")
    # Before any work, and before data are prepared:
    check_flags(given)
    if resume is None and arguments.run.run_name is not None:
        _run_path(arguments.run, Path(), None, claims=False)
    if arguments.run.tensorboard:
        tensorboard()
    with joined(parallel or "ddp", device=arguments.run.device) as world:
        try:
            return _train(arguments, given, resume, world)
        except Exception as error:
            if world.is_main:
                raise
            return describe_error(error)[0]  # the first process says it, for all of them


def _train(
    arguments: TrainArguments, given: dict[str, Any], resume: Path | None, world: World
) -> int:
    source, origin = given.get("init_from"), None
    if source is not None:  # a run that is resumed has all it needs
        origin = Origin.of(resume or source, arguments.data, given)
    data_dir = Path(world.on_main(lambda: str(data_directory(arguments.data, origin))))
    data, tokenizer = open_data(arguments.data, data_dir, origin)
    for name in ("train.bin", "val.bin"):
        verify_tokens(data_dir / name)
    if origin is not None and world.is_main:
        say(f"going on from {origin.opened.path}")
    asked = given
    if resume is None:
        given = world.on_main(lambda: planned(asked, data))
    model, config = data.settings(given)
    if config.compile == "on" and world.is_main:
        say("compiling the model; this takes up to a minute")
    claims = resume is None and not arguments.run.plan
    with contextlib.ExitStack() as until_locked:
        run = Run(world.on_main(lambda: _run_path(arguments.run, data_dir, resume, claims=claims)))
        if claims and world.is_main:  # an empty directory is not left behind
            until_locked.callback(_remove_if_empty, run.path)
        trainer = _trainer(data, tokenizer, given, run, world)
        if arguments.run.plan:
            done = _checkpoint(run, resume).step if resume else 0
            seconds = trainer.time_step()  # by all processes: each step is shared
            if world.is_main:
                plan = described(trainer, seconds, done=done)
                say(f"{summary(trainer, run, data_dir)}\n{plan}")
                if data.origin is not None and resume is None:
                    del trainer  # its memory is needed
                    say(compared(asked, data))
            return 0
        if data.origin is not None and resume is None:
            trainer.request_evaluation()  # what it was before is worth knowing
        full = resolved(given, model, config, data_dir=str(data_dir))
        text, board = dump_toml(full), arguments.run.tensorboard
        code = _recorded(trainer, run, data_dir, resume, config=text, for_tensorboard=board)
        if (adapter := arguments.run.save_adapter) is not None and world.is_main:
            save_adapter(trainer.model, Path(adapter), base=str(source))
            say(f"adapters: {adapter}")
        return code


def _trainer(
    data: Data, tokenizer: Tokenizer, given: dict[str, Any], run: Run, world: World
) -> Trainer:
    """The model with its data, how it is asked, and what ends a reply."""
    model, config = data.settings(given)
    template = template_of(data.directory, data.meta, tokenizer)
    ends = ends_of(template, tokenizer)
    if data.origin is not None:
        before = data.origin.opened
        template, ends = template or before.template, ends + before.end_ids
    return Trainer(
        data.model(model, config.seed), *data.open(given), config, run=run, tokenizer=tokenizer,
        end_ids=ends, template=template, device=given["device"], world=world,
    )  # fmt: skip


def _recorded(
    trainer: Trainer, run: Run, data_dir: Path, resume: Path | None, *, config: str,
    for_tensorboard: bool,
) -> int:  # fmt: skip
    """Restore the run to resume, say what will happen, and train, as the run's only writer."""
    world = trainer.world
    with world.lock(run), contextlib.ExitStack() as stack:
        lines = [summary(trainer, run, data_dir)]
        if note := tokenizer_note(trainer.tokenizer):
            lines.append(f"note: {note} Its bits per byte do not compare with those of others.")
        if resume:
            checkpoint = _checkpoint(run, resume)
            changes = trainer.restore(checkpoint)
            lines.insert(0, resumed(checkpoint, changes, max_iters=trainer.config.max_iters))
        board = None
        if world.is_main:
            run.write_config(config)
            say("\n".join(lines))
            if for_tensorboard:  # hides what an earlier attempt wrote after this step
                step = trainer.progress.step
                board = tensorboard()(
                    str(run.path / "tensorboard"), purge_step=step + 1 if step else None
                )
                stack.callback(board.close)
        return run_to_end(trainer, run, config=config, data_dir=data_dir, board=board)


def _checkpoint(run: Run, resume: Path) -> Checkpoint:
    """What to go on from: the newest of the run, or the step that is named."""
    return run.latest() if resume == run.path else Checkpoint.open(resume)


def run_to_end(
    trainer: Trainer, run: Run, *, config: str, data_dir: Path, board: "SummaryWriter | None" = None
) -> int:
    """Run the trainer to its end; returns the exit code.

    Args:
        trainer: ready, and restored if a run is resumed.
        run: its directory, locked.
        config: the text of config.toml.
        data_dir: where the data is.
        board: torch's writer for TensorBoard, if it is wanted.
    """
    if not trainer.world.is_main:  # one of the processes speaks and writes for all of them
        with _stop_signals(trainer, run) as caught:
            for _ in trainer.run():
                pass
        return _exit_code(caught)
    history, stopped = History.of(run), False
    vocab_size = trainer.model.config.vocab_size
    is_char = getattr(trainer.tokenizer, "kind", None) == "char"
    datasets = trainer.train_data, trainer.val_data
    baselines = ladder_of(*datasets, vocab_size=vocab_size, characters=is_char)
    recorder = Recorder(
        trainer, run, history, config=config, data_dir=data_dir, baselines=baselines, board=board
    )
    live = None
    if trainer.world.size == 1:
        live = live_display(trainer, run, history=history, baselines=baselines)
    with _stop_signals(trainer, run) as caught, live or contextlib.nullcontext():
        for event in trainer.run():
            is_last = isinstance(event, StepDone) and event.step == trainer.config.max_iters
            if is_last and trainer.config.sample_interval:
                trainer.request_sample()  # what the finished model writes is worth seeing
            recorder.record(event)
            if live is not None:
                live.show(event)
            elif line := line_of(event):
                say(line)
            stopped = isinstance(event, Stopped) and event.reason == "requested"
    say(farewell(trainer, run, stopped=stopped))
    return _exit_code(caught)


def _exit_code(caught: list[int]) -> int:
    """130 after Ctrl-C, 143 after SIGTERM or a terminal that was closed, 0 otherwise."""
    if not caught:
        return 0
    return 128 + (signal.SIGINT if caught[0] == signal.SIGINT else signal.SIGTERM)


@contextlib.contextmanager
def _stop_signals(trainer: Trainer, run: Run) -> Iterator[list[int]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop; yields what was caught.

    A second Ctrl-C stops at once, without saving.
    """
    caught: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            saved = run.pointed("latest")
            where = f"the last checkpoint is {saved}" if saved else "nothing was saved"
            raise WorkFailedError(f"stopped at once, without saving; {where}")
        caught.append(int(number))
        trainer.request_stop()

    with handling(("SIGINT", "SIGTERM", "SIGHUP"), handle):
        yield caught


# --- the run's directory -------------------------------------------------------------------------


def _run_path(flags: RunFlags, data_dir: Path, resume: Path | None, *, claims: bool) -> str:
    """The directory of the run; `claims` makes a new one at once.

    So two trainings that begin at the same moment get two names.
    """
    if resume is not None:
        return str(run_directory(resume))
    if (name := flags.run_name) is not None:
        path = Path(flags.ckpt_dir) / name
        if name == ".." or Path(name).name != name:
            raise UsageError(f"--run_name {name} must be the name of one directory in --ckpt_dir")
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            how = f"continue it with --resume {path}, or choose another name"
            raise UsageError(f"{path} already exists; {how}")
        return str(path)
    for _ in range(_ATTEMPTS):
        path = Run.new(flags.ckpt_dir, data_dir.name).path
        try:
            if claims:
                path.mkdir(parents=True)
        except FileExistsError:  # another training was faster
            continue
        except OSError:
            pass  # locking the run gives a better message
        break
    return str(path)


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()
