"""Model folders are Hugging Face's, both ways, with equal logits. Nothing is downloaded."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from yocto_model import GPT, GPTConfig, KVCache, inference_copy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about its own dependencies
    import transformers
    from transformers import AutoModelForCausalLM

MakeModel = Callable[[GPTConfig, int], GPT]
SEEDS = st.integers(0, 2**40)
BOOLEANS = st.booleans()
# Each example writes and reads three folders: a quarter of the usual number.
fewer = settings(max_examples=max(1, settings().max_examples // 4))
FAMILIES = ["gpt2", "llama", "qwen2", "qwen3"]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """No progress bars, and no remarks on tiny models."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@st.composite
def family_configs(draw: st.DrawFn, family: str) -> GPTConfig:
    """Any config that a family can express."""
    n_head = draw(st.sampled_from([1, 2, 4, 6]))
    fields: dict[str, Any] = {
        "vocab_size": draw(st.integers(2, 30)),
        "block_size": draw(st.integers(1, 12)),
        "n_layer": draw(st.integers(1, 3)),
        "n_head": n_head,
        "n_embd": n_head * draw(st.sampled_from([2, 4, 8])),
        "n_hidden": draw(st.sampled_from([None, 7])),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "tie_weights": draw(BOOLEANS),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
    }
    if family == "gpt2":
        activation = draw(st.sampled_from(["gelu", "gelu_tanh"]))
        return GPTConfig.from_arch("gpt2", **fields, activation=activation, bias=draw(BOOLEANS))
    return GPTConfig.from_arch(
        "modern",
        **fields,
        n_kv_head=draw(st.sampled_from([k for k in range(1, n_head + 1) if n_head % k == 0])),
        head_dim=draw(st.sampled_from([None, 2, 6])),
        rotary_base=draw(st.sampled_from([10_000.0, 50.0])),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2",
        bias=family == "llama" and draw(BOOLEANS),
    )


def small(make_model: MakeModel, config: GPTConfig, seed: int) -> GPT:
    """Random float32 weights of a trained model's size, so that 1e-5 is a strict measure."""
    model = make_model(config, seed).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(0.4)
    return model


def close(expected: Tensor, got: Tensor) -> None:
    assert expected.shape == got.shape
    assert float((expected - got).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def equal_bits(model: GPT, other: GPT) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


def opened(directory: Path, family: str) -> Any:
    theirs = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    assert family == theirs.config.model_type
    return theirs.eval()


@pytest.mark.property
@pytest.mark.parametrize("family", FAMILIES)
@fewer
@given(data=st.data(), seed=SEEDS)
def test_a_folder_of_ours_is_theirs_and_back(
    make_model: MakeModel, family: str, data: st.DataObject, seed: int
) -> None:
    """M11: there it has our logits to 1e-5, and what is saved there is our model to the bit."""
    config = data.draw(family_configs(family))
    model = small(make_model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (2, config.block_size), generator=generator)
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        model.save(directory)
        theirs = opened(Path(directory), family)
        expected = theirs(ids).logits
        close(expected, model(ids))
        cache, cut = KVCache(config, 2), config.block_size // 2
        parts = [model(part, cache=cache) for part in (ids[:, :cut], ids[:, cut:]) if part.numel()]
        close(expected, torch.cat(parts, dim=1))
        theirs.save_pretrained(f"{directory}/again")
        for path in (directory, f"{directory}/again"):
            back = GPT.load(path)
            assert config == back.config
            assert equal_bits(model, back)
        # Without our key the same shape is read off their fields.
        settings = Path(directory, "config.json")
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"yocto": None}))
        close(expected, GPT.load(directory)(ids))


THEIRS: dict[str, Any] = {
    "gpt2": ("GPT2", {"n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 3}),
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"sliding_window": 4096, "use_sliding_window": False}),
    "qwen3": ("Qwen3", {"head_dim": 6}),
}
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 10, "max_position_embeddings": 12,
}  # fmt: skip


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_theirs_is_ours_and_back(
    tmp_path: Path, family: str, tied: bool, shards: bool
) -> None:
    """What `save_pretrained` wrote has their logits here, to 1e-5, and saved by us there again."""
    name, more = THEIRS[family]
    sizes = {} if family == "gpt2" else SIZES
    ids = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": tied}
    config = getattr(transformers, f"{name}Config")(vocab_size=30, **sizes, **more, **ids)
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    theirs.save_pretrained(tmp_path, max_shard_size="3KB" if shards else "1GB")
    assert shards == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    model, idx = GPT.load(tmp_path), torch.randint(30, (2, 12))
    with torch.no_grad():
        expected = theirs(idx).logits
        close(expected, model(idx))
        model.save(tmp_path / "ours", end_ids=[7, 3])
        again = opened(tmp_path / "ours", family)
        close(expected, again(idx).logits)
        assert [3, 7] == again.generation_config.eos_token_id == again.config.eos_token_id


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_half_precision_folder_turns_as_far_in_float32(
    make_model: MakeModel, tmp_path: Path, stored: torch.dtype
) -> None:
    """Only weights were rounded: in float32, positions are exact, in a copy and in the model."""
    sizes = {"vocab_size": 30, "block_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 24}
    config = GPTConfig.from_arch("modern", **sizes)
    small(make_model, config, 0).save(tmp_path, dtype=stored)
    model, ids = GPT.load(tmp_path), torch.arange(300)[None] % 30
    assert stored == model.token_emb.weight.dtype == model.cos.dtype
    with torch.no_grad():
        expected = opened(tmp_path, "qwen3").float()(ids).logits
        close(expected, inference_copy(model, "float32")(ids))
        close(expected, model.float()(ids))


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS)
@example(config=GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=2), seed=0)
def test_what_no_family_expresses_is_saved_too(
    make_model: MakeModel, config: GPTConfig, seed: int
) -> None:
    """Any mixture of parts comes back, settings and every weight to the bit."""
    model = make_model(config, seed).float()
    with tempfile.TemporaryDirectory() as directory:
        model.save(directory)
        copy = GPT.load(directory)
        kind = json.loads(Path(directory, "config.json").read_text())["model_type"]
    assert kind in {*FAMILIES, "yocto"}
    assert config == copy.config
    assert equal_bits(model, copy)
    assert not copy.training
    assert config.tie_weights == (copy.head.weight is copy.token_emb.weight)
