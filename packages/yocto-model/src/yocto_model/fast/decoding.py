"""One token through a GPT, as `GPT.hidden_states` computes it, in fewer operations.

For a single token the operations are so small that starting each, a microsecond or two, is most of
their cost. This saves views that a sequence needs and a token does not, and reads rows of several
caches together. It serves where there is no compiled kernel. layers.py and gpt.py say what is
computed; a test checks that the two agree for models of every kind.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from yocto_model.cache import KVCache
from yocto_model.layers import Block, CausalSelfAttention, rotate

if TYPE_CHECKING:
    from yocto_model.gpt import GPT

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
            (block.ln_1, Attention(block.attn), block.ln_2, block.mlp) for block in blocks
        ]
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
        return self.model.ln_f(x)[:, None]


class Attention:
    """`CausalSelfAttention` of one token per row: (B, C) -> (B, C)."""

    def __init__(self, attention: CausalSelfAttention) -> None:
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.heads = [attention.n_head, attention.kv_heads, attention.kv_heads]
        self.head_width = attention.head_width

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
        q, k, v = heads.split_with_sizes(self.heads, 1)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        # The query heads that share keys take the place of a sequence's tokens: (B, K, H / K, D).
        q = q.reshape(B, kv_heads, n_head // kv_heads, self.head_width)
        sizes = [part[2].shape[0] for part in stored]
        parts = zip(*(x.split_with_sizes(sizes) for x in (q, k, v)), stored, masks, strict=True)
        out: Tensor = self.proj(torch.cat([attend(*part) for part in parts]).reshape(B, -1))
        return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, stored: tuple[Tensor, ...], mask: Tensor | None
) -> Tensor:
    """Store a token's keys and values (b, K, D); what its queries (b, K, H / K, D) find."""
    keys, values, new_k, new_v = stored
    new_k.copy_(k)
    new_v.copy_(v)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
