"""KVCache: the keys and values of the tokens a model has read, so that they are read once.

Without it, token n costs a pass over all n tokens before it; with it, one pass over one token.
"""

import torch
from torch import Tensor

from yocto_model.config import GPTConfig
from yocto_model.errors import InputError


class KVCache:
    """Room for `capacity` tokens in every layer, allocated once.

    Attributes:
        length: tokens held so far.
        capacity: tokens there is room for.
        padding: (B,) int64, or None. Row b's first `padding[b]` tokens only make rows equally
            long: they take no position and nobody looks at them.

    Bytes: `2 * n_layer * B * K * D * capacity` times the size of one value.
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
        shape = (config.n_layer, 2, batch_size, config.kv_heads, self.capacity, config.head_dim)
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

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new tokens of one layer and return all S = length + T of them.

        `length` itself moves once per forward pass, in `advance`, after every layer has stored.

        Args:
            layer: index of the block.
            k: keys (B, K, T, D).
            v: values (B, K, T, D).

        Returns:
            Keys and values (B, K, S, D), views of the storage.

        Raises:
            InputError: there is no room for T more tokens.
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

        Raises:
            InputError: the cache is full.
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
        """Forget all but the first `length` tokens (0 resets); the storage stays.

        Raises:
            InputError: `length` is negative or larger than what is held.
        """
        if not 0 <= length <= self.length:
            raise InputError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def fork(self) -> "KVCache":
        """An independent copy: what is appended to one is not seen by the other."""
        twin = object.__new__(KVCache)
        twin.capacity, twin.length, twin.padding = self.capacity, self.length, self.padding
        twin._both = self._both.clone()
        return twin

    def _check_room(self, n_tokens: int) -> None:
        if self.length + n_tokens > self.capacity:
            raise InputError(
                f"the cache holds {self.length} of {self.capacity} tokens, and {n_tokens} more "
                "do not fit; truncate it or make a larger one"
            )
