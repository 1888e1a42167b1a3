"""kernel.cpp, compiled for this processor: a few rows through a model in one call.

Compiling takes a C++ compiler and a second or two, once for each kind of weights; the result is
kept in the user's cache directory. Where it cannot be done, torch's own products serve.
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import subprocess  # noqa: TID251 - a compiler, as torch.compile starts one
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from yocto_model.cache import KVCache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yocto_model.fast.packed import Packed
    from yocto_model.gpt import GPT
    from yocto_model.layers import Block

KINDS = ("float32", "float16", "bfloat16", "int8", "int4")  # in the order of kernel.cpp
STEP, OUTPUTS = 32, 32  # a matrix has multiples of so many inputs and outputs
MOST_ROWS = 32  # for more, the products of torch, made for many rows, are faster
_BYTES_PER_THREAD = 4_000_000  # of weights; for fewer, a thread costs more than it brings
_SOURCE = Path(__file__).with_name("kernel.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
          "-shared", "-Wno-psabi")  # fmt: skip

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = [(name, _POINTER) for name in ("weight", "groups", "scale", "bias")]
    _fields_ += [(name, _NUMBER) for name in ("outputs", "inputs")]


class _Norm(ctypes.Structure):
    _fields_ = [(name, _POINTER) for name in ("gain", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Norm) for name in ("ln_1", "ln_2", "q_norm", "k_norm")]
    _fields_ += [(name, _Matrix) for name in ("qkv", "proj", "up", "down")]


class _Model(ctypes.Structure):
    _fields_ = [(name, _POINTER) for name in ("layers", "tokens", "positions", "cos", "sin")]
    _fields_ += [("ln_f", _Norm)]
    _fields_ += [(name, _NUMBER) for name in ("n_layer", "C", "H", "K", "D", "M")]
    _fields_ += [("norm", _NUMBER), ("activation", _NUMBER), ("eps", ctypes.c_float)]


class _Row(ctypes.Structure):
    _fields_ = [("cache", _POINTER)]
    _fields_ += [(name, _NUMBER) for name in ("next_values", "next_layer", "next_head")]
    _fields_ += [(name, _NUMBER) for name in ("place", "first", "position", "token")]


def load(kind: str) -> ctypes.CDLL:
    """The kernel for weights of this kind, one of `KINDS`; compiles it if that was not done before.

    Raises:
        RuntimeError: it cannot be had on this machine; the message says why in a line.
    """
    path = _path(kind)
    if not path.exists():
        _compile(kind, path)
    return _opened(path)


@functools.cache
def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"{path} cannot be opened: {error}") from error


@functools.cache
def _path(kind: str) -> Path:
    """Where the compiled kernel belongs: its name says what it was made of, and for what."""
    processor = f"{platform.platform()} {platform.processor()}"
    with contextlib.suppress(OSError):  # a home may be shared by several machines
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor += str(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    made_of = repr((_SOURCE.read_text(encoding="utf-8"), _FLAGS, processor))
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    return Path.home() / ".cache" / "yocto" / f"{kind}-{digest[:24]}.so"


def _compile(kind: str, path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("there is no C++ compiler")
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            command = [compiler, *_FLAGS, f"-DKIND={KINDS.index(kind)}", str(_SOURCE)]
            command += ["-o", str(made)]
            for threads in (["-fopenmp"], []):  # not every compiler has OpenMP
                done = subprocess.run([*command, *threads], capture_output=True, check=False)  # noqa: S603 - our own source
                if not done.returncode:
                    break
            else:
                said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
                raise RuntimeError(f"the C++ compiler failed: {said[:100]}")
            # Appears whole or not at all, also where two do this at once.
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            shutil.copy(made, beside)
            beside.replace(path)
    except OSError as error:
        raise RuntimeError(f"the kernel cannot be compiled: {error}") from error


def n_threads(n_bytes: int) -> int:
    """On how many threads weights of this size are read."""
    return max(1, min(torch.get_num_threads(), n_bytes // _BYTES_PER_THREAD))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def matrix(packed: "Packed") -> _Matrix:
    """What the kernel knows of a packed matrix, which must outlive it."""
    pointers = map(_address, (packed.weight, packed.groups, packed.scale, packed.bias))
    return _Matrix(*pointers, packed.out_features, packed.in_features + -packed.in_features % STEP)


class FewRows:
    """A model's layers for up to `MOST_ROWS` tokens, as `GPT.hidden_states` computes them.

    A row's result does not depend on the other rows, to the bit.

    Args:
        model: its matrices are `Packed`, with kernels of one kind; none may be replaced afterwards.
        library: that kernel.
        n_bytes: of the matrices, all together.
    """

    def __init__(self, model: "GPT", library: ctypes.CDLL, n_bytes: int) -> None:
        config, blocks = model.config, list(cast("Iterable[Block]", model.blocks))
        self._library, self._n_bytes, self._width = library, n_bytes, config.n_embd
        # What the kernel has pointers to.
        self._kept = [*model.parameters(), *model.buffers(), *model.blocks]

        def norm(module: nn.Module) -> _Norm:
            return _Norm(*(_address(getattr(module, part, None)) for part in ("weight", "bias")))

        self._layers = (_Layer * len(blocks))(
            *(
                _Layer(
                    *map(norm, (b.ln_1, b.ln_2, b.attn.q_norm, b.attn.k_norm)),
                    *map(matrix, cast("Any", (b.attn.qkv, b.attn.proj, b.mlp.up, b.mlp.proj))),
                )
                for b in blocks
            )
        )
        learned = None if model.pos_emb is None else model.pos_emb.weight
        tables = [None, None] if model.pos_emb is not None else [model.cos, model.sin]
        self._model = _Model(
            ctypes.addressof(self._layers),
            *map(_address, (model.token_emb.weight, learned, *tables)),
            norm(model.ln_f),
            *(config.n_layer, config.n_embd, config.n_head, config.kv_heads),
            *(config.head_width, config.hidden),
            ("layernorm", "rmsnorm").index(config.norm),
            ("gelu", "gelu_tanh", "swiglu").index(config.activation),
            config.norm_eps,
        )

    def __deepcopy__(self, _: object) -> "FewRows":
        return self  # nothing in it ever changes

    def __call__(self, idx: Tensor, *caches: KVCache) -> Tensor:
        """Read T tokens per row, int64 (B, T) -> (B, T, C), and add them to caches with room.

        The rows of several caches, whose lengths may differ, are together the B rows, in order.
        """
        B, T = idx.shape
        rows, tokens = (_Row * (B * T))(), iter(idx.flatten().tolist())
        numbers = itertools.count()
        for cache in caches:
            keys = cache.keys  # (n_layer, b, K, capacity, D)
            next_layer, next_row, next_head, _, _ = keys.stride()
            address = keys.data_ptr()
            next_values = (cache.values.data_ptr() - address) // 4
            padding = [0] * keys.shape[1] if cache.padding is None else cache.padding.tolist()
            for b, hidden in enumerate(padding):
                for place in range(cache.length, cache.length + T):
                    rows[next(numbers)] = _Row(
                        address + 4 * b * next_row, next_values, next_layer, next_head, place,
                        min(hidden, place), max(0, place - hidden), next(tokens),
                    )  # fmt: skip
        x = torch.empty(B, T, self._width)
        self._library.layers(
            ctypes.byref(self._model), rows, B * T, _POINTER(x.data_ptr()), n_threads(self._n_bytes)
        )
        for cache in caches:
            cache.advance(T)
        return x
