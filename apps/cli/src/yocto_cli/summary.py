"""What yocto-train says before and after a run."""

from collections.abc import Mapping
from pathlib import Path

from yocto_train import Checkpoint, Run, Trainer

from yocto_cli.command import next_command
from yocto_cli.terminal import one_line

# With these changed, a run is to the bit what it would have been.
_HARMLESS = {
    "log_interval", "eval_interval", "eval_iters", "save_interval", "keep", "patience",
    "sample_interval", "sample_prompt", "sample_tokens",
}  # fmt: skip


def summary(trainer: Trainer, run: Run, data_dir: Path) -> str:
    """What is going to be trained, on what, for how long."""
    model, config = trainer.model.config, trainer.config
    arch = "modern" if model.positions == "rotary" else "gpt2"
    tokens, parameters = trainer.train_data.n_tokens, model.n_parameters
    epochs = config.max_iters * config.batch_size * model.block_size / tokens
    processes = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
    lines = {
        "run": f"{one_line(str(run.path))}, seed {config.seed}",
        "data": f"{one_line(str(data_dir))}: {tokens:,} tokens to train on, "
        f"{trainer.val_data.n_tokens:,} to validate, {model.vocab_size:,} ids",
        "model": f"{arch}, {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, "
        f"context {model.block_size}: {parameters:,} parameters",
        "train": f"{config.max_iters:,} steps of {config.batch_size} x {model.block_size} tokens "
        f"({epochs:.1f} epochs) with {config.optimizer}",
        "device": ", ".join(trainer.placement.reasons) + processes,
    }
    return "\n".join(f"{name:8}{text}" for name, text in lines.items())


def resumed(
    checkpoint: Checkpoint, changes: Mapping[str, tuple[object, object]], *, max_iters: int
) -> str:
    """Where a run goes on, what was passed over, and whether it is still the same run."""
    lines = [f"note: passed over: {problem}" for problem in checkpoint.skipped]
    lines.append(f"resuming {checkpoint.run} after step {checkpoint.step}")
    lines += [f"  {name}: {old} -> {new}" for name, (old, new) in changes.items()]
    if set(changes) - _HARMLESS:
        lines.append("  so the run is no longer the one it would have been uninterrupted")
    if checkpoint.step >= max_iters:
        lines.append(f"it is finished; --max_iters above {max_iters} goes on with it")
    return "\n".join(map(one_line, lines))


def farewell(trainer: Trainer, run: Run, *, stopped: bool) -> str:
    """How it went, and the next command."""
    progress = trainer.progress
    lines = []
    if stopped:
        lines.append(f"stopped after step {progress.step}, saved")
        lines.append(f"resume: {next_command('yocto-train', '--resume', str(run.path))}")
    if progress.best_step is not None and progress.best_loss is not None:
        lines.append(f"best validation loss {progress.best_loss:.4f} at step {progress.best_step}")
    lines.append(f"talk:   {next_command('yocto-chat', '--ckpt', ckpt_to_talk_to(trainer, run))}")
    return "\n".join(map(one_line, lines))


def ckpt_to_talk_to(trainer: Trainer, run: Run) -> str:
    """The run, or its best.pt where the last step is not the best."""
    best = trainer.progress.best_step
    return str(run.path if best in (None, trainer.progress.step) else run.path / "best.pt")
