"""Any order of steps, requests, stops, crashes and damage: the losses are the straight run's."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from yocto_train import CheckpointError, Event, Run, StepDone, Trainer

STEPS = 14


class Life(RuleBasedStateMachine):
    """A run directory and whatever process trains in it; the oracle is a run without troubles."""

    make: ClassVar[Callable[..., Trainer]]
    expected: ClassVar[dict[int, str]]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.run = Run(self.root / "run")
        self.run.create()
        self.seen: dict[int, str] = {}
        self.begin()

    def begin(self) -> None:
        """A new process: goes on from the newest sound checkpoint, or begins."""
        self.trainer = type(self).make(run=self.run)
        try:
            self.trainer.restore(self.run.latest())
        except CheckpointError:
            assert not list(self.run.path.glob("step-????????"))
        self.events: Iterator[Event] = self.trainer.run()

    @rule(count=st.integers(1, 8))
    def go(self, count: int) -> None:
        """Take some events."""
        for _ in range(count):
            event = next(self.events, None)
            if isinstance(event, StepDone):
                self.seen[event.step] = event.loss.hex()

    @rule()
    def evaluate(self) -> None:
        """Ask for an evaluation."""
        self.trainer.request_evaluation()

    @rule()
    def sample(self) -> None:
        """Ask for a sample."""
        self.trainer.request_sample()

    @rule()
    def save(self) -> None:
        """Ask for a checkpoint."""
        self.trainer.request_save()

    @rule()
    def stop(self) -> None:
        """Ask to stop, let it end, and go on in a new process."""
        self.trainer.request_stop()
        list(self.events)
        self.begin()

    @rule()
    def crash(self) -> None:
        """The process is gone, whatever it was doing."""
        with self.run.lock():
            self.begin()

    @rule(name=st.sampled_from(["model.safetensors", "opt.safetensors", "manifest.json"]))
    def damage(self, name: str) -> None:
        """The newest of several checkpoints loses its end, and the process is gone."""
        steps = sorted(self.run.path.glob("step-????????"))
        if len(steps) > 1:
            content = (steps[-1] / name).read_bytes()
            (steps[-1] / name).write_bytes(content[:-1])
            self.begin()

    @invariant()
    def losses_are_right(self) -> None:
        """Every step that was ever made had the loss of the straight run, to the bit."""
        assert all(type(self).expected[step] == loss for step, loss in self.seen.items())

    def teardown(self) -> None:
        """To the end: every step is as it would have been."""
        list(self.events)
        self.begin()
        list(self.events)
        assert STEPS == self.trainer.progress.step == self.run.latest().step
        shutil.rmtree(self.root)


@pytest.mark.property
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_a_life_with_troubles(
    arch: str, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1 as a state machine: whatever happens, and in whatever order, nothing shifts the run."""
    optimizer = {"gpt2": "adamw", "modern": "muon"}[arch]

    def make(**options: object) -> Trainer:
        return make_trainer(
            arch, max_iters=STEPS, eval_interval=4, save_interval=3, sample_tokens=2,
            optimizer=optimizer, accumulate=1, **options,
        )  # fmt: skip

    events = [event for event in make().run() if isinstance(event, StepDone)]
    monkeypatch.setattr(Life, "make", staticmethod(make), raising=False)
    monkeypatch.setattr(
        Life, "expected", {event.step: event.loss.hex() for event in events}, raising=False
    )
    run_state_machine_as_test(
        Life, settings=settings(max_examples=10, stateful_step_count=12, deadline=None)
    )
