"""Texts to token files to batches: memory-mapped, reproducible.

Names are imported when they are first used, so that a command can refuse a path at once.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yocto_data.batches import BatchSampler, evaluation_batches
    from yocto_data.chats.messages import Chat, Message
    from yocto_data.chats.packed import ChatBatches, ChatDataset, chat_evaluation_batches
    from yocto_data.chats.prepare import prepare_chats
    from yocto_data.chats.reading import ChatOptions, iter_chats
    from yocto_data.dataset import CharDataset, TokenDataset
    from yocto_data.errors import (
        DataError,
        DecodingError,
        MissingMetaError,
        ShortDataError,
        WorkError,
    )
    from yocto_data.prep.documents import PrepareOptions, TextPart
    from yocto_data.prep.encoding import Tokenizer
    from yocto_data.prep.meta import DataMeta, SplitMeta, token_dtype
    from yocto_data.prep.nanogpt import import_nanogpt
    from yocto_data.prep.prepare import iter_texts, prepare
    from yocto_data.prep.token_files import load_bin, verify_tokens

__version__ = version("yocto-data")

# Where names are looked for, in this order.
_MODULES = (
    "errors", "dataset", "batches", "prep.meta", "prep.token_files", "prep.documents",
    "prep.encoding", "prep.prepare", "prep.nanogpt", "chats.messages", "chats.reading",
    "chats.packed", "chats.prepare",
)  # fmt: skip

__all__ = [
    "BatchSampler", "CharDataset", "Chat", "ChatBatches", "ChatDataset", "ChatOptions",
    "DataError", "DataMeta", "DecodingError", "Message", "MissingMetaError", "PrepareOptions",
    "ShortDataError", "SplitMeta", "TextPart", "TokenDataset", "Tokenizer", "WorkError",
    "chat_evaluation_batches", "evaluation_batches", "import_nanogpt", "iter_chats",
    "iter_texts", "load_bin", "prepare", "prepare_chats", "token_dtype", "verify_tokens",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = importlib.import_module(f"{__name__}.{module}")
        if hasattr(found, name):
            globals()[name] = getattr(found, name)  # the next look-up finds it at once
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
