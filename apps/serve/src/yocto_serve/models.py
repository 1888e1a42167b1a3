"""The models that are served: a run with its steps, newest first, or one from elsewhere."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from yocto_cli.model_arguments import ModelArguments
from yocto_model import GPT, RunningBatch
from yocto_tokenizers import ChatTemplate, Tokenizer, template_for
from yocto_train import OpenedModel, Run, step_of
from yocto_train.runs.run import POINTERS

MAX_ROWS = 32  # of a running batch: a class of 30, none of whom waits for another to end
_MOST_OPEN = 3  # models held in memory, besides those that still draw


@dataclass(eq=False)
class Loaded:
    """A model in memory, with what is needed to ask it.

    Attributes:
        id: how the protocol names it: `run@1000`, or the name of the folder or file.
        model: draws tokens.
        end_ids: ids that end a text.
        template: how it is asked.
        stops: strings that end its reply.
        created: when it was saved, in seconds since 1970.
        batch: the texts that are drawn; only the engine's thread touches it.
    """

    id: str
    opened: OpenedModel
    model: GPT
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    template: ChatTemplate
    stops: tuple[str, ...]
    created: int

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget all texts, as after a failure."""
        self.batch = RunningBatch(
            self.model, self.tokenizer, end_ids=self.end_ids, max_rows=MAX_ROWS
        )

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
        UsageError, TrainError, TokenizerError: as `ModelArguments.open`, from all methods that
            open a model.
    """

    def __init__(self, named: ModelArguments, *, template: ChatTemplate | None = None) -> None:
        self._named, self._template = named, template
        self._open: OrderedDict[tuple[Path, int], Loaded] = OrderedDict()
        self._lock = threading.Lock()
        self.served = self._load(named.ckpt)
        checkpoint = self.served.opened.checkpoint
        self.run = None if checkpoint is None else Run(checkpoint.run)
        self._pointer = self._pointer_of(named.ckpt)
        self._served_key = _key(self.served.opened.path)
        self._open[self._served_key] = self.served

    def _pointer_of(self, ckpt: str | None) -> str | None:
        """`latest` or `best`, whichever is served; None for one step, or a model from elsewhere."""
        if self.run is None:
            return None
        if ckpt is None or Path(ckpt).resolve() == self.run.path.resolve():
            return "latest"
        name = Path(ckpt).name.removesuffix(".pt")
        return name if name in POINTERS else None

    # --- names ---------------------------------------------------------------------------------

    @property
    def default(self) -> str:
        """The name of what is served: `run@latest`, `run@1000`, or the model's own."""
        return f"{self._run_name}@{self._pointer}" if self._pointer else self.served.id

    @property
    def _run_name(self) -> str:
        return self.served.opened.name

    def _steps(self) -> dict[str, Path]:
        """The run's checkpoints by what stands behind the @: pointers, then steps, newest first."""
        if self.run is None:
            return {}
        pointed = [(str(pointer), self.run.pointed(pointer)) for pointer in POINTERS]
        steps = {str(step_of(path.name)): path for path in self.run.steps()[::-1]}
        return {name: path for name, path in pointed if path is not None} | steps

    def names(self) -> dict[str, int]:
        """All names, what is served first, each with the time of saving."""
        steps = {f"{self._run_name}@{name}": _saved_at(p) for name, p in self._steps().items()}
        return {self.default: self.served.created} | steps

    def get(self, name: str | None) -> Loaded | None:
        """The model of this name, opened if need be; None if there is none."""
        if not name or name in (self.default, self.served.id, self._run_name):
            return self.served
        run, _, part = name.rpartition("@")
        path = self._steps().get(part) if run == self._run_name else None
        return None if path is None else self._get(path)

    def refresh(self) -> bool:
        """Serve the newest checkpoint; whether there was a newer one."""
        path = self._steps().get(self._pointer or "")
        if path is None or (key := _key(path)) == self._served_key:
            return False
        self.served, self._served_key = self._get(path), key
        return True

    # --- opening -------------------------------------------------------------------------------

    def _get(self, path: Path) -> Loaded:
        key = _key(path)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._load(str(path))
            self._open.move_to_end(key)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return self._open[key]

    def _load(self, ckpt: str | None) -> Loaded:
        opened, generator = self._named.open(ckpt=ckpt)
        # The generator's type asks less of a tokenizer than those of yocto_tokenizers offer.
        tokenizer = cast("Tokenizer", generator.tokenizer)
        checkpoint = opened.checkpoint
        template = self._template or template_for(
            opened.template, tokenizer, pretrained=checkpoint is None
        )
        end_id = template.end_id(tokenizer)
        return Loaded(
            id=opened.name if checkpoint is None else f"{opened.name}@{checkpoint.step}",
            opened=opened,
            model=generator.model,
            tokenizer=tokenizer,
            end_ids=(*generator.end_ids, *(() if end_id is None else (end_id,))),
            template=template,
            stops=template.stops(tokenizer),
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
