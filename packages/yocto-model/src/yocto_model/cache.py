"""What a model has read: the keys and values of its tokens, so that they are read once.

Without it, token n costs a pass over all n tokens before it; with it, one pass over one token.
The arguments of callers are checked here too: counts, rows of ids, seeds.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yocto_model.config import GPTConfig
from yocto_model.errors import InputError, quoted

if TYPE_CHECKING:
    from yocto_model.gpt import GPT


class KVCache:
    """Room for `capacity` tokens in every layer, allocated once.

    Attributes:
        length: tokens held so far.
        capacity: tokens there is room for.
        padding: (B,) int64, or None. Row b's first `padding[b]` tokens only make rows equally
            long: they take no position, and no token looks at them.

    Bytes: `2 * n_layer * B * K * D * capacity` times the size of one value.

    Raises:
        InputError: from any method, where there is no room, or less than is to be kept.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int = 1,
        *,
        capacity: int | None = None,
        padding: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.capacity = config.block_size if capacity is None else capacity
        shape = (config.n_layer, 2, batch_size, config.kv_heads, self.capacity, config.head_width)
        # Not cleared: nothing beyond `length` is read, and untouched memory costs nothing.
        self._both = torch.empty(shape, device=device, dtype=dtype)
        self.padding = padding
        self.length = 0

    @property
    def keys(self) -> Tensor:
        """(n_layer, B, K, capacity, D), a view; the first `length` tokens are valid."""
        return self._both[:, 0]

    @property
    def values(self) -> Tensor:
        """The same shape."""
        return self._both[:, 1]

    def positions(self, T: int) -> Tensor:
        """The positions of the next T tokens: (T,), or (B, T) with padding."""
        places = torch.arange(self.length, self.length + T, device=self._both.device)
        return places if self.padding is None else (places - self.padding[:, None]).clamp(min=0)

    def mask(self, T: int) -> Tensor | None:
        """What each of the next T tokens may look at; None where plain causal masking will do.

        Returns:
            bool, (T, S) or, with padding, (B, 1, T, S); True where a query may look.
        """
        if self.padding is None and (self.length == 0 or T == 1):
            return None
        keys = torch.arange(self.length + T, device=self._both.device)  # (S,)
        queries = keys[self.length :, None]  # (T, 1)
        causal = keys <= queries  # (T, S)
        if self.padding is None:
            return causal
        visible = keys >= self.padding[:, None, None, None]  # (B, 1, 1, S)
        # A padding token sees itself: a softmax over nothing would be NaN.
        return (causal & visible) | (keys == queries)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new tokens of one layer and return all S = length + T of them.

        `length` itself moves once per forward pass, in `advance`, after every layer has stored.

        Args:
            layer: index of the block.
            k: keys (B, K, T, D).
            v: values (B, K, T, D).

        Returns:
            Keys and values (B, K, S, D), views of the storage.
        """
        self._check_room(k.shape[2])
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def next_token(self) -> list[tuple[Tensor, ...]]:
        """Room for one more token, layer by layer; `advance` counts it once it is written.

        Returns:
            For each layer four views of the storage: keys and values (B, K, length + 1, D), then
            of those the new token's keys and values (B, K, D), which the caller writes.
        """
        self._check_room(1)
        parts = self._both.flatten(0, 1)  # (2 n_layer, B, K, capacity, D)
        seen = parts[:, :, :, : self.length + 1].unbind(0)
        new = parts[:, :, :, self.length].unbind(0)
        return list(zip(seen[::2], seen[1::2], new[::2], new[1::2], strict=True))

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` as held, after every layer has appended them."""
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens (0 resets); the storage stays."""
        if not 0 <= length <= self.length:
            raise InputError(f"cannot truncate a cache of length {self.length} to {length}")
        self.length = length

    def _check_room(self, n_tokens: int) -> None:
        if self.length + n_tokens > self.capacity:
            raise InputError(
                f"the cache holds {self.length} of at most {self.capacity} tokens, without room "
                f"for {n_tokens} more; truncate it, or make a larger one"
            )


class Reader:
    """Reads rows of ids with a model, and no id twice if it can help it.

    What the last rows began with is not read again: neither when each has grown by an id, nor when
    a chat's next prompt begins like the one before.

    Args:
        model: in evaluation mode, its weights as they will stay.
        use_cache: False reads everything again each time: same logits, slower.
    """

    def __init__(self, model: "GPT", *, use_cache: bool = True) -> None:
        self.model, self.use_cache = model, use_cache
        self._cache: KVCache | None = None
        self._rows: list[list[int]] = []  # what the cache holds, padding included
        self._padding: list[int] = []

    @torch.no_grad()
    def next_logits(self, rows: Sequence[list[int]]) -> Tensor:
        """Logits (B, V) of the id that follows each row; rows have 1 to `block_size` ids."""
        weight = self.model.token_emb.weight
        shared = self._n_shared(rows)
        if not shared:
            self._start(rows)
        padded = self._padded(rows)
        if self._cache is not None:
            self._cache.truncate(shared)
        self._rows = []  # in case reading fails
        idx = torch.tensor([row[shared:] for row in padded], device=weight.device)  # (B, unread)
        x = self.model.hidden_states(idx, cache=self._cache)  # (B, unread, C)
        self._rows = padded if self.use_cache else []
        return self.model.logits(x[:, -1])

    def _padded(self, rows: Sequence[list[int]]) -> list[list[int]]:
        return [[0] * pad + row for pad, row in zip(self._padding, rows, strict=True)]

    def _n_shared(self, rows: Sequence[list[int]]) -> int:
        """How many ids of each padded row the cache holds already; 0 if it must begin anew."""
        if self._cache is None or len(rows) != len(self._rows):
            return 0
        padded = self._padded(rows)
        length = len(padded[0])
        if length > self._cache.capacity or any(len(row) != length for row in padded):
            return 0
        # The last id is read again if need be: its logits are wanted.
        shared = min(length - 1, *map(n_common, self._rows, padded))
        return shared if shared >= max(self._padding) else 0

    def _start(self, rows: Sequence[list[int]]) -> None:
        config, weight = self.model.config, self.model.token_emb.weight
        longest = max(map(len, rows))
        self._padding = [longest - len(row) for row in rows]
        padding = torch.tensor(self._padding, device=weight.device) if any(self._padding) else None
        self._cache = None
        if self.use_cache or padding is not None:
            self._cache = KVCache(
                config,
                len(rows),
                # Some models could read 100,000 tokens, for which few machines have the memory.
                capacity=min(config.block_size, max(2 * longest, 4096)),
                padding=padding,
                device=weight.device,
                dtype=weight.dtype,
            )


def n_common(a: list[int], b: list[int]) -> int:
    """Length of the longest beginning that two rows share."""
    if a == b[: len(a)]:
        return len(a)  # the usual case, in a fraction of the time
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))


# --- what callers pass ------------------------------------------------------------------------


def check_count(name: str, number: object) -> None:
    """Raise InputError, which calls it `name`, unless it is a whole number of at least 0."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(f"{name} must be a whole number >= 0, not {quoted(number)}")


