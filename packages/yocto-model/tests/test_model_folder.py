"""Model folders: what loading keeps, and what it refuses: foreign parts, damage, absurd sizes."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from yocto_model import GPT, GPTConfig, InputError, ModelFileError, read_end_ids

TINY = GPTConfig(vocab_size=7, block_size=4, n_layer=1, n_head=2, n_embd=4)
MODERN = GPTConfig.from_arch("modern", vocab_size=7, block_size=4, n_layer=2, n_head=2, n_embd=4)
QWEN2 = MODERN.replace(qk_norm=False, qkv_bias=True)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BIAS = "transformer.ln_f.bias"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[GPTConfig], Path]:
    """A folder of a config, made once; tests that change it copy it first."""
    made: dict[GPTConfig, Path] = {}

    def folder(config: GPTConfig) -> Path:
        if config not in made:
            made[config] = tmp_path_factory.mktemp("model")
            GPT(config, generator=torch.Generator().manual_seed(0)).save(made[config])
        return made[config]

    return folder


Saved = Callable[[GPTConfig], Path]


def copied(source: Path, target: Path, **changes: Any) -> Path:
    """A copy with some entries of config.json changed; None leaves one out."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    document = json.loads((target / "config.json").read_text()) | changes
    kept = {name: value for name, value in document.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


def with_weights(folder: Path, **changes: torch.Tensor | None) -> Path:
    weights = load_file(folder / "model.safetensors") | changes
    save_file({n: w for n, w in weights.items() if w is not None}, folder / "model.safetensors")
    return folder


def refusal(folder: Path) -> str:
    """The error that loading raises, which is always ours and always one line."""
    with pytest.raises(ModelFileError) as caught:
        GPT.load(folder)
    message = str(caught.value)
    assert (True, True) == (message.isprintable(), len(message) < 1_500), message
    return message


# --- what comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_weights_are_kept_or_converted(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype | None
) -> None:
    """In the dtype they were saved in, or in `dtype`; the rotary tables with them."""
    model = GPT(MODERN, generator=torch.Generator().manual_seed(0)).to(stored)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] in str(stored)
    copy = GPT.load(tmp_path, dtype=wanted)
    expected = {**dict(model.named_parameters()), "cos": model.cos, "sin": model.sin}
    got = {**dict(copy.named_parameters()), "cos": copy.cos, "sin": copy.sin}
    assert expected.keys() == got.keys()
    for name, weight in expected.items():
        assert (wanted or stored) == got[name].dtype
        # The tables are computed anew, not rounded to what was stored.
        tolerance = 1e-2 if name in ("cos", "sin") else 0.0
        assert torch.allclose(got[name], weight.to(got[name].dtype), rtol=0, atol=tolerance), name


@pytest.mark.parametrize("wanted", FLOATS)
def test_weights_are_written_in_the_dtype_asked_for(tmp_path: Path, wanted: torch.dtype) -> None:
    """Each is rounded once, the file says so, and the model stays as it is."""
    model = GPT(MODERN, generator=torch.Generator().manual_seed(0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.save(tmp_path, dtype=wanted)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] in str(wanted)
    weights = GPT.load(tmp_path).state_dict()
    assert all(torch.equal(before[name].to(wanted), weight) for name, weight in weights.items())
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "said"),
    [(torch.int8, "cannot be saved as torch.int8"), (torch.float16, r"ln_f.bias .* bfloat16")],
)
def test_a_dtype_that_cannot_hold_the_weights_is_refused(
    tmp_path: Path, dtype: torch.dtype, said: str
) -> None:
    """Before anything is written."""
    model = GPT(TINY)
    torch.nn.init.constant_(model.ln_f.get_parameter("bias"), -1e5)
    with pytest.raises(InputError, match=said):
        model.save(tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()
    model.save(tmp_path / "new", dtype=torch.bfloat16)


@pytest.mark.property
@given(ids=st.lists(st.integers(0, 2**40), max_size=4))
def test_end_ids_come_back(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    """Sorted, each once, from both files that other programs look into."""
    folder = tmp_path_factory.mktemp("ends")
    GPT(TINY).save(folder, end_ids=ids)
    assert tuple(sorted(set(ids))) == read_end_ids(folder)
    assert bool(ids) == (folder / "generation_config.json").exists()
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert tuple(sorted(set(ids))) == read_end_ids(folder)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, ()),
        ({}, {}, ()),
        ({"eos_token_id": 3}, {"eos_token_id": 5}, (3,)),
        ({"eos_token_id": [7, 3]}, {"eos_token_id": 5}, (7, 3)),
        ({"eos_token_id": None}, {"eos_token_id": 5}, (5,)),
        (None, {"eos_token_id": [5, 0]}, (5, 0)),
        ({"eos_token_id": "3"}, None, "eos_token_id must be an id"),
        ({"eos_token_id": [3, -1]}, None, "eos_token_id must be an id"),
        (None, {"eos_token_id": True}, "eos_token_id must be an id"),
        ([3], None, "does not hold a JSON object"),
    ],
)
def test_end_ids_of_other_programs(
    tmp_path: Path, generation: object, config: object, expected: tuple[int, ...] | str
) -> None:
    """generation_config.json wins; one id or several, or none."""
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    if isinstance(expected, tuple):
        assert expected == read_end_ids(tmp_path)
    else:
        with pytest.raises(ModelFileError, match=expected):
            read_end_ids(tmp_path)


