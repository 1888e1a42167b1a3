"""Trainer: the loop. It yields events and knows nothing of terminals.

for event in Trainer(model, train_data, val_data, config).run():
    ...
"""

import hashlib
import math
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from yocto_data import BatchSampler, TokenDataset
from yocto_model import GPT, SamplingOptions, TextGenerator
from yocto_tokenizers import Tokenizer, TokenizerError

from yocto_train.checkpoint import Checkpoint
from yocto_train.config import TrainConfig
from yocto_train.devices import place
from yocto_train.distributed import World
from yocto_train.errors import NonFiniteError, TrainConfigError
from yocto_train.evaluate import (
    Evaluation,
    bits_per_byte,
    bytes_per_token,
    cross_entropy,
    evaluate,
)
from yocto_train.events import (
    Evaluated,
    Event,
    Sampled,
    Saved,
    Started,
    StepDone,
    Stopped,
    StopReason,
)
from yocto_train.optimizers import make_optimizers, set_learning_rates
from yocto_train.progress import Clock, Progress
from yocto_train.resume import (
    Changes,
    check_data,
    check_origin,
    check_state,
    check_world,
    differences,
    from_saved,
    load_fitting_model,
    load_optimizers,
    saved_settings,
)
from yocto_train.run_directory import Run
from yocto_train.saving import save_checkpoint
from yocto_train.schedules import lr_factor, muon_momentum

_REQUESTS = ("_evaluate_requested", "_save_requested", "_sample_requested")


