"""GGUF files: the same model comes back, transformers reads it too, and damage is one line."""

import os
import resource
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yocto_model import GPT, GPTConfig, InputError, ModelFileError, read_gguf, write_gguf
from yocto_model.formats.families import family_of

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
fewer = settings(max_examples=max(1, settings().max_examples // 4))

SIZES: dict[str, Any] = {
    "vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 4, "n_embd": 32, "n_hidden": 64,
}  # fmt: skip
LLAMA = GPTConfig.from_arch("modern", **SIZES, n_kv_head=2, qk_norm=False)
FAMILIES = {
    "gpt2": GPTConfig.from_dict(SIZES),
    "llama": LLAMA,
    "qwen2": LLAMA.replace(qkv_bias=True, tie_weights=True),
    "qwen3": LLAMA.replace(qk_norm=True, head_dim=16, rotary_base=500.0),
}


@st.composite
def family_configs(draw: st.DrawFn) -> GPTConfig:
    """Any config that llama.cpp has an architecture for."""
    config = draw(st.from_type(GPTConfig))
    changes: dict[str, Any] = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu"}
    if config.norm == "layernorm":
        changes = {"positions": "learned", "activation": "gelu_tanh", "qkv_bias": False}
        changes |= {"qk_norm": False, "n_kv_head": None, "head_dim": None, "norm": "layernorm"}
    elif config.qk_norm:
        changes |= {"bias": False, "qkv_bias": False}
    elif config.qkv_bias:
        changes |= {"bias": False, "head_dim": None}
    return config.replace(**changes)


def written(model: GPT, path: Path, kind: Any = "f32", **fields: Any) -> Path:
    write_gguf(path, model, kind=kind, fields=fields, name="Tiny")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert (True, True) == (message.isprintable(), len(message) < 600), message
    return message


def logits(model: GPT, seed: int = 0, rows: int = 11) -> torch.Tensor:
    shape, generator = (2, model.config.block_size), torch.Generator().manual_seed(seed)
    ids = torch.randint(rows, shape, generator=generator)
    with torch.no_grad():
        return model(ids)


# --- what comes back -------------------------------------------------------------------------


@pytest.mark.property
@fewer
@given(config=family_configs(), seed=SEEDS)
@example(config=FAMILIES["llama"].replace(bias=True), seed=0)
@example(config=FAMILIES["gpt2"].replace(bias=False, tie_weights=False), seed=0)
def test_a_model_comes_back(make_model: MakeModel, config: GPTConfig, seed: int) -> None:
    """M11: its logits to the bit, for every family; its shape is read off llama.cpp's fields."""
    model = make_model(config, seed).float()
    with tempfile.TemporaryDirectory() as directory:
        copy, fields = read_gguf(written(model, Path(directory, "a.gguf")))
    assert [family_of(config), "Tiny"] == [fields["general.architecture"], fields["general.name"]]
    expected, got = logits(model, seed, 2), logits(copy, seed, 2)
    if config.bias or family_of(config) != "gpt2":
        assert torch.equal(expected, got)
    else:  # gpt2's biases are always there, as zeros
        assert torch.allclose(expected, got, rtol=1e-5, atol=1e-5)
    assert not copy.training
    assert config.tie_weights == (copy.head.weight is copy.token_emb.weight)


FIELDS = st.dictionaries(
    st.text(min_size=1, max_size=9).map("x.{}".format),
    st.booleans() | st.integers(0, 2**60) | st.text() | st.floats(width=32, allow_nan=False)
    | st.lists(st.text(), min_size=1) | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1)
    | st.lists(st.booleans(), min_size=1)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    max_size=5,
)  # fmt: skip


@pytest.mark.property
@given(fields=FIELDS)
def test_fields_come_back(
    make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    """Texts, numbers, truth values, and lists of them, as plain values with their types."""
    model = make_model(FAMILIES["gpt2"].replace(n_layer=1), 0)
    _, got = read_gguf(written(model, tmp_path_factory.mktemp("f") / "a.gguf", **fields))
    for name, value in fields.items():
        assert type(value) is type(got[name])
        if isinstance(value, float):
            assert np.float32(value) == np.float32(got[name])  # the shortest digits of that float32
        else:
            assert value == got[name]
            assert not isinstance(value, list) or type(value[0]) is type(got[name][0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_each_kind_rounds_as_it_says(
    make_model: MakeModel, tmp_path: Path, family: str, kind: str
) -> None:
    """Matrices once, to the nearest value of the kind; norms and biases not at all."""
    model = make_model(FAMILIES[family], 0).float()
    copy, fields = read_gguf(written(model, tmp_path / "a.gguf", kind))
    assert {torch.float32} == {weight.dtype for weight in copy.parameters()}
    assert {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[kind] == fields["general.file_type"]
    got = copy.state_dict()
    for name, weight in model.state_dict().items():
        if weight.dim() == 1 or name == "pos_emb.weight" or kind == "f32":
            assert torch.equal(weight, got[name]), name
        elif kind == "q8_0":  # 32 values share a float16 scale, of which 127 is the largest
            largest = weight.unflatten(1, (-1, 32)).abs().amax(dim=2, keepdim=True)
            error = (weight - got[name]).unflatten(1, (-1, 32)).abs()
            assert bool((error <= largest * (0.5 / 127 + 2**-11)).all()), name
        else:
            dtype = torch.float16 if kind == "f16" else torch.bfloat16
            assert torch.equal(weight.to(dtype).float(), got[name]), name
    half, _ = read_gguf(tmp_path / "a.gguf", dtype=torch.bfloat16)
    assert all(torch.equal(got[n].bfloat16(), w) for n, w in half.state_dict().items())


def test_rows_that_cannot_be_quantized_are_float16(make_model: MakeModel, tmp_path: Path) -> None:
    """As llama.cpp's own program does it: the rest of such a model is still small."""
    model = make_model(LLAMA.replace(n_hidden=72), 0).float()
    copy, _ = read_gguf(written(model, tmp_path / "a.gguf", "q8_0"))
    name, got = "blocks.0.mlp.proj.weight", copy.state_dict()
    assert torch.equal(model.state_dict()[name].half().float(), got[name])
    assert not torch.equal(model.head.weight.half().float(), got["head.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_we_write(
    make_model: MakeModel, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reader of the format: our logits to 1e-5."""
    transformers = pytest.importorskip("transformers")
    config = FAMILIES[family]
    if family == "gpt2":  # it does not read these sizes
        config = config.replace(block_size=1024, n_hidden=128)
    if family == "qwen3":
        config = config.replace(head_dim=128)
    model = make_model(config, 0).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.4 if weight.dim() == 2 else 1.0)
    written(model, tmp_path / "a.gguf", **{"tokenizer.ggml.tokens": [f"<{n}>" for n in range(11)]})
    # It asks for a package that it then does not use on a CPU.
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda: True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", attn_implementation="eager", dtype=torch.float32
    ).eval()
    assert family == theirs.config.model_type
    ids = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.allclose(expected, model(ids), rtol=1e-5, atol=1e-5)
        assert torch.allclose(
            expected, read_gguf(tmp_path / "a.gguf")[0](ids), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F16", "BF16"])
def test_quantized_files_of_other_programs_are_unpacked(
    make_model: MakeModel, tmp_path: Path, kind: str
) -> None:
    """Whatever the package unpacks: its values, also where they are more than one piece."""
    config = LLAMA.replace(vocab_size=40_000)
    model = make_model(config, 0).float()
    source = gguf.GGUFReader(written(model, tmp_path / "a.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    for name, field in source.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, field.contents(), field.types[0])
    expected, random = {}, np.random.default_rng(0)
    for tensor in source.tensors:
        data, type_of = tensor.data, gguf.GGMLQuantizationType.F32
        if data.ndim == 2:
            type_of = gguf.GGMLQuantizationType[kind]
            if kind == "IQ4_NL":  # the package cannot make them
                blocks = random.integers(0, 256, (*data.shape[:1], data.shape[1] // 32, 18))
                blocks[:, :, 1] = 60  # a scale of about 1
                data = blocks.astype(np.uint8).reshape(len(data), -1)
            else:
                data = gguf.quants.quantize(data, type_of)
        expected[tensor.name] = gguf.quants.dequantize(data, type_of)
        writer.add_tensor(tensor.name, data, raw_dtype=type_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy, _ = read_gguf(tmp_path / "b.gguf", dtype=torch.float32)
    assert np.array_equal(expected["token_embd.weight"], copy.token_emb.weight.detach().numpy())
    down = copy.state_dict()["blocks.1.mlp.proj.weight"]
    assert np.array_equal(expected["blk.1.ffn_down.weight"], down.numpy())
    q = copy.state_dict()["blocks.0.attn.qkv.weight"][:32].view(4, 2, 4, 32)  # two halves of a head
    pairs = torch.from_numpy(expected["blk.0.attn_q.weight"]).view(4, 4, 2, 32)
    assert torch.equal(pairs.transpose(1, 2), q)


# --- tokens and rows -------------------------------------------------------------------------


@pytest.mark.property
@fewer
@given(config=family_configs(), seed=SEEDS, more=st.integers(1, 5))
def test_padding_is_never_the_likeliest(
    make_model: MakeModel, config: GPTConfig, seed: int, more: int
) -> None:
    """Tokens without a row of ours: their logits are the mean of the real ones in any context."""
    model, n = make_model(config, seed).float(), config.vocab_size
    tokens = [f"<{number}>" for number in range(n + more)]
    with tempfile.TemporaryDirectory() as directory:
        path = written(model, Path(directory, "a.gguf"), **{"tokenizer.ggml.tokens": tokens})
        copy, fields = read_gguf(path)
    assert n + more == copy.config.vocab_size
    assert list(range(n, n + more)) == fields["tokenizer.ggml.suppress_tokens"]
    got = logits(copy, seed, 2)
    real, padding = got[..., :n], got[..., n:]
    size = float(real.abs().max())
    assert torch.allclose(logits(model, seed, 2), real, rtol=1e-5, atol=1e-5 * size)
    assert torch.allclose(real.mean(-1, keepdim=True), padding, rtol=1e-4, atol=1e-4 * size)
    assert bool((padding.amax(-1) <= real.amax(-1) + 1e-5 * size).all())


def test_rows_without_a_token_are_left_out(make_model: MakeModel, tmp_path: Path) -> None:
    """As of a vocabulary that was rounded up: llama.cpp wants as many rows as tokens."""
    model = make_model(LLAMA, 0).float()
    fields = {"tokenizer.ggml.tokens": ["a", "b", "c"]}
    copy, got = read_gguf(written(model, tmp_path / "a.gguf", **fields))
    assert 3 == copy.config.vocab_size == got["llama.vocab_size"]
    assert torch.allclose(logits(model, rows=3)[..., :3], logits(copy, rows=3), atol=1e-5)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        (
            "llama",
            {"general.architecture": "mamba"},
            "has the architecture 'mamba'; this package supports gpt2",
        ),
        ("llama", {"general.architecture": ["llama"]}, "has the architecture a value of type list"),
        ("llama", {"general.architecture": "qwen3"}, "qwen3.context_length"),
        ("llama", {"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type 'yarn'"),
        ("llama", {"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor 4.0"),
        ("llama", {"llama.rope.dimension_count": 4}, "llama.rope.dimension_count 4"),
        ("llama", {"llama.attention.value_length": 4}, "llama.attention.value_length 4"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count 8"),
        ("qwen2", {"qwen2.attention.sliding_window": 4096}, "sliding_window 4096"),
        ("llama", {"llama.attention.head_count": [4, 2]}, "n_head must be a whole number"),
        ("llama", {"llama.block_count": 3}, ": blk.2.attn_norm.weight is missing; "),
        ("llama", {"llama.block_count": 4}, "its settings need"),
        ("llama", {"llama.block_count": 2**31}, "its settings need"),
        ("llama", {"llama.context_length": 2**30}, "GB for positions alone"),
        ("llama", {"llama.embedding_length": "32"}, "n_embd must be a whole number"),
        ("llama", {"llama.feed_forward_length": 32}, "has shape (64, 32), expected (32, 32)"),
        ("gpt2", {"gpt2.context_length": 4}, "position_embd.weight has shape"),
        ("llama", {"general.alignment": 7}, "does not lie where it should"),
        ("llama", {"general.alignment": 0}, "general.alignment is 0"),
        ("llama", {"split.count": 2}, "one of 2 parts"),
    ],
)
def test_files_that_cannot_be_are_refused_by_name(
    make_model: MakeModel, tmp_path: Path, family: str, fields: dict[str, Any], said: str
) -> None:
    """A field that asks for another computation or for absurd sizes is named, not ignored."""
    assert said in refusal(written(make_model(FAMILIES[family], 0), tmp_path / "a.gguf", **fields))


def header(*, version: int = 3, tensors: int = 0, fields: int = 0, more: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + more


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"PK\3\4", "a zip archive"),
        (b"GGU", "cut off"),
        (header(version=1), "version 1"),
        (header(version=4), "version 4"),
        (header(version=3 << 24), "another byte order"),
        (header(), "has the architecture None"),
        (header(fields=2**63), "ends within its header"),
        (header(tensors=2**63), "ends within its header"),
        (header(fields=1, more=struct.pack("<Q", 2**63)), "ends within its header"),
        (header(fields=1, more=KEY + struct.pack("<IQ", 8, 2**62)), "ends within its header"),
        (header(fields=1, more=KEY + struct.pack("<IIQ", 9, 0, 2**40)), "ends within its header"),
        (header(fields=1, more=KEY + struct.pack("<IIQ", 9, 8, 2**40)), "a list of"),
        (header(fields=1, more=KEY + struct.pack("<IIQ", 9, 9, 1)), "a list of 1 values of kind 9"),
        (header(fields=1, more=KEY + struct.pack("<I", 77)), "a value of kind 77"),
        (header(fields=2, more=2 * (KEY + struct.pack("<IB", 0, 1))), "two fields 'k'"),
        (header(fields=1, more=struct.pack("<Q", 1) + b"\xff"), "not UTF-8"),
        (header(tensors=1, more=KEY + struct.pack("<IQIQ", 1, 0, 0, 0)), "has shape (0,)"),
        (header(tensors=1, more=KEY + struct.pack("<IQIQ", 1, 2**60, 0, 0)), "does not lie"),
        (header(tensors=1, more=KEY + struct.pack("<IQIQ", 1, 2, 0, 32)), "does not lie"),
        (header(tensors=1, more=KEY + struct.pack("<IQIQ", 1, 31, 8, 0)), "has shape (31,)"),
        (header(tensors=1, more=KEY + struct.pack("<IQIQ", 1, 32, 77, 0)), "77 is not a valid"),
        (header(tensors=1, more=KEY + struct.pack("<IQIQ", 1, 32, 26, 0)), "not yet implemented"),
        (header(tensors=1, more=KEY + struct.pack("<IQ", 2**31, 1)), "ends within its header"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """No count in them is believed, and what the file is instead is said."""
    (tmp_path / "a.gguf").write_bytes(content)
    assert said in refusal(tmp_path / "a.gguf")


@pytest.mark.property
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_and_a_changed_byte_is_harmless(
    make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """K23, K24: half a file is no model; another byte gives our error, or a model of its size."""
    path = written(make_model(LLAMA, 0), tmp_path_factory.mktemp("cut") / "a.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refusal(path)
    at = data.draw(st.integers(0, 2_500) | st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    try:
        model, _ = read_gguf(path)
    except ModelFileError as error:
        assert str(error).isprintable()  # noqa: PT017 - it may also be no error
    else:
        assert model.config.n_parameters <= LLAMA.n_parameters
        assert all(bool(weight.isfinite().all()) for weight in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_a_kind_cannot_hold_are_not_written(
    make_model: MakeModel, tmp_path: Path, value: float
) -> None:
    """C10: named, and no file, not even a part of one."""
    model = make_model(LLAMA, 0).float()
    torch.nn.init.constant_(model.get_parameter("blocks.1.mlp.proj.weight"), value)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_down\.weight has values that f16 cannot"):
        written(model, tmp_path / "a.gguf", "f16")
    assert not list(tmp_path.iterdir())
    if value == 1e6:
        written(model, tmp_path / "a.gguf", "bf16")
        with pytest.raises(ModelFileError, match=r"infinite values as torch\.float16"):
            read_gguf(tmp_path / "a.gguf", dtype=torch.float16)


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        (LLAMA.replace(n_embd=24, n_hidden=40), "q8_0", "32 divides, not n_embd 24; take f16"),
        (LLAMA.replace(norm="layernorm"), "f32", "mixture of parts"),
        (LLAMA.replace(qkv_bias=True, head_dim=16), "f32", "mixture of parts"),
        (LLAMA, "q4_0", "kind must be one of f32, f16, bf16, q8_0"),
    ],
)
def test_models_that_gguf_cannot_hold_are_refused(
    make_model: MakeModel, tmp_path: Path, config: GPTConfig, kind: str, said: str
) -> None:
    """With the reason, before anything is written."""
    with pytest.raises(InputError, match=said):
        written(make_model(config, 0), tmp_path / "a.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(make_model: MakeModel, tmp_path: Path) -> None:
    """K9: as when a disk is full: the system's error, and nothing of the new file."""
    path = written(make_model(LLAMA, 0), tmp_path / "a.gguf")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|requested and .* written"):
            written(make_model(LLAMA, 1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path] == list(tmp_path.iterdir())
    assert before == path.read_bytes()


def test_without_the_package_it_is_named(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are not quantized are read all the same."""
    model = make_model(LLAMA, 0).float()
    plain = written(model, tmp_path / "a.gguf", "bf16")
    packed = written(model, tmp_path / "b.gguf", "q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    read_gguf(plain)
    assert "pip install 'yocto-model[gguf]'" in refusal(packed)
    with pytest.raises(ModelFileError, match="needs the package gguf"):
        written(model, tmp_path / "c.gguf")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """C1: missing, a folder, or a pipe, for which nothing waits."""
    assert "a.gguf is missing" in refusal(tmp_path / "a.gguf")
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
