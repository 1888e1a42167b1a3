"""LoRA (Hu et al. 2021): a frozen matrix W learns by a product of two thin ones, W + s B A.

Only A and B have gradients and moments, so that training takes a fraction of the memory, and no
time for the gradients of W. The sum of both is a model like any other: `merged`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from yocto_model import GPT

from yocto_train.tune.begin import assembled


class LowRank(nn.Linear):
    """A linear layer that is kept as it is, and what it learns: y = W x + b + alpha / rank B A x.

    Args:
        base: its weight W (out, in) and bias become this layer's, without gradients.
        rank: rows of A (rank, in), which begins at random, and columns of B (out, rank), which
            begins at zero: at first the layer computes what `base` did.
        alpha: how much the product counts.
        generator: draws A, on the CPU.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw weights
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name for it
        """(..., in) -> (..., out)."""
        low = F.linear(input, self.lora_a) * self.scale
        return super().forward(input) + F.linear(low, self.lora_b)

    def whole(self) -> Tensor:
        """W + alpha / rank B A, in float32."""
        product = self.lora_b.detach() @ self.lora_a.detach()
        return torch.add(self.weight.detach().float(), product, alpha=self.scale)


def adapt(
    model: GPT, *, rank: int, alpha: float, seed: int, dtype: torch.dtype | None = None
) -> None:
    """Freeze a model, and let all matrices inside its blocks learn by adapters.

    Args:
        model: changed in place; its weights are on the CPU. Adapters that it has stay.
        rank: of the adapters.
        alpha: see `LowRank`.
        seed: decides how the adapters begin.
        dtype: of the frozen matrices, which is that of their products: then nothing is converted,
            and they take half the memory. None keeps theirs.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(requires_grad=False)
    for block in model.blocks:
        for module in list(block.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Linear) and not isinstance(layer, LowRank):
                    layer.weight.data = layer.weight.data.to(dtype)
                    setattr(module, name, LowRank(layer, rank, alpha, generator))


def merged(model: GPT) -> GPT:
    """A whole model without adapters, which shares all other weights; a model that has none."""
    if not (layers := adapters(model)):
        return model
    weights = {n: w.detach() for n, w in model.state_dict().items() if ".lora_" not in n}
    weights |= {f"{name}.weight": layer.whole() for name, layer in layers.items()}
    return assembled(model.config, weights)


def adapters(model: GPT) -> dict[str, LowRank]:
    """The layers that have one, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, LowRank)}
