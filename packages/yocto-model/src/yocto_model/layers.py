"""The parts of a GPT, smallest first: norm, dropout, rotary positions, attention, MLP, block.

Dimension letters, here and in the rest of the package:

    B  batch             T  tokens of the input    S  tokens seen so far, cache included
    C  n_embd, width     H  query heads            K  key/value heads
    D  width of a head   F  hidden width of MLP    V  vocab_size
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from yocto_model.cache import KVCache
from yocto_model.config import GPTConfig


def make_norm(config: GPTConfig) -> nn.Module:
    """The normalisation of a residual branch's input: (..., C) -> (..., C)."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


class Dropout(nn.Module):
    """While training, zero each value with probability `p`, divide the others by 1 - p.

    torch's own draws a number of 64 bits for each value, which on a CPU took a tenth of a training
    step. Sixteen bits make p right to 1 / 65,536.

    Args:
        p: probability of zeroing, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape of floats; the same shape and dtype."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None)  # all 64 bits, thus four draws
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -2^15
        kept = draws >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """What torch prints in the brackets."""
        return f"p={self.p}"


def rotary_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of every position's angles (Su et al. 2021), float32.

    Pair i of a head turns by `position * base^(-2i/D)`; the two members of a pair are D/2 apart,
    as in Llama and Qwen3, not neighbours as in the paper. The first half of the sines carries the
    minus sign of a rotation, so that `rotate` needs no other step.

    Returns:
        Two tensors (block_size, D), on the CPU whatever the default device is.
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = config.rotary_base ** (-pairs / config.head_dim)  # (D/2,)
    places = torch.arange(config.block_size, dtype=torch.float32, device="cpu")
    angles = torch.outer(places, frequencies)
    cos, sin = angles.cos(), angles.sin()  # (block_size, D/2)
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of a head by its position's angle; lengths are kept.

    Args:
        x: (B, H, T, D).
        cos: (T, D), or (B, 1, T, D) when rows stand at different positions.
        sin: the same shape, signed as `rotary_tables` does.
    """
    # Rolling by half a head exchanges the members of each pair.
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and at those before it: (B, T, C) -> (B, T, C).

    Multi-head attention (Vaswani et al. 2017) with optional per-head norm of queries and keys,
    rotary positions and grouped key/value heads. One matrix makes q, k and v.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer  # its place in the cache
        self.n_head, self.kv_heads = config.n_head, config.kv_heads
        self.head_dim, self.dropout = config.head_dim, config.attention_dropout
        self.sizes = [heads * config.head_dim for heads in (self.n_head, *[self.kv_heads] * 2)]
        self.qkv = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

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
        B, T, C = x.shape
        q, k, v = self.qkv(x).to(x.dtype).split(self.sizes, dim=2)
        q = q.view(B, T, self.n_head, self.head_dim)
        k = k.view(B, T, self.kv_heads, self.head_dim)
        v = v.view(B, T, self.kv_heads, self.head_dim)
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)  # (B, H|K, T, D)
        v = v.transpose(1, 2)  # (B, K, T, D)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D)
        # On a CPU, bfloat16 makes products faster and this slower: it stays in float32 there.
        half = x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=half):
            y = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None and T > 1,
                dropout_p=self.dropout if self.training else 0.0,
                enable_gqa=self.kv_heads != self.n_head,
            )  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return] # nn.Module.__call__ is untyped


class MLP(nn.Module):
    """What a token makes of what it has gathered, each on its own: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        # SwiGLU's gate and value come from one matrix: rows [0, F) are the gate.
        self.sizes = [config.hidden] * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow."""
        return self.proj(self.activate(self.up(x)))  # type: ignore[no-any-return] # nn.Module.__call__ is untyped

    def activate(self, x: Tensor) -> Tensor:
        """The activation: (B, T, F), or (B, T, 2F) for SwiGLU, to (B, T, F)."""
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return F.silu(gate) * value
        if self.activation == "relu2":
            return F.relu(x).square()
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the stream (pre-norm): (B, T, C) -> (B, T, C).

    Normalising the branch's input rather than the sum keeps a clear path for the gradient
    (Xiong et al. 2020).
    """

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
        x = x + self.drop(self.attn(self.ln_1(x), rotary, mask, cache))
        return x + self.drop(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return] # nn.Module.__call__ is untyped
