"""The size of a model and the number of steps that fit a budget of time, found by measuring.

A larger model learns more from each token and reads fewer of them. For runs of minutes on small
texts, the best use of a budget was a model that sees about three tokens per parameter; compute-
optimal training of large models sees about twenty (Hoffmann et al. 2022).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yocto_model.config import GPTConfig

from yocto_train.config import TrainConfig
from yocto_train.errors import TrainConfigError

# Sizes to choose from, small to large; close enough that a machine a little faster or slower, or
# busier for a moment, gets a model a little larger or smaller.
SIZES: Sequence[Mapping[str, Any]] = (
    {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 128, "batch_size": 16},
    {"n_layer": 2, "n_head": 2, "n_embd": 96, "block_size": 256, "batch_size": 8},
    {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 256, "batch_size": 8},
    {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 256, "batch_size": 8},
    {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "batch_size": 8},
    {"n_layer": 4, "n_head": 4, "n_embd": 160, "block_size": 256, "batch_size": 8},
    {"n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 256, "batch_size": 16},
    {"n_layer": 6, "n_head": 4, "n_embd": 256, "block_size": 256, "batch_size": 16},
    {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 32},
    {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 512, "batch_size": 32},
)
TOKENS_PER_PARAMETER = 3.0
# Of conversations, whose replies are to be known by heart: that takes weights. In the default
# run's four minutes 1.1 gave a validation loss of 0.16, and 2.0 with half the rows a step 0.31.
CHAT_TOKENS_PER_PARAMETER = 1.2
_MIN_ITERS = 50


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One size, measured."""

    size: Mapping[str, Any]  # the fields that make it
    n_parameters: int  # distinct weights
    seconds_per_step: float  # of an optimizer step
    tokens_per_step: int  # targets per step
    evaluation_seconds: float  # of one evaluation

    def iters(self, seconds: float, evaluations: int) -> int:
        """How many steps fit into `seconds` beside the evaluations."""
        left = seconds - evaluations * self.evaluation_seconds
        return max(0, int(left / self.seconds_per_step))

    def tokens_per_parameter(self, iters: int) -> float:
        """Tokens that the model sees in `iters` steps, for each of its weights."""
        return iters * self.tokens_per_step / self.n_parameters


def choose(
    seconds: float,
    measure: Callable[[Mapping[str, Any]], Candidate],
    *,
    sizes: Sequence[Mapping[str, Any]] = SIZES,
    evaluations: int = 8,
    wanted: float = TOKENS_PER_PARAMETER,
) -> tuple[Candidate, int]:
    """The size whose tokens per parameter come nearest to what is wanted, and its steps.

    Args:
        seconds: the budget, for steps and evaluations.
        measure: times a size on this machine; called from the smallest on, until one is too large.
        sizes: from small to large.
        evaluations: how many there will be.
        wanted: tokens per parameter, over the whole time.

    Raises:
        TrainConfigError: not even the smallest size makes 50 steps in the time.
    """
    fitting: list[tuple[Candidate, int]] = []
    for size in sizes:
        candidate = measure(size)
        iters = candidate.iters(seconds, evaluations)
        if iters < _MIN_ITERS:
            break
        fitting.append((candidate, iters))
        if candidate.tokens_per_parameter(iters) < wanted:
            break  # larger ones would be further off
    if not fitting:
        raise TrainConfigError(
            f"{seconds:.0f} s is too short for {_MIN_ITERS} steps of the smallest size; "
            "give more time, or choose steps and a size yourself"
        )

    def distance(fit: tuple[Candidate, int]) -> float:
        candidate, iters = fit
        return abs(math.log(candidate.tokens_per_parameter(iters) / wanted))

    return min(fitting, key=distance)


def against_overfitting(epochs: float) -> dict[str, float]:
    """Dropout and weight decay that suit how often each token is seen.

    At 4 epochs of conversations and essays a dropout of 0.1 still made the loss worse, 1.18 against
    1.15. At 6.5 epochs a weight decay of 0.1 took it from 1.132 to 1.106; at 2.5 epochs of tiny
    Shakespeare it gave nothing, and 0.4 was far too much.
    """
    dropout = 0.0 if epochs <= 8 else 0.1 if epochs <= 16 else 0.2
    return {"dropout": dropout, "weight_decay": 0.1 if epochs > 4 else 0.0}


def memory_bytes(model: GPTConfig, train: TrainConfig, *, tokens: int, half: bool = False) -> int:
    """Roughly what training takes: weights, gradients, two moments, and activations, in float32.

    Of a frozen matrix only the weight counts. With `grad_checkpointing`, only what enters each
    block is kept, and one block at a time.

    Args:
        model: the model's settings.
        train: the training's.
        tokens: rows times context of one micro-batch.
        half: whether products, and so frozen matrices, are in half precision.
    """
    width, hidden, layers = model.n_embd, model.hidden, model.n_layer
    learned, frozen = model.n_parameters, 0
    if train.lora_rank:
        heads = model.n_head * model.head_width
        qkv = heads + 2 * model.kv_heads * model.head_width
        up = hidden * (2 if model.activation == "swiglu" else 1)
        sides = (width, qkv), (heads, width), (width, up), (hidden, width)
        frozen = model.n_parameters - layers * sum(a * b for a, b in sides) * half // 2
        learned = train.lora_rank * layers * sum(a + b for a, b in sides)
    block = 14 * width + 4 * hidden
    blocks = layers * width + block if train.grad_checkpointing else layers * block
    per_token = blocks + (1 if half else 3) * model.vocab_size  # logits, and their gradient
    return 4 * math.ceil(4 * learned + frozen + tokens * per_token)