def checked_rows(
    rows: Tensor | Iterable[Iterable[int]], vocab_size: int, *, what: str = "prompt", least: int = 1
) -> list[list[int]]:
    """The rows as lists of int; InputError unless each holds at least one id of the vocabulary."""
    if isinstance(rows, Tensor):
        if rows.dim() != 2:
            raise InputError(f"ids must have shape (batch, tokens), not {tuple(rows.shape)}")
        rows = rows.tolist()
    try:
        checked = [[operator.index(token) for token in row] for row in rows]
    except TypeError as error:
        raise InputError(f"a {what} must be rows of whole numbers, such as [[1, 2, 3]]") from error
    name = "row" if what == "prompt" else what
    if len(checked) < least:
        raise InputError(f"there is no {what}: give at least one row of ids")
    for number, row in enumerate(checked):
        if not row:
            raise InputError(f"{name} {number} is empty: a {what} needs at least one token")
        for token in row:
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"id {quoted(token)} in {name} {number} is outside 0..{vocab_size - 1}"
                )
    return checked


def make_generators(n_rows: int, seed: int | Sequence[int] | None) -> list[torch.Generator]:
    """One CPU generator per row: row b is seeded with `seed + b`, or with `seed[b]`.

    Raises:
        InputError: the number of seeds is not the number of rows, or one is out of range.
    """
    if seed is None:
        seed = int(torch.randint(2**62, (1,)))
    if isinstance(seed, Sequence) and len(seed) != n_rows:
        raise InputError(f"give one seed for each row: rows {n_rows}, seeds {len(seed)}")
    try:
        seeds = seed if isinstance(seed, Sequence) else [seed + row for row in range(n_rows)]
        return [torch.Generator().manual_seed(operator.index(number)) for number in seeds]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("a seed must be a whole number from -2^63 to 2^64 - 1") from error
