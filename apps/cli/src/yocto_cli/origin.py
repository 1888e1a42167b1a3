"""The model that a training goes on from.

This module is imported after the flags have been parsed: it brings torch in.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import Tokenizer
from yocto_train import open_model
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
        path: where it is.
        name: what its run, folder or file is called.
        config: its settings, with rows for all ids of the tokenizer.
        tokenizer: its own, perhaps with tokens for turns that it has not seen.
        known: ids that it has seen.
        template: how it is asked, as far as its files say.
        end_ids: ids that end a text, in addition to the tokenizer's.
        is_foreign: whether it is no run of ours.
        is_frozen: whether only adapters learn.
    """

    path: Path
    name: str
    config: GPTConfig
    tokenizer: Tokenizer
    known: int
    template: str | None
    end_ids: tuple[int, ...]
    is_foreign: bool
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
        context = opened.model.config.block_size
        if given.get("block_size", 0) > context:
            raise UsageError(
                f"--block_size {given['block_size']}, but the model's context is {context}"
            )
        return cls(
            path=opened.path, name=opened.name, config=opened.model.config, tokenizer=tokenizer,
            known=tokenizer.vocab_size, template=opened.template, end_ids=opened.end_ids,
            is_foreign=opened.checkpoint is None, is_frozen=bool(given.get("lora_rank")),
        )  # fmt: skip

    def model(self, config: GPTConfig) -> GPT:
        """The model, in float32, with the dropout of `config`."""
        model = open_model(self.path, dtype=torch.float32).model
        return begun(model, config, known=self.known, n_ids=self.tokenizer.vocab_size)

    def for_template(self, template: str) -> "Origin":
        """The same with the tokens that a template needs, if its tokenizer can get them.

        Raises:
            UsageError: it cannot.
        """
        known = {*self.tokenizer.special_tokens, END_OF_TEXT}  # a model knows the end of a text
        lacking = [name for name in turn_tokens(template) if name not in known]
        if not lacking:
            return self
        if (add := getattr(self.tokenizer, "with_special_tokens", None)) is None:
            raise UsageError(
                f"the {self.tokenizer.kind} tokenizer of {self.path} has no {', '.join(lacking)}, "
                "and cannot get more; use --template plain"
            )
        if self.is_frozen:
            raise UsageError(
                f"adapters do not learn new tokens such as {lacking[0]}; leave --lora_rank out, or "
                "use --template plain"
            )
        tokenizer: Tokenizer = add(lacking)
        rows = max(self.config.vocab_size, tokenizer.vocab_size)
        return dataclasses.replace(
            self, tokenizer=tokenizer, config=self.config.replace(vocab_size=rows)
        )
