"""Machine: the model as a training step calls it, on its device and in its precision.

It wraps the forward and the backward pass, so that step.py needs no line about autocast and loss
scaling, dropout's seed, gradients joined between processes, or torch.compile.
"""

import contextlib
import hashlib
import math

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from yocto_model import GPT

from yocto_train.config import TrainConfig
from yocto_train.errors import NonFiniteError
from yocto_train.optimizers import make_optimizers
from yocto_train.scale.devices import Placement
from yocto_train.scale.distributed import World


class Machine:
    """A model, and all that computes its steps; `tokens` is the length of the rows.

    Attributes:
        compilation: a phrase about torch.compile, if there is something to say.
    """

    def __init__(
        self, model: GPT, config: TrainConfig, *, tokens: int, placement: Placement, world: World
    ) -> None:
        self.model, self.config, self.placement, self.world = model, config, placement, world
        self.device = placement.device
        model.grad_checkpointing = config.grad_checkpointing
        self.is_compiled, self.compilation = self._compile(tokens)
        self._module = world.wrap(model)  # before the optimizers: it may replace weights
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers = make_optimizers(model, config, autocast=placement.autocast)
        # float16 cannot hold the smallest gradients: the loss is scaled up, the gradient down.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=placement.autocast == torch.float16
        )
        self._step = self._part = 0

    # --- what a step calls -----------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Say which step comes next: its number decides what dropout draws."""
        self._step, self._part = step, 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of the next part of the step's batch."""
        if self.model.config.dropout or self.model.config.attention_dropout:
            torch.manual_seed(mixed_seed(self.config.seed, self._step, self._part, self.world.rank))
        self._part += 1
        self.world.join_gradients(self._module, self._is_last_part)
        autocast = self.placement.autocast
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            logits: Tensor = self._module(x.to(self.device))
        return logits

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to every weight's."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call] # torch has no type here
        if self._is_last_part:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)

    def update(self, optimizer: Optimizer) -> None:
        """Let an optimizer move its weights; with loss scaling, unless a gradient overflowed."""
        self.scaler.step(optimizer)
        if optimizer is self.optimizers[-1]:
            self.scaler.update()

    def mean(self, loss: Tensor) -> float:
        """The mean over all processes, which have equally many rows each."""
        (total,) = self.world.sum(float(loss))
        return total / self.world.size

    def whole(self, value: Tensor) -> float:
        """A number that may be spread over the processes."""
        return float(self.world.whole(value))

    def check_finite(self, step: int, loss: float, norm: float) -> None:
        """Refuse a loss or gradient that is NaN or infinite.

        With float16 a gradient that overflows only means that the loss was scaled up too far: the
        scaler then skips the update and lowers its scale.

        Raises:
            NonFiniteError: the loss or gradient must not reach the weights.
        """
        if math.isfinite(loss) and (math.isfinite(norm) or self.scaler.is_enabled()):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        raise NonFiniteError(
            f"the {what} of step {step + 1} is not finite "
            f"(loss {loss:g}, gradient norm {norm:g}); try a lower learning rate"
        )

    @property
    def _is_last_part(self) -> bool:
        return self._part == self.config.accumulate

    # --- torch.compile ---------------------------------------------------------------------------

    def eager(self) -> contextlib.AbstractContextManager[object]:
        """For a block that uses the model in other shapes: compiling each would take a minute."""
        if not self.is_compiled:
            return contextlib.nullcontext()
        stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    def _compile(self, tokens: int) -> tuple[bool, str | None]:
        """Compile the blocks if that is wanted; returns whether they are, and a phrase about it."""
        wanted = self.config.compile
        if wanted == "off" or (wanted == "auto" and self.device.type != "cuda"):
            return False, None
        if self.world.kind == "fsdp":
            return False, "not compiled (the model is sharded)"
        rows = self.config.batch_size // self.config.accumulate // self.world.size
        ids = torch.zeros(rows, tokens, dtype=torch.int64, device=self.device)
        failure = compile_blocks(self.model, ids, autocast=self.placement.autocast)
        return failure is None, "compiled" if failure is None else f"not compiled ({failure})"


def compile_blocks(model: GPT, ids: Tensor, *, autocast: torch.dtype | None) -> str | None:
    """Let torch.compile fuse the operations inside each block, or leave the model as it was.

    All blocks share what is compiled for the first one, so that a deep model takes no longer than a
    shallow one. A forward and a backward pass with `ids` (B, T) are made at once: a machine without
    a compiler is found here and not in the first step. Weights and random states are as before.

    Returns:
        None, or in a few words why it does not work on this machine.
    """
    was_training = model.training
    for block in model.blocks:
        block.compile(dynamic=False)
    try:
        with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
            model.train()
            with torch.autocast(ids.device.type, dtype=autocast, enabled=autocast is not None):
                logits = model(ids)
            logits.float().logsumexp(-1).mean().backward()
    except Exception as error:  # noqa: BLE001 - whatever the compiler lacks, training goes on without
        for block in model.blocks:
            block._compiled_call_impl = None  # noqa: SLF001 - torch has no public way back
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0][:120] if lines else type(error).__name__
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return None


def mixed_seed(seed: int, step: int, part: int, rank: int = 0) -> int:
    """A seed for the dropout of one forward pass, unlike any other's: 63 bits of a sha256."""
    digest = hashlib.sha256(f"dropout {seed} {step} {part} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
