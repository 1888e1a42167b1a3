"""The flags of yocto-train, and how they and a recipe become a model's and a trainer's settings."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from yocto_cli.arguments import Bare, CommandArguments, CommandLineOnly

if TYPE_CHECKING:
    from yocto_model import GPTConfig
    from yocto_train import TrainConfig


def _default(text: str) -> Any:
    """What the help says of a flag whose default is not one value."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


RECIPE = _default("the recipe's")
BY_MACHINE = _default("chosen for this machine, or the recipe's")
EIGHTH = _default("an eighth of the run")
ABSENT = tyro.conf.arg(help_behavior_hint="")

# What a run without flags takes, on any machine: the size of the model follows.
DEFAULT_MINUTES = 4.0

_FEWEST_STEPS_BETWEEN = 25


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """What to learn from: a text, or a directory that yocto-prepare made."""

    text_path: Annotated[str | None, ABSENT] = None
    """A text to prepare at character level first; without any of these, data/philosophy.txt."""
    data_dir: Annotated[str | None, ABSENT] = None
    """A directory that yocto-prepare made; with --text_path, where to prepare the text."""
    tokenizer_path: Annotated[str | None, ABSENT] = None
    """The tokenizer, where the data directory does not hold it."""
    vocab_path: Annotated[str | None, ABSENT] = None
    """The same, for a vocab.json."""
    mode: Annotated[Literal["char", "token"] | None, ABSENT] = None
    """What the ids stand for; need not be said, but is checked if it is."""
    val_ratio: Annotated[float | None, _default("0.1")] = None
    """The part of --text_path that is kept for validation."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model's shape; what is not given comes from the recipe."""

    arch: Annotated[Literal["gpt2", "modern"] | None, _default("modern")] = None
    """GPT-2's architecture, or that of small models of today; chooses the recipe too."""
    preset: Annotated[Literal["gpt2", "modern"] | None, BY_MACHINE] = None
    """A recipe as it stands: size, optimizer, schedule, steps. Any flag changes its part of it."""
    n_layer: Annotated[int | None, BY_MACHINE] = None
    """Transformer blocks."""
    n_head: Annotated[int | None, BY_MACHINE] = None
    """Attention heads per block."""
    n_kv_head: Annotated[int | None, _default("n_head")] = None
    """Key/value heads per block, if fewer than n_head."""
    n_embd: Annotated[int | None, BY_MACHINE] = None
    """Width; a multiple of n_head."""
    block_size: Annotated[int | None, BY_MACHINE] = None
    """The longest context, in tokens."""
    dropout: Annotated[float | None, _default("by the number of epochs, or the recipe's")] = None
    """Probability of dropping an activation; 0 up to a few epochs, 0.1 or more beyond."""
    attn_dropout: Annotated[float | None, RECIPE] = None
    """The same for the attention weights: 0 in modern, in gpt2 as --dropout."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """How it is trained; what is not given comes from the recipe."""

    max_iters: Annotated[int | None, _default(f"what {DEFAULT_MINUTES:g} minutes hold")] = None
    """Optimizer steps."""
    minutes: Annotated[float | None, CommandLineOnly(), ABSENT] = field(default=None, compare=False)
    """Instead: how long to train. The model's size, unless given, and the steps follow from it."""
    batch_size: Annotated[int | None, BY_MACHINE] = None
    """Windows per step."""
    accumulate: Annotated[int | None, _default("1")] = None
    """Micro-batches a step is cut into, to save memory."""
    sampling: Annotated[Literal["random", "epoch"] | None, RECIPE] = None
    """Windows at random, or each once per epoch."""
    optimizer: Annotated[Literal["adamw", "muon"] | None, RECIPE] = None
    """AdamW for everything, or Muon for the matrices inside the blocks."""
    lr: Annotated[float | None, RECIPE] = None
    """Peak learning rate of AdamW."""
    muon_lr: Annotated[float | None, RECIPE] = None
    """Peak learning rate of Muon."""
    schedule: Annotated[Literal["cosine", "wsd"] | None, RECIPE] = None
    """Cosine, or warm-up, stable, linear decay."""
    warmup_iters: Annotated[int | None, RECIPE] = None
    """Steps over which the learning rate rises."""
    decay_fraction: Annotated[float | None, RECIPE] = None
    """The part of the run over which wsd decays."""
    min_lr_fraction: Annotated[float | None, RECIPE] = None
    """Where the learning rate ends, as a fraction of its peak."""
    weight_decay: Annotated[float | None, RECIPE] = None
    """Decoupled weight decay."""
    beta1: Annotated[float | None, RECIPE] = None
    """AdamW's decay of the mean of gradients."""
    beta2: Annotated[float | None, RECIPE] = None
    """AdamW's decay of the mean of squared gradients."""
    grad_clip: Annotated[float | None, RECIPE] = None
    """The gradient's norm is cut down to this; 0 leaves it."""
    seed: Annotated[int | None, _default("1337")] = None
    """Decides initial weights, batches and dropout."""
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None, _default("auto")
    ] = None
    """Of matrix products."""
    compile: Annotated[Literal["auto", "on", "off"] | None, _default("auto")] = None
    """Fuse operations with torch.compile; auto tries what it gives if the run is long enough."""
    grad_checkpointing: bool = False
    """Compute activations twice instead of keeping them: a third slower, far less memory."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """What is measured, saved and shown, where, and on what device."""

    ckpt_dir: str = "checkpoints"
    """Where runs are kept."""
    run_name: Annotated[str | None, ABSENT] = None
    """The run's directory in --ckpt_dir; without it, the data's name, counted up."""
    plan: Annotated[bool, CommandLineOnly()] = field(default=False, compare=False)
    """Prepare the text, say what would be trained, how long and in how much memory, and stop."""
    resume: Annotated[str | None, CommandLineOnly(), Bare("latest"), ABSENT] = field(
        default=None, compare=False
    )
    """Go on with a run: its directory, one of its steps, or nothing for the newest run."""
    list: Annotated[bool, CommandLineOnly()] = field(default=False, compare=False)
    """List the runs in --ckpt_dir, with the command to talk to each, and stop."""
    parallel: Annotated[Literal["ddp", "fsdp"] | None, CommandLineOnly(), ABSENT] = field(
        default=None, compare=False
    )
    """With torchrun: copy the model to every process, or shard it over them."""
    tensorboard: bool = False
    """Write what is measured for TensorBoard as well, into the run's directory."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    eval_interval: Annotated[int | None, EIGHTH] = None
    """Steps between evaluations."""
    eval_iters: Annotated[int | None, _default("0")] = None
    """Batches per evaluation; 0 for the whole validation split."""
    save_interval: Annotated[int | None, _default("0")] = None
    """Steps between checkpoints; 0 saves at each evaluation."""
    keep: Annotated[int | None, _default("3")] = None
    """Newest checkpoints to keep, beside the best."""
    patience: Annotated[int | None, _default("0")] = None
    """Stop after this many evaluations without a new best; 0 never does."""
    log_interval: Annotated[int | None, _default("a hundredth of the run")] = None
    """Steps between reports."""
    sample_interval: Annotated[int | None, EIGHTH] = None
    """Steps between samples of text; 0 takes none."""
    sample_prompt: Annotated[str | None, _default("a new line")] = None
    """What the samples continue."""
    sample_tokens: Annotated[int | None, _default("200")] = None
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

    recipe = RECIPES[recipe_name(arguments)]
    model = {**recipe.model, **_given(arguments.model)}
    arch = model.pop("arch", recipe.arch)
    model.pop("preset", None)
    if arguments.model.block_size is None and model["block_size"] >= shortest_split:
        model["block_size"] = max(8, (shortest_split - 1) // 8 * 8)
    given = {**_given(arguments.training), **_given(arguments.run)}
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    training = {**recipe.train, **{name: v for name, v in given.items() if name in names}}
    iters = training["max_iters"]
    # Defaults that follow the length of the run; a flag still wins.
    derived = {
        "warmup_iters": min(training["warmup_iters"], iters // 10),
        "eval_interval": _part_of(iters),
        "sample_interval": _part_of(iters),
        "log_interval": max(1, iters // 100),
    }
    training.update({name: value for name, value in derived.items() if name not in given})
    config = GPTConfig.from_arch(arch, vocab_size=vocab_size, **model)
    return config, TrainConfig.from_dict(training)


def recipe_name(arguments: TrainArguments) -> str:
    """The key in RECIPES of what the flags start from."""
    return arguments.model.preset or arguments.model.arch or "modern"


def _part_of(iters: int) -> int:
    """An eighth of a run. To evaluate a very short one as often would take most of its time."""
    return max(1, -(-iters // 8), min(iters, _FEWEST_STEPS_BETWEEN))


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

    preset = recipe_name(arguments)
    arch = arguments.model.arch or preset
    return TrainArguments(
        data=dataclasses.replace(arguments.data, text_path=None, data_dir=data_dir),
        model=dataclasses.replace(fill(arguments.model), arch=arch, preset=preset),
        training=fill(arguments.training),
        run=dataclasses.replace(fill(arguments.run), run_name=run_name),
    )


def from_dict(values: Mapping[str, Any]) -> TrainArguments:
    """The inverse of `dataclasses.asdict`."""
    groups = {
        "data": DataFlags,
        "model": ModelFlags,
        "training": TrainingFlags,
        "run": RunFlags,
    }
    filled = {name: group(**values[name]) for name, group in groups.items()}
    return TrainArguments(**{**values, **filled})


def _given(group: Any) -> dict[str, Any]:
    return {
        f.name: getattr(group, f.name)
        for f in dataclasses.fields(group)
        if getattr(group, f.name) is not None
    }
