"""How a budget of minutes becomes a model's size and a number of steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_train import (
    SIZES,
    Candidate,
    TrainConfig,
    Trainer,
    choose,
    dropout_for,
    measure_precision,
    memory_bytes,
    place,
)

from yocto_cli.errors import UsageError
from yocto_cli.train_arguments import DEFAULT_MINUTES, TrainArguments, recipe_name, settings

_SIZE_FLAGS = ("n_layer", "n_head", "n_embd", "block_size")


def planned(
    arguments: TrainArguments, train_data: TokenDataset, val_data: TokenDataset
) -> TrainArguments:
    """The flags with everything that is measured: size and steps that fit the time, precision.

    What was given stays as it is.

    Args:
        arguments: the flags.
        train_data: the training split, with any length of window.
        val_data: the validation split.

    Raises:
        UsageError: both a time and a number of steps are given, or the time is out of range.
        TrainConfigError: the time is too short.
    """
    minutes = arguments.training.minutes
    if minutes is not None and arguments.training.max_iters is not None:
        raise UsageError("--minutes and --max_iters contradict each other; keep one")
    if minutes is not None and not 0 < minutes <= 60 * 24 * 365:
        raise UsageError(f"--minutes must be above 0, not {minutes}")
    # A preset is taken as it stands, and so are nanoGPT's settings.
    as_it_stands = arguments.model.preset is not None or recipe_name(arguments) == "gpt2"
    if arguments.training.max_iters is not None or (minutes is None and as_it_stands):
        return _with_precision(arguments, train_data, val_data)
    free = not as_it_stands and not any(
        getattr(arguments.model, name) is not None for name in _SIZE_FLAGS
    )
    sizes = [size for size in SIZES if free and _suits(size, train_data, val_data)] or [{}]
    seconds = 60 * (DEFAULT_MINUTES if minutes is None else minutes)

    def measured(size: Mapping[str, Any]) -> Candidate:
        sized = _with_precision(_sized(arguments, size), train_data, val_data)
        return _measure(sized, size, train_data, val_data)

    candidate, iters = choose(seconds, measured, sizes=sizes)
    dropout = dropout_for(iters * candidate.tokens_per_step / train_data.n_tokens)
    if arguments.model.dropout is None and dropout:  # it takes time, so fewer steps fit
        with_dropout = dataclasses.replace(arguments.model, dropout=dropout)
        arguments = dataclasses.replace(arguments, model=with_dropout)
        candidate, iters = choose(seconds, measured, sizes=[candidate.size])
    chosen = _sized(arguments, candidate.size, max_iters=iters)
    return _with_precision(chosen, train_data, val_data)


def described(model: GPTConfig, train: TrainConfig, seconds_per_step: float | None) -> str:
    """What --plan prints of memory and time."""
    tokens = train.batch_size // train.accumulate * model.block_size
    needed = memory_bytes(
        n_parameters=model.n_parameters,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        n_hidden=model.hidden,
        vocab_size=model.vocab_size,
        tokens=tokens,
    )
    lines = [f"{'memory':8}about {needed / 2**20:,.0f} MiB beside what torch itself takes"]
    if seconds_per_step is not None:
        total = seconds_per_step * train.max_iters
        lines.append(
            f"{'time':8}{1000 * seconds_per_step:.0f} ms a step here: "
            f"{total / 60:.1f} minutes, and a few seconds for each evaluation"
        )
    return "\n".join(lines)


def _suits(size: Mapping[str, Any], train_data: TokenDataset, val_data: TokenDataset) -> bool:
    return int(size["block_size"]) < min(train_data.n_tokens, val_data.n_tokens)


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


def _with_precision(
    arguments: TrainArguments, train_data: TokenDataset, val_data: TokenDataset
) -> TrainArguments:
    """The flags with a precision for "auto" on a CPU, so that config.toml repeats the run."""
    shortest = min(train_data.n_tokens, val_data.n_tokens)
    model, train = settings(
        arguments, vocab_size=train_data.vocab_size or 0, shortest_split=shortest
    )
    placement = place(arguments.run.device, train.precision)
    if train.precision != "auto" or placement.device.type != "cpu":
        return arguments
    precision, _ = measure_precision(model.n_embd)
    training = dataclasses.replace(arguments.training, precision=precision)
    return dataclasses.replace(arguments, training=training)


def _measure(
    arguments: TrainArguments,
    size: Mapping[str, Any],
    train_data: TokenDataset,
    val_data: TokenDataset,
) -> Candidate:
    shortest = min(train_data.n_tokens, val_data.n_tokens)
    vocab_size = train_data.vocab_size or 0
    model, train = settings(arguments, vocab_size=vocab_size, shortest_split=shortest)
    windows = [TokenDataset(data.path, model.block_size) for data in (train_data, val_data)]
    probe = Trainer(
        GPT(model, generator=torch.Generator().manual_seed(0)),
        windows[0],
        windows[1],
        train,
        device=arguments.run.device,
    )
    seconds = probe.time_step()
    tokens = train.batch_size * model.block_size
    # A forward pass is about a third of a step.
    evaluation = val_data.n_tokens / tokens * seconds / 3
    return Candidate(
        size=size,
        n_parameters=model.n_parameters,
        seconds_per_step=seconds,
        tokens_per_step=tokens,
        evaluation_seconds=evaluation,
    )
