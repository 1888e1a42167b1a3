"""What every start checks: whether model, data, tokenizer and processes go together."""

import torch
from yocto_data import TokenDataset
from yocto_model import GPTConfig
from yocto_tokenizers import Tokenizer

from yocto_train.config import TrainConfig
from yocto_train.distributed import World
from yocto_train.errors import TrainConfigError


def check_data(
    config: GPTConfig,
    train_data: TokenDataset,
    val_data: TokenDataset,
    tokenizer: Tokenizer | None,
) -> None:
    """Whether model, data and tokenizer fit each other.

    Raises:
        TrainConfigError: they do not; both sides are named.
    """
    made_by: dict[str, str] = {}
    for name, data in (("training", train_data), ("validation", val_data)):
        if data.block_size > config.block_size:
            raise TrainConfigError(
                f"the {name} data has windows of {data.block_size} tokens, "
                f"the model's block_size is {config.block_size}"
            )
        if data.vocab_size is not None and data.vocab_size > config.vocab_size:
            raise TrainConfigError(
                f"the {name} data has {data.vocab_size} ids, the model only {config.vocab_size}"
            )
        if data.meta is not None and data.meta.tokenizer.fingerprint is not None:
            made_by[name] = data.meta.tokenizer.fingerprint
    if len(set(made_by.values())) > 1:
        raise TrainConfigError(
            "the training and the validation data come from different tokenizers; "
            "prepare both together"
        )
    if tokenizer is None:
        return
    if tokenizer.vocab_size > config.vocab_size:
        raise TrainConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}"
        )
    if made_by and tokenizer.fingerprint() not in made_by.values():
        raise TrainConfigError(
            f"the data was prepared with another tokenizer than the {tokenizer.kind} tokenizer "
            "given; use the data's own, or prepare the text again"
        )


def check_world(config: TrainConfig, world: World, autocast: torch.dtype | None) -> None:
    """Whether a step's rows can be shared out, and whether this way of training is known to work.

    Raises:
        TrainConfigError: they cannot, or it is not.
    """
    if config.batch_size % (world.size * config.accumulate):
        raise TrainConfigError(
            f"batch_size {config.batch_size} does not divide among {world.size} processes "
            f"with accumulate {config.accumulate}; use a multiple of "
            f"{world.size * config.accumulate}"
        )
    if world.kind == "fsdp" and autocast == torch.float16:
        raise TrainConfigError("float16 does not go with fsdp; use bfloat16, or ddp")
