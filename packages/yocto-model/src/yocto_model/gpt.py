"""GPT: token ids in, logits for each next token out. The whole model is this file and layers.py."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yocto_model import storage
from yocto_model.cache import KVCache
from yocto_model.config import GPTConfig
from yocto_model.errors import ConfigError, InputError, ModelFileError
from yocto_model.generation import generate_ids
from yocto_model.layers import MLP, Block, CausalSelfAttention, Dropout, make_norm, rotary_tables
from yocto_model.sampling import SamplingOptions


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
        self.token_emb = _empty_table(config.vocab_size, config.n_embd)
        self.pos_emb: nn.Embedding | None = None
        if config.positions == "learned":
            self.pos_emb = _empty_table(config.block_size, config.n_embd)
        else:
            cos, sin = rotary_tables(config)
            weight = self.token_emb.weight
            home = torch.device("cpu") if weight.is_meta else weight.device
            # Computed, not learned: they stay out of the saved file.
            self.register_buffer("cos", cos.to(home), persistent=False)
            self.register_buffer("sin", sin.to(home), persistent=False)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_emb.weight
        if not self.head.weight.is_meta:
            self.initialize(generator)
        if generator is not None:
            torch.set_rng_state(ambient)  # torch's own layers have drawn weights, now replaced

    def forward(self, idx: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """Logits of the token that follows each position.

        Args:
            idx: int64 (B, T), ids below `vocab_size`. T, plus what the cache holds, is at most
                `block_size`.
            cache: what the model read before `idx`; the new tokens are added to it.

        Returns:
            (B, T, vocab_size), in the weights' dtype: softmax over the last axis gives
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
        start = 0 if cache is None else cache.length
        if start + T > self.config.block_size:
            raise InputError(f"{start + T} tokens exceed block_size {self.config.block_size}")
        positions = torch.arange(start, start + T, device=idx.device)  # (T,)
        if cache is not None and cache.padding is not None:
            positions = (positions - cache.padding[:, None]).clamp(min=0)  # (B, T)

        x = self.token_emb(idx)  # (B, T, C)
        rotary = None
        if self.pos_emb is not None:
            x = x + self.pos_emb(positions)
        elif cache is None or cache.padding is None:
            rotary = self.cos[start : start + T], self.sin[start : start + T]  # (T, D)
        else:
            rotary = self.cos[positions][:, None], self.sin[positions][:, None]  # (B, 1, T, D)
        mask = attention_mask(T, cache)
        x = self.drop(x)
        for block in self.blocks:
            if self.grad_checkpointing and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, rotary, mask, use_reentrant=False)
            else:
                x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)  # type: ignore[no-any-return] # nn.Module.__call__ is untyped

    def logits(self, x: Tensor) -> Tensor:
        """The head: (..., C) -> (..., vocab_size)."""
        logits: Tensor = self.head(x)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as `config.init` and `config.zero_init` say.

        Args:
            generator: source of randomness; None uses torch's global one.
        """
        config = self.config
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(3 / module.in_features)
                if config.init == "uniform":
                    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                else:
                    nn.init.normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The embedding comes after the head, so a tied pair is initialised as an embedding.
        # Beside N(0, 1) rows a tied head would start with huge logits: hence 0.02 there too.
        std = 1.0 if config.init == "uniform" and not config.tie_weights else 0.02
        for table in (self.token_emb, self.pos_emb):
            if table is not None:
                nn.init.normal_(table.weight, std=std, generator=generator)
        for module in self.modules():
            if isinstance(module, CausalSelfAttention | MLP):
                if config.zero_init:
                    nn.init.zeros_(module.proj.weight)
                else:
                    # 2 n_layer branches are summed; this keeps the sum's variance (GPT-2).
                    module.proj.weight /= math.sqrt(2 * config.n_layer)
        if config.zero_init and not config.tie_weights:
            nn.init.zeros_(self.head.weight)

    def parameter_roles(self) -> ParameterRoles:
        """Which parameter does what, for optimizers that treat them differently."""
        tables = [table for table in (self.token_emb, self.pos_emb) if table is not None]
        matrices = []
        for module in self.modules():
            if isinstance(module, CausalSelfAttention):
                matrices += [(module.qkv.weight, module.sizes)]
                matrices += [(module.proj.weight, [module.proj.out_features])]
            elif isinstance(module, MLP):
                matrices += [(module.up.weight, module.sizes)]
                matrices += [(module.proj.weight, [module.proj.out_features])]
        return ParameterRoles(
            embeddings=[table.weight for table in tables],
            head=[] if self.config.tie_weights else [self.head.weight],
            matrices=matrices,
            vectors=[parameter for parameter in self.parameters() if parameter.dim() < 2],
        )

    def generate(  # noqa: PLR0917 - the field's signature: these come by position
        self,
        idx: Tensor | Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token: int | None = None,
        *,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[Sequence[int]] = (),
        seed: int | Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Continue each row of ids. For text, see `TextGenerator`.

        For one id at a time, with its log-probability, see `stream`.

        Args:
            idx: int64 (B, T), or B lists of ids that may differ in length.
            max_new_tokens: how many to add.
            temperature: logits are divided by it; 0 takes the likeliest token.
            top_k: draw only from the k likeliest tokens.
            top_p: draw only from the smallest set with this much probability.
            eos_token: a row that draws it is done; it is then filled up with it.
            min_p: draw only tokens at least this fraction as likely as the likeliest.
            repetition_penalty: above 1 makes tokens of the context less likely.
            stop: rows of ids, such as [[13, 13]]; what a row gains ends before the first of them,
                and is filled up as after `eos_token`.
            seed: one for all rows (row b gets seed + b), or one per row; equal seeds give equal
                ids. None draws one.
            use_cache: False recomputes the context for each token: the same ids, slower (but see
                `inference_copy` for int8).

        Returns:
            int64 (B, T + n), n at most `max_new_tokens`; rows of unequal length are padded on the
            right with `eos_token` (or 0) to the longest.

        Raises:
            InputError: no prompt, an empty row or stop, or an id outside the vocabulary.
            SamplingError: an option out of range, or logits that are not finite.
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k or 0,
            top_p=1.0 if top_p is None else top_p,
            min_p=min_p or 0.0,
            repetition_penalty=repetition_penalty,
        )
        return generate_ids(
            self, idx, max_new_tokens, options=options, eos_token=eos_token, stop=stop, seed=seed,
            use_cache=use_cache,
        )  # fmt: skip

    def save(self, file: str | os.PathLike[str] | storage.Writable) -> None:
        """Write settings and weights, all that `load` needs.

        Args:
            file: a path, replaced in one step, or an open binary file.

        Raises:
            OSError: the file could not be written; an existing one is unchanged.
        """
        weights = {name: w.detach().contiguous() for name, w in self.state_dict().items()}
        storage.save(
            {
                "format": "yocto-model",
                "format_version": 1,
                "config": self.config.to_dict(),
                "state_dict": weights,
            },
            file,
        )

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | IO[bytes],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "GPT":
        """Read what `save` wrote, in evaluation mode. No code from the file is ever run.

        Args:
            file: a path or an open binary file.
            device: where the weights go.
            dtype: convert the weights; None keeps the stored dtype.

        Raises:
            ModelFileError: not a model of ours, damaged, or weights that do not fit the settings.
            OSError: the file could not be read.
        """
        content = storage.load(file, expected_format="yocto-model", newest_version=1)
        if not isinstance(content.get("config"), dict):
            raise ModelFileError(f"{storage.name_of(file)} holds no model settings")
        try:
            config = GPTConfig.from_dict(content["config"])
        except ConfigError as error:
            raise ModelFileError(
                f"{storage.name_of(file)}: the model's settings are unusable: {error}"
            ) from error
        weights = storage.checked_weights(content.get("state_dict"), config, file)
        with torch.device("meta"):  # no memory and no time for weights that are replaced
            model = cls(config)
        storage.check_fit(weights, model.state_dict(), tied=config.tie_weights, file=file)
        dtype = dtype or storage.common_dtype(weights.values())
        ready = {key: weight.to(device=device, dtype=dtype) for key, weight in weights.items()}
        model.load_state_dict(ready, assign=True)
        if config.tie_weights:
            model.head.weight = model.token_emb.weight  # one tensor, not two equal ones
        return model.to(device=device, dtype=dtype).eval()  # the weights are; now the buffers


def _empty_table(rows: int, width: int) -> nn.Embedding:
    """An embedding that is not yet initialised.

    Plain `nn.Embedding` draws from N(0, 1) at once: wasted, and on the meta device, which `load`
    uses, that one call makes torch import compiler and sympy, several seconds of a program's start.
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def attention_mask(T: int, cache: KVCache | None) -> Tensor | None:
    """Who may look at whom when T tokens follow a cache; None where plain causal masking does.

    Returns:
        bool, (T, S) or, with padding, (B, 1, T, S); True where a query may look.
    """
    if cache is None or (cache.padding is None and (cache.length == 0 or T == 1)):
        return None
    device = cache.keys.device
    queries = torch.arange(cache.length, cache.length + T, device=device)[:, None]  # (T, 1)
    keys = torch.arange(cache.length + T, device=device)  # (S,)
    causal = keys <= queries  # (T, S)
    if cache.padding is None:
        return causal
    visible = keys >= cache.padding[:, None, None, None]  # (B, 1, 1, S)
    # A padding token sees itself: a softmax over nothing would be NaN.
    return (causal & visible) | (keys == queries)
