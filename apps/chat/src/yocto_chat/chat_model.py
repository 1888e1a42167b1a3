"""What the chat needs of a model: something that speaks, and the facts that are shown about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from yocto_cli.model_arguments import ModelArguments
from yocto_cli.models import replaced_dtype
from yocto_model import SamplingOptions, TextStream
from yocto_tokenizers import Tokenizer
from yocto_train import Run, step_of


class Speaker(Protocol):
    """The part of `yocto_model.TextGenerator` that the chat uses."""

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        options: SamplingOptions,
        stop: Sequence[str],
        seed: int,
        alternatives: int,
        logprobs: bool,
    ) -> TextStream:
        """Pieces of text as they are made."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A model to talk to.

    Attributes:
        speaker: draws the replies.
        tokenizer: the model's.
        block_size: how many tokens the model sees at once.
        name: of its run.
        step: finished optimizer steps.
        n_parameters: how many weights.
        val_loss: in nats per token at this step, if it was measured.
        best_step: the step that best.pt points to, if there is one.
        run: the run directory.
        sha256: of model.pt, which identifies the model in a saved conversation.
        weights: what they are while it speaks, such as "float16".
        replaced: why they are not what was asked for, if they are not.
    """

    speaker: Speaker
    tokenizer: Tokenizer
    block_size: int
    name: str
    step: int
    n_parameters: int
    val_loss: float | None = None
    best_step: int | None = None
    run: Path | None = None
    sha256: str | None = None
    weights: str = "float32"
    replaced: str | None = None


def open_model(named: ModelArguments) -> ChatModel:
    """The model that the flags name.

    Raises:
        UsageError: flags contradict each other or the checkpoint.
        TrainError: there is no such checkpoint, or it is damaged.
        TokenizerError: a named tokenizer cannot be read.
    """
    checkpoint, generator = named.open()
    best = Run(checkpoint.run).pointed("best.pt")
    return ChatModel(
        speaker=generator,
        # The generator asks less of a tokenizer than this one, of yocto_tokenizers, can do.
        tokenizer=cast("Tokenizer", generator.tokenizer),
        block_size=generator.model.config.block_size,
        name=checkpoint.run.name,
        step=checkpoint.step,
        n_parameters=generator.model.config.n_parameters,
        val_loss=checkpoint.val_loss,
        best_step=step_of(best.name) if best else None,
        run=checkpoint.run,
        sha256=checkpoint.manifest.files["model.pt"].sha256,
        weights=getattr(generator.model, "kind", "float32"),
        replaced=replaced_dtype(named.dtype, generator),
    )
