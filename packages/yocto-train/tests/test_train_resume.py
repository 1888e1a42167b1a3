"""R1: a run stopped at any step and resumed is, to the bit, the run that was never stopped."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from torch import Tensor
from yocto_data import TokenDataset
from yocto_tokenizers import CharTokenizer
from yocto_train import Checkpoint, CheckpointError, Event, Run, StepDone, Trainer

MakeTrainer = Callable[..., Trainer]
Story = Callable[[list[Event]], list[str]]
KINDS: list[dict[str, Any]] = [
    {"arch": "gpt2", "optimizer": "adamw", "sampling": "random", "schedule": "cosine"},
    {"arch": "modern", "optimizer": "muon", "sampling": "epoch", "schedule": "wsd"},
    {"arch": "gpt2", "optimizer": "muon", "sampling": "random", "schedule": "cosine"},
    {"arch": "modern", "optimizer": "adamw", "sampling": "epoch", "schedule": "wsd"},
    {"arch": "modern", "optimizer": "muon", "save_dtype": "bfloat16", "sample_interval": 4},
]


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, moments and the next batch, by name."""
    x, y = trainer.sampler.batch(trainer.progress.step)
    moments = trainer.world.moments(trainer.model, trainer.optimizers)
    return {**trainer.model.state_dict(), **moments, "x": x, "y": y}


def assert_equal_state(expected: Trainer, actual: Trainer) -> None:
    """Weights, moments and progress are equal to the bit; so is the next batch."""
    assert expected.progress == actual.progress
    left, right = tensors(expected), tensors(actual)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_resumed_at_every_step(
    kind: dict[str, Any], make_trainer: MakeTrainer, story: Story, run: Run
) -> None:
    """R1: going on from any step gives the same losses, to the bit, and the same final state.

    With dropout, accumulation, clipping, warm-up, and a second epoch.
    """
    steps = 16 if kind is KINDS[1] else 9  # the others mix the same parts
    options = {**kind, "max_iters": steps, "eval_interval": 7, "save_interval": 1, "keep": 99}
    straight = make_trainer(run=run, **options)
    expected = story(list(straight.run()))
    for k in range(1, steps + 1):
        resumed = make_trainer(**options)
        assert {} == resumed.restore(Checkpoint.open(run.path / f"step-{k:08d}"))
        events = list(resumed.run())
        tail = [line for line in expected if int(line.split()[1]) > k]
        assert tail == story(events), k
        assert_equal_state(straight, resumed)


@pytest.mark.parametrize(
    ("kind", "stops"), [(KINDS[0], (7,)), (KINDS[1], (5, 11, 21)), (KINDS[2], (13, 14))]
)
def test_stopped_and_resumed_again_and_again(
    kind: dict[str, Any], stops: tuple[int, ...], make_trainer: MakeTrainer, story: Story, run: Run
) -> None:
    """Stopped and resumed in one directory, a run ends where the straight one does.

    Another save interval makes no difference.
    """
    options = {**kind, "max_iters": 24, "eval_interval": 7}
    straight = make_trainer(**options)
    expected = story(list(straight.run()))
    lines: list[str] = []
    for stop in (*stops, None):
        trainer = make_trainer(run=run, save_interval=3, **options)
        if lines:
            trainer.restore(run.latest())
        events = []
        for event in trainer.run():
            events.append(event)
            if isinstance(event, StepDone) and event.step == stop:
                trainer.request_stop()
        lines += story(events)
    # A stop at step 7 or 14 gives up its evaluation, which the resumed run makes up for.
    assert expected == lines
    assert_equal_state(straight, trainer)


def test_the_scaler_is_saved(make_trainer: MakeTrainer, run: Run) -> None:
    """The loss scale of float16 training is part of the state, with its count of good steps."""

    def scaled() -> Trainer:
        trainer = make_trainer(run=run, max_iters=6, optimizer="muon")
        trainer.machine.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        return trainer

    first = scaled()
    for event in first.run():
        if event.step == 3:
            first.request_stop()
    resumed = scaled()
    resumed.restore(run.latest())
    left, right = first.machine.scaler, resumed.machine.scaler
    assert 512.0 == left.get_scale() == right.get_scale()
    assert left.state_dict() == right.state_dict()


# --- any order of steps, requests, stops, crashes and damage --------------------------------------

