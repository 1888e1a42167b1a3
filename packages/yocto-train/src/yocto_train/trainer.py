"""Trainer: the loop around step.py, as a stream of events. It knows nothing of terminals.

for event in Trainer(model, train_data, val_data, config).run():
    ...
"""

import contextlib
import functools
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from yocto_data import BatchSampler, ChatBatches, ChatDataset, DataError, TokenDataset
from yocto_data.prep.token_files import TokenFile
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer

from yocto_train import evaluation, events
from yocto_train.config import TrainConfig
from yocto_train.errors import NonFiniteError, TrainConfigError
from yocto_train.events import Event
from yocto_train.runs import state
from yocto_train.runs.checkpoint import Checkpoint, save_checkpoint
from yocto_train.runs.run import Run
from yocto_train.scale.devices import place
from yocto_train.scale.distributed import World
from yocto_train.scale.machine import Machine
from yocto_train.schedules import lr_factor
from yocto_train.step import train_step
from yocto_train.tune.lora import adapt, merged

_PATIENCE_S = 10  # for steps that are only timed
_REQUESTS = ("stop", "evaluation", "save", "sample")


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
        end_ids: ids that end a text besides the tokenizer's, of a model that comes from elsewhere;
            saved with it.
        template: how the model is asked, in Jinja; saved with it.
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
        end_ids: Sequence[int] = (),
        template: str | None = None,
        device: str = "auto",
        world: World | None = None,
    ) -> None:
        check_data(model.config, train_data, val_data, tokenizer)
        self.world = world or World()
        self.config, self.run_directory, self.tokenizer = config, run, tokenizer
        self.train_data, self.val_data = train_data, val_data
        self._files = [TokenFile(data.path, dtype=data.dtype) for data in (train_data, val_data)]
        self._end_ids, self._template = end_ids, template
        self.placement = place(self.world.device(device), config.precision)
        check_world(config, self.world, self.placement.autocast)
        if config.lora_rank:
            adapt(
                model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed,
                dtype=self.placement.autocast,
            )  # fmt: skip
        self.model = model.to(self.placement.device)
        self.machine = Machine(
            self.model, config, tokens=train_data.block_size, placement=self.placement,
            world=self.world,
        )  # fmt: skip
        self.optimizers = self.machine.optimizers
        order: dict[str, Any] = {
            "seed": config.seed, "rank": self.world.rank, "world_size": self.world.size
        }  # fmt: skip
        self.sampler = (
            ChatBatches(train_data, config.batch_size, **order)  # always each chat once an epoch
            if isinstance(train_data, ChatDataset)
            else BatchSampler(train_data, config.batch_size, mode=config.sampling, **order)
        )
        self.eval_batch_size = evaluation.windows_at_once(model.config, val_data.block_size)
        self._prompt = (
            evaluation.prompt_ids(tokenizer, train_data, config.sample_prompt) if tokenizer else []
        )
        self.progress = state.Progress()
        self._clock = Clock()
        self._saved_step: int | None = None
        self._best_pointed: int | None = None  # the step that `best` is known to point to
        self._requested: set[str] = set()  # of _REQUESTS, on this rank
        # What all ranks have agreed on. Only this decides, so that they never diverge.
        self._agreed: set[str] = set()

    # --- requests from outside, acted on between steps ------------------------------------------

    def request_stop(self) -> None:
        """Finish the step, save, and end; safe to call from a signal handler."""
        self._requested.add("stop")

    def request_evaluation(self) -> None:
        """Evaluate after the current step."""
        self._requested.add("evaluation")

    def request_save(self) -> None:
        """Save after the current step."""
        self._requested.add("save")

    def request_sample(self) -> None:
        """Write a sample after the current step."""
        self._requested.add("sample")

    # --- the loop ------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Train until `max_iters`, a request to stop, or too many evaluations without progress.

        Raises:
            NonFiniteError: before an update with a loss or gradient that is not a number.
            SaveError: a checkpoint could not be written.
            DataError: of yocto-data: a token file was cut off, or holds ids out of range; what
                was learned before is saved. Or it was written over: then it is not.
        """
        progress = self.progress
        yield events.Started(
            step=progress.step,
            max_iters=self.config.max_iters,
            n_parameters=self.model.config.n_parameters,
            tokens_per_step=self._tokens_per_step,
            train_tokens=self.train_data.n_tokens,
            val_tokens=self.val_data.n_tokens,
            placement=self.reasons,
        )
        self.model.train()
        try:
            reason = yield from self._to_the_end()
        except DataError:
            if self._has_more_to_save and self.world.size == 1:
                with contextlib.suppress(DataError):  # then nobody knows what is good
                    yield self._save()
            raise
        if self._has_more_to_save:
            yield self._save()
        yield events.Stopped(
            step=progress.step,
            reason=reason,
            best_step=progress.best_step,
            best_loss=progress.best_loss,
            train_seconds=self._clock.train_seconds,
        )

    def _to_the_end(self) -> Generator[Event, None, events.StopReason]:
        """All steps, and what is due between them; returns why it ended."""
        progress = self.progress
        while True:
            self._agree()
            # What is due after a step is done before the next one, so a run that was stopped in
            # between makes up for it when it resumes. Each part may take long: new requests may
            # have come meanwhile.
            if self._evaluation_is_due():
                yield from self._evaluate()
                self._agree()
            if self._sample_is_due():
                yield from self._sample()
                self._agree()
            if self._save_is_due():
                yield self._save()
                self._agree()
            if (reason := self._reason_to_end()) is not None:
                return reason
            if progress.step >= self.config.max_iters:
                continue  # an evaluation was requested meanwhile
            loss, grad_norm = self._step()
            smoothed = progress.smooth(loss)
            if progress.step % self.config.log_interval == 0 or self._is_last:
                yield self._step_done(loss, smoothed, grad_norm)

    def _agree(self) -> bool:
        """Share with all ranks what was requested on any of them; returns whether to stop."""
        asked = self.world.any(*(name in self._requested for name in _REQUESTS))
        agreed = {name for name, flag in zip(_REQUESTS, asked, strict=True) if flag}
        self._agreed |= agreed
        self._requested -= agreed
        return "stop" in self._agreed

    @property
    def _is_last(self) -> bool:
        return self.progress.step == self.config.max_iters

    def _is_multiple(self, interval: int) -> bool:
        return self.progress.step > 0 and interval > 0 and self.progress.step % interval == 0

    def _reason_to_end(self) -> events.StopReason | None:
        if self.progress.step >= self.config.max_iters and not self._evaluation_is_due():
            return "finished"
        if "stop" in self._agreed:
            return "requested"
        patience = self.config.patience
        return "no progress" if 0 < patience <= self.progress.stale_evaluations else None

    def _step(self) -> tuple[float, float]:
        """One optimizer step; returns the batch's loss and the gradient's norm before clipping."""
        begun = time.perf_counter()
        try:
            result = train_step(
                self.progress.step, self.config, self.sampler, self.machine, self.optimizers
            )
        except NonFiniteError as error:
            saved = self.run_directory.pointed("latest") if self.run_directory else None
            last = f"; the last good checkpoint is {saved}" if saved else ""
            raise NonFiniteError(f"{error}{last}") from error
        self.progress.step += 1
        self._clock.step(time.perf_counter() - begun)
        return result

    def time_step(self, repeats: int = 8) -> float:
        """Seconds of the fastest of `repeats` optimizer steps, for planning; trains the model.

        Of slow steps there are fewer, but at least two.
        """
        # Other work on the computer only slows steps down; the first two warm up the caches.
        self.model.train()
        for number in range(repeats + 2):
            if number > 1 and sum(self._clock.since_report) > _PATIENCE_S:
                break
            self._step()
        return min(self._clock.since_report[-repeats:])

    # --- between steps -------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        regular = self._is_multiple(self.config.eval_interval)
        regular = regular or (self._is_last and self.progress.step > 0)
        missing = self.progress.evaluated_step != self.progress.step
        return "evaluation" in self._agreed or (regular and missing)

    def _evaluate(self) -> Iterator[Event]:
        # The same windows every time, so that the best step is chosen among equals.
        with self.machine.eager():
            results = [self._measured(self.config.eval_iters)]
            is_last = self._is_last and self.config.eval_whole
            if is_last and results[0] is not None and not results[0].whole:
                # The figure to publish, after evaluations that saw a part of the split.
                results.append(self._measured(0))
        finished = [result for result in results if result is not None]
        if len(finished) < len(results):
            return  # asked to stop: the save matters more
        self._agreed.discard("evaluation")
        progress, per_token = self.progress, self._bytes_per_token
        is_best = progress.count_evaluation(finished[0].loss)
        for result in finished:
            self._clock.evaluation_seconds.append(result.seconds)
            yield events.Evaluated(
                step=progress.step,
                loss=result.loss,
                bits_per_byte=per_token and evaluation.bits_per_byte(result.loss, per_token),
                tokens=result.tokens,
                whole=result.whole,
                is_best=is_best,
                best_step=progress.best_step,
                best_loss=progress.best_loss,
                seconds=result.seconds,
            )

    def _measured(self, n_batches: int) -> evaluation.Evaluation | None:
        return evaluation.evaluate(
            self.model, self.val_data, batch_size=self.eval_batch_size, n_batches=n_batches,
            autocast=self.placement.autocast, should_stop=self._agree, world=self.world,
        )  # fmt: skip

    @functools.cached_property
    def _bytes_per_token(self) -> float | None:
        tokenizer = self.tokenizer
        return None if tokenizer is None else evaluation.bytes_per_token(tokenizer, self.val_data)

    def _sample_is_due(self) -> bool:
        regular = self._is_multiple(self.config.sample_interval)
        missing = self.progress.sampled_step != self.progress.step
        due = "sample" in self._agreed or (regular and missing)
        return due and self.tokenizer is not None and "stop" not in self._agreed

    def _sample(self) -> Iterator[Event]:
        tokenizer, config = self.tokenizer, self.config
        assert tokenizer is not None  # noqa: S101 - else no sample is ever due
        model = merged(self.world.whole_model(self.model))
        with self.machine.eager():
            text = self.world.on_main(
                lambda: evaluation.write_sample(
                    model, tokenizer, self._prompt, tokens=config.sample_tokens, seed=config.seed,
                    should_stop=lambda: "stop" in self._requested,
                )
            )  # fmt: skip
        self.model.train()
        if text is None:
            self._agreed.add("stop")
            return
        self._agreed.discard("sample")
        step = self.progress.sampled_step = self.progress.step
        prompt = tokenizer.decode(self._prompt)
        yield events.Sampled(step=step, prompt=prompt, text=text, seed=config.seed)

    # --- checkpoints ---------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        progress = self.progress
        regular = self._is_multiple(self.config.save_interval or self.config.eval_interval)
        due = regular or self._is_last or "save" in self._agreed or progress.is_best
        is_saved = self._saved_step == progress.step and self._best_pointed == progress.best_step
        return due and self.run_directory is not None and not is_saved

    @property
    def _has_more_to_save(self) -> bool:
        return self.run_directory is not None and self._saved_step != self.progress.step

    def _save(self) -> events.Saved:
        """Write the step, move the pointers, prune, in this order; all ranks must call this."""
        run, progress = self.run_directory, self.progress
        assert run is not None  # noqa: S101 - else nothing is ever due
        self._agreed.discard("save")
        # A resumed run may find out only now that the step it continued from is the best: then its
        # checkpoint already exists.
        content = None
        if self._saved_step != progress.step:
            model = self.world.whole_model(self.model)
            content = model, state.state_of(self.machine, self.sampler, progress)
        notes = self.world.on_main(lambda: self._write(run, content))
        self._saved_step, self._best_pointed = progress.step, progress.best_step
        return events.Saved(
            step=progress.step,
            path=run.step_directory(progress.step),
            is_best=progress.is_best,
            notes=tuple(notes),
        )

    def _write(self, run: Run, content: tuple[GPT, dict[str, Any]] | None) -> list[str]:
        """Rank 0's part of a save; returns what a person should know."""
        progress, notes = self.progress, []
        directory = run.step_directory(progress.step)
        if content is not None:
            for file in self._files:
                file.require_unchanged()
            put_aside = save_checkpoint(
                run.path, *content, tokenizer=self.tokenizer, data=self._fingerprints,
                val_loss=progress.loss_here, environment=state.environment_of(self.machine),
                end_ids=self._end_ids, template=self._template, dtype=self._save_dtype,
            )  # fmt: skip
            if put_aside is not None:
                notes.append(f"{directory} already existed; it is now {put_aside}")
            run.point("latest", directory)
        if progress.is_best:
            run.point("best", directory)
        return notes + run.prune(self.config.keep)

    def restore(self, checkpoint: Checkpoint) -> state.Changes:
        """Go on from a checkpoint of the same model, data and tokenizer.

        If it is one of this trainer's run, the run directory is rewound to it (`Run.rewind`); the
        caller holds the run's lock.

        Returns:
            What differs from when it was saved: name -> (saved, now), for settings, the length of
            the windows, versions, device and threads. The present values are used. Any difference,
            except in what is reported, evaluated, saved and sampled, changes the bits of the run.

        Raises:
            CheckpointError: it is damaged, or of another model, data set or tokenizer.
            RunError: the run directory cannot be written to.
        """
        self.progress, changes = state.restore(
            self.machine, checkpoint, data=self._fingerprints, tokenizer=self.tokenizer,
            block_size=self.train_data.block_size,
        )  # fmt: skip
        run, progress = self.run_directory, self.progress
        if run is not None and run.holds(checkpoint):
            self.world.on_main(lambda: run.rewind(checkpoint, best_step=progress.best_step))
            self.world.on_main(lambda: run.prune(self.config.keep))  # a crash may have prevented it
            self._saved_step, self._best_pointed = progress.step, progress.best_step
        return changes

    @property
    def _save_dtype(self) -> torch.dtype | None:
        """The type of the weights that others open; None as they are trained."""
        name = self.config.save_dtype
        return None if name == "float32" else getattr(torch, name)

    @property
    def _fingerprints(self) -> dict[str, str]:
        return {"train": self.train_data.fingerprint, "val": self.val_data.fingerprint}

    # --- what is reported ----------------------------------------------------------------------

    def _step_done(self, loss: float, smoothed: float, grad_norm: float) -> events.StepDone:
        step, tokens = self.progress.step, self._tokens_per_step
        steps_left = self.config.max_iters - step
        return events.StepDone(
            step=step,
            loss=loss,
            smoothed_loss=smoothed,
            lr=self.config.lr * lr_factor(step, self.config),
            grad_norm=grad_norm,
            tokens_per_second=tokens / self._clock.mean_step(),
            seconds_left=self._clock.left(steps_left, steps_left / self.config.eval_interval),
            epoch=step * self.config.batch_size / self.sampler.windows_per_epoch,
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """Device, precision and compilation, each with its reason in words."""
        compilation = self.machine.compilation
        return self.placement.reasons + (() if compilation is None else (compilation,))

    @property
    def _tokens_per_step(self) -> int:
        return self.config.batch_size * self.train_data.block_size


class Clock:
    """Times of steps and evaluations of this process, for speed and time left."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.evaluation_seconds: list[float] = []
        self.since_report: list[float] = []  # seconds of each step
        self._usual: float | None = None  # seconds per step, smoothed
        self._steps = 0

    def step(self, seconds: float) -> None:
        """Count the time of a step."""
        self.train_seconds += seconds
        self.since_report.append(seconds)
        self._steps += 1
        if self._steps > 10:  # the first steps warm caches up and say little
            self._usual = 0.95 * (self._usual or seconds) + 0.05 * seconds

    def mean_step(self) -> float:
        """Seconds per step since the last call."""
        times, self.since_report = self.since_report, []
        return sum(times) / len(times)

    def left(self, steps: int, evaluations: float) -> float | None:
        """Seconds that these steps and evaluations will take; None during the first steps."""
        each = self.evaluation_seconds or [0.0]
        return self._usual and steps * self._usual + evaluations * sum(each) / len(each)


# --- checks before step 0 ------------------------------------------------------------------------


def check_data(
    config: GPTConfig, train_data: TokenDataset, val_data: TokenDataset, tokenizer: Tokenizer | None
) -> None:
    """Refuse a model, data and a tokenizer that do not fit each other.

    Raises:
        TrainConfigError: they do not fit; both sides are named.
    """
    made_by = set()
    for name, data in (("training", train_data), ("validation", val_data)):
        if data.block_size > config.block_size:
            raise TrainConfigError(
                f"the {name} data has windows of {data.block_size} tokens, "
                f"but the model's block_size is {config.block_size}"
            )
        if (data.vocab_size or 0) > config.vocab_size:
            raise TrainConfigError(
                f"the {name} data has {data.vocab_size} ids, the model only {config.vocab_size}"
            )
        if data.meta is not None and data.meta.tokenizer.fingerprint is not None:
            made_by.add(data.meta.tokenizer.fingerprint)
    if len(made_by) > 1:
        raise TrainConfigError(
            "the training and the validation data come from different tokenizers; "
            "prepare both together"
        )
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise TrainConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}"
        )
    if tokenizer is not None and made_by and tokenizer.fingerprint() not in made_by:
        raise TrainConfigError(
            f"the data was prepared with another tokenizer, not this {tokenizer.kind} tokenizer; "
            "use the data's own, or prepare the text again"
        )


def check_world(config: TrainConfig, world: World, autocast: torch.dtype | None) -> None:
    """Refuse rows that cannot be shared out evenly, and combinations that do not work.

    Raises:
        TrainConfigError: the message says which.
    """
    if config.batch_size % (world.size * config.accumulate):
        raise TrainConfigError(
            f"batch_size {config.batch_size} cannot be divided among {world.size} processes "
            f"with accumulate {config.accumulate}; use a multiple of "
            f"{world.size * config.accumulate}"
        )
    if world.kind == "fsdp" and (autocast == torch.float16 or config.lora_rank):
        what, how = ("lora_rank", "") if config.lora_rank else ("float16", "bfloat16, or ")
        raise TrainConfigError(f"{what} does not work with fsdp; use {how}ddp")
