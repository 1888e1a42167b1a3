"""model.pt: what is saved comes back, whole, and a failed save changes nothing."""

import errno
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_model import GPT, GPTConfig, ModelFileError, load_pt, save_pt

TINY = GPTConfig(vocab_size=7, block_size=4, n_layer=1, n_head=2, n_embd=4)
MODERN = GPTConfig.from_arch("modern", vocab_size=7, block_size=4, n_layer=2, n_head=2, n_embd=4)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

MakeModel = Callable[[GPTConfig, int], GPT]


def saved(model: GPT) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


# --- the model -------------------------------------------------------------------------------


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=st.integers(0, 2**32), dtype=st.sampled_from(FLOATS))
@example(config=TINY, seed=0, dtype=torch.float32)
@example(config=MODERN, seed=0, dtype=torch.bfloat16)
def test_a_loaded_model_is_the_saved_one(
    make_model: MakeModel, config: GPTConfig, seed: int, dtype: torch.dtype
) -> None:
    """M11: settings, every weight and every logit to the bit, in the dtype it was saved in."""
    model = make_model(config, seed).float().to(dtype)
    copy = GPT.load(io.BytesIO(saved(model)))
    assert config == copy.config
    assert not copy.training
    expected, got = model.state_dict(), copy.state_dict()
    assert list(expected) == list(got)
    assert all(dtype == got[name].dtype for name in got)
    assert all(bits(weight) == bits(got[name]) for name, weight in expected.items())
    ids = torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(model(ids), copy(ids))


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_are_converted_on_request(make_model: MakeModel, dtype: torch.dtype) -> None:
    """`dtype` converts weights and the rotary tables, which are computed in float32 first."""
    model = make_model(MODERN, 0).float()
    copy = GPT.load(io.BytesIO(saved(model)), dtype=dtype)
    expected = {**dict(model.named_parameters()), "cos": model.cos, "sin": model.sin}
    got = {**dict(copy.named_parameters()), "cos": copy.cos, "sin": copy.sin}
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name].to(dtype), got[name]) for name in expected)


@pytest.mark.parametrize("tie", [True, False])
def test_a_loaded_model_ties_its_head_as_the_saved_one_did(tie: bool) -> None:
    """M7: tied weights are one tensor, also after `load`: else training would part them."""
    model = GPT.load(io.BytesIO(saved(GPT(TINY.replace(tie_weights=tie)))))
    assert tie == (model.head.weight is model.token_emb.weight)
    assert model.config.n_parameters == sum(p.numel() for p in model.parameters())


def test_a_loaded_model_can_be_trained() -> None:
    """Every weight gets a gradient, and none shares memory with another."""
    model = GPT.load(io.BytesIO(saved(GPT(TINY)))).train()
    model(torch.zeros(1, 4, dtype=torch.int64)).square().sum().backward()
    weights = list(model.parameters())
    assert all(weight.grad is not None for weight in weights)
    assert len(weights) == len({weight.untyped_storage().data_ptr() for weight in weights})


def test_weights_in_any_memory_order_are_saved() -> None:
    """A transposed weight is stored as its values, in the order that `load` accepts."""
    model = GPT(TINY.replace(tie_weights=False))
    model.head.weight = torch.nn.Parameter(torch.randn(4, 7).t())
    copy = GPT.load(io.BytesIO(saved(model)))
    assert torch.equal(model.head.weight, copy.head.weight)


def test_mixed_dtypes_lose_nothing() -> None:
    """Where a file mixes dtypes, the model takes the one that holds all values exactly."""
    model = GPT(TINY.replace(tie_weights=False))
    model.token_emb.half()
    copy = GPT.load(io.BytesIO(saved(model)))
    assert {torch.float32} == {weight.dtype for weight in copy.parameters()}
    expected, got = model.state_dict(), copy.state_dict()
    assert all(torch.equal(expected[name].float(), got[name]) for name in expected)


def test_a_model_saved_on_another_device_loads_here() -> None:
    """C11: a file written from cuda:7 is read where there is no such device."""
    data = saved(GPT(TINY))
    file = io.BytesIO()
    content = load_pt(io.BytesIO(data), expected_format="yocto-model", newest_version=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:7")
        save_pt(content, file)
    assert b"cuda:7" in file.getvalue()
    assert GPT.load(file).state_dict().keys() == GPT(TINY).state_dict().keys()


def test_loading_draws_no_random_numbers() -> None:
    """Torch's global generator stands where it stood, so a load does not shift a run."""
    data, before = saved(GPT(TINY)), torch.get_rng_state()
    GPT.load(io.BytesIO(data))
    assert torch.equal(before, torch.get_rng_state())


def test_loading_imports_no_compiler(tmp_path: Path) -> None:
    """Loading and generating stay clear of the parts of torch that take seconds to import."""
    GPT(MODERN).save(tmp_path / "model.pt")
    script = (
        "import sys, yocto_model; model = yocto_model.GPT.load(sys.argv[1]); "
        "model.generate([[1], [1, 2]], 3); sys.exit('sympy' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model.pt")]
    assert subprocess.run(command, check=False, timeout=300).returncode == 0


