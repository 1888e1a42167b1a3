"""nanoGPT's ckpt.pt: the same logits, no code run, and one line where it cannot be read."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_model import GPT, GPTConfig, ModelFileError, read_nanogpt

MakeModel = Callable[[GPTConfig, int], GPT]
SIZES = {"vocab_size": 11, "block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 8}
fewer = settings(max_examples=max(1, settings().max_examples // 4))
Content = dict[str, Any]


def weights(*, bias: bool, compiled: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """What nanoGPT's `model.state_dict()` holds, drawn anew; the head is the embedding."""
    C, generator = SIZES["n_embd"], torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (SIZES["vocab_size"], C),
        "transformer.wpe.weight": (SIZES["block_size"], C),
    }
    norms = ["transformer.ln_f"]
    for n in range(SIZES["n_layer"]):
        block = f"transformer.h.{n}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for name, rows, columns in (
            ("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C),
            ("mlp.c_fc", 4 * C, C), ("mlp.c_proj", C, 4 * C),
        ):  # fmt: skip
            shapes[f"{block}.{name}.weight"] = (rows, columns)
            shapes |= {f"{block}.{name}.bias": (rows,)} if bias else {}
    for name in norms:
        shapes[f"{name}.weight"] = (C,)
        shapes |= {f"{name}.bias": (C,)} if bias else {}
    drawn = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drawn["lm_head.weight"] = drawn["transformer.wte.weight"]
    return {("_orig_mod." if compiled else "") + name: weight for name, weight in drawn.items()}


def checkpoint(*, bias: bool = True, compiled: bool = False, seed: int = 0) -> Content:
    """What nanoGPT writes, but for most of its optimizer and settings."""
    model = weights(bias=bias, compiled=compiled, seed=seed)
    return {
        "model": model,
        "model_args": {**SIZES, "bias": bias, "dropout": 0.2},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 6e-4}]},
        "iter_num": 3,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "compile": compiled, "learning_rate": 6e-4},
    }


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_nanogpt(path)
    message = str(caught.value)
    assert (True, True, True) == (message.isprintable(), len(message) < 1_000, "ckpt" in message)
    return message


