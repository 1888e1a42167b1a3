"""What is measured between steps: loss over a validation split, bits per byte, a sample of text."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from yocto_data import (
    ChatDataset,
    TokenDataset,
    chat_evaluation_batches,
    evaluation_batches,
)
from yocto_model import GPT, GPTConfig, SamplingOptions, TextGenerator
from yocto_tokenizers import Tokenizer, TokenizerError

from yocto_train.errors import TrainConfigError
from yocto_train.scale.distributed import World
from yocto_train.step import cross_entropy

_LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A measured loss."""

    loss: float  # mean cross-entropy, nats per token
    tokens: int  # targets it was measured on
    whole: bool  # whether these are all of the split's targets
    seconds: float = field(default=0.0, compare=False)  # how long it took


@torch.no_grad()
def evaluate(
    model: GPT,
    dataset: TokenDataset,
    *,
    batch_size: int = 32,
    n_batches: int = 0,
    autocast: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World | None = None,
) -> Evaluation | None:
    """Mean loss over the split, cut into consecutive windows of the data set's block size.

    Every token but the first is a target exactly once, and each loss counts once, whatever the
    batch it came in. Neither weights nor any random state change.

    Args:
        model: put in evaluation mode meanwhile.
        dataset: the validation split.
        batch_size: windows per forward pass.
        n_batches: 0 for the whole split, else this many batches of windows spread evenly over it,
            the same ones every time.
        autocast: dtype of matrix products, or None.
        should_stop: asked between batches, on all ranks.
        world: the processes that share the batches; the result is the same on all.

    Returns:
        The loss; None if `should_stop` returned True before it was complete.
    """
    begun, device = time.perf_counter(), next(model.parameters()).device
    was_training = model.training
    model.eval()
    world = world or World()
    total, count = 0.0, 0
    try:
        for x, y, ours in _shared(_batches(dataset, batch_size, n_batches), world):
            if should_stop():
                return None
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits = model(x.to(device))
            if ours:
                total += float(cross_entropy(logits, y.to(device), reduction="sum"))
                count += int((y >= 0).sum())
    finally:
        model.train(was_training)
    total, tokens = world.sum(total, count)
    return Evaluation(
        loss=total / tokens, tokens=int(tokens), whole=tokens == n_targets(dataset),
        seconds=time.perf_counter() - begun,
    )  # fmt: skip


