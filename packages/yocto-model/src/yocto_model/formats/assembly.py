"""From the tensors of a file, whatever its format, to a GPT.

Nothing is believed before it is checked: a file may be incomplete, of another kind, or claim sizes
that no memory holds. Each format lists its tensors without reading them; the rest is done here.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yocto_model.config import GPTConfig
from yocto_model.errors import ModelFileError, quoted
from yocto_model.formats.families import Stored, absent_biases
from yocto_model.layers import rotary_tables

if TYPE_CHECKING:
    from yocto_model.gpt import GPT

_LARGEST_TABLE_BYTES = 2**30  # of rotary positions: two million of them with 64 numbers each
_MANY_WEIGHTS = 2**40  # no model has as many; torch can still multiply the sizes
# As many are converted at once. For more, torch uses threads; on a busy machine they wait for each
# other far longer than the work takes.
CHUNK_VALUES = 2**15
_SIGNS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the real file with `git lfs pull`",
    b"<!doc": "a web page",
    b"<html": "a web page",
    b"pk\x03\x04": "a zip archive, perhaps a .pt file, which holds a pickle and is never opened",
    b"\x80": "a pickle, which is never opened",
    b"gguf": "a GGUF file",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: what is known of it before it is read.

    Attributes:
        dtype: the smallest that holds its values exactly.
        shape: its shape in the file.
        read: copies its values into a tensor of that shape, of any dtype and memory order.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[Tensor], object]


def check_is_file(path: Path) -> None:
    """Raise ModelFileError unless a path is a regular file: nothing waits for a pipe."""
    if not path.is_file():
        raise ModelFileError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")


def what_it_is(path: Path, expected: bytes = b"") -> str:
    """What a file that could not be read looks like; `expected` is how it should begin."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty"
    begin = head.lstrip().lower()
    looks = (what for sign, what in _SIGNS.items() if begin.startswith(sign))
    damaged = "cut off or damaged"
    return damaged if expected and head.startswith(expected) else next(looks, damaged)


