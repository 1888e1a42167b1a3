"""How a budget of minutes becomes a model's size and a number of steps."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from yocto_data import ChatDataset, DataMeta, TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_train import (
    SIZES,
    Candidate,
    TrainConfig,
    TrainConfigError,
    Trainer,
    against_overfitting,
    choose,
    compile_pays,
    cpu_precision,
    memory_bytes,
    place,
)
from yocto_train.evaluation import windows_at_once

from yocto_cli.command import UsageError
from yocto_cli.origin import WINDOW, Origin
from yocto_cli.screen.terminal import say
from yocto_cli.train_settings import (
    DEFAULT_MINUTES,
    EVALUATIONS_OF_TUNING,
    recipe_name,
    settings,
)

# In a shorter run, compiling saves less time than trying it takes.
_COMPILE_SECONDS = 600
_COMPILE_ITERS = 1_000
_FEWEST_TUNING_STEPS = 10
_SHARE_OF_EVALUATION = 0.02  # of the time, for one evaluation of a large model
_OF_THE_MODEL = (
    "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim", "arch", "preset", "tokenizer",
)  # fmt: skip
_SIZE_FLAGS = ("n_layer", "n_head", "n_embd", "block_size")
Given = Mapping[str, Any]  # flags that have a value, by name


class Data(NamedTuple):
    """A prepared data directory, its meta.json, and maybe the model to go on from with it."""

    directory: Path
    meta: DataMeta
    origin: Origin | None = None

    @property
    def shortest(self) -> int:
        """Tokens in the shorter split."""
        return min(self.meta.train.tokens, self.meta.val.tokens)

    def settings(self, given: Given) -> tuple[GPTConfig, TrainConfig]:
        """The settings that flags give with this data; see `train_settings.settings`."""
        start = None if self.origin is None else self.origin.config
        sizes = {"vocab_size": self.meta.vocab_size, "shortest_split": self.shortest}
        return settings(given, **sizes, start=start)

    def windowed(self, given: Given) -> dict[str, Any]:
        """The flags with how much of a pretrained model's context is used, if that is free."""
        if self.origin is None or "block_size" in given:
            return {**given}
        return {
            "block_size": min(WINDOW, self.origin.config.block_size, self.shortest - 1),
            **given,
        }

    def model(self, config: GPTConfig, seed: int) -> GPT:
        """The model to train, in float32."""
        if self.origin is None:
            return GPT(config, generator=torch.Generator().manual_seed(seed))
        return self.origin.model(config)

    def open(self, given: Given) -> tuple[TokenDataset, TokenDataset]:
        """The splits to train on and to validate on, in windows of the context that is used."""
        block_size = given["block_size"] if self.origin else self.settings(given)[0].block_size
        kind = TokenDataset if self.meta.chats is None else ChatDataset
        return (
            kind(self.directory / "train.bin", block_size),
            kind(self.directory / "val.bin", block_size),
        )


def check_flags(given: Given) -> None:
    """Refuse, before data are prepared, what no data could make right.

    Raises:
        UsageError: both a time and a number of steps are given, or the time is out of range.
        ConfigError: the model's settings are refused.
        TrainConfigError: the training's settings are refused.
    """
    minutes = given.get("minutes")
    if "init_from" in given:
        if fixed := [name for name in _OF_THE_MODEL if name in given]:
            raise UsageError(f"--{fixed[0]} is the model's own with --init_from; leave it out")
    elif given.get("lora_rank"):
        raise UsageError("--lora_rank is for a model that exists; name it with --init_from")
    if "save_adapter" in given:
        if not given.get("lora_rank"):
            raise UsageError("--save_adapter needs adapters; give --lora_rank, too")
        if os.path.lexists(given["save_adapter"]):
            raise UsageError(f"{given['save_adapter']} already exists; name a new directory")
    if minutes is not None and "max_iters" in given:
        raise UsageError("use only one of --minutes and --max_iters")
    if minutes is not None and not 0 < minutes <= 60 * 24 * 365:
        raise UsageError(f"--minutes must be above 0 and at most a year, not {minutes}")
    # Data, steps and, where it is to be chosen, a size that fit whatever could fit.
    size = SIZES[-1] if "max_iters" not in given and _is_size_free(given) else {}
    fitting = {"max_iters": 99_999_999, **size, **given}
    start = GPTConfig() if "init_from" in given else None
    settings(fitting, vocab_size=256, shortest_split=1 << 40, start=start)


