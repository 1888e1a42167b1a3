"""Stepper: the optimizer step. Batch, dropout and learning rate follow from seed and step alone."""

import contextlib
import hashlib
import math

import torch
from torch import Tensor
from yocto_data import BatchSampler, TokenDataset
from yocto_model import GPT

from yocto_train.compiling import compile_blocks, uncompiled
from yocto_train.config import TrainConfig
from yocto_train.devices import Placement
from yocto_train.distributed import World
from yocto_train.errors import NonFiniteError
from yocto_train.evaluate import cross_entropy
from yocto_train.optimizers import make_optimizers, set_learning_rates
from yocto_train.schedules import lr_factor, muon_momentum


class Stepper:
    """A model with what moves its weights.

    Args:
        model: on its device already.
        data: what to learn.
        config: how to train.
        placement: where, and in what precision.
        world: the processes that share each batch.
    """

    def __init__(
        self,
        model: GPT,
        data: TokenDataset,
        config: TrainConfig,
        *,
        placement: Placement,
        world: World,
    ) -> None:
        self.model, self.config, self.placement, self.world = model, config, placement, world
        model.grad_checkpointing = config.grad_checkpointing
        self.is_compiled, self.compilation = self._compile(data.block_size)
        self._module = world.wrap(model)  # before the optimizers: it may replace weights
        self.optimizers = make_optimizers(model, config, autocast=placement.autocast)
        self.scaler = torch.amp.GradScaler(
            placement.device.type, enabled=placement.autocast == torch.float16
        )
        self.sampler = BatchSampler(
            data, config.batch_size, seed=config.seed, mode=config.sampling,
            rank=world.rank, world_size=world.size,
        )  # fmt: skip
        self._parameters = list(model.parameters())

    def _compile(self, tokens: int) -> tuple[bool, str | None]:
        """Compile the blocks if that is wanted; returns whether they are, and a phrase about it."""
        wanted = self.config.compile
        if wanted == "auto":
            wanted = "on" if self.placement.device.type == "cuda" else "off"
        if wanted == "off":
            return False, None
        if self.world.kind == "fsdp":
            return False, "not compiled (the model is sharded)"
        failure = compile_blocks(
            self.model,
            rows=self.config.batch_size // self.config.accumulate // self.world.size,
            tokens=tokens,
            autocast=self.placement.autocast,
        )
        return failure is None, "compiled" if failure is None else f"not compiled ({failure})"

    def eager(self) -> contextlib.AbstractContextManager[object]:
        """Around what uses the model in another shape than a step has."""
        return uncompiled() if self.is_compiled else contextlib.nullcontext()

    def take(self, step: int) -> tuple[float, float]:
        """Make the step that follows `step` finished ones.

        Returns:
            The batch's loss in nats per token, and the gradient's norm before clipping.

        Raises:
            NonFiniteError: one of them is not a number; no weight and no moment has changed.
            DataError: of yocto-data: the token file was cut off, or holds ids out of range.
        """
        set_learning_rates(
            self.optimizers,
            lr_factor(step, self.config),
            muon_momentum=muon_momentum(step, self.config),
        )
        loss = self._accumulate(step)
        norm = self._clip()
        (total,) = self.world.sum(float(loss))  # every rank has as many rows
        values = total / self.world.size, norm
        self._check_finite(step, *values)
        self._update()
        return values

    def _accumulate(self, step: int) -> Tensor:
        """Add up the gradients of the step's parts; returns the mean loss of this rank's rows."""
        config, device = self.config, self.placement.device
        x, y = self.sampler.batch(step)  # (B, T) each
        parts = zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True)
        loss = torch.zeros((), device=device)
        for micro, (x_part, y_part) in enumerate(parts):
            if self.model.config.dropout or self.model.config.attention_dropout:
                torch.manual_seed(mixed_seed(config.seed, step, micro, self.world.rank))
            with self.world.part(self._module, last=micro == config.accumulate - 1):
                # Equal parts: the mean of their means is the mean over the batch.
                part = self._loss(x_part.to(device), y_part.to(device)) / config.accumulate
                self.scaler.scale(part).backward()  # type: ignore[no-untyped-call] # torch has no type here
            loss += part.detach()
        return loss

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        autocast = self.placement.autocast
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            logits = self._module(x)  # (B, T, V)
        return cross_entropy(logits, y)

    def _clip(self) -> float:
        """Cut the gradient down to `grad_clip`; returns the norm that it had before."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        value = float(self.world.whole(norm))
        if 0 < self.config.grad_clip < value:  # most steps need no pass over the gradients
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.grad_clip, norm)
        return value

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        # A float16 overflow is the scaler's business: it skips the update and lowers its scale.
        if math.isfinite(loss) and (math.isfinite(norm) or self.scaler.is_enabled()):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        raise NonFiniteError(
            f"the {what} of step {step + 1} is not finite "
            f"(loss {loss:g}, gradient norm {norm:g}); try a lower learning rate"
        )

    def _update(self) -> None:
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()


def mixed_seed(seed: int, step: int, micro: int, rank: int = 0) -> int:
    """A seed for the dropout of one forward pass, unlike any other's: 63 bits of a sha256."""
    digest = hashlib.sha256(f"dropout {seed} {step} {micro} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
