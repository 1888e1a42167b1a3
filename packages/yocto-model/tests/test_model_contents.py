"""Sound archives that hold no model of ours: code, odd tensors and absurd settings are refused."""

import builtins
import collections
import io
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from yocto_model import GPT, GPTConfig, ModelFileError

CONFIG = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=2)
MODERN = GPTConfig.from_arch("modern", vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=2)
MODEL = GPT(CONFIG, generator=torch.Generator().manual_seed(0))


def content(config: GPTConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    model = MODEL if config == CONFIG else GPT(config)
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    return {
        "format": "yocto-model",
        "format_version": 1,
        "config": config.to_dict(),
        "state_dict": weights,
    } | changes


# As torch writes it, without any of our checks.
def written(value: object) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def one_line(message: str) -> str:
    assert (True, True) == (message.isprintable(), len(message) < 1_200)
    return message


# The error that loading raises, which is always ours and always one line.
def refusal(data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        GPT.load(io.BytesIO(data))
    return one_line(str(caught.value))


# --- C4: code --------------------------------------------------------------------------------


class _Call:
    """Pickles as a call, which a careless reader makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["config", "state_dict", "more"])
@pytest.mark.parametrize("kind", ["system", "eval", "open", "numpy", "module"])
def test_no_code_runs(tmp_path: Path, kind: str, place: str) -> None:
    """C4: a pickle that calls something is refused, and what it calls is not called."""
    canary = tmp_path / "canary"
    bait: dict[str, object] = {
        "system": _Call(os.system, f"touch {canary}"),
        "eval": _Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "open": _Call(builtins.open, str(canary), "w"),
        "numpy": np.float64(1.0),
        "module": torch.nn.Linear(2, 2),
    }
    data = written(content() | {place: {"bait": bait[kind]}})
    refusal(data)
    assert not canary.exists()


# --- C6 to C10: tensors ----------------------------------------------------------------------


def _claiming(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Any:
    """A tensor over one number's storage that claims to be larger."""
    storage = torch.storage.TypedStorage(  # type: ignore[no-untyped-call] # torch's own pickling
        wrap_storage=torch.zeros(1).untyped_storage(), dtype=torch.float32, _internal=True
    )
    hooks: dict[str, Any] = collections.OrderedDict()
    return _Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, hooks)


@pytest.mark.parametrize(
    "weight",
    [
        _claiming((2**40,), (1,)),
        _claiming((2**40, 2), (0, 0)),
        _claiming((5, 2), (0, 0)),
        _claiming((5, 2), (2, 1)),
        _claiming((1, 1), (1, 1), offset=1),
        _claiming((1, 1), (1, 1), offset=-1),
        _claiming((2, 1), (-1, 1)),
        _claiming((2**32, 2**32), (1, 1)),
    ],
    ids=["2^40", "2^40, stride 0", "stride 0", "short", "offset", "negative", "backwards", "2^64"],
)
def test_a_tensor_may_not_claim_more_than_it_brings(weight: object) -> None:
    """C6, C7: sizes are not believed; a petabyte is refused before it is allocated."""
    weights = content()["state_dict"] | {"token_emb.weight": weight}
    refusal(written(content(state_dict=weights)))


def _odd_tensors() -> dict[str, torch.Tensor]:
    plain = torch.zeros(5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # beta and deprecated kinds
        return {
            "complex": plain.to(torch.complex64),
            "int8": plain.to(torch.int8),
            "bool": plain.bool(),
            "float8": plain.to(torch.float8_e4m3fn),
            "quantised": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            "sparse": plain.to_sparse(),
            "sparse rows": plain.to_sparse_csr(),
            "meta": plain.to("meta"),
            "transposed": torch.zeros(2, 5).t(),
            "expanded": torch.zeros(1).expand(5, 2),
        }


@pytest.mark.parametrize("kind", sorted(_odd_tensors()))
def test_other_kinds_of_tensor_are_refused(kind: str) -> None:
    """C9: only plain floats are weights. torch's own warnings about them stay inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = content()["state_dict"] | {"token_emb.weight": _odd_tensors()[kind]}
        data = written(content(state_dict=weights))
    assert re.search("a tensor of an unsupported kind|not a float", refusal(data))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_are_finite(value: float) -> None:
    """C10: one NaN or infinity anywhere is refused, naming the weight."""
    weights = {name: weight.clone() for name, weight in content()["state_dict"].items()}
    weights["ln_f.bias"][1] = value
    assert "'ln_f.bias' holds NaN or infinite" in refusal(written(content(state_dict=weights)))


def test_tied_weights_agree() -> None:
    """C10: settings that tie two weights that differ contradict the file."""
    weights = content()["state_dict"] | {"head.weight": torch.ones(5, 2)}
    message = refusal(written(content(state_dict=weights)))
    assert "head.weight and token_emb.weight differ" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ln_f.bias": None, "extra": torch.zeros(99)}, "ln_f.bias is missing; 'extra' is unknown"),
        ({"ln_f.bias": torch.zeros(9)}, "ln_f.bias has shape (9,), expected (2,)"),
        ({"\x1b[2J\n": torch.zeros(99)}, r"'\x1b[2J\n' is unknown"),
        ({"x" * 10**6: torch.zeros(99)}, "' is unknown"),
        ({f"w{n}": torch.zeros(9) for n in range(25)}, " and 15 more"),
        ({3: torch.zeros(9)}, "weight 3 is not a tensor"),
        ({"ln_f.bias": [1.0]}, "weight 'ln_f.bias' is not a tensor"),
    ],
)
def test_weights_that_do_not_fit_are_listed(changes: dict[str, Any], expected: str) -> None:
    """C8: missing, extra and misshapen weights, at most ten, with both shapes."""
    weights = content()["state_dict"] | changes
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    assert expected in refusal(written(content(state_dict=weights)))


# --- C12: settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *[({"n_layer": value}, "n_layer must be") for value in (0, -1, 1.5, True, "4", 2**40)],
        ({"n_layer": 10**9}, "its settings need"),
        ({"n_embd": 10**6, "n_head": 10**5}, "its settings need"),
        ({"vocab_size": 10**9}, "its settings need 2,000,"),
        ({"block_size": 2**31}, "its settings need"),
        ({"norm_eps": 10**400}, "norm_eps must be"),
        ({"norm": torch.zeros(50, 50)}, "norm must be"),
        ({"n_layers": 1}, "unknown field of GPTConfig: 'n_layers'"),
        ({"a\nb": 1, 3: 1}, "unknown field"),
    ],
)
def test_absurd_settings_build_nothing(changes: dict[str, Any], expected: str) -> None:
    """C12: refused by range, or because the file does not bring that many weights."""
    assert expected in refusal(written(content() | {"config": CONFIG.to_dict() | changes}))


@pytest.mark.parametrize("settings", [None, [], "gpt2", 3, torch.zeros(2)])
def test_a_file_without_settings_is_refused(settings: object) -> None:
    """C12: no settings, no model."""
    assert "holds no model settings" in refusal(written(content() | {"config": settings}))


@pytest.mark.parametrize("weights", [None, [], {}, [torch.zeros(2)], torch.zeros(2)])
def test_a_file_without_weights_is_refused(weights: object) -> None:
    """C1: settings alone are no model."""
    assert "holds no weights" in refusal(written(content(state_dict=weights)))


def test_rotary_tables_are_not_built_for_a_huge_context() -> None:
    """C12: they are in no file, so only their stated size can be judged."""
    huge = content(MODERN) | {"config": MODERN.replace(block_size=2**31).to_dict()}
    assert "34 GB" in refusal(written(huge))


def test_one_storage_is_not_counted_as_many_weights() -> None:
    """C6: a hundred layers that all claim the same bytes would need a hundred times as many."""
    config = CONFIG.replace(n_layer=100)
    weights = content()["state_dict"]
    for layer in range(1, 100):
        for name, weight in content()["state_dict"].items():
            if name.startswith("blocks.0."):
                weights[name.replace("blocks.0.", f"blocks.{layer}.")] = weight
    message = refusal(written(content(state_dict=weights) | {"config": config.to_dict()}))
    assert "its settings need" in message


def test_layers_are_not_built_without_weights() -> None:
    """C12: one long vector is enough numbers for a million layers, but no layer."""
    config = CONFIG.replace(n_layer=50_000)
    weights = content()["state_dict"] | {"long": torch.zeros(config.n_parameters)}
    message = refusal(written(content(state_dict=weights) | {"config": config.to_dict()}))
    assert "its settings name 50,000 layers" in message
