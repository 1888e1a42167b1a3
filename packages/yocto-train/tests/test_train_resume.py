"""R1: a run stopped at any step and resumed is, to the bit, the run that was never stopped."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from yocto_data import TokenDataset
from yocto_model import GPT
from yocto_tokenizers import CharTokenizer
from yocto_train import (
    Checkpoint,
    CheckpointError,
    Evaluated,
    Event,
    Run,
    StepDone,
    Trainer,
    save_checkpoint,
)
from yocto_train.stepper import mixed_seed

MakeTrainer = Callable[..., Trainer]
KINDS: list[dict[str, Any]] = [
    {"arch": "gpt2", "optimizer": "adamw", "sampling": "random", "schedule": "cosine"},
    {"arch": "modern", "optimizer": "muon", "sampling": "epoch", "schedule": "wsd"},
    {"arch": "gpt2", "optimizer": "muon", "sampling": "random", "schedule": "cosine"},
    {"arch": "modern", "optimizer": "adamw", "sampling": "epoch", "schedule": "wsd"},
]
NAMES = ["-".join(kind.values()) for kind in KINDS]


def story(events: list[Event]) -> list[str]:
    """What a run reported, exactly: floats as hexadecimal."""
    lines = []
    for event in events:
        if isinstance(event, StepDone):
            numbers = event.loss, event.smoothed_loss, event.lr, event.grad_norm, event.epoch
            lines.append(f"step {event.step} " + " ".join(map(float.hex, numbers)))
        elif isinstance(event, Evaluated):
            lines.append(f"eval {event.step} {event.loss.hex()} {event.best_step} {event.is_best}")
    return lines


def tensors(value: Any, where: str = "") -> dict[str, Tensor]:
    """All tensors in nested lists and dicts, by their place."""
    if isinstance(value, Tensor):
        return {where: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Tensor] = {}
    for key, item in items:
        if isinstance(item, dict | list | Tensor):
            found |= tensors(item, f"{where}/{key}")
    return found


def assert_equal_state(expected: Trainer, actual: Trainer) -> None:
    """Weights, moments and progress are equal to the bit; so is the next batch."""
    assert expected.progress == actual.progress
    pairs = [(expected.model.state_dict(), actual.model.state_dict())]
    pairs += [
        (one.state_dict(), other.state_dict())
        for one, other in zip(expected.optimizers, actual.optimizers, strict=True)
    ]
    for want, have in pairs:
        left, right = tensors(want), tensors(have)
        assert set(left) == set(right)
        assert all(torch.equal(left[name], right[name]) for name in left)
    step = expected.progress.step
    for one, other in zip(expected.sampler.batch(step), actual.sampler.batch(step), strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module", params=KINDS, ids=NAMES)
def saved_everywhere(
    request: pytest.FixtureRequest,
    make_trainer: MakeTrainer,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Run, Trainer, list[str]]:
    """A run of 30 steps that kept a checkpoint of every one."""
    steps = 30 if request.param is KINDS[1] else 12  # the others mix the same parts
    options = {
        **request.param, "max_iters": steps, "eval_interval": 7, "save_interval": 1, "keep": 99,
    }  # fmt: skip
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    run.create()
    trainer = make_trainer(run=run, **options)
    return options, run, trainer, story(list(trainer.run()))


def test_resumed_at_every_step(
    saved_everywhere: tuple[dict[str, Any], Run, Trainer, list[str]], make_trainer: MakeTrainer
) -> None:
    """R1 for each k of 30, or of 12.

    With dropout, accumulation, clipping and warm-up on, going on from the checkpoint of step k
    gives the same losses as hexadecimal floats, and the same final state.
    """
    options, run, straight, expected = saved_everywhere
    for k in range(1, options["max_iters"] + 1):
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
    kind: dict[str, Any], stops: tuple[int, ...], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """A run that is asked to stop, resumed.

    Stopped and resumed in one directory ends where the straight run ends; other save and evaluation
    intervals make no difference to the weights.
    """
    options = {**kind, "max_iters": 24, "eval_interval": 7}
    straight = make_trainer(**options)
    expected = story(list(straight.run()))
    run = Run(tmp_path / "run")
    run.create()
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


def test_resumed_files_are_the_same_bytes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """What a resumed run saves is, file for file, what the run that was never stopped saves."""
    ends = []
    for stop in (None, 5):
        run = Run(tmp_path / f"stopped-{stop}")
        run.create()
        trainer = make_trainer(run=run, **KINDS[1], max_iters=8)
        for event in trainer.run():
            if event.step == stop:
                trainer.request_stop()
        if stop:
            trainer = make_trainer(run=run, **KINDS[1], max_iters=8)
            trainer.restore(run.latest())
            list(trainer.run())
        ends.append(Checkpoint.open(run.path / "step-00000008").manifest)
    assert ends[0] == ends[1]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from yocto_data import TokenDataset
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import load_tokenizer
from yocto_train import Run, TrainConfig, Trainer
import json
data, run_path, options, model_options, stop = sys.argv[1:]
model = GPT(GPTConfig.from_dict(json.loads(model_options)))
trainer = Trainer(
    model, TokenDataset(Path(data) / "train.bin", 8), TokenDataset(Path(data) / "val.bin", 8),
    TrainConfig(**json.loads(options)), run=Run(run_path), tokenizer=load_tokenizer(data),
    device="cpu",
)
with trainer.run_directory.lock():
    trainer.restore(trainer.run_directory.latest())
    for event in trainer.run():
        if event.step == int(stop):
            trainer.request_stop()
"""


