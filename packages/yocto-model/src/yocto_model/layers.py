"""The parts of a GPT, smallest first: norm, rotary positions, attention, MLP, block.

Dimension letters, here and in the rest of the package:

    B  batch             T  tokens of the input    S  tokens seen so far, cache included
    C  n_embd, width     H  query heads            K  key/value heads
    D  width of a head   M  hidden width of MLP    V  vocab_size
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from yocto_model.cache import KVCache
from yocto_model.config import GPTConfig
from yocto_model.fast.training import Dropout


def make_norm(config: GPTConfig) -> nn.Module:
    """The normalisation of a residual branch's input: (..., C) -> (..., C)."""
    # RMSNorm only scales; LayerNorm also moves the mean to zero, which turned out to matter little.
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rotary_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of every position's angles (Su et al. 2021), float32.

    Pair i of a head turns by `position * base^(-2i/D)`; the two members of a pair are D/2 apart,
    as in Llama and Qwen3, not neighbours as in the paper. The first half of the sines carries the
    minus sign of a rotation, so that `rotate` needs no other step.

    Returns:
        Two tensors (block_size, D), on the CPU whatever the default device is.
    """
    D = config.head_width
    pairs = torch.arange(0, D, 2, dtype=torch.float32, device="cpu")
    # Fast pairs tell neighbours apart, slow ones tell near from far, like the hands of a clock.
    frequencies = config.rotary_base ** (-pairs / D)  # (D/2,)
    places = torch.arange(config.block_size, dtype=torch.float32, device="cpu")
    angles = torch.outer(places, frequencies)
    cos, sin = angles.cos(), angles.sin()  # (block_size, D/2)
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of a head by its position's angle; lengths are kept.

    Args:
        x: (B, H, T, D).
        cos: (1, T, D), or (B, 1, T, D) when rows are at different positions.
        sin: the same shape, signed as `rotary_tables` does.
    """
    # (a, b) -> (a cos - b sin, b cos + a sin); rolling by half a head exchanges a and b.
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class CausalSelfAttention(nn.Module):
    """Each token gathers from itself and from those before it: (B, T, C) -> (B, T, C).

    Multi-head attention (Vaswani et al. 2017) with optional per-head norm of queries and keys,
    rotary positions and grouped key/value heads.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer  # its place in the cache
        self.n_head, self.kv_heads = config.n_head, config.kv_heads
        self.head_width, self.dropout = config.head_width, config.attention_dropout
        # One matrix makes queries, keys and values: one large product is faster than three.
        self.sizes = [n * self.head_width for n in (self.n_head, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias or config.qkv_bias)
        self.proj = nn.Linear(self.sizes[0], config.n_embd, bias=config.bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:  # bounds the scores, so that no head saturates early in training
            self.q_norm = nn.RMSNorm(self.head_width, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(self.head_width, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            rotary: cosine and sine for these T positions, or None with learned positions.
            mask: bool, broadcast to (B, H, T, S), True where a query may look. None means
                causal, which needs S == T, or T == 1 and nothing to hide.
            cache: keys and values of earlier tokens; ours are appended.
        """
        B, T, _ = x.shape
        # A query says what a token looks for, a key what it offers, a value what it hands over.
        q, k, v = self.qkv(x).to(x.dtype).split(self.sizes, dim=2)  # back from autocast's bfloat16
        # Heads move to axis 1, beside the batch: each then attends on its own, over (T, D).
        q = q.view(B, T, self.n_head, self.head_width).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, self.kv_heads, self.head_width).transpose(1, 2)  # (B, K, T, D)
        v = v.view(B, T, self.kv_heads, self.head_width).transpose(1, 2)  # (B, K, T, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            # Once both are turned, the score of a query and a key depends on their distance alone.
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D)
        # softmax(q k^T / sqrt(D)) v. The root keeps scores near 1 whatever D is, or the softmax
        # would pick one key and pass no gradient to the others. Causal, because position t is
        # trained to predict token t + 1: it would copy that token if it could look at it.
        # On a CPU, bfloat16 makes this slower unless heads are wide: else it stays in float32.
        pays = x.device.type != "cpu" or self.head_width >= 64
        half = pays and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=half):
            y = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None and T > 1,
                dropout_p=self.dropout if self.training else 0.0,
                enable_gqa=self.kv_heads != self.n_head,  # query heads in groups share a key head
            )  # (B, H, T, D)
        # What the heads found is laid side by side again; `proj` mixes it into the stream.
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    """What each token makes, on its own, of what it has gathered: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        # SwiGLU's gate and value come from one matrix: rows [0, M) are the gate.
        self.sizes = [config.hidden] * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow."""
        return self.proj(self.activate(self.up(x)))

    def activate(self, x: Tensor) -> Tensor:
        """The nonlinearity, (B, T, M or 2M) -> (B, T, M): without it two matrices equal one."""
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)  # the gate decides how much of each value passes
            return F.silu(gate) * value
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the stream: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See `CausalSelfAttention.forward` for the arguments."""
        # Added, so that gradients reach every layer directly. Only the input of each branch is
        # normalised, not the sum, which keeps that path clear (Xiong et al. 2020).
        x = x + self.drop(self.attn(self.ln_1(x), rotary, mask, cache))
        return x + self.drop(self.mlp(self.ln_2(x)))
