"""Inference copies: a trained model with its matrices packed for making tokens fast."""

import time
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from yocto_model.cache import KVCache
from yocto_model.errors import InputError, quoted
from yocto_model.fast.decoding import OneToken
from yocto_model.fast.packed import (
    WIDEST_INT8,
    BFloat16,
    Float16,
    Float32,
    Int8,
    Packed,
)
from yocto_model.gpt import GPT

InferenceKind = Literal["auto", "float32", "float16", "bfloat16", "int8"]
INFERENCE_KINDS: tuple[InferenceKind, ...] = get_args(InferenceKind)

# The packings of each kind; the first that works here is used.
_PACKINGS: dict[str, tuple[type[Packed], ...]] = {
    "float32": (Float32,),
    "float16": (Float16, BFloat16, Float32),
    "bfloat16": (BFloat16, Float32),
    "int8": (Int8, BFloat16, Float32),
}

# "auto" leaves models alone whose matrices fit the processor's caches: there is little to gain, and
# exact weights give the same text on nearly every machine.
_SMALL_WEIGHTS = 4_000_000
_WORTH_IT = 1.25  # coarser weights only for a clear gain, so that a busy moment does not decide
_BEYOND_CACHES = 500_000_000  # bytes: reading this many leaves nothing older in a cache