@pytest.mark.slow
def test_resumed_in_a_new_process(
    make_trainer: MakeTrainer, data_dir: Path, tmp_path: Path
) -> None:
    """Nothing hides in a process's memory: another one goes on, a third ends, to the bit."""
    options = {**KINDS[1], "max_iters": 12, "eval_interval": 5, "log_interval": 1}
    straight = make_trainer(**options)
    list(straight.run())
    run = Run(tmp_path / "run")
    run.create()
    first = make_trainer(run=run, **options)
    for event in first.run():
        if event.step == 4:
            first.request_stop()
    arguments = [
        str(data_dir), str(run.path), json.dumps(first.config.to_dict()),
        json.dumps(first.model.config.to_dict()), "9",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, env=environment)
    resumed = make_trainer(**options)
    resumed.restore(run.latest())
    assert 9 == resumed.progress.step
    list(resumed.run())
    assert_equal_state(straight, resumed)


# --- negative controls: each saved item is needed ------------------------------------------------


def with_state(
    run: Run, checkpoint: Checkpoint, change: Callable[[dict[str, Any]], None]
) -> Checkpoint:
    """The same checkpoint in another run directory, with its state changed."""
    state = checkpoint.load_state()
    for key in ("format", "format_version"):
        del state[key]
    change(state)
    run.create()
    found = checkpoint.manifest
    written = save_checkpoint(
        run.path, checkpoint.load_model(), state, tokenizer=checkpoint.load_tokenizer(),
        data=found.data, val_loss=found.val_loss, environment=found.environment,
    )  # fmt: skip
    return Checkpoint.open(written.directory)


@pytest.fixture
def stopped(make_trainer: MakeTrainer, tmp_path: Path) -> tuple[Checkpoint, list[str]]:
    """A checkpoint of step 8 of 16, evaluated, and the straight run's story from there."""
    options = {"max_iters": 16, "eval_interval": 4, "optimizer": "muon", "save_interval": 8}
    run = Run(tmp_path / "first")
    run.create()
    expected = story(list(make_trainer(run=run, **options).run()))
    tail = [line for line in expected if int(line.split()[1]) > 8]
    return Checkpoint.open(run.path / "step-00000008"), tail


def go_on(checkpoint: Checkpoint, make_trainer: MakeTrainer) -> list[str]:
    trainer = make_trainer(max_iters=16, eval_interval=4, optimizer="muon")
    trainer.restore(checkpoint)
    return story(list(trainer.run()))


