"""One token through a GPT, as `GPT.hidden_states` computes it, in as few operations as possible.

For a single token the operations are so small that starting each, a microsecond or two, is most of
their cost. This saves calls of modules, views that a sequence needs and a token does not, separate
work for queries and keys. On one core of an AMD EPYC a token takes 1.8 to 2.3 times as long without
it at 4 layers x 128, and 1.2 to 1.3 times at 6 x 384. layers.py and gpt.py say what is computed; a
test checks that the two agree for models of every kind.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from yocto_model.cache import KVCache
from yocto_model.layers import MLP, Block, CausalSelfAttention, rotate

if TYPE_CHECKING:
    from yocto_model.gpt import GPT

Function = Callable[[Tensor], Tensor]
Rotary = tuple[Tensor, Tensor]


class OneToken:
    """A model's layers, looked up once, for one token of each row at a time.

    Args:
        model: its modules must not be replaced afterwards.
    """

    def __init__(self, model: "GPT") -> None:
        self.model = model
        blocks = cast("Iterable[Block]", model.blocks)
        self.layers = [
            (norm(block.ln_1), Attention(block.attn), norm(block.ln_2), mlp(block.mlp))
            for block in blocks
        ]
        self.ln_f = norm(model.ln_f)
        self.token_table = model.token_emb.weight
        self.position_table = None if model.pos_emb is None else model.pos_emb.weight

    def __call__(self, idx: Tensor, *caches: KVCache) -> Tensor:
        """Read one token per row, int64 (B, 1) -> (B, 1, C), and add it to caches with room.

        The rows of several caches, whose lengths may differ, are together the B rows, in order.
        """
        # A plain number if it is the same for all rows: it picks a row of a table more cheaply.
        positions: int | Tensor = caches[0].length
        if len(caches) > 1 or caches[0].padding is not None:
            positions = torch.cat([cache.positions(1).view(-1, 1) for cache in caches])  # (B, 1)
        masks = [cache.mask(1) for cache in caches]
        x = F.embedding(idx, self.token_table)[:, 0]  # (B, C)
        rotary = None
        if self.position_table is not None:
            x = x + self.position_table[positions].view(-1, x.shape[1])  # (1 or B, C) added
        else:
            rotary = self.model.cos[positions], self.model.sin[positions]  # (D,) or (B, 1, D)
        stored = zip(*(cache.next_token() for cache in caches), strict=True)
        for layer, parts in zip(self.layers, stored, strict=True):
            ln_1, attention, ln_2, mlp = layer
            x = x + attention(ln_1(x), rotary, parts, masks)
            x = x + mlp(ln_2(x))
        for cache in caches:
            cache.advance(1)
        return self.ln_f(x)[:, None]


class Attention:
    """`CausalSelfAttention` of one token per row: (B, C) -> (B, C)."""

    def __init__(self, attention: CausalSelfAttention) -> None:
        self.qkv, self.proj = product(attention.qkv), product(attention.proj)
        self.heads = [attention.n_head, attention.kv_heads, attention.kv_heads]
        self.head_width = attention.head_width
        self.norm: Function | None = None
        if isinstance(attention.q_norm, nn.RMSNorm) and isinstance(attention.k_norm, nn.RMSNorm):
            gains: list[Tensor] = [attention.q_norm.weight] * attention.n_head
            gains += [attention.k_norm.weight] * attention.kv_heads
            self.norm = rms_norm(torch.stack(gains), attention.q_norm.eps)

    def __call__(
        self,
        x: Tensor,
        rotary: Rotary | None,
        stored: Sequence[tuple[Tensor, ...]],
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        """Attend; `stored` is this layer's part of each cache's `KVCache.next_token`.

        Cosine and sine are (D,) or (B, 1, D); a mask is (b, 1, 1, S) for a cache of b rows, True
        where a row may look.
        """
        B, (n_head, kv_heads, _) = x.shape[0], self.heads
        heads = self.qkv(x).view(B, -1, self.head_width)  # (B, H + 2 K, D)
        if self.norm is not None or rotary is not None:
            qk, v = heads.split_with_sizes([n_head + kv_heads, kv_heads], 1)
            qk = qk if self.norm is None else self.norm(qk)  # (B, H + K, D)
            qk = qk if rotary is None else rotate(qk, *rotary)
            q, k = qk.split_with_sizes([n_head, kv_heads], 1)
        else:
            q, k, v = heads.split_with_sizes(self.heads, 1)
        # The query heads that share keys take the place of a sequence's tokens: (B, K, H / K, D).
        q = q.reshape(B, kv_heads, n_head // kv_heads, self.head_width)
        if len(stored) == 1:
            return self.proj(attend(q, k, v, stored[0], masks[0]).reshape(B, -1))
        sizes = [part[2].shape[0] for part in stored]
        parts = zip(*(x.split_with_sizes(sizes) for x in (q, k, v)), stored, masks, strict=True)
        return self.proj(torch.cat([attend(*part) for part in parts]).reshape(B, -1))


def attend(
    q: Tensor, k: Tensor, v: Tensor, stored: tuple[Tensor, ...], mask: Tensor | None
) -> Tensor:
    """Store a token's keys and values (b, K, D); what its queries (b, K, H / K, D) find."""
    keys, values, new_k, new_v = stored
    new_k.copy_(k)
    new_v.copy_(v)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def product(module: nn.Module) -> Function:
    """A linear layer's own function: calling the module would look for hooks first."""
    return cast("Function", module.forward)


def mlp(module: MLP) -> Function:
    """`MLP` without the calls of its modules."""
    up, activate, down = product(module.up), module.activate, product(module.proj)
    return lambda x: down(activate(up(x)))


def norm(module: nn.Module) -> Function:
    """The normalisation that a module of `make_norm` computes."""
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    if not isinstance(module, nn.RMSNorm):
        raise TypeError(f"one token cannot pass a norm of type {type(module).__name__}")
    return rms_norm(module.weight, module.eps)


def rms_norm(gain: Tensor, eps: float | None) -> Function:
    """`x / sqrt(mean(x^2) + eps) * gain`; torch's own takes twice as long for a few rows.

    With C values in a row, sqrt(mean(x^2) + eps) is hypot(|x|, sqrt(C eps)) / sqrt(C).
    """
    width = gain.shape[-1]
    floor = gain.new_tensor(math.sqrt(width * (eps or torch.finfo(gain.dtype).eps)))
    gain = gain.detach() * math.sqrt(width)

    def normalise(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, floor) * gain

    return normalise