# --- the file --------------------------------------------------------------------------------


def test_a_path_an_open_file_and_memory_are_the_same(tmp_path: Path) -> None:
    """`save` and `load` take each, and the bytes do not depend on the file's name."""
    model, data = GPT(TINY), io.BytesIO()
    model.save(data)
    model.save(tmp_path / "some model.pt")
    with (tmp_path / "other").open("wb") as file:
        model.save(file)
    assert data.getvalue() == (tmp_path / "some model.pt").read_bytes()
    assert data.getvalue() == (tmp_path / "other").read_bytes()
    with (tmp_path / "other").open("rb") as file:
        file.seek(17)  # read from the start, wherever it stands
        assert GPT.load(file).config == TINY
    assert GPT.load(str(tmp_path / "some model.pt")).config == TINY


def test_a_saved_file_has_the_usual_mode(tmp_path: Path) -> None:
    """Readable by whom the umask allows, as for any file a program writes."""
    umask = os.umask(0o027)
    try:
        GPT(TINY).save(tmp_path / "model.pt")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o640


class FullDisk(io.BytesIO):
    """Fails on the `room`-th write, as a disk does that fills up."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any, /) -> int:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_reported_as_one() -> None:
    """K9: whichever write fails, the error is the system's, with its number, not torch's."""
    model, counter = GPT(TINY), FullDisk(10**6)
    model.save(counter)
    for room in range(10**6 - counter.room):
        with pytest.raises(OSError, match="No space left") as caught:
            model.save(FullDisk(room))
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_failed_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """K9, K22: the old file stays, and no other is left beside it."""
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    monkeypatch.setattr("yocto_model.storage.os.fdopen", lambda *_: FullDisk(room))
    with pytest.raises(OSError, match="No space left"):
        GPT(TINY).save(target)
    assert [target] == list(tmp_path.iterdir())
    assert target.read_bytes() == b"old"


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    """Saving onto a directory or into a missing one is the system's error."""
    (tmp_path / "model.pt").mkdir()
    for target in (tmp_path / "model.pt", tmp_path / "missing" / "model.pt"):
        with pytest.raises(OSError, match=r"model\.pt"):
            GPT(TINY).save(target)
    assert [tmp_path / "model.pt"] == list(tmp_path.iterdir())


# --- plain content ---------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=10,
)


@pytest.mark.property
@given(value=PLAIN)
@example(value=2**64)
@example(value={"\ud800": ["\x00", -(2**70)]})
def test_what_is_saved_can_be_loaded(value: object) -> None:
    """`load_pt` gives back whatever `save_pt` accepts."""
    content = {"format": "test", "format_version": 3, "value": value}
    file = io.BytesIO()
    try:
        save_pt(content, file)
    except TypeError:
        return
    assert content == load_pt(file, expected_format="test", newest_version=3)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.5),
        np.int64(1),
        np.zeros(3),
        {1, 2},
        b"bytes",
        object(),
        torch.zeros(3, 2).t(),
        torch.zeros(1).expand(3),
        torch.zeros(3, device="meta"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_loaded_is_not_saved(value: object) -> None:
    """K22: refused before a byte is written, naming where it stands."""
    file = io.BytesIO()
    with pytest.raises(TypeError, match=r"content\['a'\]\[1\]"):
        save_pt({"format": "test", "format_version": 1, "a": [0, value]}, file)
    assert file.getvalue() == b""


def test_a_newer_or_other_format_is_refused() -> None:
    """A file states its format and version; another kind, or a later one, is not guessed at."""
    file = io.BytesIO()
    save_pt({"format": "test", "format_version": 2}, file)
    with pytest.raises(ModelFileError, match=r"version 2.*reads up to 1"):
        load_pt(file, expected_format="test", newest_version=1)
    with pytest.raises(ModelFileError, match="not a yocto-model file"):
        GPT.load(file)
    for version in (None, 0, -1, True, "1", 1.0):
        save_pt({"format": "test", "format_version": version}, file := io.BytesIO())
        with pytest.raises(ModelFileError, match="no format version"):
            load_pt(file, expected_format="test", newest_version=1)
