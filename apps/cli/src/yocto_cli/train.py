"""yocto-train: train a model on a text, save it, and say how to talk to it."""

import contextlib
import dataclasses
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from yocto_cli.arguments import UsageError, WorkFailedError, dump_toml, load, run_command
from yocto_cli.terminal import one_line
from yocto_cli.train_arguments import TrainArguments, resolved, settings

if TYPE_CHECKING:
    from yocto_data import DataMeta
    from yocto_tokenizers import Tokenizer
    from yocto_train import Event, Run, Trainer

PROG = "yocto-train"
DEFAULT_TEXT = Path("data") / "philosophy.txt"
_DESCRIPTION = """Train a small GPT on a text and save it.

With no flags: prepares data/philosophy.txt, trains a model for a few minutes, and prints the
command to talk to it. Your own text: yocto-train --text_path my.txt"""


def main() -> None:
    """The command."""
    sys.exit(run_command(run, prog=PROG))


def run(argv: list[str]) -> int:
    """Parse, prepare, train; returns the exit code."""
    arguments = load(TrainArguments, argv, prog=PROG, description=_DESCRIPTION)
    resume = _run_to_resume(arguments)
    if resume is not None:
        if arguments.config is not None:
            raise UsageError("--resume takes the run's own settings; leave --config out")
        # The run's own settings, and the flags given now on top.
        words = ["--config", str(resume / "config.toml"), *argv]
        arguments = load(TrainArguments, words, prog=PROG)
    data_dir = _data_directory(arguments)
    meta, tokenizer = _open_data(arguments, data_dir)
    return _train(arguments, data_dir, meta, tokenizer, resume)


# --- data ----------------------------------------------------------------------------------------


def _data_directory(arguments: TrainArguments) -> Path:
    """The prepared data; a text is prepared first, unless that was done before."""
    flags = arguments.data
    if flags.text_path is None and flags.data_dir is not None:
        return Path(flags.data_dir)
    if flags.text_path is None and not DEFAULT_TEXT.is_file():
        raise UsageError(
            f"there is no {DEFAULT_TEXT} here; give --text_path YOUR.txt, or --data_dir with what "
            "yocto-prepare made"
        )
    if flags.mode == "token":
        raise UsageError(
            "--mode token needs a tokenizer that is trained first: yocto-prepare bpe "
            "--text_path ..., then give its --out_dir as --data_dir"
        )
    text = Path(flags.text_path or DEFAULT_TEXT)
    directory = Path(flags.data_dir or Path("data") / f"{text.stem}-char")
    if not (directory / "meta.json").is_file() or not _made_from(directory, text):
        from yocto_cli.preparing import prepare_char  # noqa: PLC0415 - after parsing

        prepare_char(str(text), directory, val_ratio=flags.val_ratio, force=flags.data_dir is None)
        _say(f"prepared {one_line(str(text))} at character level in {one_line(str(directory))}")
    return directory


def _made_from(directory: Path, text: Path) -> bool:
    """Whether a data directory holds exactly this text."""
    from yocto_data import DataMeta  # noqa: PLC0415 - after parsing

    sources = DataMeta.load(directory).sources
    if not text.is_file() or len(sources) != 1:
        return False
    with text.open("rb") as file:
        return sources[0].sha256 == hashlib.file_digest(file, "sha256").hexdigest()


def _open_data(arguments: TrainArguments, data_dir: Path) -> tuple["DataMeta", "Tokenizer"]:
    from yocto_data import DataMeta  # noqa: PLC0415 - after parsing
    from yocto_tokenizers import load_tokenizer  # noqa: PLC0415 - after parsing

    from yocto_cli.tokenizer_flags import check_mode, named_tokenizer  # noqa: PLC0415 - the same

    flags = arguments.data
    meta = DataMeta.load(data_dir)
    named = named_tokenizer(flags.tokenizer_path, flags.vocab_path)
    tokenizer = named or load_tokenizer(data_dir)
    shown = one_line(str(data_dir))
    if meta.tokenizer.fingerprint not in (None, tokenizer.fingerprint()):
        raise UsageError(
            f"the {tokenizer.kind} tokenizer ({tokenizer.vocab_size} ids) is not the one that "
            f"{shown} was prepared with; leave the flag out, or prepare the text with it"
        )
    check_mode(flags.mode, tokenizer, where=shown)
    return meta, tokenizer


# --- training ------------------------------------------------------------------------------------


def _train(
    arguments: TrainArguments,
    data_dir: Path,
    meta: "DataMeta",
    tokenizer: "Tokenizer",
    resume: Path | None,
) -> int:
    import torch  # noqa: PLC0415 - after parsing
    from yocto_data import TokenDataset  # noqa: PLC0415 - after parsing
    from yocto_model import GPT  # noqa: PLC0415 - after parsing
    from yocto_train import Run, Trainer  # noqa: PLC0415 - after parsing

    from yocto_cli.plan import described, planned  # noqa: PLC0415 - after parsing

    train_data = TokenDataset(data_dir / "train.bin", 1)
    val_data = TokenDataset(data_dir / "val.bin", 1)
    train_data.verify()
    val_data.verify()
    if resume is None:
        arguments = planned(arguments, train_data, val_data)
    shortest = min(meta.train.tokens, meta.val.tokens)
    model_config, config = settings(arguments, vocab_size=meta.vocab_size, shortest_split=shortest)
    train_data = TokenDataset(data_dir / "train.bin", model_config.block_size)
    val_data = TokenDataset(data_dir / "val.bin", model_config.block_size)
    flags = arguments.run
    run = Run(resume) if resume else Run.new(flags.ckpt_dir, flags.run_name or data_dir.name)
    if resume is None and flags.run_name and run.name != flags.run_name:
        raise UsageError(
            f"{one_line(flags.ckpt_dir)} has a run called {one_line(flags.run_name)}; "
            f"go on with it by --resume {one_line(str(Path(flags.ckpt_dir) / flags.run_name))}, "
            "or choose another name"
        )
    generator = torch.Generator().manual_seed(config.seed)
    trainer = Trainer(
        GPT(model_config, generator=generator),
        train_data,
        val_data,
        config,
        run=run,
        tokenizer=tokenizer,
        device=flags.device,
    )
    if flags.plan:
        _say(_summary(trainer, run, data_dir))
        _say(described(model_config, config, trainer.time_step()))
        return 0
    run.create()
    with run.lock():
        if resume:
            _restore(trainer, run)
        full = resolved(arguments, model_config, config, data_dir=str(data_dir), run_name=run.name)
        run.write_config(dump_toml(full))
        _say(_summary(trainer, run, data_dir))
        return _loop(trainer, run)


