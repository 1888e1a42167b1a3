"""The flags of yocto-train, and how they and a recipe become a model's and a trainer's settings.

Flags for fields of GPTConfig and TrainConfig take name, type and help from those fields.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from yocto_model.config import GPTConfig
from yocto_train.config import TrainConfig
from yocto_train.recipes import LORA, RECIPES, TUNING

from yocto_cli.arguments import CommandArguments, flag, flags_of, replaced, values_of
from yocto_cli.model_arguments import CKPT_HELP, TokenizerFlags
from yocto_cli.prepare import VOCAB_SIZE

T = TypeVar("T")

PROG = "yocto-train"
TORCHRUN = f"uv run torchrun --nproc-per-node 2 --no-python {PROG}"

DEFAULT_TEXT = Path("data") / "philosophy.txt"
# What a run without flags takes, on any machine: the size of the model follows.
DEFAULT_MINUTES = 4.0

EVALUATIONS_OF_TUNING = 4  # and one before it; those of large models take long
_FEWEST_STEPS_BETWEEN = 25
_BY_MACHINE = "by machine or recipe"
_EIGHTH = "an eighth of the run"
# Defaults that depend on other things; the others are the recipe's or the field's own.
_SHOWN = {
    "n_layer": _BY_MACHINE, "n_head": _BY_MACHINE, "n_embd": _BY_MACHINE,
    "block_size": _BY_MACHINE, "batch_size": _BY_MACHINE, "dropout": "by epochs or recipe",
    "weight_decay": "by epochs or recipe",
    "max_iters": f"what fits {DEFAULT_MINUTES:g} minutes", "eval_interval": _EIGHTH,
    "sample_interval": _EIGHTH, "log_interval": "a hundredth of the run",
}  # fmt: skip


def settings_of(source: type, *names: str) -> Callable[[type[T]], type[T]]:
    """Adds flags for fields of a dataclass to a group of flags; each is None unless given.

    Args:
        source: GPTConfig or TrainConfig.
        names: the names of the fields; all fields if none is named.
    """
    by_recipe = {name for recipe in RECIPES.values() for name in recipe.train}
    hints = get_type_hints(source)

    def added(field: "dataclasses.Field[Any]") -> tuple[str, Any, Any]:
        own = "" if field.default in (None, "") or field.default is False else str(field.default)
        shown = _SHOWN.get(field.name, "by recipe" if field.name in by_recipe else own)
        about = field.metadata.get("help", "")
        return field.name, hints[field.name] | None, flag(None, about, shown=shown)

    chosen = [added(f) for f in dataclasses.fields(source) if not names or f.name in names]

    def decorate(group: type[T]) -> type[T]:
        return dataclasses.make_dataclass(
            group.__name__, chosen, bases=(group,), frozen=True, kw_only=True
        )

    return decorate


@dataclass(frozen=True, kw_only=True)
class DataFlags(TokenizerFlags):
    """What to learn from: texts, chats, or a directory that yocto-prepare made."""

    text_path: tuple[str, ...] = flag((), "texts or chats to train on", shown=str(DEFAULT_TEXT))
    tokenizer: Literal["char", "word", "bpe"] | None = flag(
        None, "what to learn from --text_path", shown="char; bpe for chats"
    )
    vocab_size: int | None = flag(
        None, "the most tokens of word or bpe", shown=f"{VOCAB_SIZE}; 2000 for bpe of chats"
    )
    me: str | None = flag(None, "who of a WhatsApp export is the assistant")
    template: str | None = flag(
        None, "how chats are written: plain, turns, or a file with a chat template",
        shown="the model's own; plain for characters of text files; else turns",
    )  # fmt: skip
    data_dir: str | None = flag(None, "prepared data; with --text_path, where to prepare it")
    val_ratio: float | None = flag(None, "share of --text_path for validation", shown="0.1")


@settings_of(
    GPTConfig, "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim", "block_size", "dropout",
    "attn_dropout",
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model's shape; what is not given comes from the recipe."""

    init_from: str | None = flag(None, f"a model to go on from: {CKPT_HELP}")
    arch: Literal["gpt2", "modern"] | None = flag(None, "the architecture", shown="modern")
    preset: Literal["gpt2", "modern"] | None = flag(None, "a recipe for size, training and steps")


