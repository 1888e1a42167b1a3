"""What yocto-train says about a run, before and after it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from yocto_data import ChatDataset, TokenDataset
from yocto_model import ARCHITECTURES, GPTConfig
from yocto_model.formats.families import family_of
from yocto_train import Checkpoint, Run

from yocto_cli.command import next_command
from yocto_cli.screen.terminal import counted

if TYPE_CHECKING:
    from yocto_train import Trainer

# Changing these does not change a single bit of a run's weights.
_HARMLESS = {
    "log_interval", "eval_interval", "eval_iters", "eval_whole", "save_interval", "keep",
    "patience", "sample_interval", "sample_prompt", "sample_tokens", "save_dtype",
}  # fmt: skip
# What kind of model it is, said at the end of a run.
_ANSWERS = (
    "it answers with what it learned by heart from its conversations, so ask in their words "
    "(/memorised in the chat shows what is by heart)"
)
_CONTINUES = "it continues a text in the manner of its own; it does not answer questions"
_NEXT = (
    "--minutes 20 trains longer; --text_path takes your own texts or chats; "
    "--init_from goes on from a model that already speaks"
)


def summary(trainer: "Trainer", run: Run, data_dir: Path) -> str:
    """What is going to be trained, on what, for how long."""
    rows = {"run": f"{run.path}, seed {trainer.config.seed}", **details_of(trainer, data_dir)}
    return "\n".join(f"{name:8}{text}" for name, text in rows.items())


def details_of(trainer: "Trainer", data_dir: Path) -> dict[str, str]:
    """Data, model, training and device, a line each."""
    model, config = trainer.model.config, trainer.config
    family = family_of(model)  # of a model from elsewhere, whose settings no table of ours has
    arch = family if family in ("llama", "qwen2") else closest_architecture(model)
    tokens, parameters = trainer.train_data.n_tokens, model.n_parameters
    epochs = config.max_iters * config.batch_size / trainer.sampler.windows_per_epoch
    learned = sum(weight.numel() for weight in trainer.machine.parameters)
    adapted = f", and adapters of {learned:,} learn" if config.lora_rank else ""
    processes = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
    return {
        "data": f"{data_dir}: {tokens:,} tokens to train on, "
        f"{trainer.val_data.n_tokens:,} to validate, {model.vocab_size:,} ids",
        **_chats(trainer.train_data),
        "model": f"{arch}, {counted(model.n_layer, 'layer')}, {counted(model.n_head, 'head')}, "
        f"{model.n_embd} wide, context {model.block_size}: {parameters:,} parameters{adapted}",
        "train": f"{config.max_iters:,} steps of {config.batch_size} x "
        f"{trainer.train_data.block_size} tokens "
        f"({epochs:{'.1f' if epochs >= 1 else '.2g'}} epochs) with {config.optimizer}",
        "device": ", ".join(trainer.reasons) + processes,
    }


def _chats(data: TokenDataset) -> dict[str, str]:
    if not isinstance(data, ChatDataset):
        return {}
    cut = f"; {counted(data.n_cut, 'document')} longer than the context" if data.n_cut else ""
    learned = data.chats.trained
    return {
        "chats": f"{learned:,} of these tokens are learned ({learned / data.n_tokens:.0%}){cut}"
    }


def closest_architecture(model: GPTConfig) -> str:
    """The architecture that shares the most settings with a model."""
    names = {name for settings in ARCHITECTURES.values() for name in settings}
    defaults = {field.name: field.default for field in dataclasses.fields(GPTConfig)}

    def shared(arch: str) -> int:
        settings = {**defaults, **ARCHITECTURES[arch]}
        return sum(settings[name] == getattr(model, name) for name in names)

    return max(ARCHITECTURES, key=shared)


def resumed(
    checkpoint: Checkpoint, changes: Mapping[str, tuple[object, object]], *, max_iters: int
) -> str:
    """Where a run continues, what was passed over, and whether it is still the same run."""
    lines = [f"note: passed over: {problem}" for problem in checkpoint.skipped]
    lines.append(f"resuming {checkpoint.run} after step {checkpoint.step}")
    lines += [f"  {name}: {old} -> {new}" for name, (old, new) in changes.items()]
    if set(changes) - _HARMLESS:
        lines.append("  so the results will differ from those of a run without these changes")
    if checkpoint.step >= max_iters:
        lines.append(f"the run is finished; to train longer, give --max_iters above {max_iters}")
    return "\n".join(lines)


def farewell(trainer: "Trainer", run: Run, *, stopped: bool) -> str:
    """How it went, and the next command."""
    progress, lines = trainer.progress, list[str]()
    if stopped:
        lines.append(f"stopped after step {progress.step}, saved")
        lines.append(f"resume: {next_command('yocto-train', '--resume', str(run.path))}")
    if progress.best_step is not None and progress.best_loss is not None:
        lines.append(f"best validation loss {progress.best_loss:.4f} at step {progress.best_step}")
    if getattr(trainer.tokenizer, "kind", None) != "huggingface":  # that one could speak before
        is_chat = isinstance(trainer.train_data, ChatDataset)
        lines.append(f"what:   {_ANSWERS if is_chat else _CONTINUES}")
        if not stopped:
            lines.append(f"next:   {_NEXT}")
    lines.append(f"talk:   {next_command('yocto-chat', '--ckpt', str(run.path))}")
    return "\n".join(lines)
