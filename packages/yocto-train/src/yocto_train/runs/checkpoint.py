"""Checkpoint: a step directory, written whole or not at all, and verified when it is read.

    step-00001000/
      config.json  model.safetensors  generation_config.json  chat_template.jinja
      tokenizer.json  tokenizer_config.json  vocab.json | tokenizer.model
      opt.safetensors  manifest.json

It is a Hugging Face model folder, with what resuming needs beside it. It is filled under a
temporary name, every file is forced to the disk, the manifest is written last; then it is renamed,
and the rename forced to the disk as well. run.py finds checkpoints and keeps `latest` and `best`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yocto_model  # which imports torch when a model is asked for
import yocto_tokenizers
from safetensors import SafetensorError, safe_open
from yocto_data.prep import files
from yocto_model import ModelError
from yocto_tokenizers import TokenizerError

from yocto_train.errors import CheckpointError, SaveError, TrainError, reason

if TYPE_CHECKING:
    import torch
    from yocto_model import GPT
    from yocto_tokenizers import Tokenizer

MANIFEST, STATE = "manifest.json", "opt.safetensors"
MODEL_FILES = ("config.json", "model.safetensors")
TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_VERSION = 1
_MAX_BYTES = 1 << 20
_STEP_NAME = re.compile(r"step-([0-9]{8})")
_FILE_NAME = re.compile(r"[a-z_]+\.(safetensors|json|model|jinja)")
_METADATA = "yocto"  # the key in opt.safetensors for everything that is not a tensor
_WEIGHTS = "weights."  # in there, before the names of weights that the model file only rounds


@contextlib.contextmanager
def failing_as(kind: type[TrainError], what: str, advice: str = "") -> Iterator[None]:
    """Turn errors of the system or a library in the block into an error of our own, in one line."""
    try:
        yield
    except kind:
        raise
    except (ModelError, TokenizerError) as error:
        raise kind(str(error)) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise kind(f"{what}: {reason(error)}{advice}") from error


def reading(path: Path | str) -> contextlib.AbstractContextManager[None]:
    """For a block that reads a path: its errors become a CheckpointError that names the path."""
    return failing_as(CheckpointError, f"cannot read {path}")


def opened(path: Path) -> io.BufferedReader:
    """A regular file, opened for reading; a symbolic link is refused."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link")
    return files.open_regular(path)


# --- the manifest --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a manifest says about a file: its size, and its sha256 in hex."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """The record of a file as it is now."""
        with opened(path) as file:
            return cls(bytes=os.fstat(file.fileno()).st_size, sha256=files.sha256_of(file))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json: what a step directory consists of. It is written last, so the rest exists."""

    step: int  # finished optimizer steps
    files: Mapping[str, FileRecord]  # size and sha256 of each other file in the directory
    tokenizer: str | None  # the tokenizer's fingerprint, or None if the run had none
    data: Mapping[str, str]  # sha256 of the splits the run used, by name
    val_loss: float | None  # loss of the last evaluation, if it was made at this step
    environment: Mapping[str, str | int]  # what exact resuming depends on

    def to_bytes(self) -> bytes:
        """JSON that carries its own sha256; equal manifests give equal bytes."""
        header = {"format": "yocto-checkpoint", "format_version": _VERSION}
        content: dict[str, Any] = {**header, **dataclasses.asdict(self)}
        content["sha256"] = _own_hash(content)
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read and check the manifest of a step directory."""
        path = directory / MANIFEST
        if not os.path.lexists(path):
            raise CheckpointError(f"{directory} is not a checkpoint: it has no {MANIFEST}")
        with reading(path), opened(path) as file:
            raw = file.read(_MAX_BYTES + 1)
        try:
            return cls._parse(raw)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            damaged = "is damaged; use another step's checkpoint"
            what = error if isinstance(error, CheckpointError) else damaged
            raise CheckpointError(f"{path} {what}") from error

    @classmethod
    def _parse(cls, raw: bytes) -> Manifest:
        if len(raw) > _MAX_BYTES:
            raise ValueError("too large")
        content = json.loads(raw)
        if content.pop("format_version") > _VERSION:
            raise CheckpointError("was written by a newer version of yocto; upgrade yocto")
        del content["format"], content["sha256"]
        records = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        found = cls(files=records, **content)
        # Stricter than its own hash: not even a blank may differ, and no entry may be unknown.
        if not found._is_plausible() or found.to_bytes() != raw:
            raise ValueError("an entry is out of its range, or its own sha256 is wrong")
        return found

    def _is_plausible(self) -> bool:
        """Whether every entry has the type and the range that it is used with."""
        sizes = [record.bytes for record in self.files.values()]
        texts: list[object] = [record.sha256 for record in self.files.values()]
        texts += [self.tokenizer or "", *self.data.values()]
        number: object = self.val_loss or 0.0
        return (
            self.step in range(10**8)
            and set(MODEL_FILES) <= set(self.files)
            and all(_FILE_NAME.fullmatch(name) for name in self.files)
            and all(type(value) is int for value in (self.step, *sizes))
            and type(number) is float
            and all(type(value) is str for value in texts)
            and all(type(value) in (str, int) for value in self.environment.values())
        )


