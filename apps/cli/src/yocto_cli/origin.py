"""The model that a training goes on from.

This module is imported after the flags have been parsed: it brings torch in.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer, template_for
from yocto_train import OpenedModel, open_model
from yocto_train.tune.begin import begun

from yocto_cli.chats import END_OF_TEXT, turn_tokens
from yocto_cli.command import UsageError
from yocto_cli.model_arguments import named_tokenizer
from yocto_cli.train_settings import DataFlags

WINDOW = 256  # tokens of a row; a pretrained model could read far more at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of the model; its weights are read when they are needed.

    Attributes:
        opened: the model as it was found, without weights.
        tokenizer: its own, perhaps with tokens for turns that it has not seen.
        known: ids that it has seen.
        is_frozen: whether only adapters learn.
    """

    opened: OpenedModel
    tokenizer: Tokenizer
    known: int
    is_frozen: bool

    @classmethod
    def of(cls, source: str | Path, flags: DataFlags, given: Mapping[str, Any]) -> "Origin":
        """Look at a model.

        Args:
            source: what `open_model` takes.
            flags: may name its tokenizer.
            given: all flags, which must suit it.

        Raises:
            UsageError: it has no tokenizer, or is too small for the flags.
            TrainError: there is no such model, or it cannot be used.
        """
        named = named_tokenizer(flags.tokenizer_path, flags.vocab_path)
        opened = open_model(source, tokenizer=named)
        if (tokenizer := opened.tokenizer) is None:
            raise UsageError(f"{opened.path} holds no tokenizer; name it with --tokenizer_path")
        context, wanted = opened.model.config.block_size, given.get("block_size", 0)
        if wanted > context:
            raise UsageError(f"--block_size {wanted}, but the model's context is {context}")
        opened.model.to("meta")
        return cls(
            opened=opened, tokenizer=tokenizer, known=tokenizer.vocab_size,
            is_frozen=bool(given.get("lora_rank")),
        )  # fmt: skip

    @property
    def config(self) -> GPTConfig:
        """The model's settings, with rows for all ids of the tokenizer."""
        own = self.opened.model.config
        return own.replace(vocab_size=max(own.vocab_size, self.tokenizer.vocab_size))

    @property
    def template(self) -> str:
        """How it is asked."""
        foreign = self.opened.checkpoint is None
        return template_for(self.opened.template, self.tokenizer, pretrained=foreign).source

    def model(self, config: GPTConfig) -> GPT:
        """The model, in float32, with the dropout of `config`."""
        model = open_model(self.opened.path, dtype=torch.float32).model
        return begun(model, config, known=self.known, n_ids=self.tokenizer.vocab_size)

    def for_template(self, template: str) -> "Origin":
        """The same with the tokens that a template needs, if its tokenizer can get them.

        Raises:
            UsageError: it cannot, or they could not be learned.
        """
        known = {*self.tokenizer.special_tokens, END_OF_TEXT}  # a model knows the end of a text
        lacking = [name for name in turn_tokens(template) if name not in known]
        if not lacking:
            return self
        add = getattr(self.tokenizer, "with_special_tokens", None)
        if add is not None and not self.is_frozen:
            return dataclasses.replace(self, tokenizer=add(lacking))
        problem = f"the {self.tokenizer.kind} tokenizer of {self.opened.path} cannot get"
        if self.is_frozen:
            problem = "with --lora_rank a model does not learn"
        raise UsageError(f"{problem} new tokens ({', '.join(lacking)}); use --template plain")