class InferenceGPT(GPT):
    """A GPT that only generates: packed matrices, and a shorter way for single tokens.

    Made by `inference_copy`. Its weights are fixed: it cannot be trained, moved or saved.

    Attributes:
        kind: what its matrices are: "float32", "float16", "bfloat16" or "int8".
        reason: in a few words, why this kind.
        bytes_per_token: size of the matrices, all of which each token reads.
    """

    kind: str
    reason: str
    bytes_per_token: int
    _one_token: OneToken

    @torch.inference_mode()  # less to keep track of than with no_grad
    def hidden_states(self, idx: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """As in `GPT`."""
        room = 0 if cache is None else self.config.block_size - cache.length
        if cache is None or idx.dim() != 2 or idx.shape[1] != 1 or room < 1:
            return super().hidden_states(idx, cache=cache)
        return self._one_token(idx, cache)

    def save(self, *_: object, **__: object) -> None:
        raise InputError("an inference copy cannot be saved; save the model it was made from")

    def _apply(self, *_: object, **__: object) -> "InferenceGPT":
        raise InputError(
            "an inference copy cannot be moved or converted; make a new one from the moved model"
        )


def inference_copy(model: GPT, kind: InferenceKind = "auto") -> InferenceGPT:
    """An independent copy of a model that generates faster; the model itself stays as it is.

    Everything but the matrices is float32 in every kind: embeddings, norms, attention and its
    cache, the sums between layers.

    Args:
        model: trained, on any device.
        kind: "float32" gives the model's logits up to the order of summation (about 1e-6 of
            them); "float16" rounds weights only (about 5e-4), "bfloat16" weights and activations
            (about 8e-3), "int8" both to 8 bits (about 3e-2), and a single token a little
            differently than several at once: equal seeds may then give different text without the
            cache, in a batch, or after a prompt that began alike. Where this machine or this torch
            lacks what a kind needs, bfloat16 or else float32 takes its place; `reason` says why.
            "auto" takes float32 for a small model, else the fastest by measuring, but never int8.

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
    return _copy(model, *(_fastest(model) if kind == "auto" else _first_usable(model, kind)))


def _copy(model: GPT, packing: type[Packed], reason: str) -> InferenceGPT:
    linears = _linears(model)
    matrices = {f"{name}.{part}" for name in linears for part in ("weight", "bias")}
    kept = {
        name: weight.detach().float().clone()
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
        packed = packing(linear)
        copy.set_submodule(name, packed)
        copy.bytes_per_token += packed.n_bytes
    copy.requires_grad_(False).eval()
    copy.kind, copy.reason = packing.kind, reason
    copy._one_token = OneToken(copy)  # noqa: SLF001 - we make it
    return copy


def _first_usable(model: GPT, kind: str) -> tuple[type[Packed], str]:
    """The packing for a kind that is asked for, and why it is not another."""
    failures: list[str] = []
    for packing in _PACKINGS[kind][:-1]:
        failure = _obstacle(model, packing)
        if failure is None:
            return packing, "; ".join(failures) or "as asked"
        failures.append(f"{packing.kind}: {failure}")
    return _PACKINGS[kind][-1], "; ".join(failures) or "as asked"


def _obstacle(model: GPT, packing: type[Packed]) -> str | None:
    """Why this model cannot be packed this way, or None."""
    matrices = _linears(model).values()
    largest = torch.finfo(torch.float16).max
    if packing is Float16 and not all(bool((m.weight.abs() <= largest).all()) for m in matrices):
        return "a weight is too large"
    if packing is Int8 and not all(bool(w.isfinite().all()) for w in model.parameters()):
        return "a weight is not finite"  # its operator would hide that
    if packing is Int8 and max(m.in_features for m in matrices) > WIDEST_INT8:
        return "a matrix is too wide"
    return why_not(packing, model.token_emb.weight.device.type)


def _linears(model: GPT) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def why_not(packing: type[Packed], device: str) -> str | None:
    """Why a packing does not work on this kind of device, found by trying it; None if it does."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 32, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        linear.weight.normal_(generator=generator)
        linear.bias.normal_(generator=generator)
        x = torch.randn(3, 64, generator=generator, device="cpu", dtype=torch.float32)
        expected = torch.cat((linear(x), linear(x[:1])))
        try:
            packed = packing(linear.to(device))
            got = torch.cat((packed(x.to(device)), packed(x[:1].to(device)))).cpu()
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            return str(error).partition("\n")[0][:100] or type(error).__name__
    if not bool((got - expected).norm() <= 0.05 * expected.norm()):
        return "wrong results on this machine"
    return None


def _fastest(model: GPT) -> tuple[type[Packed], str]:
    """The packing that "auto" chooses, and why.

    The products of one token with the first block are timed, and the time of all the others is
    computed from that. The fastest of several rounds counts, as other work only adds time.
    """
    linears = list(_linears(model).values())
    n_weights = sum(linear.weight.numel() for linear in linears)
    if n_weights < _SMALL_WEIGHTS:
        return Float32, "a small model"
    block = [m for m in model.blocks[0].modules() if isinstance(m, nn.Linear)]
    share = sum(linear.weight.numel() for linear in block) / n_weights
    others = torch.ones(min(n_weights, _BEYOND_CACHES // 4), device=model.token_emb.weight.device)
    best: type[Packed] = Float32
    best_ms, found = 0.0, []
    for packing in (Float32, Float16, BFloat16):  # from fine to coarse
        if _obstacle(model, packing) is not None:
            continue
        n_others = int((1 - share) * n_weights * packing.bytes_per_weight / 4)
        ms = _milliseconds([packing(linear) for linear in block], others[:n_others]) / share
        found.append(f"{packing.kind} {ms:.2f}")
        if packing is Float32 or ms * _WORTH_IT < best_ms:
            best, best_ms = packing, ms
    return best, f"measured, ms of products per token: {', '.join(found)}"


def _milliseconds(matrices: list[Packed], others: Tensor, rounds: int = 5) -> float:
    """The shortest time in which a single row is multiplied by each matrix.

    Between two tokens a model reads all its other weights. `others` stands for them: it is read
    between the rounds, so that the matrices are where they will be, in a cache or in memory.
    """
    rows = [torch.ones(1, matrix.in_features, device=others.device) for matrix in matrices]
    least = float("inf")
    with torch.inference_mode():
        for _ in range(rounds):
            others.sum().item()
            begun = time.perf_counter()
            for matrix, row in zip(matrices, rows, strict=True):
                y = matrix(row)
            y.sum().item()  # devices other than the CPU work on until asked for a result
            least = min(least, time.perf_counter() - begun)
    return least * 1e3
