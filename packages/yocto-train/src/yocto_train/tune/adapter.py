"""Adapters alone, in a folder as PEFT writes it."""

import json
from pathlib import Path

from safetensors.torch import save_file
from yocto_data.prep import files
from yocto_model import GPT
from yocto_model.formats.families import family_of, stored

from yocto_train.errors import SaveError, TrainConfigError
from yocto_train.runs.checkpoint import failing_as
from yocto_train.tune.lora import adapters


def save_adapter(model: GPT, directory: Path, *, base: str) -> None:
    """Write the adapters alone, as PEFT does; queries, keys and values then have equal A.

    Args:
        model: with adapters.
        directory: to make; it must not exist.
        base: what the model began from, for PEFT to find it.

    Raises:
        TrainConfigError: there are no adapters, or PEFT has no names for such a model.
        SaveError: the system refused.
    """
    layers, config = adapters(model), model.config
    family = family_of(config)
    if not layers or family == "yocto":
        what = "it has none" if not layers else "PEFT knows no such architecture"
        raise TrainConfigError(f"the adapters of this model cannot be saved: {what}")
    tensors, modules = {}, set()
    for name, layer in layers.items():
        form = stored(config, family, f"{name}.weight", layer.out_features)
        parts = layer.lora_b.detach().cpu().split_with_sizes(form.rows)
        for whole_name, part in zip(form.names, parts, strict=True):
            theirs = whole_name.removesuffix(".weight")
            modules.add(theirs.rpartition(".")[2])
            tensors[f"base_model.model.{theirs}.lora_A.weight"] = (
                layer.lora_a.detach().cpu().clone()
            )
            tensors[f"base_model.model.{theirs}.lora_B.weight"] = part.contiguous()
    first = next(iter(layers.values()))
    rank = len(first.lora_a)
    document = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": first.scale * rank, "target_modules": sorted(modules), "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": family == "gpt2", "inference_mode": True,
    }  # fmt: skip
    temporary = files.temporary_for(directory)
    with failing_as(SaveError, f"cannot write {directory}"):
        with files.new_directory(temporary):
            save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
            text = json.dumps(document, indent=2) + "\n"
            (temporary / "adapter_config.json").write_text(text, encoding="utf-8")
        files.rename(temporary, directory)
