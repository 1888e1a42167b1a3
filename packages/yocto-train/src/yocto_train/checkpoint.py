"""Checkpoint: a step directory, verified when it is read.

    step-00001000/  model.pt  opt.pt  vocab.json|tokenizer.json|tokenizer.model  manifest.json

`saving.py` writes one; `run_directory.py` finds them and keeps latest.pt and best.pt.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from yocto_model import GPT, ModelFileError, load_pt
from yocto_tokenizers import Tokenizer, TokenizerError, load_tokenizer

from yocto_train import files, manifest
from yocto_train.errors import CheckpointError
from yocto_train.manifest import Manifest

_STEP_NAME = re.compile(r"step-([0-9]{8})")
STATE_FORMAT = "yocto-training-state"


@dataclass(frozen=True)
class Checkpoint:
    """A step directory with a sound manifest; each file is verified when it is opened.

    Attributes:
        directory: the step directory.
        manifest: its manifest.
        skipped: what is wrong with newer checkpoints that were passed over to get here.
    """

    directory: Path
    manifest: Manifest
    skipped: tuple[str, ...] = ()

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Open a step directory. A file that is missing is noticed when it is needed.

        Raises:
            CheckpointError: no manifest, a damaged one, or files that it does not name.
        """
        found = cls(directory, manifest.read_manifest(directory))
        if step_of(directory.name) not in (None, found.step):
            raise CheckpointError(f"{directory} holds the checkpoint of step {found.step}")
        known = {manifest.NAME, *found.manifest.files}
        # What desktops leave behind, such as .DS_Store, is never opened and does no harm.
        unknown = [
            name for name in names_in(directory) if name not in known and not name.startswith(".")
        ]
        if unknown:
            raise CheckpointError(
                f"{directory} holds {min(unknown)}, which its manifest does not name; remove it"
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
            to_resume: False leaves opt.pt out, which writing text does not need.

        Raises:
            CheckpointError: naming the first file that is missing or damaged.
        """
        for name in self.manifest.files:
            if to_resume or name != "opt.pt":
                with self._verified(name):
                    pass

    def load_model(
        self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> GPT:
        """The model, in evaluation mode.

        Raises:
            CheckpointError: model.pt is missing, damaged or unusable.
        """
        with self._verified("model.pt") as file:
            try:
                return GPT.load(file, device=device, dtype=dtype)
            except ModelFileError as error:
                raise CheckpointError(str(error)) from error

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer the model was trained with.

        Raises:
            CheckpointError: it is missing, damaged, or another one.
        """
        names = [name for name in self.manifest.files if not name.endswith(".pt")]
        if not names:
            raise CheckpointError(f"{self.directory} holds no tokenizer; name one")
        with self._verified(names[0]):
            try:
                tokenizer = load_tokenizer(self.directory / names[0])
            except TokenizerError as error:
                raise CheckpointError(str(error)) from error
        # Opened a second time by its name, so what came out is compared as well.
        if tokenizer.fingerprint() != self.manifest.tokenizer:
            raise CheckpointError(f"{self.directory / names[0]} is not this model's tokenizer")
        return tokenizer

    def load_state(self) -> dict[str, Any]:
        """What resuming needs beside the model: the content of opt.pt, tensors on the CPU.

        Raises:
            CheckpointError: opt.pt is missing, damaged, or of another step.
        """
        with self._verified("opt.pt") as file:
            try:
                state = load_pt(file, expected_format=STATE_FORMAT, newest_version=1)
            except ModelFileError as error:
                raise CheckpointError(str(error)) from error
        if state.get("step") != self.step:
            raise CheckpointError(f"{self.directory / 'opt.pt'} belongs to another step")
        return state

    @contextlib.contextmanager
    def _verified(self, name: str) -> Iterator[IO[bytes]]:
        """An open file whose content is the one that the manifest records."""
        path = self.directory / name
        facts = self.manifest.files.get(name)
        if facts is None or not os.path.lexists(path):
            raise CheckpointError(f"{path} is missing")
        try:
            with files.open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size != facts.bytes or files.sha256_of(file) != facts.sha256:
                    raise CheckpointError(
                        f"{path} is damaged: it is not what {manifest.NAME} records; "
                        "use another step's checkpoint"
                    )
                file.seek(0)
                yield file
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise CheckpointError(f"cannot read {path}: {reason}") from error


def step_name(step: int) -> str:
    """What the directory of a step is called: `step-00000012`."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step whose directory is called so, or None if no step's is."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_directory(path: Path) -> bool:
    """Whether a path is a real directory, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def names_in(directory: Path) -> list[str]:
    """Names in a directory; none if it is no directory.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are what is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error.strerror}") from error
