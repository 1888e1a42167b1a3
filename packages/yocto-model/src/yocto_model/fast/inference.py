"""Inference copies: a trained model with its matrices packed for making tokens fast."""

import ctypes
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from yocto_model.cache import KVCache
from yocto_model.errors import InputError, quoted
from yocto_model.fast import kernel
from yocto_model.fast.decoding import OneToken
from yocto_model.fast.packed import Kind, Packed, Plain
from yocto_model.gpt import GPT

InferenceKind = Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"]
INFERENCE_KINDS: tuple[InferenceKind, ...] = get_args(InferenceKind)

# Fewer weights fit the processor's caches: rounding them gains little, and exact weights give the
# same text on nearly every machine.
_SMALL_WEIGHTS = 4_000_000


class InferenceGPT(GPT):
    """A GPT that only generates: packed matrices, and a shorter way for a few tokens.

    Made by `inference_copy`. Its weights are fixed: it cannot be trained, moved or saved.

    Attributes:
        kind: what its matrices are: "float32", "float16", "bfloat16", "int8" or "int4".
        reason: in a few words, why this kind.
        bytes_per_token: size of the matrices, all of which each token reads.
        one_token: its layers for one token per row, of one cache or several.
    """

    kind: str
    reason: str
    bytes_per_token: int
    one_token: OneToken | kernel.FewRows

    @torch.inference_mode()  # less to keep track of than with no_grad
    def hidden_states(self, idx: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """As in `GPT`."""
        few = self.one_token
        short = (
            0 < idx.numel() <= kernel.MOST_ROWS
            if isinstance(few, kernel.FewRows)
            else (idx.shape[-1] == 1)
        )
        if cache is None or idx.dim() != 2 or not short or cache.keys.dtype != torch.float32:
            return super().hidden_states(idx, cache=cache)
        if cache.length + idx.shape[1] > self.config.block_size:
            return super().hidden_states(idx, cache=cache)
        return few(idx, cache)

    def save(self, *_: object, **__: object) -> None:
        raise InputError("an inference copy cannot be saved; save the model it was made from")

    def _apply(self, *_: object, **__: object) -> "InferenceGPT":
        raise InputError(
            "an inference copy cannot be moved or converted; make a new one from the moved model"
        )


def inference_copy(model: GPT, kind: InferenceKind = "auto") -> InferenceGPT:
    """An independent copy of a model that generates faster; the model itself stays as it is.

    Everything but the matrices is float32 in every kind: embeddings, norms, activations, attention
    and its cache. The first copy of a kind on a machine waits a second or two for a C++ compiler.

    Args:
        model: trained, on any device.
        kind: how weights are rounded, see `Packed`: "float32" gives the model's logits up to the
            order of summation (about 1e-6 of them); "float16", "bfloat16", "int8" and "int4" round
            by about 2e-4, 2e-3, 4e-3 and 3e-2 of a weight. "auto" takes float32 for a small model,
            else bfloat16 if that changes no weight, else float16. Without a compiler or on another
            device, bfloat16 takes the place of float16 and fewer bits, rounding activations as
            well, or float32 where a processor has no such products; `reason` says why.

    Raises:
        InputError: an unknown kind, or the model is an inference copy or has no weights.
    """
    if kind not in INFERENCE_KINDS:
        raise InputError(
            f"unknown kind of weights {quoted(kind)}; choose from {', '.join(INFERENCE_KINDS)}"
        )
    if model.token_emb.weight.is_meta:
        raise InputError("the model has no weights yet: it is on torch's meta device")
    if isinstance(model, InferenceGPT):
        raise InputError("this already is an inference copy; copy the model it was made from")
    return _copy(model, *_choose(model, kind))


def _choose(model: GPT, kind: InferenceKind) -> tuple[Kind, ctypes.CDLL | None, str]:
    """The kind of weights, its kernel if there is one, and why this kind."""
    weights = [linear.weight for linear in _linears(model).values()]
    small, reason = sum(weight.numel() for weight in weights) < _SMALL_WEIGHTS, "as asked"
    if kind == "auto" and small:
        kind, reason = "float32", "a small model"
    elif kind == "auto":
        exact = all(bool((weight == weight.bfloat16()).all()) for weight in weights)
        kind, reason = ("bfloat16", "no weight changes") if exact else ("float16", "half the bytes")
    failures = []
    largest = torch.finfo(torch.float16).max
    if kind == "float16" and not all(bool((w.abs() <= largest).all()) for w in weights):
        failures.append("float16: a weight is too large")
        kind = "bfloat16"
    if kind in {"int8", "int4"} and not all(bool(w.isfinite().all()) for w in model.parameters()):
        failures.append(f"{kind}: a weight is not finite")  # rounding would hide that
        kind = "bfloat16"
    library = None
    try:
        if weights[0].device.type != "cpu":
            raise RuntimeError("the model is not on a CPU")
        library = kernel.load(kind)
        if kind == "int4":
            kernel.load("int8")  # for the head, see `_copy`
    except RuntimeError as error:
        instead: Kind = "bfloat16" if _multiplies_bfloat16(weights[0].device) else "float32"
        if kind not in {"float32", instead}:
            failures.append(f"{kind}: {error}")
            kind = instead
    return kind, library, "; ".join(failures) or reason


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether that is fast there: a processor without such products takes many times as long."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type != "cpu" or any(getattr(torch.cpu, name, bool)() for name in names)


def _copy(model: GPT, kind: Kind, library: ctypes.CDLL | None, reason: str) -> InferenceGPT:
    linears = _linears(model)
    matrices = {f"{name}.{part}" for name in linears for part in ("weight", "bias")}
    kept = {
        name: weight.detach().float().clone(memory_format=torch.contiguous_format)
        for name, weight in model.state_dict().items()
        if name not in matrices
    }
    with torch.device("meta"):  # no memory and no time for weights that are replaced
        copy = InferenceGPT(model.config)
    copy.load_state_dict(kept, strict=False, assign=True)
    # Its own tables of rotary positions: the model's are rounded as its weights are.
    for name, buffer in copy.named_buffers():
        copy.register_buffer(name, buffer.to(model.token_emb.weight.device), persistent=False)
    copy.bytes_per_token = 0
    for name, linear in linears.items():
        # Each logit feels what rounds the head, so it keeps 8 bits beside matrices of 4.
        packing: Kind = "int8" if kind == "int4" and name == "head" else kind
        found = library if packing == kind else kernel.load(packing)
        packed = Plain(linear, kind) if found is None else Packed(linear, packing, found)
        copy.set_submodule(name, packed)
        copy.bytes_per_token += packed.n_bytes
    copy.requires_grad_(False).eval()
    copy.kind, copy.reason = kind, reason
    few = None if library is None else kernel.FewRows(copy, library, copy.bytes_per_token)
    copy.one_token = few or OneToken(copy)
    return copy


def _linears(model: GPT) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
