"""The flags of yocto-train, and how they and a recipe become a model's and a trainer's settings."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from yocto_cli.arguments import Bare, CommandArguments, CommandLineOnly

if TYPE_CHECKING:
    from yocto_model import GPTConfig
    from yocto_train import TrainConfig


# What a run without flags takes, on any machine: the size of the model follows.
DEFAULT_MINUTES = 4.0


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """What to learn from: a text, or a directory that yocto-prepare made."""

    text_path: str | None = None
    """A text to prepare at character level first; without any of these, data/philosophy.txt."""
    data_dir: str | None = None
    """A directory that yocto-prepare made; with --text_path, where to prepare the text."""
    tokenizer_path: str | None = None
    """The tokenizer, where the data directory does not hold it."""
    vocab_path: str | None = None
    """The same, for a vocab.json."""
    mode: Literal["char", "token"] | None = None
    """What the ids stand for; need not be said, but is checked if it is."""
    val_ratio: float = 0.1
    """The part of --text_path that is kept for validation."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model's shape; what is not given comes from the recipe."""

    arch: Literal["gpt2", "modern"] | None = None
    """GPT-2's architecture, or that of small models of today; chooses the recipe too."""
    n_layer: int | None = None
    """Transformer blocks."""
    n_head: int | None = None
    """Attention heads per block."""
    n_kv_head: int | None = None
    """Key/value heads per block, if fewer than n_head."""
    n_embd: int | None = None
    """Width; a multiple of n_head."""
    block_size: int | None = None
    """The longest context, in tokens."""
    dropout: float | None = None
    """Probability of dropping an activation; 0 up to a few epochs, 0.1 or more beyond."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """How it is trained; what is not given comes from the recipe."""

    max_iters: int | None = None
    """Optimizer steps."""
    minutes: Annotated[float | None, CommandLineOnly()] = field(default=None, compare=False)
    """Instead: how long to train. The model's size, unless given, and the steps follow from it."""
    batch_size: int | None = None
    """Windows per step."""
    accumulate: int | None = None
    """Micro-batches a step is cut into, to save memory."""
    sampling: Literal["random", "epoch"] | None = None
    """Windows at random, or each once per epoch."""
    optimizer: Literal["adamw", "muon"] | None = None
    """AdamW for everything, or Muon for the matrices inside the blocks."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    muon_lr: float | None = None
    """Peak learning rate of Muon."""
    schedule: Literal["cosine", "wsd"] | None = None
    """Cosine, or warm-up, stable, linear decay."""
    warmup_iters: int | None = None
    """Steps over which the learning rate rises."""
    decay_fraction: float | None = None
    """The part of the run over which wsd decays."""
    min_lr_fraction: float | None = None
    """Where the learning rate ends, as a fraction of its peak."""
    weight_decay: float | None = None
    """Decoupled weight decay."""
    beta1: float | None = None
    """AdamW's decay of the mean of gradients."""
    beta2: float | None = None
    """AdamW's decay of the mean of squared gradients."""
    grad_clip: float | None = None
    """The gradient's norm is cut down to this; 0 leaves it."""
    seed: int | None = None
    """Decides initial weights, batches and dropout."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Of matrix products."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """What is measured, saved and shown, where, and on what device."""

    ckpt_dir: str = "checkpoints"
    """Where runs are kept."""
    run_name: str | None = None
    """The run's directory in --ckpt_dir; without it, the data's name, counted up."""
    plan: Annotated[bool, CommandLineOnly()] = field(default=False, compare=False)
    """Say what would be trained, how long and in how much memory, and stop."""
    resume: Annotated[str | None, CommandLineOnly(), Bare("latest")] = field(
        default=None, compare=False
    )
    """Go on with a run: its directory, or nothing for the newest one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    eval_interval: int | None = None
    """Steps between evaluations."""
    eval_iters: int | None = None
    """Batches per evaluation; 0 for the whole validation split."""
    save_interval: int | None = None
    """Steps between checkpoints; 0 saves at each evaluation."""
    keep: int | None = None
    """Newest checkpoints to keep, beside the best."""
    patience: int | None = None
    """Stop after this many evaluations without a new best; 0 never does."""
    log_interval: int | None = None
    """Steps between lines."""
    sample_interval: int | None = None
    """Steps between samples of text; 0 takes none."""
    sample_prompt: str | None = None
    """What the samples continue."""
    sample_tokens: int | None = None
    """Length of a sample."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments(CommandArguments):
    """Train a model on a text and save it; all flags may be left out."""

    data: DataFlags = DataFlags()
    model: ModelFlags = ModelFlags()
    training: TrainingFlags = TrainingFlags()
    run: RunFlags = RunFlags()


def settings(
    arguments: TrainArguments, *, vocab_size: int, shortest_split: int
) -> tuple["GPTConfig", "TrainConfig"]:
    """The settings that the flags and the recipe of their architecture amount to.

    Args:
        arguments: the flags.
        vocab_size: of the data.
        shortest_split: tokens in the shorter of the two splits, which a default context fits.

    Raises:
        ConfigError: the model's settings do not hold.
        TrainConfigError: the training's settings do not hold.
    """
    from yocto_model import GPTConfig  # noqa: PLC0415 - brings torch in
    from yocto_train import RECIPES, TrainConfig  # noqa: PLC0415 - the same

    recipe = RECIPES[arguments.model.arch or "modern"]
    model = {**recipe.model, **_given(arguments.model)}
    model.pop("arch", None)
    if arguments.model.block_size is None and model["block_size"] >= shortest_split:
        model["block_size"] = max(8, (shortest_split - 1) // 8 * 8)
    given = {**_given(arguments.training), **_given(arguments.run)}
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    training = {**recipe.train, **{name: v for name, v in given.items() if name in names}}
    iters = training["max_iters"]
    # Defaults that follow the length of the run; a flag still wins.
    derived = {
        "warmup_iters": min(training["warmup_iters"], iters // 10),
        "eval_interval": max(1, iters // 8),
        "sample_interval": max(1, iters // 8),
        "log_interval": max(1, iters // 40),
    }
    training.update({name: value for name, value in derived.items() if name not in given})
    config = GPTConfig.from_arch(recipe.arch, vocab_size=vocab_size, **model)
    return config, TrainConfig.from_dict(training)


def resolved(
    arguments: TrainArguments,
    model: "GPTConfig",
    train: "TrainConfig",
    *,
    data_dir: str,
    run_name: str,
) -> TrainArguments:
    """The flags with every default filled in: what config.toml holds, to reproduce the run."""
    values = {**model.to_dict(), **train.to_dict()}

    def fill(group: Any) -> Any:
        known = {
            f.name: values[f.name]
            for f in dataclasses.fields(group)
            if getattr(group, f.name) is None and f.name in values
        }
        return dataclasses.replace(group, **known)

    arch = arguments.model.arch or "modern"
    return TrainArguments(
        data=dataclasses.replace(arguments.data, text_path=None, data_dir=data_dir),
        model=dataclasses.replace(fill(arguments.model), arch=arch),
        training=fill(arguments.training),
        run=dataclasses.replace(fill(arguments.run), run_name=run_name),
    )


def _given(group: Any) -> dict[str, Any]:
    return {
        f.name: getattr(group, f.name)
        for f in dataclasses.fields(group)
        if getattr(group, f.name) is not None
    }