def _is_size_free(given: Given) -> bool:
    """Whether no flag says how large the model is; a preset and nanoGPT's settings do."""
    has_size = "preset" in given or recipe_name(given) == "gpt2"
    return not has_size and not any(name in given for name in _SIZE_FLAGS)


def planned(given: Given, data: Data) -> dict[str, Any]:
    """The flags, completed by measuring: size and steps that fit, precision, compiling.

    What the user gave stays as it is.

    Raises:
        TrainConfigError: the time is too short.
    """
    minutes = given.get("minutes")
    if data.origin is not None:
        return _tuned(data.windowed(given), data)
    has_size = "preset" in given or recipe_name(given) == "gpt2"
    if "max_iters" in given or (minutes is None and has_size):
        return _with_compile(_with_precision(given, data), data)
    free = _is_size_free(given)
    sizes = [size for size in SIZES if free and size["block_size"] < data.shortest] or [{}]
    return _fitted(given, data, sizes, 60 * (DEFAULT_MINUTES if minutes is None else minutes))


def _tuned(given: dict[str, Any], data: Data) -> dict[str, Any]:
    """The flags for a model that is gone on from, with the steps that fit the time."""
    given = _with_precision(given, data)
    if "max_iters" in given:
        return given
    seconds = 60 * given.get("minutes", DEFAULT_MINUTES)
    candidate, _ = _measure(given, {}, data, repeats=2)
    model, _ = data.settings(given)
    # An evaluation takes long here: while training a part of the split must do, and if even once
    # the whole takes a tenth of the time, at the end, too.
    whole = candidate.evaluation_seconds
    rows = windows_at_once(model, given["block_size"]) * given["block_size"]
    n_batches = math.ceil(data.meta.val.tokens / rows)
    allowed = max(1, int(_SHARE_OF_EVALUATION * seconds / whole * n_batches))
    n_used = min(given.get("eval_iters") or allowed, n_batches)
    if n_used < n_batches:
        given["eval_iters"] = n_used
        given.setdefault("eval_whole", whole <= 5 * _SHARE_OF_EVALUATION * seconds)
    seconds -= whole * (1 + EVALUATIONS_OF_TUNING) * n_used / n_batches
    seconds -= whole * (n_used < n_batches and given["eval_whole"])
    iters = int(seconds / candidate.seconds_per_step)
    if iters < _FEWEST_TUNING_STEPS:
        raise TrainConfigError(
            f"a step of this model takes {candidate.seconds_per_step:.1f} s, so the time is too "
            f"short for {_FEWEST_TUNING_STEPS} steps; give more, or a smaller --batch_size"
        )
    return {**given, "max_iters": iters}


