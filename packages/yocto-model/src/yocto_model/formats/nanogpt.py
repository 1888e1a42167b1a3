"""Models that nanoGPT trained: its `ckpt.pt` holds settings and weights in a pickle.

It is the only pickle that is ever opened, by torch's reader for weights, which knows tensors and
plain values and runs no code. The vocabulary (`meta.pkl`) is not in it, and is not opened.
"""

import functools
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yocto_model.config import GPTConfig
from yocto_model.errors import ConfigError, ModelFileError, quoted
from yocto_model.formats.assembly import Entry, assemble, check_is_file, what_it_is
from yocto_model.formats.families import COMPUTED, stored
from yocto_model.gpt import GPT

_FIELDS = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}
_COMPILED = "_orig_mod."  # what torch.compile puts before each name


def read_nanogpt(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> GPT:
    """Read a `ckpt.pt` of nanoGPT, in evaluation mode; its optimizer is left alone.

    Args:
        path: the file.
        device: where the weights go.
        dtype: convert the weights; None keeps the stored dtype.

    Raises:
        ModelFileError: not such a file, one of another program, or damaged.
        OSError: the file could not be read.
    """
    path = Path(path)
    content = _content(path)
    fields, weights = content.get("model_args"), content.get("model")
    if not isinstance(fields, dict) or not isinstance(weights, dict):
        raise ModelFileError(f"{path} is not nanoGPT's: it lacks model_args or model")
    if unknown := sorted(quoted(name) for name in fields if name not in _FIELDS):
        raise ModelFileError(f"{path}: nanoGPT has no setting {', '.join(unknown[:5])}")
    try:
        # Its activation is the exact GELU, not GPT-2's.
        config = GPTConfig.from_arch("gpt2", activation="gelu", **fields)
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error
    entries = {}
    for name, tensor in weights.items():
        key = str(name).removeprefix(_COMPILED)
        if not (isinstance(tensor, Tensor) and tensor.layout == torch.strided):
            raise ModelFileError(f"{path}: {quoted(key)} is not a tensor")
        if not COMPUTED.search(key):
            if not tensor.is_floating_point():
                raise ModelFileError(f"{path}: {quoted(key)} is not an array of floats")
            read = functools.partial(Tensor.copy_, other=tensor)
            entries[key] = Entry(tensor.dtype, tuple(tensor.shape), read)
    # A view may claim more than the file holds. The head rightly lies where the embedding does.
    counted = [w for name, w in weights.items() if not str(name).endswith("lm_head.weight")]
    n_bytes = sum(w.element_size() * w.numel() for w in counted)
    if n_bytes > path.stat().st_size:
        raise ModelFileError(f"{path} is damaged: its weights are larger than the file")
    form = functools.partial(stored, config, "nanogpt")
    return assemble(GPT, path, config, entries, form, device=device, dtype=dtype)


def _content(path: Path) -> dict[str, Any]:
    """The file's dictionary; its tensors stay in the file, which is mapped."""
    check_is_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # As torch writes it. So what is unpacked cannot be larger than the file.
            is_plain = all(member.compress_type == 0 for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError) as error:
        what = what_it_is(path, expected=b"PK")
        raise ModelFileError(f"{path} is no checkpoint of nanoGPT: it is {what}") from error
    if not is_plain:
        raise ModelFileError(f"{path} is no checkpoint of nanoGPT: it is a compressed archive")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage to a pickle raises anything
        raise ModelFileError(
            f"{path} is damaged, or holds more than weights and plain settings"
        ) from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} is not nanoGPT's: it holds no settings and weights")
    return content
