"""Trainer: the loop. It yields events and knows nothing of terminals.

for event in Trainer(model, train_data, val_data, config).run():
    ...
"""

import hashlib
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from yocto_data import BatchSampler, TokenDataset
from yocto_model import GPT, SamplingOptions, TextGenerator
from yocto_tokenizers import Tokenizer

from yocto_train.checkpoint import Checkpoint, save_checkpoint
from yocto_train.config import TrainConfig
from yocto_train.devices import place
from yocto_train.errors import CheckpointError, NonFiniteError, TrainConfigError
from yocto_train.evaluate import bits_per_byte, bytes_per_token, cross_entropy, evaluate
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
from yocto_train.run_directory import Run
from yocto_train.schedules import lr_factor, muon_momentum

_SMOOTHING = 0.95


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        step: finished optimizer steps.
        best_loss: lowest validation loss so far.
        best_step: its step.
        stale_evaluations: evaluations since then.
        loss_sum: exponentially weighted sum of training losses.
        loss_weight: the sum of the weights, which corrects the start.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0

    def smooth(self, loss: float) -> float:
        """Take in a training loss; return the smoothed one."""
        self.loss_sum = _SMOOTHING * self.loss_sum + (1 - _SMOOTHING) * loss
        self.loss_weight = _SMOOTHING * self.loss_weight + (1 - _SMOOTHING)
        return self.loss_sum / self.loss_weight


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
    ) -> None:
        _check_data(model, train_data, val_data, tokenizer)
        self.config, self.run_directory, self.tokenizer = config, run, tokenizer
        self.train_data, self.val_data = train_data, val_data
        self.placement = place(device, config.precision)
        self.model = model.to(self.placement.device)
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(
            self.placement.device.type, enabled=self.placement.autocast == torch.float16
        )
        self.sampler = BatchSampler(
            train_data, config.batch_size, seed=config.seed, mode=config.sampling
        )
        self.progress = Progress()
        self._prompt_ids = self._encode_sample_prompt()
        self._parameters = list(self.model.parameters())
        self._clock = _Clock()
        self._stop_requested = False
        self._evaluate_requested = False
        self._save_requested = False
        self._sample_requested = False
        self._bytes_per_token: float | None = None
        self._last_evaluation: tuple[int, float] | None = None  # step, loss
        self._saved_step: int | None = None

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
        """
        config, progress = self.config, self.progress
        yield self._started()
        self.model.train()
        reason: StopReason = "finished"
        while progress.step < config.max_iters:
            if self._stop_requested:
                reason = "requested"
                break
            loss, grad_norm = self._step()
            smoothed = progress.smooth(loss)
            step = progress.step
            last = step == config.max_iters
            if step % config.log_interval == 0 or last:
                yield self._step_done(loss, smoothed, grad_norm)
            if step % config.eval_interval == 0 or last or self._take("_evaluate_requested"):
                yield from self._evaluate()
            if self.tokenizer is not None and (
                (config.sample_interval and step % config.sample_interval == 0)
                or self._take("_sample_requested")
            ):
                yield from self._sample()
            if self._save_is_due(last=last) and not self._stop_requested:
                yield from self._save()
            if config.patience and progress.stale_evaluations >= config.patience and not last:
                reason = "no progress"
                break
        if self.run_directory is not None and self._saved_step != progress.step:
            yield from self._save()
        yield Stopped(
            step=progress.step,
            reason=reason,
            best_step=progress.best_step,
            best_loss=progress.best_loss,
            train_seconds=self._clock.train_seconds,
        )

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
                torch.manual_seed(mixed_seed(config.seed, step, micro))
            # Equal parts: the mean of their means is the mean over the batch.
            part = self._loss(x_part.to(device), y_part.to(device)) / config.accumulate
            self.scaler.scale(part).backward()  # type: ignore[no-untyped-call] # torch has no type here
            loss += part.detach()
        result = self._update(loss)
        self.progress.step += 1
        self._clock.step(time.perf_counter() - begun)
        return result

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        autocast = self.placement.autocast
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            logits = self.model(x)  # (B, T, V)
        return cross_entropy(logits, y)

    def _update(self, loss: Tensor) -> tuple[float, float]:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        # An infinite limit clips nothing; the norm is wanted in any case.
        limit = self.config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        values = float(loss), float(norm)
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

    def _evaluate(self) -> Iterator[Event]:
        config, progress = self.config, self.progress
        begun = time.perf_counter()
        result = evaluate(
            self.model,
            self.val_data,
            batch_size=max(1, min(64, 16_384 // self.val_data.block_size)),
            n_batches=0 if progress.step == config.max_iters else config.eval_iters,
            autocast=self.placement.autocast,
            should_stop=lambda: self._stop_requested,
        )
        if result is None:
            return  # asked to stop: the save matters more
        seconds = time.perf_counter() - begun
        self._clock.evaluation_seconds.append(seconds)
        self._last_evaluation = progress.step, result.loss
        is_best = progress.best_loss is None or result.loss < progress.best_loss
        if is_best:
            progress.best_loss, progress.best_step = result.loss, progress.step
        progress.stale_evaluations = 0 if is_best else progress.stale_evaluations + 1
        if self._bytes_per_token is None and self.tokenizer is not None:
            self._bytes_per_token = bytes_per_token(self.tokenizer, self.val_data)
        per_token = self._bytes_per_token
        yield Evaluated(
            step=progress.step,
            loss=result.loss,
            bits_per_byte=bits_per_byte(result.loss, per_token) if per_token else None,
            tokens=result.tokens,
            whole=result.whole,
            is_best=is_best,
            best_step=progress.best_step or 0,
            best_loss=progress.best_loss or result.loss,
            seconds=seconds,
        )

    def _sample(self) -> Iterator[Event]:
        assert self.tokenizer is not None  # noqa: S101 - the caller looked
        config = self.config
        # A new generator each time: the weights have moved, so no cache may be kept.
        stream = TextGenerator(self.model, self.tokenizer).stream(
            self._prompt_ids,
            config.sample_tokens,
            options=SamplingOptions(temperature=0.8),
            seed=config.seed,
        )
        pieces = []
        for piece in stream:
            pieces.append(piece)
            if self._stop_requested:
                break
        self.model.train()
        yield Sampled(
            step=self.progress.step,
            prompt=self.tokenizer.decode(self._prompt_ids),
            text="".join(pieces),
            seed=config.seed,
        )

    def _save_is_due(self, *, last: bool) -> bool:
        config, step = self.config, self.progress.step
        interval = config.save_interval or config.eval_interval
        asked = self._take("_save_requested")
        new_best = self._last_evaluation is not None and self.progress.best_step == step
        return self.run_directory is not None and (
            last or asked or new_best or step % interval == 0
        )

    def _save(self) -> Iterator[Event]:
        run, step = self.run_directory, self.progress.step
        assert run is not None  # noqa: S101 - the caller looked
        evaluated, loss = self._last_evaluation or (None, None)
        directory = save_checkpoint(
            run.path,
            self.model,
            self._state(),
            tokenizer=self.tokenizer,
            data={"train": self.train_data.fingerprint, "val": self.val_data.fingerprint},
            val_loss=loss if evaluated == step else None,
            environment=self._environment(),
        )
        run.point("latest.pt", directory)
        is_best = self.progress.best_step == step
        if is_best:
            run.point("best.pt", directory)
        self._saved_step = step
        run.prune(self.config.keep)
        yield Saved(step=step, path=directory, is_best=is_best)

    # --- saving and restoring ------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "config": self.config.to_dict(),
            "sampler": self.sampler.state(self.progress.step),
        }

    def restore(self, checkpoint: Checkpoint) -> dict[str, tuple[object, object]]:
        """Go on from a checkpoint of the same model, data and tokenizer.

        Args:
            checkpoint: where to go on.

        Returns:
            Settings that differ from the checkpoint's: name -> (saved, now). Any but `max_iters`
            and the intervals makes the run another one than it would have been.

        Raises:
            CheckpointError: it is damaged, or of another model, data set or tokenizer.
        """
        now = {"train": self.train_data.fingerprint, "val": self.val_data.fingerprint}
        if dict(checkpoint.manifest.data) != now:
            raise CheckpointError(
                f"{checkpoint.directory} was trained on other data; use the data it names, "
                "or start a new run"
            )
        tokenizer = None if self.tokenizer is None else self.tokenizer.fingerprint()
        if checkpoint.manifest.tokenizer != tokenizer:
            raise CheckpointError(f"{checkpoint.directory} was trained with another tokenizer")
        state = checkpoint.load_state()
        model = checkpoint.load_model()
        if model.config != self.model.config:
            raise CheckpointError(
                f"{checkpoint.directory} holds a model of another shape; keep its settings"
            )
        try:
            progress = Progress(**state["progress"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.scaler.load_state_dict(state["scaler"])
            saved_config = TrainConfig.from_dict(state["config"]).to_dict()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint.directory / 'opt.pt'} does not fit these settings: {error}"
            ) from error
        self.model.load_state_dict(model.state_dict())
        self.progress = progress
        self._saved_step = progress.step
        current = self.config.to_dict()
        return {
            name: (saved_config[name], current[name])
            for name in current
            if saved_config[name] != current[name]
        }

    # --- small things --------------------------------------------------------------------------

    def _take(self, flag: str) -> bool:
        asked = bool(getattr(self, flag))
        setattr(self, flag, False)
        return asked

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
            return self.tokenizer.encode(text)
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
            "precision": str(self.placement.autocast or torch.float32),
            "threads": torch.get_num_threads(),
        }

    def _not_finite(self, loss: float, norm: float) -> NonFiniteError:
        what = "loss" if not math.isfinite(loss) else "gradient"
        saved = self.run_directory.pointed("latest.pt") if self.run_directory else None
        last = f"; the last good checkpoint is {saved}" if saved else ""
        return NonFiniteError(
            f"the {what} of step {self.progress.step + 1} is not finite "
            f"(loss {loss:g}, gradient norm {norm:g}); try a lower learning rate{last}"
        )


class _Clock:
    """Times of steps and evaluations, for speed and time left."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.evaluation_seconds: list[float] = []
        self._since_report: list[float] = []
        self._usual: float | None = None  # seconds per step, smoothed
        self._steps = 0

    def step(self, seconds: float) -> None:
        self.train_seconds += seconds
        self._since_report.append(seconds)
        self._steps += 1
        if self._steps > 10:  # the first steps warm caches up and say little
            old = seconds if self._usual is None else self._usual
            self._usual = 0.95 * old + 0.05 * seconds

    def take_mean_step(self) -> float:
        mean = sum(self._since_report) / len(self._since_report)
        self._since_report.clear()
        return mean

    def left(self, steps: int, evaluations: float) -> float | None:
        if self._usual is None:
            return None
        each = self.evaluation_seconds
        return steps * self._usual + evaluations * (sum(each) / len(each) if each else 0.0)


def mixed_seed(seed: int, step: int, micro: int, rank: int = 0) -> int:
    """A seed for the dropout of one forward pass, unlike any other's: 63 bits of a sha256."""
    digest = hashlib.sha256(f"dropout {seed} {step} {micro} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_data(
    model: GPT, train_data: TokenDataset, val_data: TokenDataset, tokenizer: Tokenizer | None
) -> None:
    config = model.config
    for name, data in (("training", train_data), ("validation", val_data)):
        if data.block_size > config.block_size:
            raise TrainConfigError(
                f"the {name} data has windows of {data.block_size} tokens, "
                f"the model's block_size is {config.block_size}"
            )
        if data.vocab_size is not None and data.vocab_size > config.vocab_size:
            raise TrainConfigError(
                f"the {name} data has {data.vocab_size} ids, the model only {config.vocab_size}"
            )
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise TrainConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}"
        )
