"""A trained model with other settings, to train it further."""

from collections.abc import Mapping

import torch
from torch import Tensor
from yocto_model import GPT, GPTConfig


def begun(model: GPT, config: GPTConfig, *, known: int, n_ids: int) -> GPT:
    """The model's weights under settings that differ in dropout and `vocab_size` alone.

    The row of a new id is the mean of those that were trained, by which it is as likely as any at
    first; with a random row it might be far more so (Hewitt 2021).

    Args:
        model: is used up.
        config: the settings.
        known: ids that the model was trained with; rows behind them only pad it.
        n_ids: ids that it needs.
    """
    weights = model.state_dict()
    if n_ids > known:
        for name in ("token_emb.weight", "head.weight"):
            old = weights[name]
            weights[name] = torch.cat(
                [old, old.new_empty(config.vocab_size - len(old), old.shape[1])]
            )
            weights[name][known:n_ids] = old[:known].mean(0)
    return assembled(config, weights)


def assembled(config: GPTConfig, weights: Mapping[str, Tensor]) -> GPT:
    """A model in evaluation mode that has these very tensors as its weights."""
    with torch.device("meta"):  # no memory and no time for weights that are replaced
        model = GPT(config)
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.head.weight = model.token_emb.weight
    return model.to(model.token_emb.weight.device).eval()