def _restore(trainer: "Trainer", run: "Run") -> None:
    checkpoint = run.latest()
    changes = trainer.restore(checkpoint)
    run.drop_rows_after(checkpoint.step)
    _say(f"resuming {one_line(str(run.path))} after step {checkpoint.step}")
    for name, (old, new) in changes.items():
        _say(f"  {name}: {old} -> {new}")
    exact = {"log_interval", "eval_interval", "eval_iters", "save_interval", "keep", "patience"}
    if set(changes) - exact - {"sample_interval", "sample_prompt", "sample_tokens"}:
        _say("  so the run is no longer the one it would have been uninterrupted")


def _loop(trainer: "Trainer", run: "Run") -> int:
    from yocto_cli.display import make_display  # noqa: PLC0415 - after parsing

    recorder = _Recorder(run)
    with _stop_signals(trainer, run) as caught, make_display(trainer, run) as display:
        for event in trainer.run():
            recorder.record(event)
            display.show(event)
    _say(_farewell(trainer, run, stopped=bool(caught)))
    return 128 + caught[0] if caught else 0


class _Recorder:
    """Writes events to metrics.jsonl and samples.jsonl; a full disk is said once."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._failed = False

    def record(self, event: "Event") -> None:
        from yocto_train import Sampled  # noqa: PLC0415 - after parsing

        file = "samples.jsonl" if isinstance(event, Sampled) else "metrics.jsonl"
        row: dict[str, Any] = {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}
        if "path" in row:
            row["path"] = row["path"].name
        try:
            self._run.record(file, row)
        except OSError as error:
            if not self._failed:
                _say(f"warning: cannot write {file}: {error.strerror}; training goes on without it")
            self._failed = True


@contextlib.contextmanager
def _stop_signals(trainer: "Trainer", run: "Run") -> Iterator[list[int]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop; yields what was caught.

    A second Ctrl-C stops at once, without saving.
    """
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if caught and number == signal.SIGINT:
            saved = run.pointed("latest.pt")
            where = f"the last checkpoint is {saved}" if saved else "nothing was saved"
            raise WorkFailedError(f"stopped at once, without saving; {where}")
        caught.append(int(number))
        trainer.request_stop()

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), handle) for name in names}
    try:
        yield caught
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


# --- words ---------------------------------------------------------------------------------------


def _summary(trainer: "Trainer", run: "Run", data_dir: Path) -> str:
    model, config = trainer.model.config, trainer.config
    arch = "modern" if model.positions == "rotary" else "gpt2"
    tokens, parameters = trainer.train_data.n_tokens, model.n_parameters
    epochs = config.max_iters * config.batch_size * model.block_size / tokens
    lines = {
        "run": f"{one_line(str(run.path))}, seed {config.seed}",
        "data": f"{one_line(str(data_dir))}: {tokens:,} tokens to train on, "
        f"{trainer.val_data.n_tokens:,} to validate, {model.vocab_size} ids",
        "model": f"{arch}, {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, "
        f"context {model.block_size}: {parameters:,} parameters",
        "train": f"{config.max_iters:,} steps of {config.batch_size} x {model.block_size} tokens "
        f"({epochs:.1f} epochs) with {config.optimizer}",
        "device": ", ".join(trainer.placement.reasons),
    }
    return "\n".join(f"{name:8}{text}" for name, text in lines.items())


def _farewell(trainer: "Trainer", run: "Run", *, stopped: bool) -> str:
    progress = trainer.progress
    lines = []
    if stopped:
        lines.append(f"stopped after step {progress.step}, saved")
        lines.append(f"resume:  uv run yocto-train --resume {one_line(str(run.path))}")
    name = str(run.path)
    if progress.best_step is not None and progress.best_loss is not None:
        lines.append(f"best validation loss {progress.best_loss:.4f} at step {progress.best_step}")
        if progress.best_step != progress.step:
            name = str(run.path / "best.pt")
    lines.append(f"talk:    uv run yocto-chat --ckpt {one_line(name)}")
    return "\n".join(lines)


def _say(text: str) -> None:
    """To stdout; a reader that has gone away does not stop a training."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_to_resume(arguments: TrainArguments) -> Path | None:
    """The run directory that --resume means, or None."""
    name = arguments.run.resume
    if name is None:
        return None
    from yocto_train import Run, RunError  # noqa: PLC0415 - after parsing

    try:
        path = Run.newest(arguments.run.ckpt_dir).path if name == "latest" else Path(name)
    except RunError as error:
        raise UsageError(f"nothing to resume: {error}") from error
    if path.name.endswith(".pt") or path.name.startswith("step-"):
        path = path.parent
    if not (path / "config.toml").is_file():
        raise UsageError(f"nothing to resume: {one_line(str(path))} is not a run directory")
    return path
