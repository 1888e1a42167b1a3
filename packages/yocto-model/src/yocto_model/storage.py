"""Reading and writing .pt files: the only place that calls `torch.save` and `torch.load`.

A .pt file is a zip archive of raw tensors and one restricted pickle. `torch.load` does not check
the archive's checksums, follows odd archives, and believes any size it reads; so the archive is
inspected before it is opened, and what comes out is inspected before it is used.
"""

import contextlib
import functools
import os
import pickle
import re
import secrets
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from yocto_model.config import GPTConfig
from yocto_model.errors import ModelFileError, quoted

File = str | os.PathLike[str] | IO[bytes]


class Writable(Protocol):
    """What `torch.save` needs of an open file."""

    def write(self, data: bytes, /) -> int:
        """Take bytes; return how many."""
        ...


_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, AssertionError, OverflowError, struct.error, MemoryError, zipfile.BadZipFile,
)  # fmt: skip
_ZIP_ERRORS = (
    zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, EOFError,
    RuntimeError, OverflowError,
)  # fmt: skip


def save(content: Mapping[str, Any], file: str | os.PathLike[str] | Writable) -> None:
    """Write tensors, numbers, strings, lists and dicts. A path is replaced in one step.

    Args:
        content: only tensors, str, int, float, bool, None, lists, tuples and dicts.
        file: a path or an open binary file.

    Raises:
        TypeError: the content holds something that could not be loaded back.
        OSError: the file could not be written; an existing one is unchanged.
    """
    _check_plain(content, "content")
    if not isinstance(file, str | os.PathLike):
        _write(content, file, name_of(file))
        return
    target = Path(file)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # less the umask; tempfile would give 0600
    try:
        with os.fdopen(descriptor, "wb") as out:
            _write(content, out, name_of(file))
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable; Windows cannot, and does without."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(file: File, *, expected_format: str, newest_version: int) -> dict[str, Any]:
    """Read a file that `save` wrote, tensors on the CPU, running no code from it.

    Args:
        file: a path or an open, seekable binary file.
        expected_format: what the file's "format" entry must be.
        newest_version: the highest "format_version" that the caller understands.

    Raises:
        ModelFileError: not such a file, damaged, of a newer version, or holding odd tensors.
        OSError: the file could not be read.
    """
    name = name_of(file)
    if isinstance(file, str | os.PathLike):
        if not Path(file).is_file():
            reason = "is not a regular file" if Path(file).exists() else "does not exist"
            raise ModelFileError(f"{name} {reason}")
        with Path(file).open("rb") as opened:
            content = _load_open(opened, name)
    else:
        content = _load_open(file, name)
    if not isinstance(content, dict) or content.get("format") != expected_format:
        raise ModelFileError(f"{name} is not a {expected_format} file")
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(f"{name} states no format version")
    if version > newest_version:
        raise ModelFileError(
            f"{name} has format version {version}; this yocto reads up to {newest_version}: upgrade"
        )
    _check_tensors(content, name)
    return content


def name_of(file: File | Writable) -> str:
    """How error messages call the file."""
    path = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "the file")
    return str(path) if str(path).isprintable() else quoted(str(path), limit=200)


def checked_weights(weights: object, config: GPTConfig, file: File) -> dict[str, Tensor]:
    """The state_dict, if it is one whose size and values make sense; else ModelFileError."""
    name = name_of(file)
    if not isinstance(weights, dict) or not weights:
        raise ModelFileError(f"{name} holds no weights")
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelFileError(f"{name}: weight {quoted(key)} is not a tensor")
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ModelFileError(f"{name}: weight {quoted(key)} is {tensor.dtype}, not a float")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{name}: weight {quoted(key)} holds NaN or infinite values")
    _check_size(weights, config, name)
    return weights


def _check_size(weights: Mapping[str, Tensor], config: GPTConfig, name: str) -> None:
    """Before a model is built: refuse settings that need much more memory than the file brings."""
    # By storage, because many weights may claim the same one; a tied head rightly does.
    storages = {t.untyped_storage().data_ptr(): t for t in weights.values()}.values()
    held = sum(t.untyped_storage().nbytes() // t.element_size() for t in storages)
    if held < config.n_parameters:
        raise ModelFileError(
            f"{name}: its settings need {config.n_parameters:,} weights, it holds {held:,}"
        )
    if len(weights) < config.n_layer:
        raise ModelFileError(
            f"{name}: its settings name {config.n_layer:,} layers, it holds {len(weights)} weights"
        )
    # Rotary tables are not in the file; 1 GiB of them is eight million positions of 16 numbers.
    table_bytes = 2 * 4 * config.block_size * config.head_dim
    if config.positions == "rotary" and table_bytes > 2**30:
        raise ModelFileError(
            f"{name}: its block_size {config.block_size:,} needs about "
            f"{table_bytes / 1e9:,.0f} GB for positions alone"
        )


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype that holds all values of all tensors exactly."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def check_fit(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, tied: bool, file: File
) -> None:
    """Compare names and shapes with the model's own; ModelFileError lists up to ten problems."""
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{quoted(key)} is unknown" for key in weights if key not in expected]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, expected {tuple(want.shape)}"
        for key, want in expected.items()
        if key in weights and weights[key].shape != want.shape
    ]
    if not problems and tied and not weights["head.weight"].equal(weights["token_emb.weight"]):
        problems = ["head.weight and token_emb.weight differ, but the settings tie them"]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ModelFileError(f"{name_of(file)}: {'; '.join(problems[:10])}{more}")