def test_the_control_itself(
    stopped: tuple[Checkpoint, list[str]], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """With nothing dropped, the copied checkpoint goes on exactly."""
    copy = with_state(Run(tmp_path / "copy"), stopped[0], lambda state: None)
    assert stopped[1] == go_on(copy, make_trainer)


@pytest.mark.parametrize("part", ["progress", "optimizers", "scaler", "config", "sampler"])
def test_a_state_without_a_part_is_refused(
    part: str, stopped: tuple[Checkpoint, list[str]], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Whatever is missing from opt.pt, the run does not go on without it."""
    checkpoint = with_state(Run(tmp_path / "copy"), stopped[0], lambda state: state.pop(part))
    with pytest.raises(CheckpointError, match=f"lacks {part}"):
        make_trainer(optimizer="muon").restore(checkpoint)


def forget_adam(state: dict[str, Any]) -> None:
    for entry in state["optimizers"][0]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = torch.zeros_like(entry[name])


def forget_adam_step(state: dict[str, Any]) -> None:
    for entry in state["optimizers"][0]["state"].values():
        entry["step"] = torch.ones_like(entry["step"])


def forget_muon(state: dict[str, Any]) -> None:
    for entry in state["optimizers"][1]["state"].values():
        for name in entry:
            entry[name] = torch.zeros_like(entry[name])


def forget(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["progress"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        forget_adam, forget_adam_step, forget_muon,
        forget(loss_sum=0.0), forget(loss_weight=0.0),
        forget(best_loss=0.5),
        forget(step=7), forget(evaluated_step=None),
    ],
    ids=[
        "moments of AdamW", "steps of AdamW", "momentum of Muon", "smoothed loss", "its weight",
        "best loss", "step", "evaluated step",
    ],
)  # fmt: skip
def test_each_saved_item_matters(
    change: Callable[[dict[str, Any]], None],
    stopped: tuple[Checkpoint, list[str]],
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    """Negative control: forget one saved item, and the resumed run is no longer the same."""
    checkpoint = with_state(Run(tmp_path / "copy"), stopped[0], change)
    assert stopped[1] != go_on(checkpoint, make_trainer)


def test_stale_evaluations_matter(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Negative control: with the count of stale evaluations forgotten, early stopping is late."""
    run = Run(tmp_path / "run")
    run.create()
    trainer = make_trainer(run=run, max_iters=30, eval_interval=2, patience=3)
    trainer.progress.best_loss, trainer.progress.best_step = 0.0, 0  # never reached
    for event in trainer.run():
        if event.step == 4:
            trainer.request_stop()
    checkpoint = run.latest()
    ends: list[int] = []
    for change in (lambda state: None, forget(stale_evaluations=0)):
        copy = with_state(Run(tmp_path / f"copy{len(ends)}"), checkpoint, change)
        resumed = make_trainer(max_iters=30, eval_interval=2, patience=3)
        resumed.restore(copy)
        ends.append(list(resumed.run())[-1].step)
    assert [6, 8] == ends


def test_dropout_seeds_matter(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with seeds that depend on the process, resumed losses would differ.

    Ours are a fixed function of seed, step, part and rank, each in its own way.
    """
    assert mixed_seed(1, 2, 3, 4) == mixed_seed(1, 2, 3, 4)
    numbers = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (1, 23, 4, 0)]
    seeds = {mixed_seed(*four) for four in numbers}
    assert 6 == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    plain = story(list(make_trainer(max_iters=4).run()))
    monkeypatch.setattr("yocto_train.stepper.mixed_seed", lambda *numbers: 7 + sum(numbers))
    assert plain != story(list(make_trainer(max_iters=4).run()))


def test_the_scaler_is_saved(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The loss scale of float16 training is part of the state, with its count of good steps."""
    run = Run(tmp_path / "run")
    run.create()

    def scaled() -> Trainer:
        trainer = make_trainer(run=run, max_iters=6, optimizer="muon")
        trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        return trainer

    first = scaled()
    for event in first.run():
        if event.step == 3:
            first.request_stop()
    resumed = scaled()
    resumed.restore(run.latest())
    left, right = first.stepper.scaler, resumed.stepper.scaler
    assert 512.0 == left.get_scale() == right.get_scale()
    assert left.state_dict() == right.state_dict()


# --- settings that changed -----------------------------------------------------------------------


def test_changed_settings_hold_and_are_told(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """C16: every setting that differs is returned as (saved, now), and the present one is used.

    A rate, decay or momentum does not come back with the optimizer's state.
    """
    run = Run(tmp_path / "run")
    run.create()
    first = make_trainer(run=run, optimizer="muon", max_iters=4)
    list(first.run())
    changed: dict[str, Any] = {
        "max_iters": 8, "lr": 0.5, "muon_lr": 0.25, "weight_decay": 0.01, "beta1": 0.5,
        "muon_iterations": 3, "eps": 1e-6,
    }  # fmt: skip
    again = make_trainer(run=run, optimizer="muon", **changed)
    changes = again.restore(run.latest())
    assert {
        name: (getattr(first.config, name), value) for name, value in changed.items()
    } == changes
    adamw, muon = again.optimizers
    assert 0.5 == adamw.param_groups[0]["peak_lr"]
    assert 0.5 == adamw.param_groups[0]["betas"][0]
    assert 1e-6 == adamw.param_groups[0]["eps"]
    assert (0.25, 0.01, 3) == tuple(
        muon.param_groups[0][name] for name in ("peak_lr", "weight_decay", "iterations")
    )


def test_another_machine_is_told(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes other bits, such as the number of threads or torch's version, is returned too."""
    run = Run(tmp_path / "run")
    run.create()
    list(make_trainer(run=run, max_iters=4).run())
    again = make_trainer(run=run, max_iters=4)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    changes = again.restore(run.latest())
    assert {"python", "threads"} == set(changes)
    assert (torch.get_num_threads(), "3.99.0") == (changes["threads"][1], changes["python"][1])


def test_another_window_length_is_told(
    make_model: Callable[..., GPT], make_trainer: MakeTrainer, data_dir: Path, tmp_path: Path,
    tokenizer: CharTokenizer,
) -> None:  # fmt: skip
    """Shorter windows of the same data are another run, although no setting differs."""
    run = Run(tmp_path / "run")
    run.create()
    first = make_trainer(run=run, max_iters=4)
    list(first.run())
    again = Trainer(
        make_model(dropout=0.1), TokenDataset(data_dir / "train.bin", 4),
        TokenDataset(data_dir / "val.bin", 4), first.config, run=run, tokenizer=tokenizer,
        device="cpu",
    )  # fmt: skip
    assert {"block_size": (8, 4)} == again.restore(run.latest())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "modern"}, r"other settings \(.*norm layernorm -> rmsnorm"),
        ({"dropout": 0.5}, r"dropout 0.1 -> 0.5"),
        ({"optimizer": "muon"}, "state of another optimizer"),
        ({"with_tokenizer": False}, "with another tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], message: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """C13, C15: another model, optimizer or tokenizer is refused, naming what differs."""
    run = Run(tmp_path / "run")
    run.create()
    list(make_trainer(run=run, max_iters=4).run())
    with pytest.raises(CheckpointError, match=message) as caught:
        make_trainer(max_iters=4, **options).restore(run.latest())
    assert "\n" not in str(caught.value)


def test_other_data_is_refused(
    make_trainer: MakeTrainer, data_dir: Path, tmp_path: Path, tokenizer: CharTokenizer
) -> None:
    """K14: data that was replaced since is refused by its sha256."""
    run = Run(tmp_path / "run")
    run.create()
    list(make_trainer(run=run, max_iters=4).run())
    other = tmp_path / "data"
    other.mkdir()
    shutil.copy(data_dir / "val.bin", other / "train.bin")
    shutil.copy(data_dir / "val.bin", other / "val.bin")
    train, val = (
        TokenDataset(other / f"{name}.bin", 8, dtype="uint16", vocab_size=tokenizer.vocab_size)
        for name in ("train", "val")
    )
    first = make_trainer(max_iters=4)
    trainer = Trainer(first.model, train, val, first.config, tokenizer=tokenizer, device="cpu")
    with pytest.raises(CheckpointError, match="trained on other data"):
        trainer.restore(run.latest())