def test_mixed_dtypes_lose_nothing(saved: Saved, tmp_path: Path) -> None:
    """Where a folder mixes dtypes, the model gets the one that holds all values exactly."""
    folder = copied(saved(TINY), tmp_path)
    half = torch.randn(7, 4).half()
    copy = GPT.load(with_weights(folder, **{"transformer.wte.weight": half}))
    assert {torch.float32} == {weight.dtype for weight in copy.parameters()}
    assert torch.equal(half.float(), copy.token_emb.weight)


def test_a_loaded_model_can_be_trained_and_saved_over(saved: Saved, tmp_path: Path) -> None:
    """Weights have memory of their own: none shares it with another or with the file."""
    folder = copied(saved(TINY), tmp_path)
    model = GPT.load(folder).train()
    model(torch.zeros(1, 4, dtype=torch.int64)).square().sum().backward()
    weights = list(model.parameters())
    assert all(weight.grad is not None for weight in weights)
    assert len(weights) == len({weight.untyped_storage().data_ptr() for weight in weights})
    assert model.config.n_parameters == sum(weight.numel() for weight in weights)
    with torch.no_grad():
        model.token_emb.weight.add_(1)
    model.save(folder)
    assert torch.equal(model.token_emb.weight, GPT.load(folder).token_emb.weight)


def test_weights_in_any_memory_order_are_saved(tmp_path: Path) -> None:
    """A transposed weight is stored as its values."""
    model = GPT(TINY.replace(tie_weights=False))
    model.head.weight = torch.nn.Parameter(torch.randn(4, 7).t())
    model.save(tmp_path / "new" / "folder")
    assert torch.equal(model.head.weight, GPT.load(tmp_path / "new" / "folder").head.weight)


def test_a_file_of_the_bare_model_is_read(saved: Saved, tmp_path: Path) -> None:
    """Names without the leading part, and tables that old programs stored, as in OpenAI's gpt2."""
    folder = copied(saved(TINY), tmp_path)
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare, folder / "model.safetensors")
    assert torch.equal(weights["transformer.wte.weight"], GPT.load(folder).token_emb.weight)


def test_what_another_program_changed_wins(saved: Saved, tmp_path: Path) -> None:
    """Their fields win over ours where both speak of one thing; ours keep what theirs lack."""
    config = MODERN.replace(dropout=0.3)
    folder = copied(saved(config), tmp_path, rope_parameters={"rope_theta": 77.0})
    assert config.replace(rotary_base=77.0).to_dict() | {
        "n_kv_head": 2, "n_hidden": 16, "head_dim": 2,
    } == GPT.load(folder).config.to_dict()  # fmt: skip
    folder = copied(saved(config), tmp_path, rope_parameters=None, rope_theta=78.0)
    assert GPT.load(folder).config.rotary_base == 78.0


def test_loading_draws_no_random_numbers(saved: Saved) -> None:
    """Torch's global generator stands where it stood, so a load does not shift a run."""
    before = torch.get_rng_state()
    GPT.load(saved(TINY))
    assert torch.equal(before, torch.get_rng_state())


LOADING = """
import resource, sys
from yocto_model import GPT
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
GPT.load(sys.argv[1]).generate([[1], [1, 2]], 3)
before = peak()
model = GPT.load(sys.argv[2])
print((peak() - before) / sum(4 * p.numel() for p in model.parameters()), "sympy" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes as Linux does")
def test_loading_costs_what_it_must(saved: Saved, tmp_path: Path) -> None:
    """At its peak the weights, not two copies; and parts of torch slow to import stay out."""
    GPT(GPTConfig.from_arch("modern", n_layer=24, n_embd=192, vocab_size=999)).save(tmp_path)
    run = [sys.executable, "-c", LOADING, str(saved(MODERN)), str(tmp_path)]
    out = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    copies, has_compiler = out.split()
    assert float(copies) < 1.4
    assert has_compiler == "False"


def test_a_failed_write_is_the_systems_error(tmp_path: Path) -> None:
    """K9: as when a disk is full: an OSError, and the library's own is its cause."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for most, said in (
            (500, "File too large"),
            (2_000, r"could not write .*\.safetensors: .*os"),
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            with pytest.raises(OSError, match=said):  # config.json does not fit; the weights don't
                GPT(TINY.replace(vocab_size=700)).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_weights_have_the_mode_of_other_files(tmp_path: Path) -> None:
    """Whoever may read config.json may read the weights: nothing is written for us alone."""
    GPT(TINY).save(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert {(tmp_path / "config.json").stat().st_mode} == modes


def test_whichever_file_cannot_be_opened_is_the_systems_error(saved: Saved) -> None:
    """With room for 0, 1, 2, ... more open files, loading raises OSError, or it works."""
    folder, limits = saved(MODERN), resource.getrlimit(resource.RLIMIT_NOFILE)
    GPT.load(folder)  # with what is imported on the way
    with Path(os.devnull).open() as lowest:
        used = lowest.fileno()
    outcomes = set()
    for room in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, limits[1]))
        try:
            GPT.load(folder)
            outcomes.add("loaded")
        except OSError as error:
            outcomes.add(type(error).__name__)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert {"loaded", "OSError"} == outcomes