def expected_logits(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """NanoGPT's forward pass, written out: (B, T) -> (B, T, V)."""
    C, H = SIZES["n_embd"], SIZES["n_head"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: ids.shape[1]]
    for n in range(SIZES["n_layer"]):
        block = f"transformer.h.{n}"
        parts = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, dim=2)
        q, k, v = (part.view(*ids.shape, H, C // H).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(2, 3) / (C // H) ** 0.5  # (B, H, T, T)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        heads = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ v
        x = x + linear(heads.transpose(1, 2).flatten(2), f"{block}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))  # exact, not tanh
        x = x + linear(inner, f"{block}.mlp.c_proj")
    return F.linear(norm(x, "transformer.ln_f"), w["lm_head.weight"])


@pytest.mark.property
@fewer
@given(bias=st.booleans(), compiled=st.booleans(), seed=st.integers(0, 2**40))
def test_logits_are_nanogpts(
    tmp_path_factory: pytest.TempPathFactory, bias: bool, compiled: bool, seed: int
) -> None:
    """With biases or without, compiled or not; the weights to the bit, in memory of their own."""
    path = tmp_path_factory.mktemp("nanogpt") / "ckpt.pt"
    model = read_nanogpt(written(path, checkpoint(bias=bias, compiled=compiled, seed=seed)))
    path.unlink()
    assert (bias, 0.2, "gelu", False) == (
        model.config.bias, model.config.dropout, model.config.activation, model.training
    )  # fmt: skip
    assert model.head.weight is model.token_emb.weight
    ids = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = expected_logits(weights(bias=bias, seed=seed), ids)
        assert torch.allclose(expected, model(ids), rtol=0, atol=1e-5)
        model.blocks[0].mlp.proj.weight.add_(1)  # type: ignore[union-attr, operator]


def test_old_tables_are_left_out_and_dtypes_changed(tmp_path: Path) -> None:
    """The causal mask of versions without fused attention; a dtype as asked for."""
    content = checkpoint()
    content["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 6, 6).tril()
    model = read_nanogpt(written(tmp_path / "ckpt.pt", content), dtype=torch.bfloat16)
    assert {torch.bfloat16} == {weight.dtype for weight in model.parameters()}


def test_a_file_of_weights_alone_is_sound(tmp_path: Path) -> None:
    """Tied embeddings lie in it once; with no optimizer, nothing else makes the file that large."""
    content = checkpoint() | {"optimizer": None}
    table = torch.ones(5_000, SIZES["n_embd"])
    content["model"] |= {"transformer.wte.weight": table, "lm_head.weight": table}
    content["model_args"]["vocab_size"] = 5_000
    model = read_nanogpt(written(tmp_path / "ckpt.pt", content))
    assert torch.equal(model.token_emb.weight, table)


class Evil:
    """What a pickle may make of itself: a call of any function, here one that does no harm."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "lacks model_args or model"),
        ({"model_args": [1]}, "lacks model_args or model"),
        ({"model_args": {**SIZES, "n_kv_head": 1}}, "nanoGPT has no setting 'n_kv_head'"),
        ({"model_args": {**SIZES, "n_layer": 0}}, "n_layer must be"),
        ({"model_args": {**SIZES, "n_layer": 10**9}}, "its settings need"),
        ({"model_args": {**SIZES, "bias": False}}, ".bias' is unknown"),
        ({"model_args": {**SIZES, "vocab_size": 10}}, "has shape (11, 8), expected (10, 8)"),
        ({"model": weights(bias=True) | {"more": torch.ones(3)}}, "'more' is unknown"),
        ({"model": weights(bias=True) | {"more": [1]}}, "'more' is not a tensor"),
        ({"model": weights(bias=True) | {"more": torch.ones(3).int()}}, "'more' is not an array"),
        ({"model": {}}, "but it holds 0"),
        (
            {"model": weights(bias=True) | {"lm_head.weight": torch.ones(11, 8)}},
            "lm_head.weight is not the embedding",
        ),
        (
            {"model": weights(bias=True) | {"transformer.ln_f.bias": torch.full((8,), torch.nan)}},
            "transformer.ln_f.bias holds NaN",
        ),
        (
            {"model": weights(bias=True) | {"huge": torch.ones(1).expand(10**9)}},
            "larger than the file",
        ),
        ({"config": Evil()}, "more than weights"),
    ],
)
def test_what_is_not_nanogpts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Content, said: str
) -> None:
    """One line that names it; and no code is run."""
    assert said in refusal(written(tmp_path / "ckpt.pt", checkpoint() | change))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\x80\x02}q\x00.", "a pickle, which is never opened"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"PK\3\4 and no more", "cut off or damaged"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    """What is no archive is never given to the unpickler."""
    path = tmp_path / "ckpt.pt"
    if content is not None:
        path.write_bytes(content)
    assert said in refusal(path)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    """Not torch's, packed (which could unfold to any size), or without a dictionary."""
    path = tmp_path / "ckpt.pt"
    for compression, said in (
        (zipfile.ZIP_STORED, "or holds more"),
        (zipfile.ZIP_DEFLATED, "comp"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", bytes(1_000))
        assert said in refusal(path)
    assert "holds no settings" in refusal(written(path, [1, 2]))


@pytest.mark.property
@given(data=st.data())
def test_a_damaged_file_is_refused_or_a_value(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere it is refused; a changed byte gives our error, or a model of its size."""
    path = written(tmp_path_factory.mktemp("damage") / "ckpt.pt", checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refusal(path)
    at = data.draw(st.integers(0, 3_000) | st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    try:
        model = read_nanogpt(path)
    except ModelFileError as error:
        assert str(error).isprintable()  # noqa: PT017 - it may also be no error
    else:
        assert all(bool(weight.isfinite().all()) for weight in model.parameters())
