"""R1: a run stopped at any step and resumed is, to the bit, the run that was never stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from yocto_data import TokenDataset
from yocto_model import GPT
from yocto_tokenizers import CharTokenizer
from yocto_train import Checkpoint, CheckpointError, Event, Run, StepDone, Trainer

MakeTrainer = Callable[..., Trainer]
Story = Callable[[list[Event]], list[str]]
KINDS: list[dict[str, Any]] = [
    {"arch": "gpt2", "optimizer": "adamw", "sampling": "random", "schedule": "cosine"},
    {"arch": "modern", "optimizer": "muon", "sampling": "epoch", "schedule": "wsd"},
    {"arch": "gpt2", "optimizer": "muon", "sampling": "random", "schedule": "cosine"},
    {"arch": "modern", "optimizer": "adamw", "sampling": "epoch", "schedule": "wsd"},
]
NAMES = ["-".join(kind.values()) for kind in KINDS]


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
    story: Story,
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
    saved_everywhere: tuple[dict[str, Any], Run, Trainer, list[str]],
    make_trainer: MakeTrainer,
    story: Story,
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
    kind: dict[str, Any],
    stops: tuple[int, ...],
    make_trainer: MakeTrainer,
    story: Story,
    run: Run,
) -> None:
    """A run that is asked to stop, resumed.

    Stopped and resumed in one directory ends where the straight run ends; other save and evaluation
    intervals make no difference to the weights.
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


# --- settings that changed -----------------------------------------------------------------------


def test_changed_settings_hold_and_are_told(make_trainer: MakeTrainer, run: Run) -> None:
    """C16: every setting that differs is returned as (saved, now), and the present one is used.

    A rate, decay or momentum does not come back with the optimizer's state.
    """
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


def test_another_window_length_is_told(
    make_model: Callable[..., GPT], make_trainer: MakeTrainer, data_dir: Path, run: Run,
    tokenizer: CharTokenizer,
) -> None:  # fmt: skip
    """Shorter windows of the same data are another run, although no setting differs."""
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
