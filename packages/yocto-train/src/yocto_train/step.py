"""One training step: batch, loss, gradient, update. Training is this, a few thousand times."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_data import BatchSampler

from yocto_train.config import TrainConfig
from yocto_train.optimizers import set_learning_rates
from yocto_train.scale import losses
from yocto_train.scale.machine import Machine
from yocto_train.schedules import lr_factor, muon_momentum


def train_step(
    step: int,
    config: TrainConfig,
    sampler: BatchSampler,
    machine: Machine,
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[float, float]:
    """Make the step that follows `step` finished ones.

    Args:
        step: finished steps.
        config: how to train.
        sampler: where batches come from.
        machine: the model on its device. On one device in full precision, `machine(x)` is
            `model(x)`, `machine.backward(loss)` is `loss.backward()` and `machine.update(o)` is
            `o.step()`; what half precision, dropout and other processes add is in scale/machine.py.
        optimizers: what moves the weights.

    Returns:
        The batch's loss in nats per token, and the gradient's norm before clipping.

    Raises:
        NonFiniteError: one of them is not a number; no weight and no moment has changed.
        DataError: of yocto-data: the token file was cut off, or holds ids out of range.
    """
    # 1. Batch. It follows from the seed and the step's number alone, so a run that was stopped goes
    # on with the very batches it would have had.
    x, y = sampler.batch(step)  # (B, T) each; y[b, t] is the token that came after x[b, t]
    machine.begin(step)

    # It may be cut into parts, as a backward pass needs memory for each row. Gradients add up: the
    # loss of each token, divided by their number, gives the mean over the whole batch.
    n, n_learned = config.accumulate, sampler.count_trained(step) / machine.world.size
    loss = torch.zeros((), device=machine.device)
    for x_part, y_part in zip(x.chunk(n), y.chunk(n), strict=True):
        # 2. Loss. Every position predicts the token after it: T lessons from one row.
        logits = machine(x_part)  # (B / n, T, vocab_size)
        part = cross_entropy(logits, y_part.to(logits.device), reduction="sum") / n_learned

        # 3. Backward. Adds d loss / d weight to the .grad of every weight: the direction in which
        # the loss rises fastest, found in about twice the time of the forward pass.
        machine.backward(part)
        loss += part.detach()

    # 4. Clip. After a rare batch the gradient can be a hundred times as long as usual, and would
    # throw the weights far from where it still holds: keep its direction, bound its length.
    norm = clip(machine, config.grad_clip)

    # A loss or gradient that is not a number must not reach the weights: nothing brings them back.
    values = machine.mean(loss), norm
    machine.check_finite(step, *values)

    # 5. Update. Each optimizer moves its weights against their gradients, as far as the rate says.
    # The rate is a function of the step as well: large while there is far to go, small at the end.
    set_learning_rates(
        optimizers, lr_factor(step, config), muon_momentum=muon_momentum(step, config)
    )
    for optimizer in optimizers:
        machine.update(optimizer)
        optimizer.zero_grad(set_to_none=True)  # or the next step would add to these
    return values


def cross_entropy(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Minus the logarithm of the probability that the model gave to the right token, in nats.

    Args:
        logits: (B, T, vocab_size); those in half precision are added up in float32.
        targets: int64 (B, T); -100 where nothing is learned, as from what a user says in a chat.
        reduction: "mean" over all targets, or their "sum".
    """
    # A model that knows nothing gives each of V tokens 1/V: a loss of ln V. The logarithm makes the
    # loss of a text the sum over its tokens; it is infinite where the right one has probability 0.
    if logits.dtype in (torch.float16, torch.bfloat16) or logits.shape[-1] >= losses.LARGE:
        return losses.some_at_a_time(logits.flatten(0, 1), targets.reshape(-1), reduction)
    return F.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), reduction=reduction)


def clip(machine: Machine, limit: float) -> float:
    """Cut the gradient down to the norm `limit`, unless 0; returns the norm it had before."""
    # One norm over all weights together: clipping each by itself would change the direction.
    norm = torch.nn.utils.get_total_norm([p.grad for p in machine.parameters if p.grad is not None])
    value = machine.whole(norm)
    if 0 < limit < value:  # most steps need no pass over the gradients
        torch.nn.utils.clip_grads_with_norm_(machine.parameters, limit, norm)
    return value