def _write(content: Mapping[str, Any], out: Writable, name: str) -> None:
    try:
        torch.save(dict(content), out)  # type: ignore[arg-type] # it calls nothing but write
    except RuntimeError as error:  # how torch reports that a write failed; the cause is below it
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise OSError(f"could not write {name}") from error
        raise OSError(cause.errno, cause.strerror or str(cause), name) from error


# --- the archive -----------------------------------------------------------------------------


def _load_open(file: IO[bytes], name: str) -> object:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    _check_archive(file, size, name)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        # torch's own text recommends loading unsafely, so it is not repeated.
        raise ModelFileError(
            f"{name} is damaged or holds more than plain tensors and numbers; it was not loaded"
        ) from error


def _check_archive(file: IO[bytes], size: int, name: str) -> None:
    head = file.read(512)
    if not head.startswith(b"PK\x03\x04"):
        raise ModelFileError(f"{name} is not a .pt file: it looks like {_looks_like(head)}")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            tail = archive.start_dir + sum(
                46 + len(m.orig_filename.encode()) + len(m.extra) + len(m.comment) for m in members
            )
            # Only an archive as torch writes it is read on: nothing to inflate or to decrypt.
            as_written = all(map(_is_as_written, members))
            adds_up = sum(m.file_size for m in members) <= size
            broken = archive.testzip() if as_written and adds_up else None
    except _ZIP_ERRORS as error:
        raise ModelFileError(f"{name} is cut off or damaged") from error
    if not as_written:
        raise ModelFileError(f"{name} is damaged or a compressed archive, which no .pt file is")
    names = [member.filename for member in members]
    odd = [n for n in names if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*", n) or ".." in n]
    if odd or len(set(names)) != len(names):
        raise ModelFileError(f"{name} holds oddly named or repeated members")
    if any(n.endswith("/constants.pkl") for n in names):
        raise ModelFileError(f"{name} is a TorchScript archive: code, which is never loaded")
    if sum(n.endswith("/data.pkl") for n in names) != 1:
        raise ModelFileError(f"{name} is a zip archive, but not a .pt file")
    # What follows the directory is an end record of 22 bytes, after 76 bytes more for zip64. And
    # nothing comes before the first member, or torch would count its places from elsewhere.
    file.seek(size - 22)
    ends = file.read(4) == b"PK\x05\x06" and size - tail in (22, 22 + 76)
    if not ends or not adds_up or min(member.header_offset for member in members) != 0:
        raise ModelFileError(f"{name} is damaged: its parts do not add up to its size")
    if broken is not None:
        raise ModelFileError(f"{name} is damaged: the checksum of {broken} is wrong")


def _is_as_written(member: zipfile.ZipInfo) -> bool:
    """Stored as it is, not encrypted, and not marked as a directory.

    Python takes a member for a directory if its name says so, torch if this one bit says so; it
    then reads nothing and returns what the memory held.
    """
    stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
    return stored and not member.flag_bits & 0x1 and not member.external_attr & 0x10


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    signs = (
        (b"version https://git-lfs", "a Git LFS pointer; fetch the real file"),
        (b"<!doc", "a web page"),
        (b"<html", "a web page"),
        (b"\x80", "a bare pickle, which is never loaded"),
        (b"\x1f\x8b", "a gzip file"),
        (b"gguf", "a GGUF file"),
    )
    if head[257:262] == b"ustar":
        return "a tar archive"
    for start, what in signs:
        if head.lstrip().lower().startswith(start):
            return what
    is_text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return "text" if is_text else "something else"


# --- the content -----------------------------------------------------------------------------


def _check_plain(value: object, where: str) -> None:
    """One NumPy number in a file makes it save but never load: refuse before writing."""
    if isinstance(value, Tensor):
        if not _is_plain_tensor(value):
            raise TypeError(
                f"{where} is no plain contiguous tensor, so it would not be loaded back"
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{quoted(key)}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{where} is a {type(value).__name__}, which cannot be loaded back safely")


def _check_tensors(content: object, name: str) -> None:
    """Refuse tensors that claim more memory than they bring: views, sparse, quantised, meta."""
    # Each object once and without recursion: a file may nest lists a million deep, or let each
    # hold the one before it twice.
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor) and not _is_plain_tensor(value):
            raise ModelFileError(f"{name} holds a tensor of an unsupported kind")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value


def _is_plain_tensor(value: Tensor) -> bool:
    return (
        value.layout == torch.strided
        and value.device.type != "meta"
        and not value.is_quantized
        and value.is_contiguous()
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
