"""Checkpoints: step directories that appear whole or not at all, and are verified when read.

    step-00001000/  model.pt  opt.pt  vocab.json|tokenizer.json|tokenizer.model  manifest.json

A directory is written under a temporary name, each file forced to the disk, the manifest last;
then it is renamed. `pointers.py` moves latest.pt and best.pt afterwards.
"""

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from yocto_model import GPT, ModelFileError, load_pt, save_pt
from yocto_tokenizers import Tokenizer, TokenizerError, load_tokenizer

from yocto_train import files, manifest
from yocto_train.errors import CheckpointError, SaveError
from yocto_train.manifest import Manifest

STEP_NAME = re.compile(r"step-(\d{8})")
_STATE_FORMAT = "yocto-training-state"


class SavableTokenizer(Protocol):
    """The part of a tokenizer that saving needs."""

    def save(self, path: Path, /) -> Path:
        """Write into a directory; returns the path written."""
        ...

    def fingerprint(self) -> str:
        """Hash of the content."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A step directory with a sound manifest; each file is verified when it is opened.

    Attributes:
        directory: the step directory.
        manifest: its manifest.
    """

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Open a step directory.

        Raises:
            CheckpointError: no manifest, a damaged one, or missing or additional files.
        """
        found = cls(directory, manifest.read_manifest(directory))
        named = STEP_NAME.fullmatch(directory.name)
        if named and int(named[1]) != found.step:
            raise CheckpointError(f"{directory} holds the checkpoint of step {found.step}")
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

    def verify(self) -> None:
        """Check every file's size and hash.

        Raises:
            CheckpointError: naming the first file that is missing or damaged.
        """
        for name in self.manifest.files:
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
                state = load_pt(file, expected_format=_STATE_FORMAT, newest_version=1)
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
        if facts is None or not path.is_file() or path.is_symlink():
            raise CheckpointError(f"{path} is missing")
        try:
            with path.open("rb") as file:
                if path.stat().st_size != facts.bytes or files.sha256_of(file) != facts.sha256:
                    raise CheckpointError(
                        f"{path} is damaged: it is not what {manifest.NAME} records; "
                        "use another step's checkpoint"
                    )
                file.seek(0)
                yield file
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def save_checkpoint(
    run: Path,
    model: GPT,
    state: Mapping[str, Any],
    *,
    tokenizer: SavableTokenizer | None,
    data: Mapping[str, str],
    val_loss: float | None,
    environment: Mapping[str, str | int],
) -> Path:
    """Write a step directory; on return it is on the disk, whole.

    Args:
        run: the run directory, which must exist; its lock is held by the caller.
        model: the model, without wrappers.
        state: what resuming needs: plain values and tensors, among them "step".
        tokenizer: saved with the model, if there is one.
        data: sha256 of the splits by name.
        val_loss: loss at this very step, if known.
        environment: what exact resuming depends on.

    Returns:
        The step directory.

    Raises:
        SaveError: the system refused; what was there before is unchanged.
    """
    step = state["step"]
    final = run / f"step-{step:08d}"
    temporary = run / f".tmp-{final.name}-{secrets.token_hex(4)}"
    content = {"format": _STATE_FORMAT, "format_version": 1, **state}
    try:
        temporary.mkdir()
        written = {
            "model.pt": files.write_new(temporary / "model.pt", model.save),
            "opt.pt": files.write_new(temporary / "opt.pt", lambda f: save_pt(content, f)),
        }
        if tokenizer is not None:
            path = tokenizer.save(temporary)
            with path.open("rb") as file:
                facts = files.FileFacts(bytes=path.stat().st_size, sha256=files.sha256_of(file))
            written[path.name] = facts
        record = Manifest(
            step=step,
            files=written,
            tokenizer=None if tokenizer is None else tokenizer.fingerprint(),
            data=data,
            val_loss=val_loss,
            environment=environment,
        )
        record_bytes = record.to_bytes()
        files.write_new(temporary / manifest.NAME, lambda f: f.write(record_bytes))
        files.fsync_directory(temporary)
        _move_aside(final)
        files.rename(temporary, final)
        files.fsync_directory(run)
    except (OSError, TokenizerError) as error:
        with contextlib.suppress(OSError):
            files.remove_tree(temporary)
        reason = getattr(error, "strerror", None) or str(error)
        raise SaveError(
            f"cannot save step {step} in {run}: {reason}; earlier checkpoints are unchanged"
        ) from error
    return final


def _move_aside(final: Path) -> None:
    """Make the name free if a checkpoint of this step is there already; never merge the two."""
    if final.exists():
        files.rename(final, final.with_name(f"{final.name}.old-{secrets.token_hex(4)}"))


def step_directories(run: Path) -> list[Path]:
    """The step directories of a run, oldest step first; anything else there is ignored."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.name)