def _own_hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A step directory with a sound manifest; each file is verified when it is opened.

    Its methods raise CheckpointError, which names what is missing, damaged or out of place.
    """

    directory: Path
    manifest: Manifest
    skipped: tuple[str, ...] = ()  # what is wrong with newer ones, which were passed over

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Open a step directory. A file that is missing is noticed when it is needed."""
        found = cls(directory, Manifest.read(directory))
        if step_of(directory.name) not in (None, found.step):
            raise CheckpointError(f"{directory} holds the checkpoint of step {found.step}")
        known = {MANIFEST, *found.manifest.files}
        # What desktops leave behind, such as .DS_Store, is never opened and does no harm.
        names = (name for name in names_in(directory) if not name.startswith("."))
        if unknown := sorted(set(names) - known):
            raise CheckpointError(
                f"{directory} holds {unknown[0]}, which its manifest does not name; remove it"
            )
        return found

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.manifest.step

    @property
    def val_loss(self) -> float | None:
        """Validation loss at this step, in nats per token, if it was evaluated."""
        return self.manifest.val_loss

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.directory.parent

    def verify(self, *, to_resume: bool = True) -> None:
        """Check every file's size and hash.

        Args:
            to_resume: False leaves opt.safetensors out, which writing text does not need.
        """
        self._verify(*(name for name in self.manifest.files if to_resume or name != STATE))

    def load_model(
        self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> GPT:
        """The model, in evaluation mode."""
        self._verify(*MODEL_FILES)
        with reading(self.directory):
            return yocto_model.GPT.load(self.directory, device=device, dtype=dtype)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer the model was trained with."""
        if self.manifest.tokenizer is None:
            raise CheckpointError(f"{self.directory} holds no tokenizer; name one")
        self._verify(*(set(self.manifest.files) - {*MODEL_FILES, STATE}))
        with reading(self.directory):
            tokenizer = yocto_tokenizers.load_tokenizer(self.directory)
        if tokenizer.fingerprint() != self.manifest.tokenizer:
            raise CheckpointError(f"{self.directory} does not hold its model's tokenizer")
        return tokenizer

    def load_state(self) -> dict[str, Any]:
        """What `save_checkpoint` was given as `state`, its tensors on the CPU.

        With `weights`, as they were trained, where model.safetensors holds them in a smaller type.
        """
        self._verify(STATE)
        path = self.directory / STATE
        try:
            with reading(path), safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(_METADATA, "")
                # Copies: the file is mapped into memory, and may be pruned.
                moments = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            names = [name for name in moments if name.startswith(_WEIGHTS)]
            weights = {name.removeprefix(_WEIGHTS): moments.pop(name) for name in names}
            state = json.loads(text)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} does not hold the state of a training run") from error
        if not isinstance(state, dict) or state.get("step") != self.step:
            raise CheckpointError(f"{path} belongs to another step")
        return {**state, "moments": moments, "weights": weights}

    def _verify(self, *names: str) -> None:
        """Refuse files whose content is not what the manifest records."""
        for name in names:
            path, record = self.directory / name, self.manifest.files.get(name)
            if record is None or not os.path.lexists(path):
                raise CheckpointError(f"{path} is missing")
            with reading(path):
                is_sound = FileRecord.of(path) == record
            if not is_sound:
                raise CheckpointError(
                    f"{path} is damaged: it differs from what {MANIFEST} records; "
                    "use another step's checkpoint"
                )


# --- writing -------------------------------------------------------------------------------------


def save_checkpoint(
    run: Path,
    model: GPT,
    state: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None,
    data: Mapping[str, str],
    val_loss: float | None,
    environment: Mapping[str, str | int],
    end_ids: Iterable[int] = (),
    template: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path | None:
    """Write a step directory; on return it is on the disk, whole.

    Args:
        run: the run directory, which must exist; its lock is held by the caller.
        model: the model, without wrappers; its adapters are merged.
        state: what resuming needs: "step", tensors by name under "moments", and whatever JSON
            can hold.
        tokenizer: saved with the model, if there is one, as Hugging Face's libraries open it.
        data: sha256 of the splits by name.
        val_loss: loss at this very step, if known.
        environment: what exact resuming depends on.
        end_ids: ids that end a text or a turn, besides the tokenizer's `eos_id`.
        template: Jinja source of how the model is asked, if it was trained on chats.
        dtype: of the weights that others open; they then are in opt.safetensors, too, as they were
            trained. None keeps their type.

    Returns:
        Where a different checkpoint of that step is now, if there was one.

    Raises:
        SaveError: the system refused, or the state cannot be saved; what was there before is
            unchanged.
    """
    from yocto_train.tune.lora import merged  # noqa: PLC0415 - brings torch in

    final = run / step_name(state["step"])
    temporary = files.temporary_for(final)
    try:
        with files.new_directory(temporary):
            eos_id = None if tokenizer is None else tokenizer.eos_id
            ends = {*end_ids, *(() if eos_id is None else (eos_id,))}
            whole = merged(model)
            whole.save(temporary, end_ids=ends, dtype=dtype)
            for name, content in _other_files(tokenizer, template, model.config.block_size):
                (temporary / name).write_bytes(content)
            is_exact = dtype is None and whole is model  # what is saved is what is trained
            _save_state(temporary / STATE, state, weights={} if is_exact else trained(model))
            records = {}
            for path in sorted(temporary.iterdir()):
                files.sync_file(path)
                records[path.name] = FileRecord.of(path)
            manifest = Manifest(
                step=state["step"], files=records, data=data, val_loss=val_loss,
                tokenizer=None if tokenizer is None else tokenizer.fingerprint(),
                environment=environment,
            )  # fmt: skip
            (temporary / MANIFEST).write_bytes(manifest.to_bytes())
        return _commit(temporary, final, manifest)
    except BaseException as error:
        with contextlib.suppress(OSError):
            files.remove(temporary)
        why = _why(error, run, model, state)
        if why is None:  # an interrupt, or a mistake of ours: not the system's refusal
            raise
        raise SaveError(
            f"cannot save step {state['step']} in {run}: {why}; earlier checkpoints are unchanged"
        ) from error


def _other_files(
    tokenizer: Tokenizer | None, template: str | None, block_size: int
) -> Iterator[tuple[str, bytes]]:
    """The files of the tokenizer and of the template, by name."""
    found = {} if tokenizer is None else tokenizer.folder_files(model_max_length=block_size)
    if template is not None:
        yield TEMPLATE, template.encode()
        if TOKENIZER_CONFIG in found:  # where older readers look for it
            config = {"chat_template": template, **json.loads(found[TOKENIZER_CONFIG])}
            found[TOKENIZER_CONFIG] = (json.dumps(config, indent=1) + "\n").encode()
    yield from found.items()


def trained(model: GPT) -> dict[str, torch.Tensor]:
    """The weights by name, each tensor once."""
    tied = "head.weight" if model.config.tie_weights else None
    return {name: weight for name, weight in model.state_dict().items() if name != tied}


def _save_state(path: Path, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 - imports torch

    rest = {name: value for name, value in state.items() if name != "moments"}
    tensors = {**state.get("moments", {}), **{_WEIGHTS + n: w for n, w in weights.items()}}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Only one entry of metadata: several would be written in no fixed order.
    save_file(tensors, path, metadata={_METADATA: json.dumps(rest, sort_keys=True)})
    shutil.copymode(path.with_name("config.json"), path)  # safetensors lets only us read it


def _commit(temporary: Path, final: Path, manifest: Manifest) -> Path | None:
    """Give the directory its name; an equal one that has it is kept, a different one put aside."""
    put_aside = None
    if os.path.lexists(final):
        with contextlib.suppress(CheckpointError):
            old = Checkpoint.open(final)
            old.verify()
            if old.manifest == manifest:
                with contextlib.suppress(OSError):  # the next writer clears up
                    files.remove(temporary)
                return None
        put_aside = aside(final)
    try:
        files.rename(temporary, final)
    except OSError:
        if put_aside is not None and not os.path.lexists(final):
            files.rename(put_aside, final)
        raise
    return put_aside


def aside(directory: Path) -> Path:
    """Rename a step directory so that it no longer counts as one; returns where it is now.

    Raises:
        OSError: the system refused.
    """
    target = directory.with_name(f"{directory.name}.old-{secrets.token_hex(4)}")
    files.rename(directory, target)
    return target


def _why(error: BaseException, run: Path, model: GPT, state: Mapping[str, Any]) -> str | None:
    """Why saving failed, in words; None if the error has another cause."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if not isinstance(error, OSError | SafetensorError | TokenizerError | TypeError | ValueError):
        return None
    # Recognised by its text: safetensors passes that on, but not the system's error number.
    if os.strerror(errno.ENOSPC) in str(error):
        tensors = [*model.state_dict().values(), *state.get("moments", {}).values()]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(run).free
            return f"{reason(error)}: it needs about {needed:,} bytes, {free:,} are free"
    return reason(error)


# --- names ---------------------------------------------------------------------------------------


def step_name(step: int) -> str:
    """What the directory of a step is called: `step-00000012`."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step whose directory has this name, or None for any other name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_directory(path: Path) -> bool:
    """Whether a path is a real directory, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def names_in(directory: Path) -> list[str]:
    """Names in a directory; none if it is not a directory.

    Raises:
        CheckpointError: it cannot be read.
    """
    with reading(directory), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(directory)  # noqa: PTH208 - names are what is wanted
    return []
