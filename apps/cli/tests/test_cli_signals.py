"""What ends a training from outside: signals in each of its phases, and the key q."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from yocto_cli.report.recorder import Recorder
from yocto_data.prep import files
from yocto_model import GPT, TextGenerator
from yocto_train import Evaluated, Run, Trainer


def once(number: int) -> Callable[[], None]:
    """Sends a signal to this process the first time it is called."""
    sent: list[int] = []

    def send() -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    return send


def before(target: Any, name: str, action: Callable[[Any], None], patch: Any) -> None:
    original = getattr(target, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        action(arguments[0])
        return original(*arguments, **options)

    patch.setattr(target, name, wrapped)


@pytest.mark.parametrize(
    ("phase", "step"), [("step", 1), ("evaluation", 20), ("sampling", 20), ("saving", 20)]
)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_ends(
    training: Any, monkeypatch: pytest.MonkeyPatch, name: str, phase: str, step: int
) -> None:
    """In each phase: its exit code, a checkpoint that resumes, the handlers from before."""
    send = once(getattr(signal, name))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        if phase == "sampling":
            before(TextGenerator, "stream", lambda _: send(), patch)
        elif phase == "saving":
            before(files, "rename", lambda _: send(), patch)
        else:
            trains = phase == "step"
            before(GPT, "forward", lambda gpt: send() if gpt.training is trains else None, patch)
        done = training("--max_iters=40", "--eval_interval=20", "--sample_interval=20")
    assert (130 if name == "SIGINT" else 143) == done.code
    assert f"stopped after step {step}, saved" in done.out
    assert "resume: uv run yocto-train --resume checkpoints/poem\n" in done.out
    assert step == Run("checkpoints/poem").latest().step
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_second_ctrl_c_stops_at_once(
    training: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is saved, and the last checkpoint is named."""
    plain = Recorder.record

    def record(self: Any, event: Any) -> None:
        plain(self, event)
        if isinstance(event, Evaluated) and event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            before(files, "rename", lambda _: os.kill(os.getpid(), signal.SIGINT), monkeypatch)

    monkeypatch.setattr(Recorder, "record", record)
    done = training("--max_iters=8", "--eval_interval=2", "--sample_interval=0")
    assert done.code == 1
    assert "stopped at once, without saving; the last checkpoint is" in done.err
    assert "checkpoints/poem/step-00000002\n" in done.err
    assert Run("checkpoints/poem").latest().step == 2


def test_the_key_q_ends_with_zero(
    training: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person who asked for the end got what was asked for; the run can still be resumed."""
    before(GPT, "forward", lambda _: asked[0].request_stop() if asked else None, monkeypatch)
    asked: list[Trainer] = []
    before(Trainer, "run", asked.append, monkeypatch)
    done = training("--max_iters=40")
    assert done.code == 0
    assert "stopped after step 1, saved" in done.out
    assert "resume: uv run yocto-train --resume checkpoints/poem" in done.out
