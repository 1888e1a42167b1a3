"""The settings of a model, with named architectures, and of sampling. Does not import torch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from yocto_model.errors import ConfigError, SamplingError, quoted
from yocto_model.settings import problems, setting

Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "rotary"]
Activation = Literal["gelu", "gelu_tanh", "swiglu"]
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

_LARGEST = 2**31  # keeps absurd sizes, as from a damaged file, away from the arithmetic


def _size(default: int | None, text: str) -> Any:
    return setting(default, text, low=1, high=_LARGEST)


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Everything that decides a model's shape and initial weights; the default is GPT-2 small.

    What each field means is its help text. Sources: grouped key/value heads, Ainslie et al. 2023;
    dropout, Srivastava et al. 2014; LayerNorm, Ba et al. 2016; RMSNorm, Zhang & Sennrich 2019;
    rotary positions, Su et al. 2021; SwiGLU, Shazeer 2020; norm of queries and keys, Henry et al.
    2020; tied head, Press & Wolf 2017; "uniform" and `zero_init`, nanochat and modded-nanogpt.

    Raises:
        ConfigError: a field is out of range or two contradict each other; the message says which.
    """

    vocab_size: int = _size(50_257, "number of token ids")
    block_size: int = _size(1_024, "the longest context, in tokens")
    n_layer: int = _size(12, "number of transformer blocks")
    n_head: int = _size(12, "query heads per block")
    n_embd: int = _size(768, "width of the residual stream")
    n_kv_head: int | None = _size(
        None, "key/value heads, each shared by several query heads (default: one per query head)"
    )
    head_dim: int | None = _size(None, "width of one head (default: n_embd / n_head)")
    n_hidden: int | None = _size(
        # 8/3 costs the same number of weights, as SwiGLU has three matrices instead of two.
        None, "width inside the MLP (default: 4 n_embd, or about 8/3 n_embd for swiglu)"
    )  # fmt: skip
    dropout: float = setting(
        0.0, "share of values set to zero while training, against overfitting", low=0, below=1
    )
    attn_dropout: float | None = setting(
        None, "the same for attention weights (default: as dropout)", low=0, below=1
    )
    norm: Norm = setting("layernorm", "the normalisation before each branch")
    norm_eps: float = setting(1e-5, "added to the variance before dividing by its root", above=0)
    positions: Positions = setting("learned", "how positions are encoded: a table, or rotation")
    rotary_base: float = setting(10_000.0, "base of the rotary wave lengths", low=1)
    activation: Activation = setting("gelu_tanh", "the nonlinearity of the MLP")
    bias: bool = setting(True, "biases in linear layers and LayerNorm")
    qkv_bias: bool = setting(False, "biases on queries, keys and values only, as in Qwen2")
    qk_norm: bool = setting(False, "RMSNorm of each head's queries and keys, as in Qwen3")
    tie_weights: bool = setting(True, "the output head is the embedding matrix")
    init: Init = setting(
        # Residual projections are divided by sqrt(2 n_layer), or see `zero_init`.
        "normal", "initial weights: N(0, 0.02) as in GPT-2, or uniform within sqrt(3 / inputs)"
    )  # fmt: skip
    zero_init: bool = setting(
        False, "residual projections and an untied head start at zero: every block is the identity"
    )

    def __post_init__(self) -> None:
        found = problems(self) or self._contradictions()
        if found:
            raise ConfigError("; ".join(found))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and type(value) not in (bool, int, float, type(None)):
                # NumPy's numbers become Python's, which JSON can hold.
                plain = int(value) if hasattr(value, "__index__") else float(value)
                object.__setattr__(self, field.name, plain)

    def _contradictions(self) -> list[str]:
        found = []
        if self.head_dim is None and self.n_embd % self.n_head:
            found.append(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        elif self.positions == "rotary" and self.head_width % 2:
            found.append(f"rotary positions need an even head width, not {self.head_width}")
        if self.n_head % self.kv_heads:
            found.append(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        return found

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
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(quoted(name) for name in fields if name not in known)
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ConfigError(f"unknown field of GPTConfig: {', '.join(unknown[:5])}{more}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, ready for JSON."""
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
    def head_width(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

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
        qkv = (width + int(self.bias or self.qkv_bias)) * self.head_width
        qkv *= self.n_head + 2 * self.kv_heads
        proj = (self.n_head * self.head_width + bias) * width
        up = (width + bias) * self.hidden * (2 if self.activation == "swiglu" else 1)
        down = (self.hidden + bias) * width
        block = 2 * norm + qkv + proj + up + down + (2 * self.head_width if self.qk_norm else 0)
        tables = self.vocab_size * width * (1 if self.tie_weights else 2)
        if self.positions == "learned":
            tables += self.block_size * width
        return self.n_layer * block + norm + tables


ModelConfig = GPTConfig


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen; the default draws from the model's own distribution.

    Top-k: Fan et al. 2018. Top-p: Holtzman et al. 2020. Min-p: Nguyen et al. 2024. Repetition
    penalty: Keskar et al. 2019.

    Raises:
        SamplingError: a value is out of range.
    """

    temperature: float = setting(
        1.0, "logits are divided by it: below 1 is more cautious, 0 takes the likeliest", low=0
    )
    top_k: int = setting(0, "draw only from the k likeliest tokens; 0 means from all", low=0)
    top_p: float = setting(
        1.0, "draw only from the smallest set with this much probability", above=0, high=1
    )
    min_p: float = setting(
        0.0, "draw only tokens at least this fraction as likely as the likeliest", low=0, high=1
    )
    repetition_penalty: float = setting(
        1.0, "above 1 makes tokens of the context less likely", above=0
    )

    def __post_init__(self) -> None:
        if found := problems(self):
            raise SamplingError("; ".join(found))
