"""A model folder: config.json beside model.safetensors, or beside the shards that an index names.

Nothing is believed before it is checked: a folder may be incomplete, of another kind, or claim
sizes that no memory holds. safetensors checks that a file's parts add up; we check the rest.
"""

import contextlib
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from yocto_model.config import GPTConfig
from yocto_model.errors import ConfigError, InputError, ModelFileError, quoted
from yocto_model.formats.families import (
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
_LARGEST_TABLE_BYTES = 2**30  # of rotary positions: two million of them with 64 numbers each
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
# Tables that old programs stored with the weights.
_COMPUTED = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
_SIGNS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the real file with `git lfs pull`",
    b"<!doc": "a web page",
    b"<html": "a web page",
    b"pk\x03\x04": "a zip archive, perhaps a .pt file, which holds a pickle and is never opened",
    b"\x80": "a pickle, which is never opened",
    b"gguf": "a GGUF file",
}


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
    absent = absent_biases(config, family, list(weights))
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
    entries = _entries(directory, PREFIXES.get(family, "model."))
    _check_sizes(directory, config, entries)
    with torch.device("meta"):  # no memory and no time for weights that are replaced
        model = model_class(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_weights and "lm_head.weight" not in entries:
        shapes.pop("head.weight", None)
    absent = absent_biases(config, family, list(shapes))
    shapes |= {bias: shapes[weight][:1] for bias, weight in absent.items()}
    weights = _read_weights(directory, config, family, entries, shapes, device, dtype)
    if any(bool(weights.pop(bias).any()) for bias in absent):
        raise ModelFileError(f"{directory} has biases, but its settings say it has none")
    head = weights.setdefault("head.weight", weights["token_emb.weight"])
    if config.tie_weights and not head.equal(weights["token_emb.weight"]):
        raise ModelFileError(
            f"{directory}: lm_head.weight is not the embedding, but tie_word_embeddings is true"
        )
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.head.weight = model.token_emb.weight  # one tensor, not two equal ones
    # The weights are where they belong; this moves the rotary tables there, too.
    return model.to(device=device, dtype=model.token_emb.weight.dtype).eval()


@dataclass(frozen=True)
class _Entry:
    """Where a tensor is, and what the file's header says of it."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor in the file, which is mapped anew each time so that read pages are freed."""
        with _opened(self.path) as file:
            tensor: Tensor = file.get_tensor(self.key)
        # Both are NaN if any value is: testing two numbers is cheaper than testing every value.
        if not (math.isfinite(tensor.amin()) and math.isfinite(tensor.amax())):
            raise ModelFileError(f"{self.path}: {self.key} holds NaN or infinite values")
        return tensor


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except RuntimeError as error:  # torch's, where the system refuses to map the file
        raise OSError(f"cannot read {path}: {error}") from error


def _entries(directory: Path, prefix: str) -> dict[str, _Entry]:
    """All tensors of a folder, by their names in a whole model."""
    found = {}
    for path in _weight_files(directory):
        _check_is_file(path)
        try:
            with _opened(path) as file:
                headers = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no dict
                kinds = {key: (h.get_dtype(), tuple(h.get_shape())) for key, h in headers.items()}
        except (SafetensorError, ValueError) as error:
            with path.open("rb") as file:
                head = file.read(64).lstrip().lower()
            looks = [what for sign, what in _SIGNS.items() if head.startswith(sign)]
            what = looks[0] if looks else "cut off or damaged" if head else "empty"
            raise ModelFileError(f"{path} is not a safetensors file: it is {what}") from error
        for key, (kind, shape) in kinds.items():
            if kind not in _DTYPES or 0 in shape:
                raise ModelFileError(
                    f"{path}: {quoted(key)} is {kind} {shape}, not an array of floats"
                )
            if not _COMPUTED.search(key):
                whole = key if key.startswith(("lm_head.", prefix)) else prefix + key
                found[whole] = _Entry(path, key, _DTYPES[kind], shape)
    return found


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


def _check_sizes(directory: Path, config: GPTConfig, entries: Mapping[str, _Entry]) -> None:
    """Before a model is built: refuse settings that need more memory than the files bring."""
    held = sum(math.prod(entry.shape) for entry in entries.values())
    if held < config.n_parameters or len(entries) < config.n_layer:
        raise ModelFileError(
            f"{directory}: its settings need {config.n_parameters:,} weights (n_layer "
            f"{config.n_layer:,}), but its files hold {held:,} (tensors: {len(entries):,})"
        )
    table_bytes = 2 * 4 * config.block_size * config.head_width
    if config.positions == "rotary" and table_bytes > _LARGEST_TABLE_BYTES:
        raise ModelFileError(
            f"{directory}: its context of {config.block_size:,} tokens needs about "
            f"{table_bytes / 1e9:,.0f} GB for positions alone"
        )


def _read_weights(  # noqa: PLR0917 - a step of `load_model`
    directory: Path,
    config: GPTConfig,
    family: str,
    entries: Mapping[str, _Entry],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Our weights, each read once, straight to where it belongs."""
    forms = {name: stored(config, family, name, shape[0]) for name, shape in shapes.items()}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, form in forms.items():
        for part, n_rows in zip(form.names, form.rows, strict=True):
            shape = (n_rows, *shapes[name][1:])
            wanted[part] = shape[::-1] if form.transposed else shape
    problems = [f"{name} is missing" for name in wanted if name not in entries]
    problems += [f"{quoted(name)} is unknown" for name in entries if name not in wanted]
    problems += [
        f"{name} has shape {entries[name].shape}, expected {shape}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ModelFileError(f"{directory}: {'; '.join(problems[:10])}{more}")
    if dtype is None:  # the smallest that holds all values exactly
        kinds = [entries[name].dtype for name in wanted]
        dtype = functools.reduce(torch.promote_types, kinds)
    weights = {}
    for name, form in forms.items():
        # Copied even if there is only one part: a mapped file's memory has no fixed alignment, on
        # which the last bits of a product may depend, and a file that is cut ends the program.
        weights[name] = torch.empty(shapes[name], device=device, dtype=dtype)
        places = weights[name].split_with_sizes(form.rows)
        for place, part in zip(places, form.names, strict=True):
            tensor = entries[part].read()
            place.copy_(tensor.t() if form.transposed else tensor)
    return weights


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise ModelFileError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")


def _read_json(path: Path) -> dict[str, Any]:
    _check_is_file(path)
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        raise ModelFileError(f"{path} is far too large for a file of settings")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} does not hold a JSON object")
    return document
