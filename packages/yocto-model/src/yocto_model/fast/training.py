"""What training uses: cheaper dropout, less memory, and which parameter does what."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.checkpoint import checkpoint


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
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits.random_(-(2**63), None)  # all 64 bits: four draws
        draws = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -2^15
        kept = draws >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """What torch prints in the brackets."""
        return f"p={self.p}"


def empty_table(rows: int, width: int) -> nn.Embedding:
    """An embedding that is not yet initialised.

    Plain `nn.Embedding` draws from N(0, 1) at once, which is wasted; and on the meta device, which
    `load` uses, that one call makes torch import its compiler and sympy, for several seconds.
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """A block's output, of which only the inputs are kept for the backward pass."""
    out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    return out


@dataclass(frozen=True, kw_only=True)
class ParameterRoles:
    """A model's distinct parameters by what they do, each exactly once.

    Attributes:
        embeddings: token and position tables; a tied head is here.
        head: the output matrix, unless it is tied.
        matrices: the matrices inside the blocks, each with the row counts of the parts it is made
            of: q, k and v share one parameter, SwiGLU's gate and value another.
        vectors: gains and biases.
    """

    embeddings: list[Tensor]
    head: list[Tensor]
    matrices: list[tuple[Tensor, list[int]]]
    vectors: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "ParameterRoles":
        """The roles in a `GPT`."""
        roles = cls(embeddings=[], head=[], matrices=[], vectors=[])
        for name, weight in model.named_parameters():  # a tied head comes as the embedding only
            if weight.dim() < 2:
                roles.vectors.append(weight)
            elif name.startswith("head."):
                roles.head.append(weight)
            elif name.startswith("blocks."):
                # In attention and MLP alike, `sizes` are the parts of the first of two matrices.
                owner, part, _ = name.rsplit(".", 2)
                parts: Any = model.get_submodule(owner)
                sizes = parts.sizes if part in ("qkv", "up") else [weight.shape[0]]
                roles.matrices.append((weight, sizes))
            else:
                roles.embeddings.append(weight)
        return roles
