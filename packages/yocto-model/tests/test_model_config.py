"""Settings: what they accept, what they refuse and how, and that they come without torch."""

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_model import ARCHITECTURES, GPT, ConfigError, GPTConfig, SamplingOptions

FIELDS = [field.name for field in dataclasses.fields(GPTConfig)]

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**5000), 2**31, 2**31 + 1, np.int64(4), np.float64(0.5)]),
    st.floats(),
    st.text(),
    st.sampled_from(["layernorm", "rmsnorm", "learned", "rotary", "swiglu", "uniform"]),
    st.lists(st.integers(), max_size=3),
    st.sampled_from([torch.ones(50, 50), object(), b"gelu", "x" * 10_000, "\x1b[2J\n"]),
)


@pytest.mark.property
@given(config=st.from_type(GPTConfig))
@example(config=GPTConfig())
@example(config=GPTConfig.from_arch("modern"))
def test_plain_values_bring_a_config_back(config: GPTConfig) -> None:
    """`from_dict` undoes `to_dict`, also through JSON."""
    assert config == GPTConfig.from_dict(config.to_dict())
    assert config == GPTConfig.from_dict(json.loads(json.dumps(config.to_dict())))


@pytest.mark.property
@given(config=st.from_type(GPTConfig))
@example(config=GPTConfig.from_arch("gpt2", vocab_size=5, block_size=3, n_layer=2, n_embd=12))
@example(config=GPTConfig.from_arch("modern", vocab_size=5, block_size=3, n_layer=2, n_embd=24))
def test_parameters_are_counted_before_they_exist(config: GPTConfig) -> None:
    """M7: the formula equals the number of distinct weights of the built model."""
    assert sum(p.numel() for p in GPT(config).parameters()) == config.n_parameters


def test_gpt2_small_has_its_published_size() -> None:
    """The default is GPT-2 small: 124,439,808 weights, head and embedding counted once."""
    assert GPTConfig().n_parameters == 124_439_808


@pytest.mark.property
@given(fields=st.dictionaries(st.sampled_from(FIELDS) | st.text(), ODD_VALUES))
@example(fields={"norm_eps": 10**400})
@example(fields={"n_layer": 10**5000})
@example(fields={"norm": torch.ones(50, 50)})
@example(fields={"a\nb\x1b[2J": 1})
@example(fields={1: 2, "a": 3})
@example(fields={"x" * 10_000: 1})
@example(fields={str(n): n for n in range(10_000)})
@example(fields={"dropout": np.float64(0.5)})
def test_any_fields_give_a_config_or_one_line(fields: dict[str, Any]) -> None:
    """Whatever a file or a user says: a config that can be saved, or a one-line ConfigError."""
    try:
        config = GPTConfig.from_dict(fields)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) <= 2_000
    else:
        plain = (int, float, bool, str, type(None))
        assert all(type(value) in plain for value in config.to_dict().values())
        assert config.head_dim or config.head_width * config.n_head == config.n_embd
        assert config.n_parameters > 0


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n_layer", [0, -1, 2**31 + 1, 1.5, True, "4"]),
        ("vocab_size", [None]),
        ("block_size", [0]),
        ("n_hidden", [0]),
        ("head_dim", [0]),
        ("dropout", [1.0, -0.1, math.nan]),
        ("norm_eps", [0.0]),
        ("rotary_base", [math.inf, 0.5]),
        ("bias", [1]),
        ("norm", ["batchnorm"]),
        ("n_layers", [3]),
    ],
)
def test_a_field_out_of_range_is_named(field: str, values: list[Any]) -> None:
    """C12: a setting that makes no sense is refused, and the message says which."""
    for value in values:
        with pytest.raises(ConfigError, match=rf"^({field} must be |unknown field .*'{field}')"):
            GPTConfig.from_dict({field: value})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_head": 5}, "n_embd 768 is not a multiple of n_head 5"),
        ({"n_kv_head": 5}, "n_head 12 is not a multiple of n_kv_head 5"),
        ({"n_kv_head": 24}, "n_head 12 is not a multiple of n_kv_head 24"),
        ({"head_dim": 7, "positions": "rotary"}, "even head width, not 7"),
        ({"n_embd": 12, "positions": "rotary"}, "even head width, not 1"),
        ({"norm": "batchnorm"}, "must be one of layernorm, rmsnorm, not 'batchnorm'"),
        ({"n_layer": 0, "dropout": 2.0}, r"n_layer.*dropout"),
    ],
)
def test_what_cannot_be_together_is_said(fields: dict[str, Any], said: str) -> None:
    """C12: contradictions with both sizes, choices with all of them, all problems at once."""
    with pytest.raises(ConfigError, match=said):
        GPTConfig.from_dict(fields)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_fields_win_over_the_architecture(arch: str) -> None:
    """An architecture is a start: what the caller names goes on top, the rest is the default."""
    config = GPTConfig.from_arch(arch, norm="rmsnorm", n_layer=3, tie_weights=True)
    expected = {**GPTConfig().to_dict(), **ARCHITECTURES[arch]}
    expected |= {"norm": "rmsnorm", "n_layer": 3, "tie_weights": True}
    assert expected == config.to_dict()


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    """The message lists what there is."""
    with pytest.raises(ConfigError, match=r"'gpt5'; choose from gpt2, modern"):
        GPTConfig.from_arch("gpt5")


def test_a_config_does_not_change() -> None:
    """It is frozen; `replace` makes another one and checks it."""
    config = GPTConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3  # type: ignore[misc] # the point of the test
    assert (config.replace(n_layer=3).n_layer, config.n_layer) == (3, 12)
    with pytest.raises(ConfigError, match="n_head"):
        config.replace(n_head=0)


@pytest.mark.parametrize(
    ("activation", "n_embd", "expected"),
    [("gelu", 96, 384), ("swiglu", 96, 256), ("swiglu", 128, 344)],
)
def test_the_hidden_width_costs_the_same_with_a_gate(
    activation: str, n_embd: int, expected: int
) -> None:
    """4 widths, or for SwiGLU's third matrix 8/3 of it, up to the next multiple of 8."""
    config = GPTConfig.from_dict({"activation": activation, "n_embd": n_embd, "n_head": 4})
    assert expected == config.hidden
    assert config.replace(n_hidden=5).hidden == 5


def test_settings_come_without_torch() -> None:
    """A command line can list its flags before it waits for torch; other names are refused."""
    script = (
        "import sys, yocto_model, yocto_model.config, yocto_model.settings as settings\n"
        "from yocto_model import GPTConfig, ModelConfig, ModelError, SamplingOptions\n"
        "assert GPTConfig is ModelConfig and settings.problems(SamplingOptions()) == []\n"
        "assert not hasattr(yocto_model, 'Nothing') and issubclass(ModelError, ValueError)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("owner", [GPTConfig, SamplingOptions])
def test_every_setting_has_help(owner: type[GPTConfig | SamplingOptions]) -> None:
    """One sentence each, from which flags are made."""
    for field in dataclasses.fields(owner):
        assert 10 < len(field.metadata["help"]) < 100, field.name