def _fitted(
    given: Given, data: Data, sizes: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """The flags with the size and the steps that fit a time."""

    def measured(size: Mapping[str, Any]) -> Candidate:
        sized = _with_precision({**size, **given}, data)
        # Compiling itself takes long, so the size is chosen without it.
        plain = {**sized, "compile": "off"} if _may_compile(sized, data) else sized
        return _measure(plain, size, data)[0]

    candidate, iters = choose(seconds, measured, sizes=sizes)
    flags = given
    if recipe_name(flags) == "modern":  # nanoGPT's settings have their own
        epochs = iters * candidate.tokens_per_step / data.meta.train.tokens
        given = {**against_overfitting(epochs), **flags}
    if given.get("dropout", 0) and "dropout" not in flags:  # it takes time, so fewer steps fit
        candidate, iters = choose(seconds, measured, sizes=[candidate.size])
    chosen = _with_precision({**candidate.size, **given, "max_iters": iters}, data)
    if not _may_compile(chosen, data) or seconds < _worth_trying_from(chosen):
        return chosen
    compiled, spent = _measured_compiled(chosen, candidate.size, data)
    if not compile_pays(candidate.seconds_per_step, compiled.seconds_per_step, spent, iters):
        return {**chosen, "compile": "off"}
    _, iters = choose(seconds - spent, lambda _: compiled, sizes=[candidate.size])
    return {**chosen, "max_iters": iters, "compile": "on"}


def described(
    model: GPTConfig, train: TrainConfig, seconds_per_step: float, *, done: int = 0
) -> str:
    """What --plan prints about memory and time, of a run with `done` steps behind it."""
    needed = memory_bytes(
        n_parameters=model.n_parameters, n_layer=model.n_layer, n_embd=model.n_embd,
        n_hidden=model.hidden, vocab_size=model.vocab_size,
        tokens=train.batch_size // train.accumulate * model.block_size,
        grad_checkpointing=train.grad_checkpointing,
    )  # fmt: skip
    left = max(0, train.max_iters - done)
    minutes = seconds_per_step * left / 60
    begun = f"left    {left:,} steps after the {done:,} that are done\n" if done else ""
    return (
        f"{begun}memory  about {needed / 2**20:,.0f} MiB in addition to torch itself\n"
        f"time    {1000 * seconds_per_step:.0f} ms per step on this machine: {minutes:.1f} "
        "minutes, and a few seconds for each evaluation"
    )


def _with_precision(given: Given, data: Data) -> dict[str, Any]:
    """The flags with a precision for "auto" on a CPU, so that config.toml repeats the run."""
    model, train = data.settings(given)
    placement = place(given["device"], train.precision)
    if train.precision != "auto" or placement.device.type != "cpu":
        return {**given}
    precision, _ = cpu_precision(model.n_embd)
    return {**given, "precision": precision}


def _with_compile(given: dict[str, Any], data: Data) -> dict[str, Any]:
    """The flags with compiling decided, for a run whose steps are given and are many."""
    iters = data.settings(given)[1].max_iters
    if iters < _COMPILE_ITERS or not _may_compile(given, data):
        return given
    plain, _ = _measure({**given, "compile": "off"}, {}, data, repeats=2)
    if plain.seconds_per_step * iters < _worth_trying_from(given):
        return given
    compiled, spent = _measured_compiled(given, {}, data)
    pays = compile_pays(plain.seconds_per_step, compiled.seconds_per_step, spent, iters)
    return {**given, "compile": "on" if pays else "off"}


def _may_compile(given: Given, data: Data) -> bool:
    """Whether to find out if compiling pays."""
    return data.settings(given)[1].compile == "auto"


def _worth_trying_from(given: Given) -> float:
    """Seconds that a run must last for compiling to be tried; on a GPU it is always tried."""
    return 0 if place(given["device"], "auto").device.type == "cuda" else _COMPILE_SECONDS


def _measured_compiled(
    given: Given, size: Mapping[str, Any], data: Data
) -> tuple[Candidate, float]:
    """The size compiled, and the seconds that compiling takes."""
    say("finding out whether torch.compile pays; this takes up to a minute")
    return _measure({**given, "compile": "on"}, size, data)


def _measure(
    given: Given, size: Mapping[str, Any], data: Data, *, repeats: int = 8
) -> tuple[Candidate, float]:
    """A size, measured, and the seconds that it took to make a trainer for it."""
    model, train = data.settings(given)
    train_data, val_data = data.open(given)
    begun = time.perf_counter()
    probe = Trainer(data.model(model, 0), train_data, val_data, train, device=given["device"])
    ready = time.perf_counter() - begun
    seconds = probe.time_step(repeats)
    tokens = train.batch_size * train_data.block_size
    # A forward pass is about a third of a step.
    evaluation = data.meta.val.tokens / tokens * seconds / 3
    candidate = Candidate(
        size=size, n_parameters=model.n_parameters, seconds_per_step=seconds,
        tokens_per_step=tokens, evaluation_seconds=evaluation,
    )  # fmt: skip
    return candidate, ready