def windows_at_once(model: GPTConfig, block_size: int) -> int:
    """How many windows an evaluation reads at once: fewer where each token has many logits."""
    tokens = min(16_384, _LOGITS_AT_ONCE // model.vocab_size)
    return max(1, min(64, tokens // block_size))


def n_targets(dataset: TokenDataset) -> int:
    """How many targets a split has: all tokens but the first; of chats, those that are learned."""
    if isinstance(dataset, ChatDataset):
        return dataset.count_trained(np.arange(len(dataset)))
    return dataset.n_tokens - 1


def _shared(
    batches: Iterator[tuple[Tensor, Tensor]], world: World
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """This rank's batch in each round of `world.size` batches, and whether the batch is its own.

    If the last round is too short, a rank repeats another's batch: a sharded model computes only if
    all ranks do.
    """
    while round_ := list(itertools.islice(batches, world.size)):
        ours = world.rank < len(round_)
        x, y = round_[world.rank if ours else 0]
        yield x, y, ours


def _batches(
    dataset: TokenDataset, batch_size: int, n_batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(dataset, ChatDataset):
        yield from chat_evaluation_batches(dataset, batch_size, n_batches=n_batches)
        return
    windows = (dataset.n_tokens - 1) // dataset.block_size
    wanted = n_batches * batch_size
    if not 0 < wanted < windows:
        yield from evaluation_batches(dataset, batch_size)
        return
    starts = np.arange(wanted, dtype=np.int64) * windows // wanted * dataset.block_size
    for first in range(0, wanted, batch_size):
        yield dataset.gather(starts[first : first + batch_size])


@torch.inference_mode()
def evaluate_ids(
    model: GPT,
    ids: Tensor,
    *,
    window: int,
    stride: int | None = None,
    vocab_size: int | None = None,
    tokens_at_once: int = 4096,
) -> Evaluation:
    """Mean loss over the ids of a text; every token but the first is a target exactly once.

    Consecutive windows (the default) are what training evaluates: quick, but the first tokens of
    each window are guessed from little. Windows that begin `stride` tokens after each other
    overlap, and only targets that the window before did not have are counted: after the first
    window, each is guessed from more than `window - stride` tokens. It takes window / stride times
    as long.

    Args:
        model: in evaluation mode.
        ids: (N,), of at least two tokens.
        window: tokens that the model sees at once, at most its `block_size`.
        stride: at most `window`, which is the default.
        vocab_size: how many ids there are, if fewer than the model has rows: the others, which only
            pad it, are never drawn, and so have no probability.
        tokens_at_once: how many are read in one forward pass; more need more memory.
    """
    begun, device, total = time.perf_counter(), model.token_emb.weight.device, 0.0
    ids, last = ids.to(torch.int64), len(ids) - 1
    for starts, length, counted in _overlapping(last, window, stride or window):
        n_rows = max(1, tokens_at_once // length)
        for rows in (starts[i : i + n_rows] for i in range(0, len(starts), n_rows)):
            x = torch.stack([ids[at : at + length] for at in rows])  # (B, length)
            hidden = model.hidden_states(x.to(device))[:, length - counted :]
            y = torch.stack([ids[at + length - counted + 1 : at + length + 1] for at in rows])
            # Logits of a few tokens at a time: a vocabulary may have a hundred thousand entries.
            states, targets = hidden.flatten(0, 1), y.to(device).flatten()
            for at in range(0, len(targets), 256):
                logits = model.logits(states[None, at : at + 256])[..., :vocab_size]
                total += float(cross_entropy(logits, targets[at : at + 256], reduction="sum"))
    return Evaluation(
        loss=total / last, tokens=last, whole=True, seconds=time.perf_counter() - begun
    )


def _overlapping(last: int, window: int, stride: int) -> Iterator[tuple[Sequence[int], int, int]]:
    """Windows over `last` targets: starts, length, and how many targets at the end count."""
    first = min(window, last)
    yield [0], first, first
    full = range(stride, last - window + 1, stride)
    yield full, window, stride
    if done := last - first - len(full) * stride:
        start = (1 + len(full)) * stride
        yield [start], last - start, done


def bytes_per_token(tokenizer: Tokenizer, dataset: TokenDataset) -> float:
    """UTF-8 bytes of text per target of the split (all tokens but the first, or all learned)."""
    lengths = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])
    if isinstance(dataset, ChatDataset):
        sums = [(int(lengths[ids].sum()), len(ids)) for ids in dataset.trained_ids()]
        return sum(n for n, _ in sums) / sum(n for _, n in sums)
    total = 0
    step = 1 << 20
    for start in range(0, dataset.n_tokens - 1, step):
        _, y = dataset.window(start, min(step, dataset.n_tokens - 1 - start))
        total += int(lengths[y.numpy()].sum())
    return total / (dataset.n_tokens - 1)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats per token as bits per byte of text, which does not depend on the tokenizer."""
    return loss / math.log(2) / bytes_per_token


# --- samples -------------------------------------------------------------------------------------


def write_sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: list[int],
    *,
    tokens: int,
    seed: int,
    should_stop: Callable[[], bool],
) -> str | None:
    """What the model writes after a prompt; None if `should_stop` returned True before its end.

    torch's global random state is left alone.
    """
    # A new generator each time: the weights have changed, so no cache may be kept.
    stream = TextGenerator(model, tokenizer).stream(
        prompt, tokens, options=SamplingOptions(temperature=0.8), seed=seed
    )
    text = ""
    for token in stream:
        if should_stop():
            return None
        text += token.text
    return text


def prompt_ids(tokenizer: Tokenizer, data: TokenDataset, prompt: str) -> list[int]:
    """The prompt's ids; instead of an empty one a line end, the first token, or a chat's question.

    Raises:
        TrainConfigError: the prompt cannot be encoded.
    """
    if prompt:
        try:
            ids = tokenizer.encode(prompt)
        except TokenizerError as error:
            raise TrainConfigError(f"sample_prompt cannot be used: {error}") from error
        if ids:
            return ids
    if isinstance(data, ChatDataset):
        return data.opening().tolist() or [0]
    first, _ = data.window(0, 1)
    try:
        return tokenizer.encode("\n") or first.tolist()
    except ValueError:  # a text without a line end
        return [int(first[0])]
