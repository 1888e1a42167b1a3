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
    cpu_precision,
    memory_bytes,
    place,
)
from yocto_train.evaluation import windows_at_once
from yocto_train.scale.planning import CHAT_TOKENS_PER_PARAMETER, TOKENS_PER_PARAMETER

from yocto_cli.command import UsageError
from yocto_cli.origin import WINDOW, Origin
from yocto_cli.screen.terminal import duration, say
from yocto_cli.train_settings import (
    DEFAULT_MINUTES,
    EVALUATIONS_OF_TUNING,
    recipe_name,
    settings,
)

_COMPILE_SECONDS = 600  # in a shorter run on a CPU, compiling saves less time than it takes
_FEWEST_TUNING_STEPS = 10
_RANK = 16  # of adapters that a plan compares with
_LARGEST_PART = 0.8  # of the machine's memory
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
        return _with_precision(given, data)
    free = _is_size_free(given)
    sizes = [{**size} for size in SIZES if free and size["block_size"] < data.shortest]
    seconds = 60 * (DEFAULT_MINUTES if minutes is None else minutes)
    return _fitted(given, data, sizes or [{}], seconds)


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
            f"a step of this model takes {1000 * candidate.seconds_per_step:,.0f} ms, so the time "
            f"is too short for {_FEWEST_TUNING_STEPS} steps; give more, or a smaller --batch_size"
        )
    return {**given, "max_iters": iters}


def _fitted(
    given: Given, data: Data, sizes: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """The flags with the size and the steps that fit a time; a long run is compiled."""
    is_auto = given.get("compile", "auto") == "auto"

    def measured(size: Mapping[str, Any]) -> Candidate:
        sized = _with_precision({**size, **given}, data)
        # Compiling itself takes long, so the size is chosen without it.
        plain = {**sized, "compile": "off"} if is_auto else sized
        return _measure(plain, size, data)[0]

    is_chat = data.meta.chats is not None
    wanted = CHAT_TOKENS_PER_PARAMETER if is_chat else TOKENS_PER_PARAMETER
    candidate, iters = choose(seconds, measured, sizes=sizes, wanted=wanted)
    flags = given
    if recipe_name(flags) == "modern":  # nanoGPT's settings have their own
        epochs = iters * candidate.tokens_per_step / data.meta.train.tokens
        given = {**against_overfitting(epochs), **flags}
    if given.get("dropout", 0) and "dropout" not in flags:  # it takes time, so fewer steps fit
        candidate, iters = choose(seconds, measured, sizes=[candidate.size])
    chosen = _with_precision({**candidate.size, **given, "max_iters": iters}, data)
    is_gpu = place(given["device"], "auto").device.type == "cuda"
    if not (is_auto and (is_gpu or seconds >= _COMPILE_SECONDS)):
        return chosen
    say("compiling the model, to see how many steps fit; this takes up to a minute")
    compiled, spent = _measure({**chosen, "compile": "on"}, candidate.size, data)
    if spent > seconds / 4:
        return {**chosen, "compile": "off"}
    _, iters = choose(seconds - spent, lambda _: compiled, sizes=[candidate.size])
    return {**chosen, "max_iters": iters, "compile": "on"}


def described(trainer: Trainer, seconds_per_step: float, *, done: int = 0) -> str:
    """What --plan prints about memory and time, of a run with `done` steps behind it."""
    needed = _memory(trainer.model.config, trainer.config, trainer.train_data.block_size)
    left = max(0, trainer.config.max_iters - done)
    begun = f"left    {left:,} steps after the {done:,} that are done\n" if done else ""
    return (
        f"{begun}memory  about {needed / 2**20:,.0f} MiB in addition to torch itself\n"
        f"time    {1000 * seconds_per_step:.0f} ms per step on this machine: "
        f"{duration(seconds_per_step * left)}, and a few seconds for each evaluation"
    )


def _memory(model: GPTConfig, train: TrainConfig, block_size: int) -> int:
    rows = train.batch_size // train.accumulate
    half = train.precision not in ("auto", "float32")
    return memory_bytes(model, train, tokens=rows * block_size, half=half)


def compared(given: Given, data: Data) -> str:
    """What --plan prints about a model that is gone on from: what the time is enough for.

    Args:
        given: the flags, before they were completed.
        data: with that model.
    """
    rank, lines, fits = given.get("lora_rank") or _RANK, [], True
    for name, lora_rank in (("all weights", 0), (f"adapters of rank {rank}", rank)):
        try:
            flags = planned({**given, "lora_rank": lora_rank}, data)
        except TrainConfigError as error:
            lines.append(f"{name}: {error}")
            continue
        model, train = data.settings(flags)
        tokens = train.max_iters * train.batch_size * flags["block_size"]
        needed = _memory(model, train, flags["block_size"])
        fits = fits and (lora_rank > 0 or needed < _LARGEST_PART * _memory_of_machine())
        lines.append(
            f"{name}: {train.max_iters:,} steps, {tokens:,} tokens "
            f"({tokens / data.meta.train.tokens:.2g} epochs), about {needed / 2**20:,.0f} MiB"
        )
    best = "all weights" if fits else f"--lora_rank {rank}, as memory is short"
    return "\n".join([*(f"choice  {line}" for line in lines), f"best    {best}"])


def _memory_of_machine() -> float:
    """Bytes, or infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _with_precision(given: Given, data: Data) -> dict[str, Any]:
    """The flags with a precision for "auto" on a CPU, so that config.toml repeats the run."""
    model, train = data.settings(given)
    placement = place(given["device"], train.precision)
    if train.precision != "auto" or placement.device.type != "cpu":
        return {**given}
    precision, _ = cpu_precision(model.n_embd)
    return {**given, "precision": precision}


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
