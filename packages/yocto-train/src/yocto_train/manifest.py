"""manifest.json: what a step directory consists of. Written last, so it exists only if all does."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yocto_train import files
from yocto_train.errors import CheckpointError
from yocto_train.files import FileFacts

NAME = "manifest.json"
_VERSION = 1
_MAX_BYTES = 1 << 20
_FILE_NAME = re.compile(r"[a-z]+\.(pt|json|model)")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a manifest.json.

    Attributes:
        step: finished optimizer steps.
        files: size and sha256 of each other file in the directory.
        tokenizer: the tokenizer's fingerprint, or None if the run had none.
        data: sha256 of the splits the run used, by name.
        val_loss: loss of the last evaluation, if it was made at this step.
        environment: versions, device and threads: what exact resuming depends on.
    """

    step: int
    files: Mapping[str, FileFacts]
    tokenizer: str | None
    data: Mapping[str, str]
    val_loss: float | None
    environment: Mapping[str, str | int]

    def to_bytes(self) -> bytes:
        """JSON that carries its own sha256; equal manifests give equal bytes."""
        content: dict[str, Any] = {
            "format": "yocto-checkpoint",
            "format_version": _VERSION,
            "step": self.step,
            "files": {
                name: {"bytes": facts.bytes, "sha256": facts.sha256}
                for name, facts in sorted(self.files.items())
            },
            "tokenizer": self.tokenizer,
            "data": dict(self.data),
            "val_loss": self.val_loss,
            "environment": dict(self.environment),
        }
        content["sha256"] = _own_hash(content)
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()

    def is_plausible(self) -> bool:
        """Whether every entry has the type and the range that it is used with."""
        sizes: list[object] = [facts.bytes for facts in self.files.values()]
        hashes: list[object] = [facts.sha256 for facts in self.files.values()]
        texts: list[object] = [self.tokenizer or "", *self.data.values(), *hashes]
        numbers: list[object] = [self.val_loss or 0.0]
        return (
            self.step in range(10**8)
            and "model.pt" in self.files
            and all(_FILE_NAME.fullmatch(name) for name in self.files)
            and all(type(value) is int for value in (self.step, *sizes))
            and all(type(value) is float for value in numbers)
            and all(type(value) is str for value in texts)
            and all(type(value) in (str, int) for value in self.environment.values())
        )


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of a step directory.

    Raises:
        CheckpointError: it is missing, damaged, or of a newer version.
    """
    path = directory / NAME
    if not os.path.lexists(path):
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {NAME}")
    try:
        with files.open_regular(path) as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _parse(raw, path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged; use another step's checkpoint") from error


def _parse(raw: bytes, path: Path) -> Manifest:
    if len(raw) > _MAX_BYTES:
        raise ValueError("too large")
    content = json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    version = content["format_version"]
    if content["format"] != "yocto-checkpoint" or type(version) is not int:
        raise ValueError("not a checkpoint's")
    if version > _VERSION and content.pop("sha256") == _own_hash(content):
        raise CheckpointError(
            f"{path} has format version {version}; this yocto reads up to {_VERSION}: upgrade"
        )
    found = Manifest(
        step=content["step"],
        files={
            name: FileFacts(bytes=facts["bytes"], sha256=facts["sha256"])
            for name, facts in content["files"].items()
        },
        tokenizer=content["tokenizer"],
        data=content["data"],
        val_loss=content["val_loss"],
        environment=content["environment"],
    )
    # Stricter than its own hash alone: not a blank may differ, and no entry may be unknown.
    if found.to_bytes() != raw or not found.is_plausible():
        raise ValueError("its own sha256 is wrong")
    return found


def _own_hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
