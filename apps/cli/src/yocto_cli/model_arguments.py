"""The flags that name a model, shared by every command that opens one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from yocto_model import TextGenerator
    from yocto_train import Checkpoint


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Which model; without flags, the newest run's newest checkpoint."""

    ckpt: str | None = None
    """A run, one of its step directories, or a .pt file such as its best.pt."""
    ckpt_dir: str = "checkpoints"
    """Where runs are."""
    mode: Literal["char", "token"] | None = None
    """What the model is made of; the checkpoint knows, so this only checks."""
    tokenizer_path: str | None = None
    """Its tokenizer; the checkpoint holds one."""
    vocab_path: str | None = None
    """The same, for a vocabulary of characters."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    """Of the weights while it writes; auto: float32, or for a larger model what is fastest here."""

    def open(self, *, ckpt: str | None = None) -> "tuple[Checkpoint, TextGenerator]":
        """Open what the flags name; see `models.load_generator` for what it raises.

        Args:
            ckpt: takes the place of the flag.
        """
        from yocto_cli.models import load_generator  # noqa: PLC0415 - brings torch in

        return load_generator(
            ckpt=self.ckpt if ckpt is None else ckpt,
            ckpt_dir=self.ckpt_dir,
            tokenizer_path=self.tokenizer_path,
            vocab_path=self.vocab_path,
            mode=self.mode,
            device=self.device,
            dtype=self.dtype,
        )
