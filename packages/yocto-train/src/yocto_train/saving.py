"""Writing a step directory, which appears whole or not at all.

It is filled under a temporary name, each file forced to the disk, the manifest last; then it is
renamed, and the rename forced to the disk, too.
"""

import contextlib
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from yocto_model import GPT, save_pt
from yocto_tokenizers import TokenizerError

from yocto_train import files, manifest
from yocto_train.checkpoint import STATE_FORMAT, Checkpoint, step_name
from yocto_train.errors import CheckpointError, SaveError, reason
from yocto_train.manifest import Manifest


class SavableTokenizer(Protocol):
    """The part of a tokenizer that saving needs."""

    def save(self, path: Path, /) -> Path:
        """Write into a directory; returns the path written."""
        ...

    def fingerprint(self) -> str:
        """Hash of the content."""
        ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint that is on the disk, whole.

    Attributes:
        directory: the step directory.
        put_aside: where another checkpoint of that step, which was there before, is now.
    """

    directory: Path
    put_aside: Path | None


def save_checkpoint(
    run: Path,
    model: GPT,
    state: Mapping[str, Any],
    *,
    tokenizer: SavableTokenizer | None,
    data: Mapping[str, str],
    val_loss: float | None,
    environment: Mapping[str, str | int],
) -> Written:
    """Write a step directory; on return it is on the disk, whole.

    Args:
        run: the run directory, which must exist; its lock is held by the caller.
        model: the model, without wrappers.
        state: what resuming needs: plain values and tensors, among them "step".
        tokenizer: saved with the model, if there is one.
        data: sha256 of the splits by name.
        val_loss: loss at this very step, if known.
        environment: what exact resuming depends on.

    Raises:
        SaveError: the system refused, or the state cannot be saved; what was there before is
            unchanged.
    """
    step = state["step"]
    final = run / step_name(step)
    temporary = run / f".tmp-{final.name}-{secrets.token_hex(4)}"
    try:
        files.make_directory(temporary)
        record = Manifest(
            step=step,
            files=_write_files(temporary, model, state, tokenizer),
            tokenizer=None if tokenizer is None else tokenizer.fingerprint(),
            data=data,
            val_loss=val_loss,
            environment=environment,
        )
        record_bytes = record.to_bytes()
        files.write_new(temporary / manifest.NAME, lambda file: file.write(record_bytes))
        files.fsync_directory(temporary)
        return _commit(temporary, final, record)
    except BaseException as error:
        with contextlib.suppress(OSError):
            files.remove_tree(temporary)
        why = _why(error, run, model, state)
        if why is None:  # an interrupt, or a mistake of ours: not the system's refusal
            raise
        raise SaveError(
            f"cannot save step {step} in {run}: {why}; earlier checkpoints are unchanged"
        ) from error


def _write_files(
    directory: Path, model: GPT, state: Mapping[str, Any], tokenizer: SavableTokenizer | None
) -> dict[str, files.FileFacts]:
    """All files but the manifest, each forced to the disk."""
    content = _unshared({"format": STATE_FORMAT, "format_version": 1, **state})
    written = {
        "model.pt": files.write_new(directory / "model.pt", model.save),
        "opt.pt": files.write_new(directory / "opt.pt", lambda file: save_pt(content, file)),
    }
    if tokenizer is not None:
        path = tokenizer.save(directory)  # which forces it to the disk itself
        with files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            written[path.name] = files.FileFacts(bytes=size, sha256=files.sha256_of(file))
    return written


def _unshared(value: Any) -> Any:
    """The same value, which is written as the same bytes wherever its parts came from.

    A pickle names an object that occurs twice instead of repeating it. Equal texts are one object
    in a state that was built here, and two in one that was loaded.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_unshared(key): _unshared(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unshared(item) for item in value)
    return value


def _commit(temporary: Path, final: Path, record: Manifest) -> Written:
    """Give the directory its name; one that has it is kept if equal, else put aside, not merged."""
    put_aside = None
    if os.path.lexists(final):
        with contextlib.suppress(CheckpointError):
            old = Checkpoint.open(final)
            old.verify()
            if old.manifest == record:
                with contextlib.suppress(OSError):  # the next writer clears up
                    files.remove_tree(temporary)
                return Written(directory=final, put_aside=None)
        put_aside = aside(final)
    try:
        files.rename(temporary, final)
    except OSError:
        if put_aside is not None:
            files.rename(put_aside, final)
        raise
    files.fsync_directory(final.parent)
    return Written(directory=final, put_aside=put_aside)


def aside(directory: Path) -> Path:
    """Rename a step directory so that it is no step's any more; returns where it is now.

    Raises:
        OSError: the system refused.
    """
    target = directory.with_name(f"{directory.name}.old-{secrets.token_hex(4)}")
    files.rename(directory, target)
    return target


def _why(error: BaseException, run: Path, model: GPT, state: Mapping[str, Any]) -> str | None:
    """Why a save failed, in words; None for what is no failure of saving."""
    if isinstance(error, MemoryError):
        return "out of memory"
    number = getattr(error, "errno", None) or 0
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        needed = _tensor_bytes(model.state_dict()) + _tensor_bytes(state)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(run).free
            return f"{os.strerror(number)}: it needs about {needed:,} bytes, {free:,} are free"
    if isinstance(error, OSError | TokenizerError | TypeError | ValueError):
        return reason(error)
    return None


def _tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0
