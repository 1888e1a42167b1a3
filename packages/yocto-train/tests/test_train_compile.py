"""torch.compile: the same training where it works, and training all the same where it does not."""

import shutil
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from yocto_train import Checkpoint, Evaluated, Event, Run, Sampled, Started, StepDone, Trainer

MakeTrainer = Callable[..., Trainer]
compiler = pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="torch.compile needs g++ and Python's headers here",
)


# torch's compiler warns of torch's own deprecations.
quiet = pytest.mark.filterwarnings("ignore")


def losses(events: Iterable[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepDone | Evaluated)]


@compiler
@quiet
def test_compiled_steps_are_the_same_steps(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And evaluations and samples, whose shapes differ, are not compiled."""
    import torch._dynamo.utils as dynamo
    from torch._inductor import config

    # Plain code: to learn which vector instructions there are, a library is compiled for each.
    monkeypatch.setattr(config.cpp, "vec_isa_ok", False)
    settings: dict[str, Any] = {"dropout": 0.0, "max_iters": 4, "eval_interval": 2}
    plain = losses(make_trainer("modern", compile="off", **settings).run())
    trainer = make_trainer("modern", compile="on", sample_interval=2, sample_tokens=5, **settings)
    assert trainer.reasons[-1] == "compiled"
    graphs = dynamo.counters["stats"]["unique_graphs"]
    assert graphs > 0
    events = list(trainer.run())
    assert next(e for e in events if isinstance(e, Started)).placement == trainer.reasons
    assert sum(isinstance(e, Sampled) for e in events) == 2
    assert losses(events) == pytest.approx(plain, rel=1e-4)
    assert dynamo.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@compiler
@quiet
def test_a_compiled_run_goes_on_to_the_bit(make_trainer: MakeTrainer, run: Run) -> None:
    """With dropout: what is drawn follows from seed and step, compiled as well."""
    settings: dict[str, Any] = {"dropout": 0.2, "compile": "on", "max_iters": 6}
    whole = make_trainer(eval_interval=3, run=run, **settings)
    assert whole.reasons[-1] == "compiled"
    list(whole.run())
    again = make_trainer(eval_interval=3, run=run, **settings)
    again.restore(Checkpoint.open(run.path / "step-00000003"))
    list(again.run())
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


@pytest.mark.parametrize("message", ["no compiler here\nand a traceback", ""])
def test_without_a_compiler_training_goes_on(
    message: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says why; weights, random numbers and losses are as if it had not been tried."""

    def compile_later(module: nn.Module, **options: object) -> None:
        def fail(*arguments: object) -> None:
            del arguments
            torch.rand(3)  # a pass that got halfway
            raise RuntimeError(message)

        del options
        module._compiled_call_impl = fail

    plain = losses(make_trainer(compile="off", max_iters=4).run())
    monkeypatch.setattr(nn.Module, "compile", compile_later)
    before = torch.get_rng_state()
    trainer = make_trainer(compile="on", max_iters=4)
    assert torch.equal(torch.get_rng_state(), before)
    why = message.splitlines()[0] if message else "RuntimeError"
    assert trainer.reasons[-1] == f"not compiled ({why})"
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert losses(trainer.run()) == plain


def test_on_a_cpu_it_must_be_asked_for(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(compile="auto")
    assert trainer.machine.compilation is None
    assert trainer.reasons == trainer.placement.reasons
