"""Laws of going on from a model: adapters, new ids, and what is saved of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from yocto_model import ARCHITECTURES, GPT
from yocto_train import Checkpoint, Run, SaveError, TrainConfigError, Trainer
from yocto_train.tune.adapter import save_adapter
from yocto_train.tune.begin import begun
from yocto_train.tune.lora import adapt, adapters, merged

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]])
MakeModel = Callable[..., GPT]
archs = st.sampled_from([*ARCHITECTURES])
few = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def trained_adapters(model: GPT, rank: int, alpha: float) -> GPT:
    """The model with adapters that have learned something."""
    adapt(model, rank=rank, alpha=alpha, seed=3)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    return model.eval()


@pytest.mark.property
@few
@given(arch=archs, rank=st.integers(1, 20), alpha=st.floats(0.5, 64))
def test_a_merged_model_computes_what_the_adapted_one_does(
    arch: str, rank: int, alpha: float, make_model: MakeModel
) -> None:
    """Fresh adapters change nothing; learned ones change the same in both."""
    model = make_model(arch, zero_init=False).eval()
    before = model(IDS)
    assert merged(model) is model
    adapt(model, rank=rank, alpha=alpha, seed=1)
    assert torch.equal(before, model(IDS))
    found = trained_adapters(model, rank, alpha)(IDS)
    whole = merged(model)
    assert not torch.equal(before, found)
    torch.testing.assert_close(whole(IDS), found, rtol=1e-4, atol=1e-4)
    assert set(whole.state_dict()) == set(make_model(arch).state_dict())


@pytest.mark.property
@few
@given(arch=archs, rank=st.integers(1, 4))
def test_the_adapters_alone_make_the_same_model(
    arch: str, rank: int, make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """W + alpha / r B A, by PEFT's names, is each tensor of the merged model's folder."""
    home = tmp_path_factory.mktemp("peft")
    model = make_model(arch, zero_init=False)
    model.save(home / "base")
    trained_adapters(model, rank, 8.0)
    merged(model).save(home / "whole")
    save_adapter(model, home / "adapter", base="base")
    document = json.loads((home / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(home / "adapter" / "adapter_model.safetensors")
    base, whole = (load_file(home / n / "model.safetensors") for n in ("base", "whole"))
    for name in base:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if key.format("A") in tensors:
            added = tensors[key.format("B")] @ tensors[key.format("A")]
            added *= document["lora_alpha"] / document["r"]
            base[name] += added.t() if document["fan_in_fan_out"] else added
            assert name.split(".")[-2] in document["target_modules"]
        torch.testing.assert_close(whole[name], base[name])
    assert tensors


def test_adapters_are_refused_where_there_are_none_or_a_place_is_taken(
    make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(TrainConfigError, match="it has none"):
        save_adapter(make_model(), tmp_path / "new", base="")
    with pytest.raises(TrainConfigError, match="PEFT knows no such architecture"):
        save_adapter(
            trained_adapters(make_model("modern", bias=True), 1, 1.0), tmp_path / "new", base=""
        )
    with pytest.raises(SaveError, match="already exists"):
        save_adapter(trained_adapters(make_model(), 1, 1.0), tmp_path, base="")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_adapters_learn_and_a_run_goes_on_to_the_bit(
    precision: str, make_trainer: Callable[..., Trainer], make_model: MakeModel, run: Run
) -> None:
    """Frozen matrices stay, moments are those of the adapters, a resumed run ends equal."""
    options = {"lora_rank": 2, "precision": precision, "save_dtype": "bfloat16", "lr": 0.01}
    whole = make_trainer("modern", run=run, **options)
    list(whole.run())
    base = make_model("modern", dropout=0.1).state_dict()
    kept = {n: w for n, w in whole.model.state_dict().items() if n in base}
    assert all(torch.equal(weight, base[name].to(weight.dtype)) for name, weight in kept.items())
    halfway = Checkpoint.open(run.step_directory(5))
    moments = halfway.load_state()["moments"]
    assert moments
    assert all(".lora_" in name for name in moments)
    resumed = make_trainer("modern", **options)
    resumed.restore(halfway)
    list(resumed.run())
    ends = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


@pytest.mark.property
@few
@given(arch=archs, known=st.integers(8, 20), new=st.integers(0, 20))
def test_a_new_id_is_the_mean_of_the_known_ones(
    arch: str, known: int, new: int, make_model: MakeModel
) -> None:
    """All other rows stay, those that only pad the model too; logits of known ids are equal."""
    model = make_model(arch, vocab_size=20).eval()
    old, before = model.token_emb.weight.detach().clone(), model(IDS).detach()
    rows = max(20, known + new)
    config = model.config.replace(vocab_size=rows, dropout=0.2)
    grown = begun(model, config, known=known, n_ids=known + new)
    table = grown.token_emb.weight.detach()
    assert (rows, old.shape[1]) == tuple(table.shape)
    assert torch.equal(old[:known], table[:known])
    assert torch.equal(old[known + new :], table[known + new : 20])
    assert torch.equal(old[:known].mean(0).expand(new, -1), table[known : known + new])
    assert (grown.head.weight is grown.token_emb.weight) == config.tie_weights
    torch.testing.assert_close(grown(IDS)[..., :known], before[..., :known])
    assert 0.2 == grown.drop.p
