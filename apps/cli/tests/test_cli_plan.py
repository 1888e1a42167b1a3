"""Laws of the plan: what is measured decides, what was given stays, and the time is kept."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yocto_cli import plan
from yocto_cli.plan import Data
from yocto_cli.report.summary import closest_architecture
from yocto_data import prepare
from yocto_model import ARCHITECTURES, GPTConfig
from yocto_tokenizers import CharTokenizer
from yocto_train import Candidate

fixtures_may_stay = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("plan")
    letters = np.random.default_rng(1).integers(97, 123, 6_000).astype(np.uint8)
    (root / "text.txt").write_bytes(letters.tobytes())
    tokenizer = CharTokenizer.train(letters.tobytes().decode())
    return Data(root / "char", prepare(root / "text.txt", root / "char", tokenizer=tokenizer))


class Machine:
    """Stands in for measuring: a step takes `plain` seconds, a compiled one `compiled`."""

    def __init__(self, plain: float, compiled: float, spent: float) -> None:
        self.plain, self.compiled, self.spent = plain, compiled, spent
        self.compilations = 0

    def measure(
        self, given: Mapping[str, Any], size: Mapping[str, Any], *_: Any, **__: Any
    ) -> tuple[Candidate, float]:
        on = given.get("compile") == "on"
        self.compilations += on
        candidate = Candidate(
            size=size, n_parameters=1_000, seconds_per_step=self.compiled if on else self.plain,
            tokens_per_step=10, evaluation_seconds=0.0,
        )  # fmt: skip
        return candidate, self.spent if on else 0.0


def planned(machine: Machine, data: Any, **given: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_measure", machine.measure)
        patch.setattr(plan, "cpu_precision", lambda n_embd: ("float32", str(n_embd)))
        return plan.planned({"device": "cpu", **given}, data)


speeds = st.floats(0.001, 1)


@fixtures_may_stay
@given(minutes=st.floats(10, 600), plain=speeds, ratio=st.floats(0.3, 1.2), spent=st.floats(0, 300))
def test_a_long_run_is_compiled_and_still_keeps_its_time(
    minutes: float, plain: float, ratio: float, spent: float, data: Any
) -> None:
    """Unless compiling takes more than a quarter of the time."""
    machine = Machine(plain, plain * ratio, spent)
    flags = planned(machine, data, minutes=minutes)
    assert machine.compilations == 1
    assert flags["compile"] == ("on" if spent <= 15 * minutes else "off")
    per_step, start = (plain * ratio, spent) if flags["compile"] == "on" else (plain, 0.0)
    seconds = start + per_step * flags["max_iters"]
    assert 60 * minutes - 2 * per_step <= seconds <= 60 * minutes * 1.0001


@fixtures_may_stay
@given(minutes=st.floats(0.5, 9.9), plain=speeds)
def test_a_short_run_does_not_even_try(minutes: float, plain: float, data: Any) -> None:
    machine = Machine(min(plain, minutes), 1e-4, 0.0)
    assert planned(machine, data, minutes=minutes).get("compile") is None
    assert machine.compilations == 0


@pytest.mark.parametrize("answer", ["on", "off"])
def test_an_answer_that_was_given_stays(answer: str, data: Any) -> None:
    machine = Machine(0.1, 0.2 if answer == "on" else 0.01, 0.0)
    assert planned(machine, data, minutes=30.0, compile=answer)["compile"] == answer


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gpt2-rotary"])
def test_the_architecture_is_named(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table's name, also of one that was added, and whatever else is set."""
    monkeypatch.setitem(ARCHITECTURES, "gpt2-rotary", {"positions": "rotary"})
    model = GPTConfig.from_arch(arch, n_layer=2, dropout=0.1, n_kv_head=1)
    assert arch == closest_architecture(model)
