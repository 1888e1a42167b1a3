"""manifest.json: what a step directory consists of. Written last, so it exists only if all does."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        """JSON that carries its own sha256, so that a flipped digit does not go unnoticed."""
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


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of a step directory.

    Raises:
        CheckpointError: it is missing, damaged, or of a newer version.
    """
    path = directory / NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {NAME}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        content = json.loads(
            path.read_bytes(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
        stated = content.pop("sha256")
        if stated != _own_hash(content):
            raise ValueError("its own sha256 is wrong")
        if content["format"] != "yocto-checkpoint":
            raise ValueError("not a checkpoint's")
        if content["format_version"] > _VERSION:
            raise CheckpointError(
                f"{path} has format version {content['format_version']}; "
                f"this yocto reads up to {_VERSION}: upgrade"
            )
        return _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged") from error


def _parse(content: dict[str, Any]) -> Manifest:
    files = {
        name: FileFacts(bytes=facts["bytes"], sha256=facts["sha256"])
        for name, facts in content["files"].items()
    }
    if not all(_FILE_NAME.fullmatch(name) for name in files):
        raise ValueError("odd file names")
    return Manifest(
        step=content["step"],
        files=files,
        tokenizer=content["tokenizer"],
        data=content["data"],
        val_loss=content["val_loss"],
        environment=content["environment"],
    )


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
