"""A model folder: config.json beside model.safetensors, or beside the shards that an index names.

safetensors checks that a file's parts add up; assembly.py checks the rest.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from yocto_model.errors import ConfigError, InputError, ModelFileError, quoted
from yocto_model.formats.assembly import Entry, assemble, check_is_file, read_values, what_it_is
from yocto_model.formats.families import (
    COMPUTED,
    PREFIXES,
    absent_biases,
    family_of,
    from_document,
    stored,
    to_document,
)

if TYPE_CHECKING:
    from yocto_model.gpt import GPT

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
_LARGEST_JSON_BYTES = 50_000_000
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


def save_model(
    model: "GPT",
    directory: str | os.PathLike[str],
    *,
    end_ids: Iterable[int] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """`GPT.save`: write a Hugging Face model folder; other files in the directory stay.

    Args:
        model: the model.
        directory: gets `config.json` and `model.safetensors`, and with `end_ids` also
            `generation_config.json`.
        end_ids: ids that end a text, or a turn of a chat, for programs that generate.
        dtype: convert the weights on disk, as bfloat16 to halve the file; None keeps theirs.

    Raises:
        InputError: `dtype` is no type of floats, or cannot hold a weight; nothing is written.
        OSError: a file could not be written.
    """
    directory, config, weights = Path(directory), model.config, model.state_dict()
    family, ends = family_of(config), sorted({*end_ids})
    dtype = dtype or weights["token_emb.weight"].dtype
    _check_dtype(weights, dtype)
    tensors: dict[str, Tensor] = {}
    absent = absent_biases(config, list(weights)) if family == "gpt2" else {}
    zeros = {bias: weights[name].new_zeros(len(weights[name])) for bias, name in absent.items()}
    for name, weight in {**weights, **zeros}.items():
        if name == "head.weight" and config.tie_weights:
            continue
        form = stored(config, family, name, len(weight))
        parts = weight.detach().to("cpu", dtype).split_with_sizes(form.rows)
        for part, tensor in zip(form.names, parts, strict=True):
            tensors[part] = (tensor.t() if form.transposed else tensor).contiguous()
    document = to_document(config) | {"dtype": str(dtype).removeprefix("torch.")}
    documents = {CONFIG: document}
    if ends:
        document["eos_token_id"] = ends
        documents[GENERATION] = {"eos_token_id": ends}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in documents.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    try:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"could not write {directory / WEIGHTS}: {error}") from error
    shutil.copymode(directory / CONFIG, directory / WEIGHTS)  # safetensors lets only us read it


def _check_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    if dtype not in _DTYPES.values():
        raise InputError(f"a model cannot be saved as {dtype}")
    if dtype != torch.float16:  # the others reach as far as float32 does
        return
    for name, weight in weights.items():
        if weight.abs().amax() > torch.finfo(dtype).max:
            raise InputError(f"{name} has a value too large for float16; save as bfloat16")


def read_end_ids(directory: str | os.PathLike[str]) -> tuple[int, ...]:
    """The ids that end a text, as a model folder tells programs that generate.

    `eos_token_id` of generation_config.json counts, else that of config.json: an id, or several.

    Raises:
        ModelFileError: a file is damaged, or what it says are no ids.
        OSError: a file could not be read.
    """
    for path in (Path(directory) / GENERATION, Path(directory) / CONFIG):
        found = _read_json(path).get("eos_token_id") if path.exists() else None
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(type(token) is int and token >= 0 for token in ids):
                raise ModelFileError(f"{path}: eos_token_id must be an id, or a list of ids")
            return tuple(ids)
    return ()


def load_model(
    model_class: "type[GPT]",
    directory: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> "GPT":
    """`GPT.load`: read a model folder, ours or another's, in evaluation mode; no code in it is run.

    Args:
        model_class: GPT.
        directory: holds the `config.json` of a gpt2, llama, qwen2 or qwen3 and its weights.
        device: where the weights go.
        dtype: convert the weights; None keeps the stored dtype.

    Raises:
        ModelFileError: not a model that this package can compute, damaged, or incomplete.
        OSError: a file could not be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        state = "is a file" if directory.exists() else "does not exist"
        raise ModelFileError(f"{directory} {state}; a model is a folder with {CONFIG}")
    document = _read_json(directory / CONFIG)
    try:
        config = from_document(document)
    except (ConfigError, ModelFileError) as error:
        raise ModelFileError(f"{directory / CONFIG}: {error}") from error
    family = document["model_type"]
    return assemble(
        model_class,
        directory,
        config,
        _entries(directory, PREFIXES.get(family, "model.")),
        functools.partial(stored, config, family),
        needs_biases=family == "gpt2",
        device=device,
        dtype=dtype,
    )


def _entries(directory: Path, prefix: str) -> dict[str, Entry]:
    """All tensors of a folder, by their names in a whole model."""
    found = {}
    for path in _weight_files(directory):
        check_is_file(path)
        try:
            with safe_open(path, framework="np"):  # checks that its parts add up
                pass
        except (SafetensorError, ValueError) as error:
            raise ModelFileError(
                f"{path} is not a safetensors file: it is {what_it_is(path)}"
            ) from error
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        for key, tensor in header.items():
            if key == "__metadata__":
                continue
            kind, shape = tensor["dtype"], tuple(tensor["shape"])
            if kind not in _DTYPES or 0 in shape:
                raise ModelFileError(
                    f"{path}: {quoted(key)} is {kind} {shape}, not an array of floats"
                )
            if not COMPUTED.search(key):
                whole = key if key.startswith(("lm_head.", prefix)) else prefix + key
                start = 8 + header_bytes + tensor["data_offsets"][0]
                read = functools.partial(_read, path, start, _DTYPES[kind])
                found[whole] = Entry(_DTYPES[kind], shape, read)
    return found


def _read(path: Path, start: int, dtype: torch.dtype, target: Tensor) -> None:
    with path.open("rb") as file:
        read_values(file, start, dtype, target)


def _weight_files(directory: Path) -> list[Path]:
    whole, index = directory / WEIGHTS, directory / INDEX
    if whole.exists():
        return [whole]
    if index.exists():
        names = _read_json(index).get("weight_map")
        files = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
        if not files or any(Path(name).name != name for name in files):
            raise ModelFileError(f"{index} names no weights, or files outside its folder")
        return [directory / name for name in files]
    if any(directory.glob("pytorch_model*.bin")):
        raise ModelFileError(
            f"{directory} holds its weights as pytorch_model.bin, a pickle, which could run code "
            f"and is never opened; convert it to {WEIGHTS} (transformers: save_pretrained)"
        )
    raise ModelFileError(f"{whole} is missing")


def _read_json(path: Path) -> dict[str, Any]:
    check_is_file(path)
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        raise ModelFileError(f"{path} is far too large for a file of settings")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: it is {what_it_is(path)}") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} does not hold a JSON object")
    return document
