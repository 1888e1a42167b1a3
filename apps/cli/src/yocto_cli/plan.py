"""How a budget of minutes becomes a model's size and a number of steps."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_train import (
    SIZES,
    Candidate,
    TrainConfig,
    Trainer,
    choose,
    compile_pays,
    dropout_for,
    measure_precision,
    memory_bytes,
    place,
)

from yocto_cli.errors import UsageError
from yocto_cli.screen.display import say
from yocto_cli.train_arguments import DEFAULT_MINUTES, TrainArguments, recipe_name, settings

# A run that is shorter would win less than it takes to find out.
_COMPILE_SECONDS = 600
_COMPILE_ITERS = 1_000
Splits = tuple[TokenDataset, TokenDataset]  # to train on, to validate
_SIZE_FLAGS = ("n_layer", "n_head", "n_embd", "block_size")


def planned(
    arguments: TrainArguments, train_data: TokenDataset, val_data: TokenDataset
) -> TrainArguments:
    """The flags with everything that is measured: size and steps that fit, precision, compiling.

    What was given stays as it is.

    Args:
        arguments: the flags.
        train_data: the training split, with any length of window.
        val_data: the validation split.

    Raises:
        UsageError: both a time and a number of steps are given, or the time is out of range.
        TrainConfigError: the time is too short.
    """
    splits = train_data, val_data
    minutes = arguments.training.minutes
    if minutes is not None and arguments.training.max_iters is not None:
        raise UsageError("--minutes and --max_iters contradict each other; keep one")
    if minutes is not None and not 0 < minutes <= 60 * 24 * 365:
        raise UsageError(f"--minutes must be above 0 and at most a year, not {minutes}")
    # A preset is taken as it stands, and so are nanoGPT's settings.
    as_it_stands = arguments.model.preset is not None or recipe_name(arguments) == "gpt2"
    if arguments.training.max_iters is not None or (minutes is None and as_it_stands):
        arguments = _with_precision(arguments, splits)
        return _with_compile(arguments, splits)
    free = not as_it_stands and not any(
        getattr(arguments.model, name) is not None for name in _SIZE_FLAGS
    )
    sizes = [size for size in SIZES if free and _suits(size, splits)] or [{}]
    seconds = 60 * (DEFAULT_MINUTES if minutes is None else minutes)
    return _fitted(arguments, splits, sizes, seconds)


def _fitted(
    arguments: TrainArguments, splits: Splits, sizes: Sequence[Mapping[str, Any]], seconds: float
) -> TrainArguments:
    """The flags with the size and the steps that fit a time."""

    def measured(size: Mapping[str, Any]) -> Candidate:
        sized = _with_precision(_sized(arguments, size), splits)
        # Compiling takes longer than a step says, so the size is chosen without.
        plain = _compiling(sized, "off") if _may_compile(sized, splits) else sized
        return _measure(plain, size, splits)[0]

    candidate, iters = choose(seconds, measured, sizes=sizes)
    dropout = dropout_for(iters * candidate.tokens_per_step / splits[0].n_tokens)
    if arguments.model.dropout is None and dropout:  # it takes time, so fewer steps fit
        with_dropout = dataclasses.replace(arguments.model, dropout=dropout)
        arguments = dataclasses.replace(arguments, model=with_dropout)
        candidate, iters = choose(seconds, measured, sizes=[candidate.size])
    chosen = _with_precision(_sized(arguments, candidate.size, max_iters=iters), splits)
    if not _may_compile(chosen, splits) or seconds < _worth_trying_from(chosen):
        return chosen
    compiled, spent = _measured_compiled(chosen, candidate.size, splits)
    if not compile_pays(candidate.seconds_per_step, compiled.seconds_per_step, spent, iters):
        return _compiling(chosen, "off")
    _, iters = choose(seconds - spent, lambda _: compiled, sizes=[candidate.size])
    return _compiling(_sized(chosen, candidate.size, max_iters=iters), "on")


def described(model: GPTConfig, train: TrainConfig, seconds_per_step: float) -> str:
    """What --plan prints of memory and time."""
    tokens = train.batch_size // train.accumulate * model.block_size
    needed = memory_bytes(
        n_parameters=model.n_parameters,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        n_hidden=model.hidden,
        vocab_size=model.vocab_size,
        tokens=tokens,
        grad_checkpointing=train.grad_checkpointing,
    )
    memory = f"about {needed / 2**20:,.0f} MiB beside what torch itself takes"
    minutes = seconds_per_step * train.max_iters / 60
    duration = (
        f"{1000 * seconds_per_step:.0f} ms a step here: {minutes:.1f} minutes, and a few seconds "
        "for each evaluation"
    )
    return f"{'memory':8}{memory}\n{'time':8}{duration}"


def _suits(size: Mapping[str, Any], splits: Splits) -> bool:
    return int(size["block_size"]) < min(split.n_tokens for split in splits)


def _sized(
    arguments: TrainArguments, size: Mapping[str, Any], max_iters: int | None = None
) -> TrainArguments:
    shape = {name: value for name, value in size.items() if name in _SIZE_FLAGS}
    training: dict[str, Any] = {} if max_iters is None else {"max_iters": max_iters}
    if arguments.training.batch_size is None and "batch_size" in size:
        training["batch_size"] = size["batch_size"]
    return dataclasses.replace(
        arguments,
        model=dataclasses.replace(arguments.model, **shape),
        training=dataclasses.replace(arguments.training, **training),
    )


def _with_precision(arguments: TrainArguments, splits: Splits) -> TrainArguments:
    """The flags with a precision for "auto" on a CPU, so that config.toml repeats the run."""
    model, train = _settings(arguments, splits)
    placement = place(arguments.run.device, train.precision)
    if train.precision != "auto" or placement.device.type != "cpu":
        return arguments
    precision, _ = measure_precision(model.n_embd)
    training = dataclasses.replace(arguments.training, precision=precision)
    return dataclasses.replace(arguments, training=training)


def _with_compile(arguments: TrainArguments, splits: Splits) -> TrainArguments:
    """The flags with compiling decided, for a run whose steps are given and are many."""
    iters = _settings(arguments, splits)[1].max_iters
    if iters < _COMPILE_ITERS or not _may_compile(arguments, splits):
        return arguments
    plain, _ = _measure(_compiling(arguments, "off"), {}, splits, repeats=2)
    if plain.seconds_per_step * iters < _worth_trying_from(arguments):
        return arguments
    compiled, spent = _measured_compiled(arguments, {}, splits)
    pays = compile_pays(plain.seconds_per_step, compiled.seconds_per_step, spent, iters)
    return _compiling(arguments, "on" if pays else "off")


def _may_compile(arguments: TrainArguments, splits: Splits) -> bool:
    """Whether it is to be found out if compiling pays."""
    return _settings(arguments, splits)[1].compile == "auto"


def _worth_trying_from(arguments: TrainArguments) -> float:
    """Seconds of a run from which on compiling is tried; on a GPU, it would be done anyhow."""
    return 0 if place(arguments.run.device, "auto").device.type == "cuda" else _COMPILE_SECONDS


def _measured_compiled(
    arguments: TrainArguments,
    size: Mapping[str, Any],
    splits: Splits,
) -> tuple[Candidate, float]:
    """The size compiled, and the seconds that compiling takes."""
    say("trying whether torch.compile pays; this takes up to a minute")
    return _measure(_compiling(arguments, "on"), size, splits)


def _compiling(arguments: TrainArguments, answer: Literal["on", "off"]) -> TrainArguments:
    training = dataclasses.replace(arguments.training, compile=answer)
    return dataclasses.replace(arguments, training=training)


def _settings(arguments: TrainArguments, splits: Splits) -> tuple[GPTConfig, TrainConfig]:
    shortest = min(split.n_tokens for split in splits)
    return settings(arguments, vocab_size=splits[0].vocab_size or 0, shortest_split=shortest)


def _measure(
    arguments: TrainArguments,
    size: Mapping[str, Any],
    splits: Splits,
    *,
    repeats: int = 8,
) -> tuple[Candidate, float]:
    """A size's candidate, and the seconds that it took to get a trainer of it ready."""
    model, train = _settings(arguments, splits)
    windows = [TokenDataset(split.path, model.block_size) for split in splits]
    begun = time.perf_counter()
    probe = Trainer(
        GPT(model, generator=torch.Generator().manual_seed(0)),
        windows[0],
        windows[1],
        train,
        device=arguments.run.device,
    )
    ready = time.perf_counter() - begun
    seconds = probe.time_step(repeats)
    tokens = train.batch_size * model.block_size
    # A forward pass is about a third of a step.
    evaluation = splits[1].n_tokens / tokens * seconds / 3
    candidate = Candidate(
        size=size,
        n_parameters=model.n_parameters,
        seconds_per_step=seconds,
        tokens_per_step=tokens,
        evaluation_seconds=evaluation,
    )
    return candidate, ready
