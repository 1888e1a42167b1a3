"""What is asked for while a training runs: acted on between steps, by all ranks or by none."""

from collections.abc import Callable

import pytest
from yocto_train import Evaluated, Event, Run, Saved, StepDone, Stopped, Trainer, World

MakeTrainer = Callable[..., Trainer]


class Unheard(World):
    """Among other ranks, before they have heard of anything."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(False for _ in flags)


def asked(trainer: Trainer, what: str, at: type[Event]) -> list[Event]:
    """The events of a run during which something is asked for at the first event of a kind."""
    events: list[Event] = []
    for event in trainer.run():
        if type(event) is at and at not in map(type, events):
            getattr(trainer, f"request_{what}")()
        events.append(event)
    return events


@pytest.mark.parametrize("what", ["evaluation", "save", "sample"])
def test_no_request_adds_a_step(what: str, run: Run, make_trainer: MakeTrainer) -> None:
    """Whatever is asked for after the last step, it is the last."""
    events = asked(make_trainer(run=run, max_iters=4, eval_interval=4), what, at=Saved)
    assert 4 == max(event.step for event in events)
    assert isinstance(events[-1], Stopped)
    assert (2 if what == "evaluation" else 1) == len([e for e in events if type(e) is Evaluated])
    assert 4 == run.latest().step


@pytest.mark.parametrize("what", ["evaluation", "save", "sample"])
@pytest.mark.parametrize("at", [StepDone, Evaluated])
def test_a_rank_does_nothing_alone(
    what: str, at: type[Event], run: Run, make_trainer: MakeTrainer
) -> None:
    """Before all ranks have agreed, a request changes nothing: one that acted would wait."""
    settings = {"max_iters": 6, "eval_interval": 3}
    expected = [(type(event), event.step) for event in make_trainer(run=run, **settings).run()]
    trainer = make_trainer(run=Run(run.path), **settings, world=Unheard())
    assert expected == [(type(event), event.step) for event in asked(trainer, what, at)]
