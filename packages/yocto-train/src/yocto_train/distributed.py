"""Several processes as one trainer: torchrun starts them, DDP or FSDP2 joins their gradients.

    with joined("ddp") as world, world.lock(run):
        for event in Trainer(model, train_data, val_data, config, run=run, world=world).run():
            ...

Every process runs the same program and comes to the same decisions; what could differ between
them (a signal, an outcome on the disk) is agreed on here. Only rank 0 writes.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer
from yocto_model import GPT

from yocto_train import errors
from yocto_train.errors import TrainConfigError, TrainError
from yocto_train.run_directory import Run

Parallel = Literal["ddp", "fsdp"]
T = TypeVar("T")


class World:
    """One process alone: it agrees with itself.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        kind: how gradients are joined: "none", "ddp" or "fsdp".
    """

    rank = 0
    size = 1
    kind: Literal["none", "ddp", "fsdp"] = "none"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this process, for what the user asked for."""
        return asked

    @contextlib.contextmanager
    def lock(self, run: Run) -> Iterator[None]:
        """Create the run directory and hold its lock, for all processes.

        Raises:
            RunError: another training has it, or it cannot be used; on every rank.
        """
        with contextlib.ExitStack() as stack:

            def take() -> None:
                run.create()
                stack.enter_context(run.lock())

            self.on_main(take)
            yield

    # --- agreeing --------------------------------------------------------------------------------

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        return flags

    def sum(self, *values: float) -> tuple[float, ...]:
        """For each value, the sum over all ranks."""
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; every rank gets its result, or its error.

        Args:
            action: what to do. Its result is made of what JSON knows.
        """
        return action()

    # --- the model -------------------------------------------------------------------------------

    def wrap(self, model: GPT) -> nn.Module:
        """What to call for a forward pass whose gradients are joined."""
        return model

    def part(self, module: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of one part of a step: only the last joins gradients."""
        del module, last
        return contextlib.nullcontext()

    def whole(self, value: Tensor) -> Tensor:
        """A tensor with all its shares; all ranks must ask for it."""
        return value

    def whole_model(self, model: GPT) -> GPT:
        """The model with whole weights; on other ranks than 0 it may be anything."""
        return model

    def whole_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state as one process alone would have it."""
        return optimizer.state_dict()

    def load_weights(self, model: GPT, weights: Mapping[str, Tensor]) -> None:
        """Take over whole weights."""
        model.load_state_dict(weights)

    def spread_state(self, optimizer: Optimizer) -> None:
        """Cut a state that was loaded whole to this rank's share."""


class Group(World):
    """Processes that hold the same model each and average their gradients (DDP).

    Args:
        device: this process's device.
    """

    kind: Literal["none", "ddp", "fsdp"] = "ddp"

    def __init__(self, device: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device

    def device(self, asked: str) -> str:
        """The device of this process; what was asked for was heeded when it joined."""
        del asked
        return self._device

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        votes = torch.tensor(flags, dtype=torch.int32, device=self._device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(map(bool, votes.tolist()))

    def sum(self, *values: float) -> tuple[float, ...]:
        """For each value, the sum over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; every rank gets its result, or its error."""
        failure: BaseException | None = None
        outcome: dict[str, Any] = {}
        if self.is_main:
            try:
                outcome = {"value": action()}
            except BaseException as error:  # noqa: BLE001 - the others wait; raised below
                failure = error
                outcome = {"error": type(error).__name__, "message": str(error)}
        outcome = json.loads(self._broadcast(json.dumps(outcome)))
        if failure is not None:
            raise failure
        if "error" in outcome:
            kind = getattr(errors, outcome["error"], TrainError)
            raise kind(outcome["message"])
        value: T = outcome["value"]
        return value

    def _broadcast(self, text: str) -> str:
        """Rank 0's text on every rank."""
        content = text.encode()
        size = torch.tensor(len(content), device=self._device)
        dist.broadcast(size, src=0)
        data = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        if self.is_main:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(data, src=0)
        return bytes(data.tolist()).decode()

    def wrap(self, model: GPT) -> nn.Module:
        """The model in DDP, which has given every rank the weights of rank 0."""
        # Buffers are computed from the settings, so they are equal already. Newer versions of torch
        # have another name for that, and warn of the old one.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        names = ("forward_sync_buffers", "broadcast_buffers")
        buffers: dict[str, Any] = {next(name for name in names if name in known): False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **buffers)

    def part(self, module: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of one part of a step: only the last joins gradients."""
        if last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = module.no_sync()  # type: ignore[operator]
        return context


@contextlib.contextmanager
def joined(parallel: Parallel = "ddp", *, device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started; a process that it did not start stays alone.

    With CUDA each process takes the GPU of its number on this machine and talks by NCCL; without,
    all compute on the CPU and talk by gloo.

    Args:
        parallel: "ddp" copies the model to every process, "fsdp" shards it over them.
        device: "auto", "cuda" or "cpu".

    Raises:
        TrainConfigError: the device is not here, or the processes cannot be joined.
    """
    if parallel not in ("ddp", "fsdp"):
        raise TrainConfigError(f"parallel must be ddp or fsdp, not {parallel!r}")
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield World()
        return
    name, backend = _device_and_backend(device)
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise TrainConfigError(f"cannot join the processes of torchrun by {backend}") from error
    try:
        if parallel == "fsdp":
            from yocto_train.sharding import ShardedGroup  # noqa: PLC0415 - costs a second to import

            yield ShardedGroup(name)
        else:
            yield Group(name)
    finally:
        dist.destroy_process_group()


def _device_and_backend(asked: str) -> tuple[str, str]:
    if asked not in ("auto", "cpu", "cuda"):
        raise TrainConfigError(
            f"with torchrun the device must be auto, cuda or cpu, not {asked!r}: "
            "each process takes the GPU of its own number"
        )
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu", "gloo"
    number, count = dist.get_node_local_rank(), torch.cuda.device_count()
    if number >= count:
        raise TrainConfigError(
            f"torchrun started more processes than the {count} GPUs here; "
            f"use --nproc-per-node {count}, or --device cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}", "nccl"
