"""A small GPT: the model, its key/value cache, its text generation.

Read layers.py and gpt.py first, then sampling.py and generate.py. How generation is made fast is in
fast/, how models are read and written in formats/.

Names are imported when they are first used: settings can be read without waiting for torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yocto_model.cache import KVCache
    from yocto_model.config import ARCHITECTURES, GPTConfig, ModelConfig, SamplingOptions
    from yocto_model.errors import (
        ConfigError,
        InputError,
        ModelError,
        ModelFileError,
        SamplingError,
    )
    from yocto_model.fast.inference import (
        INFERENCE_KINDS,
        InferenceGPT,
        InferenceKind,
        inference_copy,
    )
    from yocto_model.fast.running import Job, RunningBatch
    from yocto_model.fast.training import ParameterRoles
    from yocto_model.formats.folder import read_end_ids
    from yocto_model.formats.gguf import GGUFKind, read_gguf, write_gguf
    from yocto_model.formats.nanogpt import read_nanogpt
    from yocto_model.generate import window_start
    from yocto_model.gpt import GPT
    from yocto_model.text import Completion, StopFilter, TextGenerator, TextStream, Token

__version__ = version("yocto-model")

# Where names are looked for, in this order: the first two modules do not need torch.
_MODULES = (
    "errors", "config", "generate", "gpt", "text", "fast.inference", "fast.running",
    "fast.training", "formats.folder", "formats.nanogpt", "formats.gguf",
)  # fmt: skip

__all__ = [
    "ARCHITECTURES", "GPT", "INFERENCE_KINDS", "Completion", "ConfigError", "GGUFKind",
    "GPTConfig", "InferenceGPT", "InferenceKind", "InputError", "Job", "KVCache",
    "ModelConfig", "ModelError", "ModelFileError", "ParameterRoles", "RunningBatch",
    "SamplingError", "SamplingOptions", "StopFilter", "TextGenerator", "TextStream", "Token",
    "inference_copy", "read_end_ids", "read_gguf", "read_nanogpt", "window_start",
    "write_gguf",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = importlib.import_module(f"{__name__}.{module}")
        if hasattr(found, name):
            globals()[name] = getattr(found, name)  # the next look-up finds it at once
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
