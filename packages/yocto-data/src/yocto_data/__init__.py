"""Texts to token files to batches: memory-mapped, reproducible."""

from importlib.metadata import version

from yocto_data.batches import BatchSampler, evaluation_batches, evaluation_windows, get_batch
from yocto_data.dataset import TokenDataset, compare_splits, load_bin
from yocto_data.errors import (
    DataError,
    DecodingError,
    InUseError,
    MetaError,
    MissingMetaError,
    OptionError,
    OutputError,
    RecordError,
    ShortDataError,
    SourceChangedError,
    SourceError,
    StateError,
    TokenFileError,
    TokenizerUseError,
    WindowIndexError,
    WorkerError,
    WorkError,
    WriteError,
)
from yocto_data.meta import DataMeta, SplitMeta, token_dtype
from yocto_data.nanogpt import import_nanogpt
from yocto_data.prepare import prepare
from yocto_data.protocol import Tokenizer
from yocto_data.texts import iter_texts

__version__ = version("yocto-data")

__all__ = [
    "BatchSampler",
    "DataError",
    "DataMeta",
    "DecodingError",
    "InUseError",
    "MetaError",
    "MissingMetaError",
    "OptionError",
    "OutputError",
    "RecordError",
    "ShortDataError",
    "SourceChangedError",
    "SourceError",
    "SplitMeta",
    "StateError",
    "TokenDataset",
    "TokenFileError",
    "Tokenizer",
    "TokenizerUseError",
    "WindowIndexError",
    "WorkError",
    "WorkerError",
    "WriteError",
    "compare_splits",
    "evaluation_batches",
    "evaluation_windows",
    "get_batch",
    "import_nanogpt",
    "iter_texts",
    "load_bin",
    "prepare",
    "token_dtype",
]
