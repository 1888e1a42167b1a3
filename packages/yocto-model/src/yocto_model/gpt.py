"""GPT: token ids in, logits for each next token out. Its parts are in layers.py."""

import math

import torch
from torch import Tensor, nn

from yocto_model.cache import KVCache
from yocto_model.config import GPTConfig
from yocto_model.errors import InputError
from yocto_model.fast.training import Dropout, ParameterRoles, empty_table, recomputed
from yocto_model.formats.assembly import convert
from yocto_model.formats.folder import load_model, save_model
from yocto_model.generate import generate_ids
from yocto_model.layers import Block, make_norm, rotary_tables


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019) in any of `GPTConfig`'s variants.

    Args:
        config: shape and architecture.
        generator: source of the initial weights; None uses torch's global one.

    Attributes:
        grad_checkpointing: whether a forward pass with gradients keeps only what enters each block,
            and the backward pass computes the rest again (Chen et al. 2016). Same gradients.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        ambient = torch.get_rng_state()
        self.config = config
        self.grad_checkpointing = False
        self.token_emb = empty_table(config.vocab_size, config.n_embd)
        # Attention alone knows no order: positions are learned here, or rotated into q and k.
        self.pos_emb: nn.Embedding | None = None
        if config.positions == "learned":
            self.pos_emb = empty_table(config.block_size, config.n_embd)
        else:
            # Computed, not learned: they are not saved, and are never on the meta device.
            home = "cpu" if self.token_emb.weight.is_meta else self.token_emb.weight.device
            for name, table in zip(("cos", "sin"), rotary_tables(config), strict=True):
                self.register_buffer(name, table.to(home), persistent=False)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:  # one row per token, to read it and to predict it
            self.head.weight = self.token_emb.weight
        if not self.head.weight.is_meta:
            self.initialize(generator)
        if generator is not None:
            torch.set_rng_state(ambient)  # torch's layers drew weights that are now replaced

    def forward(self, idx: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """Logits of the token that follows each position.

        Args:
            idx: int64 (B, T), ids below `vocab_size`. T, plus what the cache holds, is at most
                `block_size`.
            cache: what the model read before `idx`; the new tokens are added to it.

        Returns:
            (B, T, vocab_size): softmax over the last axis gives
            P(token t+1 | tokens up to t).

        Raises:
            InputError: wrong number of dimensions, or too many tokens.
        """
        return self.logits(self.hidden_states(idx, cache=cache))

    def hidden_states(self, idx: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """The normalised residual stream (B, T, C) before the head; arguments as in `forward`."""
        if idx.dim() != 2 or idx.shape[1] == 0:
            raise InputError(f"ids must have shape (batch, tokens >= 1), not {tuple(idx.shape)}")
        T = idx.shape[1]
        n_tokens = T if cache is None else cache.length + T
        if n_tokens > self.config.block_size:
            raise InputError(f"{n_tokens} tokens exceed block_size {self.config.block_size}")
        # A cache knows the positions of these tokens and what they may look at. Without one they
        # are the first tokens, and no mask means plain causal attention.
        positions = torch.arange(T, device=idx.device) if cache is None else cache.positions(T)
        mask = None if cache is None else cache.mask(T)

        # The stream: a row of C numbers for each token, to which every layer adds what it found.
        x = self.token_emb(idx)  # (B, T, C)
        rotary = None
        if self.pos_emb is not None:
            x = x + self.pos_emb(positions)  # (T, C) or (B, T, C) added
        else:
            rotary = self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)
        x = self.drop(x)
        for block in self.blocks:
            if self.grad_checkpointing and cache is None and torch.is_grad_enabled():
                x = recomputed(block, x, rotary, mask)
            else:
                x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.advance(T)  # once, after every layer has stored its keys and values
        return self.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """The head: (..., C) -> (..., vocab_size)."""
        return self.head(x)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as `config.init` and `config.zero_init` say."""
        config = self.config
        uniform = config.init == "uniform"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(3 / module.in_features)
                if uniform:  # variance 1 / inputs: what comes out is as large as what went in
                    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                else:
                    nn.init.normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The embedding comes after the head, so a tied pair is initialised as an embedding.
        # With N(0, 1) rows a tied head would start with huge logits: hence 0.02 there, too.
        std = 1.0 if uniform and not config.tie_weights else 0.02
        for table in (self.token_emb, self.pos_emb):
            if table is not None:
                nn.init.normal_(table.weight, std=std, generator=generator)
        # 2 n_layer branches are summed. Smaller weights keep the sum's variance (GPT-2), and with
        # zeros every block starts as the identity, so that depth does no harm at first.
        scale = 0.0 if config.zero_init else 1 / math.sqrt(2 * config.n_layer)
        for name, weight in self.named_parameters():
            if name.endswith(".proj.weight"):
                weight.mul_(scale)
        if config.zero_init and not config.tie_weights:
            nn.init.zeros_(self.head.weight)

    def parameter_roles(self) -> ParameterRoles:
        """Which parameter does what, for optimizers that treat them differently."""
        return ParameterRoles.of(self)

    generate = generate_ids  # read, draw, append, repeat: see generate.py

    save = save_model  # a Hugging Face model folder: see formats/folder.py
    load = classmethod(load_model)  # the inverse, also for other folders
    _apply = convert  # what `to` and `float` call
