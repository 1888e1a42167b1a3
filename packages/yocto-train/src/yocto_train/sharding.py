"""FSDP2: every rank holds a share of each weight, gradient and moment.

What is saved is whole, so a checkpoint does not depend on how many ranks wrote it, or how.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.optimizer import Optimizer
from yocto_model import GPT

from yocto_train.distributed import Group


class ShardedGroup(Group):
    """Processes that share one model out among them (FSDP2).

    The embedding, the head and the last norm form one share, the blocks one each: a tied head
    and its embedding must not be parted.
    """

    kind: Literal["none", "ddp", "fsdp"] = "fsdp"

    def wrap(self, model: GPT) -> nn.Module:
        """The same model, each parameter a DTensor that holds this rank's rows."""
        mesh = init_device_mesh(torch.device(self._device).type, (self.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # gloo has no average: a sum and a division are the same and work everywhere.
                module.set_force_sum_reduction_for_comms(True)
        return model

    @contextlib.contextmanager
    def part(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one part of a step: only the last joins gradients."""
        assert isinstance(module, FSDPModule)  # noqa: S101 - `wrap` made it one
        module.set_requires_gradient_sync(last)
        yield

    def whole(self, value: Tensor) -> Tensor:
        """A tensor with all its shares; all ranks must ask for it."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def whole_model(self, model: GPT) -> GPT:
        """A copy with whole weights on the CPU; all ranks must ask for it."""
        weights = {name: self.whole(value).cpu() for name, value in model.state_dict().items()}
        copy = GPT(model.config, generator=torch.Generator())
        copy = copy.to(next(iter(weights.values())).dtype)
        copy.load_state_dict(weights)
        return copy

    def whole_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state with whole tensors; all ranks must ask for it."""
        state = optimizer.state_dict()
        return {
            **state,
            "state": {
                number: {name: self.whole(value) for name, value in entries.items()}
                for number, entries in state["state"].items()
            },
        }

    @torch.no_grad()
    def load_weights(self, model: GPT, weights: Mapping[str, Tensor]) -> None:
        """Take over this rank's share of whole weights."""
        for name, parameter in model.named_parameters():
            parameter.copy_(share_of(weights[name].to(parameter.device), parameter))

    def spread_state(self, optimizer: Optimizer) -> None:
        """Cut a state that was loaded whole to this rank's share."""
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                # Muon's momentum and AdamW's count of steps are whole on every rank.
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                    entries[name] = share_of(value, parameter)


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a whole tensor that every rank has, laid out as `like` is."""
    assert isinstance(like, DTensor)  # noqa: S101 - `wrap` made it one
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