STEPS = 14


class Life(RuleBasedStateMachine):
    """A run directory and whatever process trains in it; the oracle is a run without troubles."""

    make: ClassVar[MakeTrainer]
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
        for _ in range(count):
            event = next(self.events, None)
            if isinstance(event, StepDone):
                self.seen[event.step] = event.loss.hex()

    @rule(what=st.sampled_from(["evaluation", "sample", "save"]))
    def request(self, what: str) -> None:
        getattr(self.trainer, f"request_{what}")()

    @rule()
    def stop(self) -> None:
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
    arch: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
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


# --- settings that changed -----------------------------------------------------------------------


def test_changed_settings_hold_and_are_told(make_trainer: MakeTrainer, run: Run) -> None:
    """C16: every setting that differs is returned as (saved, now), and the present one is used."""
    first = make_trainer(run=run, optimizer="muon", max_iters=4)
    list(first.run())
    changed: dict[str, Any] = {
        "max_iters": 8, "lr": 0.5, "muon_lr": 0.25, "weight_decay": 0.01, "beta1": 0.5,
        "muon_iterations": 3, "eps": 1e-6,
    }  # fmt: skip
    again = make_trainer(run=run, optimizer="muon", **changed)
    changes = again.restore(run.latest())
    assert {name: (getattr(first.config, name), changed[name]) for name in changed} == changes
    # No rate, decay or momentum comes back with the optimizer's state.
    adamw, muon = (optimizer.param_groups[0] for optimizer in again.optimizers)
    assert (0.5, 0.5, 1e-6) == (adamw["peak_lr"], adamw["betas"][0], adamw["eps"])
    assert (0.25, 0.01, 3) == (muon["peak_lr"], muon["weight_decay"], muon["iterations"])


def test_another_machine_is_told(
    make_trainer: MakeTrainer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes other bits, such as the number of threads or torch's version, is returned too."""
    list(make_trainer(run=run, max_iters=4).run())
    again = make_trainer(run=run, max_iters=4)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    changes = again.restore(run.latest())
    assert {"python", "threads"} == set(changes)
    assert (torch.get_num_threads(), "3.99.0") == (changes["threads"][1], changes["python"][1])


def on(directory: Path, block_size: int, first: Trainer, **options: Any) -> Trainer:
    """A trainer with the settings of another, on other data or in other windows of it."""
    train, val = (
        TokenDataset(directory / f"{name}.bin", block_size, **options) for name in ("train", "val")
    )
    return Trainer(first.model, train, val, first.config, tokenizer=first.tokenizer, device="cpu")


def test_another_window_length_is_told(make_trainer: MakeTrainer, data_dir: Path, run: Run) -> None:
    """Shorter windows of the same data are another run, although no setting differs."""
    first = make_trainer(run=run, max_iters=4)
    list(first.run())
    assert {"block_size": (8, 4)} == on(data_dir, 4, first).restore(run.latest())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "modern"}, r"other settings \(.*norm layernorm -> rmsnorm"),
        ({"dropout": 0.5}, r"dropout 0.1 -> 0.5"),
        ({"optimizer": "muon"}, "trained with optimizer adamw"),
        ({"lora_rank": 2}, "trained with lora_rank 0"),
        ({"with_tokenizer": False}, "with another tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], message: str, make_trainer: MakeTrainer, run: Run
) -> None:
    """C13, C15: another model, optimizer or tokenizer is refused, naming what differs."""
    list(make_trainer(run=run, max_iters=4).run())
    with pytest.raises(CheckpointError, match=message) as caught:
        make_trainer(max_iters=4, **options).restore(run.latest())
    assert "\n" not in str(caught.value)


def test_other_data_is_refused(
    make_trainer: MakeTrainer, data_dir: Path, run: Run, tmp_path: Path, tokenizer: CharTokenizer
) -> None:
    """K14: data that was replaced since is refused by its sha256."""
    first = make_trainer(run=run, max_iters=4)
    list(first.run())
    for name in ("train", "val"):
        shutil.copy(data_dir / "val.bin", tmp_path / f"{name}.bin")
    other = on(tmp_path, 8, first, dtype="uint16", vocab_size=tokenizer.vocab_size)
    with pytest.raises(CheckpointError, match="trained on other data"):
        other.restore(run.latest())
