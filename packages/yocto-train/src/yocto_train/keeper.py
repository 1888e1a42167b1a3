"""Keeper: what of a training goes into a checkpoint, and how a training is restored from one."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from yocto_model import GPT
from yocto_tokenizers import Tokenizer

from yocto_train.checkpoint import Checkpoint
from yocto_train.events import Saved
from yocto_train.progress import Progress
from yocto_train.resume import (
    Changes,
    check_origin,
    check_state,
    differences,
    from_saved,
    load_fitting_model,
    load_optimizers,
    saved_settings,
)
from yocto_train.run_directory import Run
from yocto_train.saving import save_checkpoint
from yocto_train.stepper import Stepper


class Keeper:
    """Saves a training to its run and restores it.

    Args:
        stepper: the model, and what moves it.
        run: where checkpoints go, or None to keep none.
        tokenizer: saved with the model, if there is one.
        data: sha256 of the splits by name.
        block_size: length of the windows that are trained on, in tokens.
    """

    def __init__(
        self,
        stepper: Stepper,
        run: Run | None,
        *,
        tokenizer: Tokenizer | None,
        data: Mapping[str, str],
        block_size: int,
    ) -> None:
        self._stepper, self._world = stepper, stepper.world
        self._run, self._tokenizer, self._data = run, tokenizer, data
        self._block_size = block_size
        self._saved_step: int | None = None
        self._best_pointed: int | None = None

    # --- saving --------------------------------------------------------------------------------

    def has(self, progress: Progress) -> bool:
        """Whether this step needs no saving any more, because it is saved or nothing ever is."""
        return self._run is None or self._saved_step == progress.step

    def has_best(self, progress: Progress) -> bool:
        """Whether, besides, best.pt is known to be where it belongs."""
        pointed = self._run is None or self._best_pointed == progress.best_step
        return self.has(progress) and pointed

    def save(self, progress: Progress) -> Saved:
        """Write the step, move the pointers, prune, in this order; all ranks must ask for it.

        Raises:
            SaveError: the system refused; what was there before is unchanged.
        """
        run = self._run
        assert run is not None  # noqa: S101 - else nothing is ever due
        # A resumed run may find out only now that the step it went on from is the best: then the
        # checkpoint is there already.
        content = None
        if not self.has(progress):
            model = self._world.whole_model(self._stepper.model)
            content = model, self._state(progress)
        notes = self._world.on_main(lambda: self._write(run, progress, content))
        self._saved_step, self._best_pointed = progress.step, progress.best_step
        return Saved(
            step=progress.step,
            path=run.step_directory(progress.step),
            is_best=progress.is_best,
            notes=tuple(notes),
        )

    def _write(
        self, run: Run, progress: Progress, content: tuple[GPT, dict[str, Any]] | None
    ) -> list[str]:
        """What rank 0 does of a save; returns what a person should know."""
        directory, notes = run.step_directory(progress.step), []
        if content is not None:
            model, state = content
            written = save_checkpoint(
                run.path,
                model,
                state,
                tokenizer=self._tokenizer,
                data=self._data,
                val_loss=progress.loss_here,
                environment=self._environment(),
            )
            if written.put_aside is not None:
                notes.append(f"{directory} was there already; it is {written.put_aside} now")
            run.point("latest.pt", directory)
        if progress.is_best:
            run.point("best.pt", directory)
        return notes + run.prune(self._stepper.config.keep)

    def _state(self, progress: Progress) -> dict[str, Any]:
        stepper = self._stepper
        return {
            "step": progress.step,
            "progress": asdict(progress),
            "optimizers": [self._world.whole_state(optimizer) for optimizer in stepper.optimizers],
            "scaler": stepper.scaler.state_dict(),
            "config": stepper.config.to_dict(),
            "sampler": stepper.sampler.state(progress.step),
        }

    # --- restoring -----------------------------------------------------------------------------

    def restore(self, checkpoint: Checkpoint) -> tuple[Progress, Changes]:
        """Take over weights, moments and scale, and make the run directory stand there again.

        Returns:
            Where the run stood, and what differs from when it was saved: name -> (saved, now).

        Raises:
            CheckpointError: it is damaged, or of another model, data set or tokenizer.
            RunError: the run directory cannot be written to.
        """
        stepper = self._stepper
        check_origin(checkpoint, data=self._data, tokenizer=self._tokenizer)
        state = checkpoint.load_state()
        check_state(state, checkpoint)
        model = load_fitting_model(checkpoint, stepper.model.config)
        changes = self._changes(state, checkpoint)
        progress: Progress = from_saved(Progress, state["progress"], checkpoint)
        load_optimizers(stepper.optimizers, state, checkpoint)
        if state["scaler"] and stepper.scaler.is_enabled():
            stepper.scaler.load_state_dict(state["scaler"])
        for optimizer in stepper.optimizers:
            self._world.spread_state(optimizer)
        self._world.load_weights(stepper.model, model.state_dict())
        run = self._run
        if run is not None and run.holds(checkpoint):
            self._world.on_main(lambda: run.rewind(checkpoint, best_step=progress.best_step))
            # A crash may have come before it.
            self._world.on_main(lambda: run.prune(stepper.config.keep))
            self._saved_step, self._best_pointed = progress.step, progress.best_step
        return progress, changes

    def _changes(self, state: Mapping[str, Any], checkpoint: Checkpoint) -> Changes:
        saved = saved_settings(state, checkpoint)
        return {
            **differences(saved.to_dict(), self._stepper.config.to_dict()),
            **differences(
                {"block_size": state["sampler"].get("block_size")},
                {"block_size": self._block_size},
            ),
            **differences(checkpoint.manifest.environment, self._environment()),
        }

    def _environment(self) -> dict[str, str | int]:
        """What the bits of a result depend on, beside settings, data and weights."""
        placement = self._stepper.placement
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": str(placement.device),
            "dtype": str(placement.autocast or torch.float32).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "parallel": self._world.kind,
            "processes": self._world.size,
        }
