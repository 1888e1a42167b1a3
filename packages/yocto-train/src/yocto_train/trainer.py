"""Trainer: the loop. It yields events and knows nothing of terminals.

for event in Trainer(model, train_data, val_data, config).run():
    ...

stepper.py has what happens in a step, keeper.py what is saved, evaluate.py and samples.py the rest.
"""

import time
from collections.abc import Iterator

from yocto_data import TokenDataset
from yocto_model import GPT
from yocto_tokenizers import Tokenizer

from yocto_train.checkpoint import Checkpoint
from yocto_train.checks import check_data, check_world
from yocto_train.config import TrainConfig
from yocto_train.devices import place
from yocto_train.distributed import World
from yocto_train.errors import NonFiniteError
from yocto_train.evaluate import Evaluation, Evaluator
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
from yocto_train.keeper import Keeper
from yocto_train.progress import Clock, Progress
from yocto_train.resume import Changes
from yocto_train.run_directory import Run
from yocto_train.samples import SampleWriter
from yocto_train.schedules import lr_factor
from yocto_train.stepper import Stepper

_REQUESTS = ("evaluation", "save", "sample")


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
        self.config, self.run_directory, self.tokenizer = config, run, tokenizer
        self.train_data, self.val_data = train_data, val_data
        self.placement = place(self.world.device(device), config.precision)
        check_world(config, self.world, self.placement.autocast)
        self.model = model.to(self.placement.device)
        self.stepper = Stepper(
            self.model, train_data, config, placement=self.placement, world=self.world
        )
        self.optimizers, self.sampler = self.stepper.optimizers, self.stepper.sampler
        self.evaluator = Evaluator(
            self.model, val_data, tokenizer=tokenizer, autocast=self.placement.autocast,
            world=self.world,
        )  # fmt: skip
        self._writer = None if tokenizer is None else SampleWriter(tokenizer, train_data, config)
        self._keeper = Keeper(
            self.stepper, run, tokenizer=tokenizer, block_size=train_data.block_size,
            data={"train": train_data.fingerprint, "val": val_data.fingerprint},
        )  # fmt: skip
        self.progress = Progress()
        self._clock = Clock()
        self._stop_requested = False
        # What all ranks have agreed on. Only this decides, so that they never part.
        self._stopping = False
        self._agreed: set[str] = set()
        self._requested: set[str] = set()  # of _REQUESTS, on this rank

    # --- asked for from outside, acted on between steps ------------------------------------------

    def request_stop(self) -> None:
        """Finish the step, save, and end; safe to call from a signal handler."""
        self._stop_requested = True

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
            DataError: of yocto-data: a token file was cut off, or holds ids out of range.
        """
        progress = self.progress
        yield self._started()
        self.model.train()
        while True:
            self._agree()
            # What is due after a step comes before the next one, so that a run which was stopped
            # before it got there makes up for it.
            # Each may take long, so there may be further requests after it.
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
                break
            if progress.step >= self.config.max_iters:
                continue  # an evaluation was asked for meanwhile
            loss, grad_norm = self._step()
            smoothed = progress.smooth(loss)
            if progress.step % self.config.log_interval == 0 or self._is_last:
                yield self._step_done(loss, smoothed, grad_norm)
        if not self._keeper.has(progress):
            yield self._save()
        yield self._stopped(reason)

    def _agree(self) -> bool:
        """Take up what was asked for on any rank; returns whether to stop."""
        requested = (name in self._requested for name in _REQUESTS)
        asked = self.world.any(self._stop_requested, *requested)
        agreed = {name for name, flag in zip(_REQUESTS, asked[1:], strict=True) if flag}
        self._agreed |= agreed
        self._requested -= agreed
        self._stopping = asked[0]
        return self._stopping

    @property
    def _is_last(self) -> bool:
        return self.progress.step == self.config.max_iters

    def _is_multiple(self, interval: int) -> bool:
        return self.progress.step > 0 and interval > 0 and self.progress.step % interval == 0

    def _reason_to_end(self) -> StopReason | None:
        if self.progress.step >= self.config.max_iters and not self._evaluation_is_due():
            return "finished"
        if self._stopping:
            return "requested"
        patience = self.config.patience
        return "no progress" if 0 < patience <= self.progress.stale_evaluations else None

    def _step(self) -> tuple[float, float]:
        """One optimizer step; returns the batch's loss and the gradient's norm before clipping."""
        begun = time.perf_counter()
        try:
            result = self.stepper.take(self.progress.step)
        except NonFiniteError as error:
            saved = self.run_directory.pointed("latest.pt") if self.run_directory else None
            last = f"; the last good checkpoint is {saved}" if saved else ""
            raise NonFiniteError(f"{error}{last}") from error
        self.progress.step += 1
        self._clock.step(time.perf_counter() - begun)
        return result

    def time_step(self, repeats: int = 8) -> float:
        """Seconds of an optimizer step, the fastest of some; for planning: it trains the model.

        What else the machine does can only slow a step down, so the fastest says most about it.

        Args:
            repeats: steps to time, after two that warm caches up.
        """
        self.model.train()
        seconds = []
        for _ in range(repeats + 2):
            begun = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - begun)
        return min(seconds[2:])

    # --- between steps -------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        regular = self._is_multiple(self.config.eval_interval)
        regular = regular or (self._is_last and self.progress.step > 0)
        missing = self.progress.evaluated_step != self.progress.step
        return "evaluation" in self._agreed or (regular and missing)

    def _evaluate(self) -> Iterator[Event]:
        # The same windows every time, so that the best step is chosen among equals.
        with self.stepper.eager():
            results = [self.evaluator.measure(self.config.eval_iters, self._agree)]
            if self._is_last and results[0] is not None and not results[0][0].whole:
                # The figure to publish, after evaluations that saw a part of the split.
                results.append(self.evaluator.measure(0, self._agree))
        finished = [result for result in results if result is not None]
        if len(finished) < len(results):
            return  # asked to stop: the save matters more
        self._agreed.discard("evaluation")
        is_best = self.progress.take_evaluation(finished[0][0].loss)
        for result, seconds in finished:
            yield self._evaluated(result, is_best=is_best, seconds=seconds)

    def _sample_is_due(self) -> bool:
        regular = self._is_multiple(self.config.sample_interval)
        missing = self.progress.sampled_step != self.progress.step
        due = "sample" in self._agreed or (regular and missing)
        return due and self._writer is not None and not self._stopping

    def _sample(self) -> Iterator[Event]:
        writer = self._writer
        assert writer is not None  # noqa: S101 - else no sample is ever due
        model = self.world.whole_model(self.model)
        with self.stepper.eager():
            text = self.world.on_main(lambda: writer.write(model, lambda: self._stop_requested))
        self.model.train()
        if text is None:
            self._stopping = True
            return
        self._agreed.discard("sample")
        step = self.progress.sampled_step = self.progress.step
        yield Sampled(step=step, prompt=writer.prompt, text=text, seed=self.config.seed)

    def _save_is_due(self) -> bool:
        regular = self._is_multiple(self.config.save_interval or self.config.eval_interval)
        asked = "save" in self._agreed
        due = regular or self._is_last or asked or self.progress.is_best
        return due and not self._keeper.has_best(self.progress)

    def _save(self) -> Saved:
        self._agreed.discard("save")
        return self._keeper.save(self.progress)

    def restore(self, checkpoint: Checkpoint) -> Changes:
        """Go on from a checkpoint of the same model, data and tokenizer.

        If it is one of this trainer's run, the run directory is made to stand there again: see
        `Run.rewind`. The caller holds the run's lock.

        Args:
            checkpoint: where to go on.

        Returns:
            What differs from when it was saved: name -> (saved, now), for settings, the length of
            the windows, versions, device and threads. The present ones hold. With any difference
            but in what is reported, evaluated, saved and sampled, the run is not bit for bit the
            one that it would have been.

        Raises:
            CheckpointError: it is damaged, or of another model, data set or tokenizer.
            RunError: the run directory cannot be written to.
        """
        self.progress, changes = self._keeper.restore(checkpoint)
        return changes

    # --- what is reported ----------------------------------------------------------------------

    def _started(self) -> Started:
        return Started(
            step=self.progress.step,
            max_iters=self.config.max_iters,
            n_parameters=self.model.config.n_parameters,
            tokens_per_step=self._tokens_per_step,
            train_tokens=self.train_data.n_tokens,
            val_tokens=self.val_data.n_tokens,
            placement=self.reasons,
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

    def _evaluated(self, result: Evaluation, *, is_best: bool, seconds: float) -> Evaluated:
        self._clock.evaluation_seconds.append(seconds)
        return Evaluated(
            step=self.progress.step,
            loss=result.loss,
            bits_per_byte=self.evaluator.bits_per_byte(result.loss),
            tokens=result.tokens,
            whole=result.whole,
            is_best=is_best,
            best_step=self.progress.best_step,
            best_loss=self.progress.best_loss,
            seconds=seconds,
        )

    def _stopped(self, reason: StopReason) -> Stopped:
        return Stopped(
            step=self.progress.step,
            reason=reason,
            best_step=self.progress.best_step,
            best_loss=self.progress.best_loss,
            train_seconds=self._clock.train_seconds,
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """Device, precision and compilation, each with its reason in words."""
        compilation = self.stepper.compilation
        return self.placement.reasons + (() if compilation is None else (compilation,))

    @property
    def _tokens_per_step(self) -> int:
        return self.config.batch_size * self.train_data.block_size
