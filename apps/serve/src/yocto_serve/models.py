"""The models that are served: a run with its steps, newest first, or one from elsewhere."""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from yocto_cli.asking import Layout, open_to_ask
from yocto_cli.model_arguments import ModelArguments
from yocto_model import GPT, RunningBatch, TextGenerator
from yocto_tokenizers import ChatTemplate, Tokenizer
from yocto_train import OpenedModel, Run, step_of
from yocto_train.runs.run import POINTERS

MAX_ROWS = 32  # of a running batch: a class of 30, none of whom waits for another to end
_MOST_OPEN = 3  # models held in memory, besides those that still draw


@dataclass(eq=False, kw_only=True)
class Loaded:
    """A model in memory, with what is needed to ask it.

    Attributes:
        id: how the protocol names it: `run@1000`, or the name of the folder or file.
        opened: what it was read from.
        generator: holds it and its tokenizer, and the ids that end a reply.
        layout: how it is asked.
        created: when it was saved, in seconds since 1970.
        batch: the texts that are drawn; only the engine's thread touches it.
    """

    id: str
    opened: OpenedModel
    generator: TextGenerator
    layout: Layout
    created: int

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget all texts, as after a failure."""
        ends = self.generator.end_ids
        self.batch = RunningBatch(self.model, self.tokenizer, end_ids=ends, max_rows=MAX_ROWS)

    @property
    def model(self) -> GPT:
        return self.generator.model

    @property
    def tokenizer(self) -> Tokenizer:
        # The generator's type asks less of a tokenizer than those of yocto_tokenizers offer.
        return cast("Tokenizer", self.generator.tokenizer)

    @property
    def window(self) -> int:
        """How many tokens it sees at once."""
        return self.model.config.block_size


class Library:
    """Opens models by their names in the protocol, and keeps the last few.

    Args:
        named: the flags that name the model, or the run.
        template: to use instead of the models' own.

    Attributes:
        served: what is used where a request names no model: the newest that `refresh` has seen.
        run: of the model; None for a model from elsewhere.

    Raises:
        UsageError, TrainError, TokenizerError: as `models.load_generator`, from all methods that
            open a model.
    """

    def __init__(self, named: ModelArguments, *, template: ChatTemplate | None = None) -> None:
        self._named, self._template, self._lock = named, template, threading.Lock()
        self.served = self._load(named.ckpt)
        path, checkpoint = self.served.opened.path, self.served.opened.checkpoint
        self.run = None if checkpoint is None else Run(checkpoint.run)
        self._pointer = self._pointer_of(named.ckpt)
        self._served_key = _key(path)
        self._open = {self._served_key: self.served}  # who was asked last comes last

    def _pointer_of(self, ckpt: str | None) -> str | None:
        """`latest` or `best`, whichever is served; None for one step, or a model from elsewhere."""
        if self.run is None:
            return None
        if ckpt is None or Path(ckpt).resolve() == self.run.path.resolve():
            return "latest"
        name = Path(ckpt).name.removesuffix(".pt")
        return name if name in POINTERS else None

    @property
    def default(self) -> str:
        """The name of what is served: `run@latest`, `run@1000`, or the model's own."""
        return f"{self.served.opened.name}@{self._pointer}" if self._pointer else self.served.id

    def _checkpoints(self) -> dict[str, Path]:
        """The run's checkpoints by name: pointers, then steps, the newest first."""
        if self.run is None:
            return {}
        pointed = {str(pointer): self.run.pointed(pointer) for pointer in POINTERS}
        steps = {str(step_of(path.name)): path for path in self.run.steps()[::-1]}
        found = {**pointed, **steps}
        return {f"{self.served.opened.name}@{part}": path for part, path in found.items() if path}

    def names(self) -> dict[str, int]:
        """All names, what is served first, each with the time of saving."""
        saved = {name: _saved_at(path) for name, path in self._checkpoints().items()}
        return {self.default: self.served.created} | saved

    def get(self, name: str | None) -> Loaded | None:
        """The model of this name, opened if need be; None if there is none."""
        if not name or name in (self.default, self.served.id, self.served.opened.name):
            return self.served
        path = self._checkpoints().get(name)
        return None if path is None else self._get(path)

    def refresh(self) -> bool:
        """Serve the newest checkpoint; whether there was a newer one."""
        path = self._checkpoints().get(self.default) if self._pointer else None
        if path is None or (key := _key(path)) == self._served_key:
            return False
        self.served, self._served_key = self._get(path), key
        return True

    def _get(self, path: Path) -> Loaded:
        key = _key(path)
        with self._lock:
            self._open[key] = found = self._open.pop(key, None) or self._load(str(path))
            if len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
            return found

    def _load(self, ckpt: str | None) -> Loaded:
        named = replace(self._named, ckpt=ckpt)
        opened, generator, template = open_to_ask(named, template=self._template)
        step = "" if opened.checkpoint is None else f"@{opened.checkpoint.step}"
        return Loaded(
            id=f"{opened.name}{step}",
            opened=opened,
            generator=generator,
            layout=Layout(template, cast("Tokenizer", generator.tokenizer)),
            created=_saved_at(opened.path),
        )


def _key(path: Path) -> tuple[Path, int]:
    """A step that is trained again, after going back, is another."""
    return path.resolve(), _saved_at(path)


def _saved_at(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:  # pruned meanwhile, or a name on the hub
        return int(time.time())
