"""Whatever ends a training, in whatever it does: the run loads, and goes on as if nothing was."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from yocto_model import TextGenerator
from yocto_train import Run, Saved, SaveError, Stopped, Trainer

SETTINGS: dict[str, Any] = {
    "max_iters": 6, "eval_interval": 2, "sample_interval": 2, "sample_tokens": 3, "keep": 9,
}  # fmt: skip
WHERE = ("step", "evaluation", "sample", "save")


@dataclass(frozen=True)
class Scene:
    """A run that something happens to, and the run of the same settings that is let alone."""

    run: Run
    straight: Trainer
    make_trainer: Callable[..., Trainer]
    patch: pytest.MonkeyPatch

    def begin(self, where: str, act: Callable[[], None]) -> Trainer:
        """Let `act` happen once, in the midst of step 3 or of what comes after step 4."""
        trainer = self.make_trainer(run=self.run, **SETTINGS)
        left = [act]

        def once() -> None:
            if left:
                left.pop()()

        def before_forward(module: nn.Module, _: object) -> None:
            moment = (module.training, trainer.progress.step)
            if moment == {"step": (True, 2), "evaluation": (False, 4)}.get(where):
                once()

        stream, rename = TextGenerator.stream, os.rename

        def stream_slowly(*arguments: Any, **options: Any) -> Iterator[Any]:
            for piece in stream(*arguments, **options):
                if where == "sample" and trainer.progress.step == 4:
                    once()
                yield piece

        def rename_late(source: Path, target: Path) -> None:
            if where == "save" and trainer.progress.step == 4:
                once()
            rename(source, target)

        trainer.model.register_forward_pre_hook(before_forward)
        self.patch.setattr(TextGenerator, "stream", stream_slowly)
        self.patch.setattr(os, "rename", rename_late)
        return trainer

    def assert_goes_on(self) -> None:
        """Nothing half done is left, and a resumed run ends where the straight one does."""
        self.patch.undo()
        assert not list(self.run.path.glob(".tmp-*"))
        assert () == self.run.latest().skipped
        resumed = self.make_trainer(run=self.run, **SETTINGS)
        assert {} == resumed.restore(self.run.latest())
        list(resumed.run())
        expected, found = self.straight.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert self.straight.progress == resumed.progress


@pytest.fixture(scope="module")
def straight(make_trainer: Callable[..., Trainer]) -> Trainer:
    trainer = make_trainer(**SETTINGS)
    list(trainer.run())
    return trainer


@pytest.fixture
def scene(
    straight: Trainer, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> Iterator[Scene]:
    run = Run(tmp_path / "run")
    run.create()
    with pytest.MonkeyPatch.context() as patch:
        yield Scene(run, straight, make_trainer, patch)


@pytest.mark.parametrize("where", WHERE)
def test_a_signal(where: str, scene: Scene) -> None:
    """K6: SIGTERM in a step, an evaluation, a sample or a save: the step is finished and saved."""
    trainer = scene.begin(where, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: trainer.request_stop())
    try:
        saved, stopped = list(trainer.run())[-2:]
    finally:
        signal.signal(signal.SIGTERM, before)
    last = 3 if where == "step" else 4
    assert isinstance(saved, Saved)
    assert isinstance(stopped, Stopped)
    assert (last, last, "requested") == (saved.step, stopped.step, stopped.reason)
    assert last == scene.run.latest().step
    scene.assert_goes_on()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", WHERE)
def test_an_end_in_the_midst(where: str, error: type[BaseException], scene: Scene) -> None:
    """K7, K21: a second Ctrl-C, or a lack of memory: the error passes, the last save is intact."""

    def act() -> None:
        raise error

    trainer = scene.begin(where, act)
    failed_save = where == "save" and error is MemoryError
    with pytest.raises(SaveError if failed_save else error):
        list(trainer.run())
    assert 2 == scene.run.latest().step
    scene.assert_goes_on()