class Trainer:
    """Trains a model.

    The batch, the learning rate and the dropout of a step are functions of the seed and the
    step's number, so a run that was stopped and restored goes on as if nothing had happened, to
    the bit on one machine's CPU. With dropout, torch's global generator is seeded at each step.

    Args:
        model: the model; moved to the device.
        train_data: what to learn.
        val_data: what to measure on.
        config: how to train.
        run: where checkpoints go; the caller holds its lock. None saves nothing.
        tokenizer: saved with the model; needed for samples and bits per byte.
        device: "auto" or a device's name.
        world: the processes that train together, from `joined`; None for this one alone. The batch
            of a step is the same for any number of them: each takes its share of the rows.

    Raises:
        TrainConfigError: settings that do not fit each other, the data or this machine.
    """

    def __init__(
        self,
        model: GPT,
        train_data: TokenDataset,
        val_data: TokenDataset,
        config: TrainConfig,
        *,
        run: Run | None = None,
        tokenizer: Tokenizer | None = None,
        device: str = "auto",
        world: World | None = None,
    ) -> None:
        check_data(model.config, train_data, val_data, tokenizer)
        self.world = world or World()
        check_world(config, self.world)
        self.config, self.run_directory, self.tokenizer = config, run, tokenizer
        self.train_data, self.val_data = train_data, val_data
        self.placement = place(self.world.device(device), config.precision)
        self.model = model.to(self.placement.device)
        self._module = self.world.wrap(self.model)  # before the optimizers: it may replace weights
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(
            self.placement.device.type, enabled=self.placement.autocast == torch.float16
        )
        self.sampler = BatchSampler(
            train_data, config.batch_size, seed=config.seed, mode=config.sampling,
            rank=self.world.rank, world_size=self.world.size,
        )  # fmt: skip
        self.progress = Progress()
        self._prompt_ids = self._encode_sample_prompt()
        self._parameters = list(self.model.parameters())
        self._clock = Clock()
        self._stop_requested = False
        self._stopping = False  # what all ranks have agreed on
        self._evaluate_requested = False
        self._save_requested = False
        self._sample_requested = False
        self._bytes_per_token: float | None = None
        self._saved_step: int | None = None
        self._best_pointed: int | None = None

    # --- asked for from outside, acted on between steps ------------------------------------------

    def request_stop(self) -> None:
        """Finish the step, save, and end; safe to call from a signal handler."""
        self._stop_requested = True

    def request_evaluation(self) -> None:
        """Evaluate after the current step."""
        self._evaluate_requested = True

    def request_save(self) -> None:
        """Save after the current step."""
        self._save_requested = True

    def request_sample(self) -> None:
        """Write a sample after the current step."""
        self._sample_requested = True

    # --- the loop ------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Train until `max_iters`, a request to stop, or too many evaluations without progress.

        Raises:
            NonFiniteError: before an update with a loss or gradient that is not a number.
            SaveError: a checkpoint could not be written.
            DataError: of yocto-data: a token file was cut off, or holds ids out of range.
        """
        progress = self.progress
        yield self._started()
        self.model.train()
        while True:
            self._agree()
            # What is due after a step comes before the next one, so that a run which was stopped
            # before it got there makes up for it.
            if self._evaluation_is_due():
                yield from self._evaluate()
            if self._sample_is_due():
                yield from self._sample()
            if self._save_is_due():
                yield from self._save()
            if (reason := self._reason_to_end()) is not None:
                break
            loss, grad_norm = self._step()
            smoothed = progress.smooth(loss)
            if progress.step % self.config.log_interval == 0 or self._is_last:
                yield self._step_done(loss, smoothed, grad_norm)
        if self.run_directory is not None and self._saved_step != progress.step:
            yield from self._save()
        yield Stopped(
            step=progress.step,
            reason=reason,
            best_step=progress.best_step,
            best_loss=progress.best_loss,
            train_seconds=self._clock.train_seconds,
        )

    def _agree(self) -> bool:
        """Take up what was asked for on any rank; returns whether to stop."""
        asked = self.world.any(self._stop_requested, *(getattr(self, name) for name in _REQUESTS))
        for flag, name in zip(asked[1:], _REQUESTS, strict=True):
            if flag:  # never unset here: a request may have come in between
                setattr(self, name, True)
        self._stopping = asked[0]
        return self._stopping

    @property
    def _is_last(self) -> bool:
        return self.progress.step == self.config.max_iters

    def _reason_to_end(self) -> StopReason | None:
        if self.progress.step >= self.config.max_iters and not self._evaluation_is_due():
            return "finished"
        if self._stopping:
            return "requested"
        patience = self.config.patience
        return "no progress" if 0 < patience <= self.progress.stale_evaluations else None

    def _step(self) -> tuple[float, float]:
        """One optimizer step; returns the batch's loss and the gradient's norm before clipping."""
        config, step = self.config, self.progress.step
        begun = time.perf_counter()
        set_learning_rates(
            self.optimizers,
            lr_factor(step, config),
            muon_momentum=muon_momentum(step, config),
        )
        x, y = self.sampler.batch(step)  # (B, T) each
        device = self.placement.device
        loss = torch.zeros((), device=device)
        for micro, (x_part, y_part) in enumerate(
            zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True)
        ):
            if self.model.config.dropout:
                torch.manual_seed(mixed_seed(config.seed, step, micro, self.world.rank))
            with self.world.part(self._module, last=micro == config.accumulate - 1):
                # Equal parts: the mean of their means is the mean over the batch.
                part = self._loss(x_part.to(device), y_part.to(device)) / config.accumulate
                self.scaler.scale(part).backward()  # type: ignore[no-untyped-call] # torch has no type here
            loss += part.detach()
        result = self._update(loss)
        self.progress.step += 1
        self._clock.step(time.perf_counter() - begun)
        return result

    def time_step(self, repeats: int = 5) -> float:
        """Seconds of an optimizer step, as the median of some; for planning: it trains the model.

        Args:
            repeats: steps to time, after two that warm caches up.
        """
        self.model.train()
        seconds = []
        for _ in range(repeats + 2):
            begun = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds[2:])

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        autocast = self.placement.autocast
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            logits = self._module(x)  # (B, T, V)
        return cross_entropy(logits, y)

    def _update(self, loss: Tensor) -> tuple[float, float]:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        # An infinite limit clips nothing; the norm is wanted in any case.
        limit = self.config.grad_clip or math.inf
        norm = self.world.whole(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        (total,) = self.world.sum(float(loss))  # every rank has as many rows
        values = total / self.world.size, float(norm)
        # A float16 overflow is the scaler's business: it skips the update and lowers its scale.
        if not math.isfinite(values[0]) or not (
            math.isfinite(values[1]) or self.scaler.is_enabled()
        ):
            raise self._not_finite(*values)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return values

    # --- between steps -------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        step, asked = self.progress.step, self._evaluate_requested
        regular = step > 0 and (step % self.config.eval_interval == 0 or self._is_last)
        return asked or (regular and self.progress.evaluated_step != step)

    def _evaluate(self) -> Iterator[Event]:
        # The same windows every time, so that the best step is chosen among equals.
        results = [self._measure(self.config.eval_iters)]
        if self._is_last and results[0] is not None and not results[0][0].whole:
            # The figure to publish, after evaluations that saw a part of the split.
            results.append(self._measure(0))
        finished = [result for result in results if result is not None]
        if len(finished) < len(results):
            return  # asked to stop: the save matters more
        self._evaluate_requested = False
        is_best = self.progress.take_evaluation(finished[0][0].loss)
        for result, seconds in finished:
            yield self._evaluated(result, is_best=is_best, seconds=seconds)

    def _measure(self, n_batches: int) -> tuple[Evaluation, float] | None:
        """The loss and the seconds it took to measure it; None if there was a request to stop."""
        begun = time.perf_counter()
        result = evaluate(
            self.model,
            self.val_data,
            batch_size=self._evaluation_batch,
            n_batches=n_batches,
            autocast=self.placement.autocast,
            should_stop=self._agree,
            world=self.world,
        )
        return None if result is None else (result, time.perf_counter() - begun)

    def _evaluated(self, result: Evaluation, *, is_best: bool, seconds: float) -> Evaluated:
        self._clock.evaluation_seconds.append(seconds)
        if self._bytes_per_token is None and self.tokenizer is not None:
            self._bytes_per_token = bytes_per_token(self.tokenizer, self.val_data)
        per_token = self._bytes_per_token
        return Evaluated(
            step=self.progress.step,
            loss=result.loss,
            bits_per_byte=bits_per_byte(result.loss, per_token) if per_token else None,
            tokens=result.tokens,
            whole=result.whole,
            is_best=is_best,
            best_step=self.progress.best_step,
            best_loss=self.progress.best_loss,
            seconds=seconds,
        )

    @property
    def _evaluation_batch(self) -> int:
        return max(1, min(64, 16_384 // self.val_data.block_size))

    def _sample_is_due(self) -> bool:
        step, interval = self.progress.step, self.config.sample_interval
        regular = step > 0 and interval > 0 and step % interval == 0
        due = self._sample_requested or (regular and self.progress.sampled_step != step)
        return due and self.tokenizer is not None and not self._stopping

    def _sample(self) -> Iterator[Event]:
        assert self.tokenizer is not None  # noqa: S101 - the caller looked
        model = self.world.whole_model(self.model)
        text = self.world.on_main(lambda: self._write_sample(model))
        self.model.train()
        if text is None:
            self._stopping = True
            return
        self._sample_requested = False
        self.progress.sampled_step = self.progress.step
        yield Sampled(
            step=self.progress.step,
            prompt=self.tokenizer.decode(self._prompt_ids),
            text=text,
            seed=self.config.seed,
        )

    def _write_sample(self, model: GPT) -> str | None:
        assert self.tokenizer is not None  # noqa: S101 - the caller looked
        # A new generator each time: the weights have moved, so no cache may be kept.
        stream = TextGenerator(model, self.tokenizer).stream(
            self._prompt_ids,
            self.config.sample_tokens,
            options=SamplingOptions(temperature=0.8),
            seed=self.config.seed,
        )
        pieces = []
        for piece in stream:
            if self._stop_requested:
                return None
            pieces.append(piece)
        return "".join(pieces)

    def _save_is_due(self) -> bool:
        config, step = self.config, self.progress.step
        regular = step > 0 and step % (config.save_interval or config.eval_interval) == 0
        due = regular or self._is_last or self._save_requested or self.progress.is_best
        pointed = self._saved_step == step and self._best_pointed == self.progress.best_step
        return self.run_directory is not None and due and not pointed

    def _save(self) -> Iterator[Event]:
        run, progress = self.run_directory, self.progress
        assert run is not None  # noqa: S101 - the caller looked
        self._save_requested = False
        # A resumed run may find out only now that the step it went on from is the best: then the
        # checkpoint is there already.
        content = None
        if self._saved_step != progress.step:
            content = self.world.whole_model(self.model), self._state()
        notes = self.world.on_main(lambda: self._write(run, content))
        self._saved_step, self._best_pointed = progress.step, progress.best_step
        yield Saved(
            step=progress.step,
            path=run.path / f"step-{progress.step:08d}",
            is_best=progress.is_best,
            notes=tuple(notes),
        )
        self._agree()  # a save may take long: no further step if there was a request to stop

    def _write(self, run: Run, content: tuple[GPT, dict[str, Any]] | None) -> list[str]:
        """Save, point, prune, in this order; returns what a person should know."""
        directory, notes = run.path / f"step-{self.progress.step:08d}", []
        if content is not None:
            model, state = content
            written = save_checkpoint(
                run.path,
                model,
                state,
                tokenizer=self.tokenizer,
                data=self._data_fingerprints(),
                val_loss=self.progress.loss_here,
                environment=self._environment(),
            )
            if written.put_aside is not None:
                notes.append(f"{directory} was there already; it is {written.put_aside} now")
            run.point("latest.pt", directory)
        if self.progress.is_best:
            run.point("best.pt", directory)
        return notes + run.prune(self.config.keep)

    # --- saving and restoring ------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "optimizers": [self.world.whole_state(optimizer) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "config": self.config.to_dict(),
            "sampler": self.sampler.state(self.progress.step),
        }

    def restore(self, checkpoint: Checkpoint) -> Changes:
        """Go on from a checkpoint of the same model, data and tokenizer.

        If it is one of this trainer's run, the run directory is made to stand there again: see
        `Run.rewind`. The caller holds the run's lock.

        Args:
            checkpoint: where to go on.

        Returns:
            What differs from when it was saved: name -> (saved, now), for settings, the length of
            the windows, versions, device and threads. The present ones hold. With any difference
            but in what is reported, saved and sampled, the run is not bit for bit the one that it
            would have been.

        Raises:
            CheckpointError: it is damaged, or of another model, data set or tokenizer.
            RunError: the run directory cannot be written to.
        """
        check_origin(checkpoint, data=self._data_fingerprints(), tokenizer=self.tokenizer)
        state = checkpoint.load_state()
        check_state(state, checkpoint)
        model = load_fitting_model(checkpoint, self.model.config)
        saved_config = saved_settings(state, checkpoint)
        progress = from_saved(Progress, state["progress"], checkpoint)
        load_optimizers(self.optimizers, state, checkpoint)
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        for optimizer in self.optimizers:
            self.world.spread_state(optimizer)
        self.world.load_weights(self.model, model.state_dict())
        self.progress = progress
        run = self.run_directory
        if run is not None and run.holds(checkpoint):
            self.world.on_main(lambda: run.rewind(checkpoint, best_step=progress.best_step))
            # A crash may have come before it.
            self.world.on_main(lambda: run.prune(self.config.keep))
            self._saved_step, self._best_pointed = progress.step, progress.best_step
        return {
            **differences(saved_config.to_dict(), self.config.to_dict()),
            **differences(
                {"block_size": state["sampler"].get("block_size")},
                {"block_size": self.train_data.block_size},
            ),
            **differences(checkpoint.manifest.environment, self._environment()),
        }

    def _data_fingerprints(self) -> dict[str, str]:
        return {"train": self.train_data.fingerprint, "val": self.val_data.fingerprint}

    # --- small things --------------------------------------------------------------------------

    def _started(self) -> Started:
        return Started(
            step=self.progress.step,
            max_iters=self.config.max_iters,
            n_parameters=self.model.config.n_parameters,
            tokens_per_step=self._tokens_per_step,
            train_tokens=self.train_data.n_tokens,
            val_tokens=self.val_data.n_tokens,
            placement=self.placement.reasons,
        )

    def _step_done(self, loss: float, smoothed: float, grad_norm: float) -> StepDone:
        step, tokens = self.progress.step, self._tokens_per_step
        steps_left = self.config.max_iters - step
        return StepDone(
            step=step,
            loss=loss,
            smoothed_loss=smoothed,
            lr=self.config.lr * lr_factor(step, self.config),
            grad_norm=grad_norm,
            tokens_per_second=tokens / self._clock.take_mean_step(),
            seconds_left=self._clock.left(steps_left, steps_left / self.config.eval_interval),
            epoch=step * tokens / self.train_data.n_tokens,
        )

    @property
    def _tokens_per_step(self) -> int:
        return self.config.batch_size * self.train_data.block_size

    def _encode_sample_prompt(self) -> list[int]:
        if self.tokenizer is None:
            return []
        text = self.config.sample_prompt
        if text:
            try:
                ids = self.tokenizer.encode(text)
            except TokenizerError as error:
                raise TrainConfigError(f"sample_prompt cannot be used: {error}") from error
            if ids:
                return ids
        first, _ = self.train_data.window(0, 1)
        try:
            return self.tokenizer.encode("\n") or first.tolist()
        except ValueError:  # a text without a line end
            return [int(first[0])]

    def _environment(self) -> dict[str, str | int]:
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": str(self.placement.device),
            "dtype": str(self.placement.autocast or torch.float32).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "parallel": self.world.kind,
            "processes": self.world.size,
        }

    def _not_finite(self, loss: float, norm: float) -> NonFiniteError:
        what = "loss" if not math.isfinite(loss) else "gradient"
        saved = self.run_directory.pointed("latest.pt") if self.run_directory else None
        last = f"; the last good checkpoint is {saved}" if saved else ""
        return NonFiniteError(
            f"the {what} of step {self.progress.step + 1} is not finite "
            f"(loss {loss:g}, gradient norm {norm:g}); try a lower learning rate{last}"
        )


def mixed_seed(seed: int, step: int, micro: int, rank: int = 0) -> int:
    """A seed for the dropout of one forward pass, unlike any other's: 63 bits of a sha256."""
    digest = hashlib.sha256(f"dropout {seed} {step} {micro} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