def read_values(file: BufferedReader, start: int, dtype: torch.dtype, target: Tensor) -> None:
    """Copy numbers that lie in a file, row after row from byte `start`, into `target`.

    They are read, not mapped: a mapped file's memory has no fixed alignment, on which the last bits
    of a product may depend, and a file that is cut ends the program. What needs no conversion goes
    straight to where it belongs, anything else a few rows at a time.
    """
    file.seek(start)
    # A transposed single column is contiguous, too, and still cannot be viewed as bytes.
    in_order = target.is_contiguous() and target.stride(-1) == 1
    is_alike = in_order and target.dtype == dtype and target.device.type == "cpu"
    rows = target.view(-1, target.shape[-1])
    step = len(rows) if is_alike else max(1, CHUNK_VALUES // rows.shape[1])
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        buffer = part if is_alike else torch.empty(part.shape, dtype=dtype)
        data = buffer.view(torch.uint8).numpy().data
        if file.readinto(data) != data.nbytes:
            raise OSError("the file became shorter while it was read")
        if not is_alike:
            part.copy_(buffer)


def is_finite(weight: Tensor) -> bool:
    """Whether none of a contiguous tensor's values is NaN or infinite."""
    if weight.device.type != "cpu":
        return all(math.isfinite(bound) for bound in weight.aminmax())  # NaN if any value is
    # What is not finite has all bits of the exponent set: among numbers of its sign, its bits are
    # the largest. NumPy finds the largest in one pass, and without threads.
    n_bits = 8 * weight.dtype.itemsize
    kind = getattr(torch, f"int{n_bits}")
    limit = int(torch.tensor(math.inf, dtype=weight.dtype).view(kind))
    bits = weight.view(kind).numpy()
    return bits.max() < limit and bits.view(f"u{bits.dtype}").max() < limit + 2 ** (n_bits - 1)


def assemble(
    model_class: "type[GPT]",
    where: Path,
    config: GPTConfig,
    entries: Mapping[str, Entry],
    form: Callable[[str, int], Stored],
    *,
    needs_biases: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> "GPT":
    """A model in evaluation mode, from exactly the tensors that its settings need.

    Args:
        model_class: GPT.
        where: the file or folder, for messages.
        config: the model's settings.
        entries: the tensors, by their names in the file.
        form: how our weight of this name and this many rows is stored.
        needs_biases: whether such a file has biases even for a model that has none.
        device: where the weights go.
        dtype: convert the weights; None keeps the smallest type that holds all of them exactly.

    Raises:
        ModelFileError: tensors are missing, too many, misshapen or not finite.
    """
    _check_sizes(where, config, entries)
    with torch.device("meta"):  # no memory and no time for weights that are replaced
        model = model_class(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    [head_key] = form("head.weight", config.vocab_size).names
    if config.tie_weights and head_key not in entries:
        del shapes["head.weight"]
    absent = absent_biases(config, list(shapes)) if needs_biases else {}
    shapes |= {bias: shapes[weight][:1] for bias, weight in absent.items()}
    forms = {name: form(name, shape[0]) for name, shape in shapes.items()}
    _check_shapes(where, config, entries, forms, shapes)
    if dtype is None:
        dtype = functools.reduce(torch.promote_types, (entry.dtype for entry in entries.values()))
    weights = {}
    for name, stored in forms.items():
        weights[name] = torch.empty(shapes[name], device=device, dtype=dtype)
        places = weights[name].split_with_sizes(stored.rows)
        for place, key in zip(places, stored.names, strict=True):
            entries[key].read(place.t() if stored.transposed else place)
            if not is_finite(place):
                kind = "" if dtype == entries[key].dtype else f" as {dtype}"
                raise ModelFileError(f"{where}: {key} holds NaN or infinite values{kind}")
    if any(bool(weights.pop(bias).any()) for bias in absent):
        raise ModelFileError(f"{where} has biases, but its settings say it has none")
    table = weights["token_emb.weight"]
    head = weights.setdefault("head.weight", table)
    if config.tie_weights and head is not table and not head.equal(table):
        raise ModelFileError(
            f"{where}: {head_key} is not the embedding, but its settings say it is"
        )
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.head.weight = model.token_emb.weight  # one tensor, not two equal ones
    # The weights are where they belong; this moves the rotary tables there, too.
    return model.to(device=device, dtype=dtype).eval()


def convert(model: "GPT", fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GPT":
    """`GPT._apply`: as torch's, but tables of rotary positions are rounded only once.

    In bfloat16 they are good for a model that computes in it; made float32 again, they would put
    each token where it is not.
    """
    before = model.token_emb.weight.dtype
    nn.Module._apply(model, fn, recurse)  # type: ignore[no-untyped-call] # noqa: SLF001 - overridden
    if model.config.positions == "rotary" and before != model.token_emb.weight.dtype:
        cos, sin = rotary_tables(model.config)
        model.cos, model.sin = cos.to(model.cos), sin.to(model.sin)
    return model


def _check_sizes(where: Path, config: GPTConfig, entries: Mapping[str, Entry]) -> None:
    """Before a model is built, still without memory: refuse settings of an absurd size."""
    if config.n_parameters > _MANY_WEIGHTS or len(entries) < config.n_layer:
        _check_held(where, config, entries)
    table_bytes = 2 * 4 * config.block_size * config.head_width
    if config.positions == "rotary" and table_bytes > _LARGEST_TABLE_BYTES:
        raise ModelFileError(
            f"{where}: its context of {config.block_size:,} tokens needs about "
            f"{table_bytes / 1e9:,.0f} GB for positions alone"
        )


def _check_held(where: Path, config: GPTConfig, entries: Mapping[str, Entry]) -> None:
    """Refuse settings that need more weights than the file brings."""
    held = sum(math.prod(entry.shape) for entry in entries.values())
    if held < config.n_parameters or len(entries) < config.n_layer:
        raise ModelFileError(
            f"{where}: its settings need {config.n_parameters:,} weights (n_layer "
            f"{config.n_layer:,}), but it holds {held:,} (tensors: {len(entries):,})"
        )


def _check_shapes(
    where: Path,
    config: GPTConfig,
    entries: Mapping[str, Entry],
    forms: Mapping[str, Stored],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Each tensor that is needed is there and has its shape, and there is no other."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, form in forms.items():
        for key, n_rows in zip(form.names, form.rows, strict=True):
            shape = (n_rows, *shapes[name][1:])
            wanted[key] = shape[::-1] if form.transposed else shape
    problems = [f"{key} is missing" for key in wanted if key not in entries]
    if not 0 < len(problems) <= 10:  # of none or many, the sizes say more
        _check_held(where, config, entries)
    problems += [f"{quoted(key)} is unknown" for key in entries if key not in wanted]
    problems += [
        f"{key} has shape {entries[key].shape}, expected {shape}"
        for key, shape in wanted.items()
        if key in entries and entries[key].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ModelFileError(f"{where}: {'; '.join(problems[:10])}{more}")