# --- what this package does not compute ------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (MODERN, {"model_type": "mistral"}, "model_type is 'mistral'"),
        (MODERN, {"model_type": ["llama"]}, "model_type"),
        (MODERN, {"sliding_window": 4096}, "sliding_window 4096"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window True"),
        (MODERN, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (MODERN, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        (MODERN, {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling"),
        (MODERN, {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        (MODERN, {"rope_parameters": [1]}, "rope_parameters"),
        (MODERN, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (MODERN, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (MODERN, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (MODERN, {"hidden_act": ["silu"]}, "hidden_act"),
        (TINY, {"activation_function": "relu"}, "activation_function 'relu'"),
        (TINY, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (MODERN, {"attention_bias": True}, "attention_bias"),
        (MODERN.replace(qk_norm=False), {"mlp_bias": True}, "mlp_bias"),
        (MODERN, {"num_experts": 8}, "num_experts 8"),
        (MODERN, {"quantization_config": {"bits": 4}}, "its weights are quantized; use the model"),
        (
            MODERN,
            {"quantization_config": {"quant_method": "gptq", "bits": 4}, "hidden_act": "gelu"},
            "its weights are quantized (gptq); use the model without quantization",
        ),
        (MODERN, {"quantization_config": {"quant_method": [1]}}, "its weights are quantized; "),
        (MODERN, {"quantization_config": 4}, "its weights are quantized; "),
        (MODERN, {"hidden_size": None}, "hidden_size is missing"),
        (MODERN, {"hidden_size": "4"}, "n_embd must be a whole number"),
        (MODERN, {"rms_norm_eps": -1}, "norm_eps must be"),
        (MODERN, {"yocto": [1]}, "'yocto'"),
        (MODERN, {"yocto": {"n_layers": 3}}, "unknown field of GPTConfig: 'n_layers'"),
        # C12: refused by range, or because the files do not bring that many weights.
        (TINY, {"n_layer": 10**9}, "its settings need"),
        (TINY, {"n_layer": 0}, "n_layer must be"),
        (TINY, {"n_embd": 10**6, "n_head": 10**5}, "its settings need"),
        (TINY, {"vocab_size": 10**9}, "its settings need 4,000,"),
        (MODERN, {"num_hidden_layers": 2**31}, "its settings need"),
        (MODERN, {"max_position_embeddings": 2**31}, "34 GB for positions alone"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    saved: Saved, tmp_path: Path, config: GPTConfig, changes: dict[str, Any], said: str
) -> None:
    """A field that asks for another computation or for absurd sizes is named, not ignored."""
    assert said in refusal(copied(saved(config), tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
        {"layer_types": ["full_attention"] * 2, "rope_scaling": {"rope_type": "default"}},
        {"num_experts": 0, "partial_rotary_factor": 1.0, "quantization_config": None},
    ],
)
def test_what_is_there_but_off_is_no_matter(
    saved: Saved, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """As in the folders of Qwen2.5 and Qwen3."""
    assert MODERN == GPT.load(copied(saved(MODERN), tmp_path, **changes)).config


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"", "not JSON"),
        ("config.json", b"[" * 100_000, "not JSON"),
        ("config.json", b"[1]", "JSON object"),
        ("config.json", b"\xff\xfe", "not JSON: it is cut off or damaged"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("model.safetensors", b"", "it is empty"),
        ("model.safetensors", b"To be, or not to be\n", "cut off or damaged"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("model.safetensors", b"\n<!DOCTYPE html><html>", "a web page"),
        ("model.safetensors", b"PK\x03\x04\0\0", "a zip archive"),
        ("model.safetensors", pickle.dumps({}), "a pickle"),
        ("model.safetensors", b"GGUF\x03\0\0\0", "a GGUF file"),
    ],
)
def test_other_kinds_of_file_are_named(
    saved: Saved, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    """C1, C2: missing, empty, of another kind: the message says what it looks like."""
    folder = copied(saved(TINY), tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert said in refusal(folder)


def test_what_is_no_folder_or_no_file_is_refused(saved: Saved, tmp_path: Path) -> None:
    """C1: said so, and a pipe is never waited for."""
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "is a file; a model is a folder" in refusal(saved(TINY) / "config.json")
    for name in ("config.json", "model.safetensors"):
        folder = copied(saved(TINY), tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "not a regular file" in refusal(folder)


def test_pickled_weights_are_never_opened(saved: Saved, tmp_path: Path) -> None:
    """C4: refused with the reason and the way out, whatever is in them."""
    folder = copied(saved(TINY), tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "a pickle, which could run code" in refusal(folder)
    assert "convert it to model.safetensors" in refusal(folder)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "part.safetensors"}}, "part.safetensors is missing"),
        ({"weight_map": {"a": "../model.safetensors"}}, "outside its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside its folder"),
        ({"weight_map": {}}, "names no weights"),
        ({}, "names no weights"),
    ],
)
def test_an_index_names_files_of_its_folder(
    saved: Saved, tmp_path: Path, index: dict[str, Any], said: str
) -> None:
    """C3: each shard is there, and none is elsewhere."""
    folder = copied(saved(TINY), tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refusal(folder)


@pytest.mark.property
@given(data=st.data())
@example(data=None)
def test_a_file_cut_or_extended_anywhere_is_refused(
    saved: Saved, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject | None
) -> None:
    """K23: half a file is no model, and nothing may follow one."""
    folder = copied(saved(TINY), tmp_path_factory.mktemp("cut"))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    cut = len(whole) - 1 if data is None else data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:cut], whole + bytes(cut + 1)):
        file.write_bytes(damaged)
        refusal(folder)


@pytest.mark.property
@given(data=st.data())
def test_a_damaged_byte_is_refused_or_only_a_value(
    saved: Saved, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """K24: whatever a byte of either file becomes: our error, or a model of the same size."""
    folder = copied(saved(TINY), tmp_path_factory.mktemp("flip"))
    file = folder / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    content = bytearray(file.read_bytes())
    header = st.integers(0, min(len(content), 900) - 1)
    content[data.draw(header | st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    with contextlib.suppress(ModelFileError):
        assert GPT.load(folder).config.n_parameters <= TINY.n_parameters + 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_are_finite(saved: Saved, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    """C10: one NaN or infinity anywhere is refused, naming the weight."""
    bias = torch.tensor([0.0, value, 0.0, 1.0], dtype=dtype)
    folder = with_weights(copied(saved(TINY), tmp_path), **{BIAS: bias})
    assert f"{BIAS} holds NaN or infinite" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {BIAS: None, "more": torch.zeros(99)},
            f"{BIAS} is missing; 'transformer.more' is unknown",
        ),
        ({BIAS: None}, f": {BIAS} is missing"),
        ({"transformer.wte.weight": None}, ": transformer.wte.weight is missing"),
        ({BIAS: torch.zeros(9)}, f"{BIAS} has shape (9,), expected (4,)"),
        ({BIAS: torch.zeros(4, dtype=torch.int64)}, "is I64 (4,), not an array of floats"),
        ({BIAS: torch.zeros(0, 4)}, "is F32 (0, 4), not an array of floats"),
        ({f"w{n}": torch.zeros(9) for n in range(25)}, " and 15 more"),
        ({"x" * 9_000: torch.zeros(9)}, " is unknown"),
        ({"lm_head.weight": torch.ones(7, 4)}, "lm_head.weight is not the embedding"),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    saved: Saved, tmp_path: Path, changes: dict[str, torch.Tensor | None], said: str
) -> None:
    """C8: missing, extra and misshapen weights, at most ten, with both shapes."""
    assert said in refusal(with_weights(copied(saved(TINY), tmp_path), **changes))


def test_biases_that_the_settings_deny_are_not_dropped(saved: Saved, tmp_path: Path) -> None:
    """A gpt2 without biases is stored with zeros; if another program trained them, we say so."""
    folder = copied(saved(TINY.replace(bias=False)), tmp_path)
    assert "has biases" in refusal(with_weights(folder, **{BIAS: torch.ones(4)}))


def test_layers_are_not_built_without_weights(saved: Saved, tmp_path: Path) -> None:
    """C12: one long vector is enough numbers for many layers, but no layer."""
    folder = copied(saved(TINY), tmp_path, n_layer=5_000)
    size = TINY.replace(n_layer=5_000).n_parameters
    assert "n_layer 5,000" in refusal(with_weights(folder, long=torch.zeros(size)))