@settings_of(TrainConfig)
@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """How it is trained; what is not given comes from the recipe."""

    minutes: float | None = flag(None, "how long to train, instead of max_iters", in_files=False)


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where the run is kept, and on what device it runs."""

    ckpt_dir: str = flag("checkpoints", "the directory that holds the runs")
    run_name: str | None = flag(None, "the run's directory there", shown="the data's name")
    resume: str | None = flag(
        None, "a run or step to continue; by itself, the newest", bare="latest", in_files=False
    )
    plan: bool = flag(False, "only print the plan: size, time, memory", in_files=False)
    list: bool = flag(False, "only list the runs, and data that none uses", in_files=False)
    remove_unused_data: bool = flag(
        False, "only remove the data in data/ that no run in --ckpt_dir uses", in_files=False
    )
    parallel: Literal["ddp", "fsdp"] | None = flag(
        None, "with torchrun: copy the model to every process, or shard it", in_files=False
    )
    save_adapter: str | None = flag(
        None, "with lora_rank: where to write the adapters alone, as PEFT does", in_files=False
    )
    tensorboard: bool = flag(False, "also write the measurements for TensorBoard")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1 or mps")
    threads: int | None = flag(None, "processor threads that compute", shown="all cores")


@dataclass(frozen=True, kw_only=True)
class TrainArguments(CommandArguments):
    """Train a model on a text and save it; all flags may be left out."""

    SHORT: ClassVar[tuple[str, ...]] = (
        "text_path", "tokenizer", "init_from", "minutes", "max_iters", "n_layer", "n_embd",
        "block_size", "resume", "plan", "list",
    )  # fmt: skip

    data: DataFlags = DataFlags()
    model: ModelFlags = ModelFlags()
    training: TrainingFlags = TrainingFlags()
    run: RunFlags = RunFlags()


def given_flags(arguments: TrainArguments) -> dict[str, Any]:
    """The flags that have a value, by name: a dictionary that JSON can hold.

    The size of the vocabulary is no setting of the model: the data have it.
    """
    values = values_of(arguments).items()
    return {name: v for name, v in values if v not in (None, ()) and name != "vocab_size"}


def recipe_name(given: Mapping[str, Any]) -> str:
    """The key in RECIPES of the recipe that the flags start from."""
    return given.get("preset") or given.get("arch") or "modern"


def settings(
    given: Mapping[str, Any],
    *,
    vocab_size: int,
    shortest_split: int,
    start: GPTConfig | None = None,
) -> tuple[GPTConfig, TrainConfig]:
    """The settings that the flags and the recipe give together.

    Args:
        given: see `given_flags`.
        vocab_size: of the data.
        shortest_split: tokens in the shorter of the two splits; the default context is below it.
        start: of the model that is gone on from, which keeps its shape.

    Raises:
        ConfigError: the model's settings are refused.
        TrainConfigError: the training's settings are refused.
    """
    recipe = RECIPES[recipe_name(given)]
    model = {**recipe.model, **_fields_of(GPTConfig, given)}
    if "block_size" not in given and model["block_size"] >= shortest_split:
        model["block_size"] = max(8, (shortest_split - 1) // 8 * 8)
    by_recipe, parts = recipe.train, 8
    if start is not None:
        by_recipe, parts = (LORA if given.get("lora_rank") else TUNING), EVALUATIONS_OF_TUNING
    training = {**by_recipe, **_fields_of(TrainConfig, given)}
    iters = training["max_iters"]
    # Defaults that follow the length of the run; a flag still wins.
    interval = max(1, -(-iters // parts), min(iters, _FEWEST_STEPS_BETWEEN))
    derived = {
        "warmup_iters": min(training["warmup_iters"], max(iters, 0) // 10),
        "eval_interval": interval,
        "sample_interval": interval,
        "log_interval": max(1, iters // 100),
    }
    training.update({name: value for name, value in derived.items() if name not in given})
    if start is not None:
        own = {"dropout": 0.0, "attn_dropout": 0.0}
        config = start.replace(**{name: given.get(name, value) for name, value in own.items()})
    else:
        arch = given.get("arch", recipe.arch)
        config = GPTConfig.from_arch(arch, vocab_size=vocab_size, **model)
    return config, TrainConfig(**training)


def _fields_of(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given}


def resolved(
    given: Mapping[str, Any], model: GPTConfig, train: TrainConfig, *, data_dir: str
) -> TrainArguments:
    """The flags with every default filled in: what config.toml holds, to reproduce the run.

    The run's name is not part of it, so that another run can be trained from the file.
    """
    recipe = recipe_name(given)
    shape = {**model.to_dict(), "preset": recipe, "arch": recipe}
    if "init_from" in given:  # the model has it
        shape = {"dropout": model.dropout}
    values = {**shape, **train.to_dict(), **given}
    known = {name: value for name, value in values.items() if name in flags_of(TrainArguments)}
    # What prepared the data is in them.
    unset = dict.fromkeys(("tokenizer", "vocab_size", "me", "template", "run_name"))
    return replaced(TrainArguments(), {**known, **unset, "text_path": (), "data_dir": data_dir})


def run_directory(path: Path) -> Path:
    """The run that a path means: the path itself, or its parent if it is a step."""
    return path if (path / "config.toml").is_file() else path.parent


def data_directory_of(run: Path) -> Path | None:
    """Where the data of a run was, says its config.toml; None if that does not say."""
    try:
        config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
        return Path(config["data"]["data_dir"]).expanduser()
    except (OSError, ValueError, LookupError, TypeError):
        return None
