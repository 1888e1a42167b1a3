"""GPTConfig: what a model is made of, and the named architectures."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yocto_model.errors import ConfigError, quoted

Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "rotary"]
Activation = Literal["gelu", "gelu_tanh", "swiglu", "relu2"]
Init = Literal["normal", "uniform"]

# An architecture is a named set of fields; sizes are left to the caller.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # GPT-2 (Radford et al. 2019), as Hugging Face's GPT2LMHeadModel computes it.
    "gpt2": {},
    # What small models of 2025 share, tensor for tensor Hugging Face's Qwen3ForCausalLM.
    "modern": {
        "norm": "rmsnorm",
        "norm_eps": 1e-6,
        "positions": "rotary",
        "activation": "swiglu",
        "bias": False,
        "qk_norm": True,
        "tie_weights": False,
        "init": "uniform",
        "zero_init": True,
        # On a CPU, dropout inside attention rules out the fused kernel and costs half of a step.
        "attn_dropout": 0.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Everything that decides a model's shape and initial weights; the default is GPT-2 small.

    Attributes:
        vocab_size: number of token ids.
        block_size: the longest context, in tokens.
        n_layer: transformer blocks.
        n_head: query heads per block.
        n_embd: width of the residual stream; a multiple of `n_head`.
        n_kv_head: key/value heads, each shared by `n_head / n_kv_head` query heads (grouped-query
            attention, Ainslie et al. 2023). None means one for each query head.
        n_hidden: width inside the MLP. None means 4 `n_embd`, or for "swiglu" 8/3 of it, which
            costs the same number of weights (Shazeer 2020), rounded up to a multiple of 8.
        dropout: probability of zeroing (Srivastava et al. 2014), on the embedding, the attention
            weights, both branches.
        attn_dropout: the same for the attention weights alone. None means as `dropout`.
        norm: "layernorm" (Ba et al. 2016) or "rmsnorm" (Zhang & Sennrich 2019), before each branch.
        norm_eps: added to the variance, or to the mean square.
        positions: "learned" table (GPT-2) or "rotary" (Su et al. 2021).
        rotary_base: wave length base of the rotary positions.
        activation: "gelu" (exact; nanoGPT), "gelu_tanh" (GPT-2), "swiglu" (Shazeer 2020) or
            "relu2" (So et al. 2021).
        bias: biases in linear layers and LayerNorm.
        qk_norm: RMSNorm with gain on each head's queries and keys (Henry et al. 2020; Qwen3).
        tie_weights: the output head is the embedding matrix (Press & Wolf 2017).
        logit_softcap: if set, logits are `cap * tanh(logits / cap)` (Gemma 2). Neither GPT-2 nor
            Qwen3 can express it, so a model with it cannot be exported to them.
        init: "normal" with deviation 0.02, residual projections divided by sqrt(2 n_layer)
            (GPT-2), or "uniform" within sqrt(3 / fan-in), embeddings N(0, 1) (nanochat).
        zero_init: residual projections and an untied head start at zero, so every block starts
            as the identity (modded-nanogpt, nanochat).

    Raises:
        ConfigError: a field is out of range or two contradict each other; the message says which.
    """

    vocab_size: int = 50_257
    block_size: int = 1_024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_kv_head: int | None = None
    n_hidden: int | None = None
    dropout: float = 0.0
    attn_dropout: float | None = None
    norm: Norm = "layernorm"
    norm_eps: float = 1e-5
    positions: Positions = "learned"
    rotary_base: float = 10_000.0
    activation: Activation = "gelu_tanh"
    bias: bool = True
    qk_norm: bool = False
    tie_weights: bool = True
    logit_softcap: float | None = None
    init: Init = "normal"
    zero_init: bool = False

    @classmethod
    def from_arch(cls, arch: str, **fields: Any) -> "GPTConfig":
        """The named architecture, with `fields` (sizes, or changes to it) on top.

        Args:
            arch: a key of `ARCHITECTURES`, "gpt2" or "modern".
            **fields: fields of `GPTConfig`; they win over the architecture's.

        Raises:
            ConfigError: unknown architecture or field, or a value out of range.
        """
        if arch not in ARCHITECTURES:
            names = ", ".join(sorted(ARCHITECTURES))
            raise ConfigError(f"unknown architecture {quoted(arch)}; choose from {names}")
        return cls.from_dict({**ARCHITECTURES[arch], **fields})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "GPTConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown, of the wrong type, or out of range.
        """
        unknown = sorted(
            map(quoted, set(fields) - {field.name for field in dataclasses.fields(cls)})
        )
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ConfigError(f"unknown field of GPTConfig: {', '.join(unknown[:5])}{more}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, ready for JSON or `torch.save`."""
        return dataclasses.asdict(self)

    def replace(self, **fields: Any) -> "GPTConfig":
        """A copy with some fields changed."""
        return GPTConfig.from_dict({**self.to_dict(), **fields})

    # --- derived sizes -------------------------------------------------------------------------

    @property
    def kv_heads(self) -> int:
        """Key/value heads per block."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """Width inside the MLP."""
        if self.n_hidden is not None:
            return self.n_hidden
        if self.activation == "swiglu":
            return math.ceil(self.n_embd * 8 / 3 / 8) * 8
        return 4 * self.n_embd

    @property
    def attention_dropout(self) -> float:
        """Probability of zeroing an attention weight."""
        return self.dropout if self.attn_dropout is None else self.attn_dropout

    @property
    def n_parameters(self) -> int:
        """Number of distinct weights, known before the model is built.

        A tied head counts once, with the embedding.
        """
        width, bias = self.n_embd, int(self.bias)
        norm = width * (1 + (bias if self.norm == "layernorm" else 0))
        qkv = (width + bias) * self.head_dim * (self.n_head + 2 * self.kv_heads)
        proj = (width + bias) * width
        up = (width + bias) * self.hidden * (2 if self.activation == "swiglu" else 1)
        down = (self.hidden + bias) * width
        block = 2 * norm + qkv + proj + up + down + (2 * self.head_dim if self.qk_norm else 0)
        tables = self.vocab_size * width * (1 if self.tie_weights else 2)
        if self.positions == "learned":
            tables += self.block_size * width
        return self.n_layer * block + norm + tables

    # --- validation ----------------------------------------------------------------------------

    def __post_init__(self) -> None:
        problems = [*self._wrong_types(), *self._out_of_range()]
        if problems:
            raise ConfigError("; ".join(problems))

    def _wrong_types(self) -> list[str]:
        problems = []
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            problems += _int_problem(name, getattr(self, name))
        for name in ("n_kv_head", "n_hidden"):
            if getattr(self, name) is not None:
                problems += _int_problem(name, getattr(self, name))
        for name in ("bias", "qk_norm", "tie_weights", "zero_init"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} must be true or false, not {quoted(getattr(self, name))}")
        for name, choices in (
            ("norm", Norm),
            ("positions", Positions),
            ("activation", Activation),
            ("init", Init),
        ):
            value, allowed = getattr(self, name), get_args(choices)
            if type(value) is not str or value not in allowed:
                problems.append(f"{name} must be one of {', '.join(allowed)}, not {quoted(value)}")
        return problems

    def _out_of_range(self) -> list[str]:
        problems = []
        for name in ("dropout", "attn_dropout"):
            value = getattr(self, name)
            absent = value is None and name == "attn_dropout"
            if not absent and not (_is_number(value) and 0 <= value < 1):
                problems.append(f"{name} must be in [0, 1), not {quoted(value)}")
        if not (_is_number(self.norm_eps) and self.norm_eps > 0):
            problems.append(f"norm_eps must be a positive number, not {quoted(self.norm_eps)}")
        if not (_is_number(self.rotary_base) and self.rotary_base >= 1):
            problems.append(f"rotary_base must be at least 1, not {quoted(self.rotary_base)}")
        cap = self.logit_softcap
        if cap is not None and not (_is_number(cap) and cap > 0):
            problems.append(f"logit_softcap must be a positive number or None, not {quoted(cap)}")
        if problems or self._wrong_types():
            return problems  # the divisions below need sound integers
        if self.n_embd % self.n_head:
            problems.append(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        elif self.positions == "rotary" and self.head_dim % 2:
            problems.append(
                f"rotary positions need an even head width; n_embd {self.n_embd} / "
                f"n_head {self.n_head} is {self.head_dim}"
            )
        if self.n_head % self.kv_heads:
            problems.append(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        return problems


# Exact types: a NumPy number would pass as a Python one here, and be refused when it is saved.


def _is_number(value: object) -> bool:
    return (type(value) is int and abs(value) <= 2**53) or (
        type(value) is float and math.isfinite(value)
    )


def _int_problem(name: str, value: object) -> list[str]:
    # The cap only keeps absurd settings, as from a damaged file, away from the arithmetic.
    if type(value) is int and 1 <= value <= 2**31:
        return []
    return [f"{name} must be a whole number from 1 to 2^31, not {quoted(value)}"]
