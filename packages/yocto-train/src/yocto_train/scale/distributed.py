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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer
from yocto_model import GPT

from yocto_train import errors
from yocto_train.errors import TrainConfigError, TrainError
from yocto_train.runs.run import Run

Parallel = Literal["ddp", "fsdp"]
T = TypeVar("T")

_LIKE_WEIGHT = {"exp_avg", "exp_avg_sq"}  # AdamW's moments, which have the weight's shape


class World:
    """One process alone; several of them are a `Group`.

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
        """The device of this process, given the one that the user asked for."""
        return asked

    @contextlib.contextmanager
    def lock(self, run: Run) -> Iterator[None]:
        """Create the run directory and hold its lock, for all processes.

        Raises:
            RunError: another training has it, or it cannot be used; on every rank.
        """
        with contextlib.ExitStack() as stack:

            def lock() -> None:
                run.create()
                stack.enter_context(run.lock())

            self.on_main(lock)
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
            action: what to do; returns something that JSON can hold.
        """
        return action()

    # --- the model -------------------------------------------------------------------------------

    def wrap(self, model: GPT) -> nn.Module:
        """What to call for a forward pass whose gradients are joined."""
        return model

    def join_gradients(self, module: nn.Module, join: bool, /) -> None:
        """Say before a forward pass whether its backward pass joins the gradients of all ranks.

        It is enough that the last part of a step does: gradients add up locally until then.
        """

    def whole(self, value: Tensor) -> Tensor:
        """A tensor with all its shares; all ranks must call this."""
        return value

    def whole_model(self, model: GPT) -> GPT:
        """The model with whole weights; on ranks other than 0 it may be anything."""
        return model

    def load_weights(self, model: GPT, weights: Mapping[str, Tensor]) -> None:
        """Put whole weights into the model."""
        model.load_state_dict(weights)

    # --- what the optimizers remember ------------------------------------------------------------

    def moments(self, model: GPT, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
        """What the optimizers remember, whole, as `<parameter>.<what>`; called on all ranks."""
        names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
        return {
            f"{names[parameter]}.{what}": self.whole(value)
            for optimizer in optimizers
            for parameter, entries in optimizer.state.items()
            for what, value in entries.items()
        }

    def load_moments(
        self, model: GPT, optimizers: Sequence[Optimizer], moments: Mapping[str, Tensor]
    ) -> None:
        """The inverse of `moments`; rates, decays and the like stay as they are.

        Raises:
            ValueError: they belong to another model.
        """
        parameters = dict(model.named_parameters())
        saved: dict[Tensor, dict[str, Tensor]] = {}
        for key, value in moments.items():
            name, _, what = key.rpartition(".")
            if name not in parameters:
                raise ValueError(f"there is no parameter {name}")
            if what in _LIKE_WEIGHT and value.shape != parameters[name].shape:
                raise ValueError(f"{key} does not have the shape of {name}")
            saved.setdefault(parameters[name], {})[what] = value
        for optimizer in optimizers:
            numbered = enumerate(p for group in optimizer.param_groups for p in group["params"])
            state = {number: saved[p] for number, p in numbered if p in saved}
            # Loading replaces the settings by those given here: the present ones.
            settings = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": settings})


class Group(World):
    """Processes that each hold the whole model and average their gradients (DDP).

    Args:
        device: this process's device.
    """

    kind: Literal["none", "ddp", "fsdp"] = "ddp"

    def __init__(self, device: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device

    def device(self, asked: str) -> str:  # noqa: ARG002 - used when it joined
        return self._device

    def any(self, *flags: bool) -> tuple[bool, ...]:
        votes = torch.tensor(flags, dtype=torch.int32, device=self._device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(map(bool, votes.tolist()))

    def sum(self, *values: float) -> tuple[float, ...]:
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def on_main(self, action: Callable[[], T]) -> T:
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
            raise getattr(errors, outcome["error"], TrainError)(outcome["message"])
        return outcome["value"]

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
        # Buffers are computed from the settings, so they are equal already. Newer versions of torch
        # have another name for that, and warn of the old one.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        names = ("forward_sync_buffers", "broadcast_buffers")
        buffers: dict[str, Any] = {next(name for name in names if name in known): False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **buffers)

    def join_gradients(self, module: nn.Module, join: bool, /) -> None:
        # What DDP's no_sync() sets, and sets back.
        setattr(module, "require_backward_grad_sync", join)  # noqa: B010 - mypy sees a submodule


class ShardedGroup(Group):
    """Processes that divide one model among them (FSDP2): each holds some rows of every weight.

    The embedding, the head and the last norm form one share, the blocks one each: a tied head
    and its embedding must stay together. What is saved is whole, so a checkpoint does not depend
    on how many ranks wrote it, or how.
    """

    kind: Literal["none", "ddp", "fsdp"] = "fsdp"

    def wrap(self, model: GPT) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - slow to import
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - the same

        mesh = init_device_mesh(torch.device(self._device).type, (self.size,))
        for module in (*model.blocks, model):
            sharded = fully_shard(module, mesh=mesh)
            # gloo has no average: a sum and a division are the same and work everywhere.
            sharded.set_force_sum_reduction_for_comms(True)
        return model

    def join_gradients(self, module: nn.Module, join: bool, /) -> None:
        module.set_requires_gradient_sync(join)  # type: ignore[operator] # `wrap` made it an FSDPModule

    def whole(self, value: Tensor) -> Tensor:
        return value.full_tensor() if hasattr(value, "full_tensor") else value

    def whole_model(self, model: GPT) -> GPT:
        from torch.distributed.checkpoint import state_dict  # noqa: PLC0415 - slow to import

        options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = state_dict.get_model_state_dict(model, options=options)
        if not self.is_main:
            return model
        copy = GPT(model.config, generator=torch.Generator())
        copy = copy.to(model.token_emb.weight.dtype)
        copy.load_state_dict(weights)
        return copy

    def load_weights(self, model: GPT, weights: Mapping[str, Tensor]) -> None:
        from torch.distributed.checkpoint import state_dict  # noqa: PLC0415 - slow to import

        options = state_dict.StateDictOptions(full_state_dict=True)
        state_dict.set_model_state_dict(model, dict(weights), options=options)

    def load_moments(
        self, model: GPT, optimizers: Sequence[Optimizer], moments: Mapping[str, Tensor]
    ) -> None:
        # torch's set_optimizer_state_dict demands a state for every parameter, but Muon keeps one
        # for a whole stack of them.
        super().load_moments(model, optimizers, moments)
        for optimizer in optimizers:
            for parameter, entries in optimizer.state.items():
                for what in entries.keys() & _LIKE_WEIGHT:
                    entries[what] = share_of(entries[what], parameter)


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a whole tensor that every rank has, laid out as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415 - slow to import

    assert isinstance(like, DTensor)  # noqa: S101 - `wrap` made it one
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def joined(parallel: Parallel = "ddp", *, device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started; a process that it did not start stays alone.

    With CUDA each process takes the GPU of its number on this machine and communicates by NCCL;
    without CUDA, all compute on the CPU and communicate by gloo.

    Args:
        parallel: "ddp" copies the model to every process, "fsdp" shards it over them.
        device: "auto", "cuda" or "cpu".

    Raises:
        TrainConfigError: the device is not available, or the processes cannot be joined.
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
        raise TrainConfigError(f"cannot join the processes of torchrun with {backend}") from error
    try:
        yield ShardedGroup(name) if parallel == "fsdp" else Group(name)
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
            f"torchrun started more processes than there are GPUs ({count}); "
            f"use --nproc-per-node {count}, or --device cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}", "nccl"
