"""Settings are checked at once, all problems in one message; nothing that passes breaks later."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from yocto_data import TokenDataset, prepare
from yocto_model import GPT
from yocto_tokenizers import CharTokenizer
from yocto_train import TrainConfig, TrainConfigError, Trainer, TrainError, cpu_precision, place

DEFAULTS = TrainConfig().to_dict()
MakeModel = Callable[..., GPT]


def test_settings_come_without_torch() -> None:
    """A command line shows its help at once: torch takes seconds to import."""
    code = (
        "import sys, yocto_train, yocto_train.config, yocto_train.recipes;"
        "yocto_train.RECIPES, yocto_train.TrainConfig();"
        "sys.exit('torch' in sys.modules or hasattr(yocto_train, 'nothing'))"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_errors_say_who_must_act() -> None:
    """A ValueError is the caller's to change; a RuntimeError means that the work failed."""
    for error in TrainError.__subclasses__():
        assert issubclass(error, ValueError) != issubclass(error, RuntimeError)


@pytest.mark.property
@given(
    st.sampled_from(sorted(DEFAULTS)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1]),
)
def test_any_value_is_taken_or_refused_by_name(name: str, value: object) -> None:
    """Each field either holds the value, or the error names the field; never another exception."""
    try:
        config = TrainConfig.from_dict({name: value})
    except TrainConfigError as error:
        message = str(error)
    else:
        assert value == getattr(config, name)
        return
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", math.nan), ("lr", math.inf), ("lr", -1.0), ("lr", 0), ("lr", True),
        ("max_iters", -1), ("max_iters", 1.5), ("batch_size", 0), ("seed", -1), ("seed", 2**64),
        ("beta2", 1.0), ("grad_clip", -1), ("eps", 0), ("optimizer", "sgd"), ("schedule", "step"),
        ("sampling", ""), ("precision", "int8"), ("keep", 0), ("decay_fraction", 0.0),
        ("min_lr_fraction", 1.1), ("muon_lr", math.nan), ("eval_interval", 0),
    ],
)  # fmt: skip
def test_values_out_of_range(name: str, value: object) -> None:
    """F2, F5, F8: the field, what it must be, and what it is, in one line."""
    with pytest.raises(TrainConfigError, match=f"{name} must be .*, not") as caught:
        TrainConfig.from_dict({name: value})
    assert str(caught.value).endswith((repr(value), "bits"))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"max_iters": 10, "warmup_iters": 10}, ("warmup_iters 10", "max_iters 10")),
        ({"batch_size": 6, "accumulate": 4}, ("batch_size 6", "accumulate 4")),
        ({"lr": -1.0, "max_iters": -1, "optimizer": "sgd"}, ("lr", "max_iters", "optimizer")),
    ],
)
def test_all_problems_are_named(settings: dict[str, Any], names: tuple[str, ...]) -> None:
    """F9: both of two settings that contradict each other, and all of several mistakes."""
    with pytest.raises(TrainConfigError) as caught:
        TrainConfig(**settings)
    assert all(name in str(caught.value) for name in names)


def test_dictionaries_round_trip() -> None:
    """from_dict undoes to_dict, and refuses what it does not know by name."""
    config = TrainConfig(optimizer="muon", lr=np.float32(0.5), seed=2**63 - 1, keep=np.int64(4))  # type: ignore[arg-type] # NumPy's numbers pass for numbers
    assert config == TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    with pytest.raises(TrainConfigError, match="learning_rate"):
        TrainConfig.from_dict({"learning_rate": 1})


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        *((name, "auto", "is not available; choose from cpu") for name in ("cuda:99", "tpu", "")),
        ("cpu", "float16", "use float32 or bfloat16"),
    ],
)
def test_what_this_machine_cannot_do(device: str, precision: Any, message: str) -> None:
    """F7: the message lists what there is, or what to use instead."""
    with pytest.raises(TrainConfigError, match=message):
        place(device, precision)


def test_every_choice_has_a_reason() -> None:
    """The placement says why, in words: one phrase for the device, one for the precision."""
    for precision, dtype in (("auto", None), ("float32", None), ("bfloat16", torch.bfloat16)):
        placement = place("cpu", precision)  # type: ignore[arg-type] # a loop over literals
        assert dtype == placement.autocast
        assert 2 == len(placement.reasons)


@pytest.mark.parametrize("n_embd", [16, 64, 576])
@pytest.mark.parametrize("flag", [None, "_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_the_processor_and_the_width_decide_the_precision(
    n_embd: int, flag: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clock is asked, so that equal commands train equal models."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == flag, raising=False)
    expected = "bfloat16" if flag and n_embd >= 64 else "float32"
    assert expected == cpu_precision(n_embd)[0]


# --- what does not fit each other, found before step 0 -------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"block_size": 4}, r"8 tokens.*block_size is 4"), ({"vocab_size": 5}, "the model only 5")],
)
def test_data_that_the_model_cannot_read(
    fields: dict[str, int], message: str, make_model: MakeModel, data_dir: Path
) -> None:
    """Longer windows or more ids than the model has are refused, with both numbers."""
    data = TokenDataset(data_dir / "train.bin", 8)
    with pytest.raises(TrainConfigError, match=message):
        Trainer(make_model(**fields), data, data, TrainConfig(), device="cpu")


def test_a_tokenizer_that_did_not_make_the_data(
    make_model: MakeModel, data_dir: Path, tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    """Rule 12, B8: equal sizes are no match; data, splits and tokenizer go by fingerprint.

    Ids of one tokenizer to train on and of another to validate on mean nothing.
    """
    data = TokenDataset(data_dir / "train.bin", 8)
    other = CharTokenizer(reversed(tokenizer.itos))
    with pytest.raises(TrainConfigError, match="another tokenizer"):
        Trainer(make_model(), data, data, TrainConfig(), tokenizer=other, device="cpu")
    (tmp_path / "t.txt").write_text("the lamp and the gull " * 9, encoding="utf-8")
    prepare(tmp_path / "t.txt", tmp_path / "d", tokenizer=other, val_ratio=0.5)
    train, val = (TokenDataset(d / "val.bin", 8) for d in (data_dir, tmp_path / "d"))
    with pytest.raises(TrainConfigError, match="different tokenizers"):
        Trainer(make_model(), train, val, TrainConfig(), device="cpu")


def test_data_without_meta_has_any_tokenizer(
    make_model: MakeModel, tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    """Where nothing says which tokenizer made the data, nothing is compared."""
    np.zeros(40, dtype="<u2").tofile(tmp_path / "t.bin")
    data = TokenDataset(tmp_path / "t.bin", 8, dtype="uint16")
    Trainer(make_model(), data, data, TrainConfig(), tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize("prompt", ["\U0001f600", "x\ud800"])
def test_a_prompt_that_cannot_be_encoded(prompt: str, make_trainer: Callable[..., Trainer]) -> None:
    """A prompt for samples is encoded at once, and its problem is a setting's."""
    with pytest.raises(TrainConfigError, match="sample_prompt") as caught:
        make_trainer(sample_prompt=prompt)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TrainError)
