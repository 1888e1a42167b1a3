"""More ids for a trained model."""

import torch
from torch import Tensor, nn
from yocto_model import GPT


@torch.no_grad()
def grown(model: GPT, *, known: int, vocab_size: int) -> GPT:
    """The model with rows for new ids, each the mean of those it knows.

    A mean is as likely as any token at first: random rows would be far off (Hewitt 2021).

    Args:
        model: changed in place.
        known: ids that it was trained with; rows behind them only pad it.
        vocab_size: ids that it needs.
    """
    rows = max(model.config.vocab_size, vocab_size)
    tables: tuple[nn.Embedding, nn.Linear] = model.token_emb, model.head
    for table in tables:
        old: Tensor = table.weight
        new = old.new_empty(rows, old.shape[1])
        new[: len(old)] = old
        new[known:vocab_size] = old[:known].mean(0)
        table.weight = nn.Parameter(new)
    if model.config.tie_weights:
        model.head.weight = model.token_emb.weight
    model.config = model.config.replace(vocab_size=rows)
    return model
