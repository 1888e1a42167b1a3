"""A small GPT: the model, its key/value cache, its text generation.

Read config.py, layers.py and gpt.py first; then cache.py, sampling.py, generation.py, text.py. How
generation is made fast is in packed.py, decoding.py and inference.py.
"""

from importlib.metadata import version

from yocto_model.cache import KVCache
from yocto_model.config import ARCHITECTURES, GPTConfig
from yocto_model.errors import (
    ConfigError,
    InputError,
    ModelError,
    ModelFileError,
    SamplingError,
)
from yocto_model.generation import Context, Step, stream, window_start
from yocto_model.gpt import GPT, ParameterRoles
from yocto_model.inference import (
    INFERENCE_KINDS,
    InferenceGPT,
    InferenceKind,
    inference_copy,
)
from yocto_model.sampling import SamplingOptions
from yocto_model.storage import load as load_pt
from yocto_model.storage import save as save_pt
from yocto_model.text import StopFilter, TextGenerator, TextStream, Token

__version__ = version("yocto-model")

__all__ = [
    "ARCHITECTURES",
    "GPT",
    "INFERENCE_KINDS",
    "ConfigError",
    "Context",
    "GPTConfig",
    "InferenceGPT",
    "InferenceKind",
    "InputError",
    "KVCache",
    "ModelError",
    "ModelFileError",
    "ParameterRoles",
    "SamplingError",
    "SamplingOptions",
    "Step",
    "StopFilter",
    "TextGenerator",
    "TextStream",
    "Token",
    "inference_copy",
    "load_pt",
    "save_pt",
    "stream",
    "window_start",
]
