"""Text to ids and back: characters, words, sentencepiece BPE.

Names are imported when they are first used, so that a command can refuse a path at once.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yocto_tokenizers.base import CHAT_TOKENS, BaseTokenizer, StreamDecoder, Tokenizer
    from yocto_tokenizers.char import CharTokenizer
    from yocto_tokenizers.errors import (
        ChatTemplateError,
        TokenizerError,
        TokenizerFileError,
        UnknownCharacterError,
    )
    from yocto_tokenizers.formats.chat_template import (
        CHATML,
        PLAIN,
        TURNS,
        ChatTemplate,
        Segment,
        encode_segments,
        template_for,
    )
    from yocto_tokenizers.formats.gguf import gguf_fields, tokenizer_from_gguf
    from yocto_tokenizers.formats.hugging_face import HuggingFaceTokenizer
    from yocto_tokenizers.formats.loading import CharVocab, load_tokenizer
    from yocto_tokenizers.formats.losses import RoundTrip, round_trip
    from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
    from yocto_tokenizers.word_level import WordLevelTokenizer

__version__ = version("yocto-tokenizers")

# Where names are looked for, in this order.
_MODULES = (
    "errors", "base", "char", "word_level", "sentence_piece", "formats.chat_template",
    "formats.loading", "formats.hugging_face", "formats.losses", "formats.gguf",
)  # fmt: skip

__all__ = [
    "CHATML", "CHAT_TOKENS", "PLAIN", "TURNS", "BaseTokenizer", "CharTokenizer", "CharVocab",
    "ChatTemplate", "ChatTemplateError", "HuggingFaceTokenizer", "RoundTrip", "Segment",
    "SentencePieceTokenizer", "StreamDecoder", "Tokenizer", "TokenizerError",
    "TokenizerFileError", "UnknownCharacterError", "WordLevelTokenizer", "encode_segments",
    "gguf_fields", "load_tokenizer", "round_trip", "template_for", "tokenizer_from_gguf",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = importlib.import_module(f"{__name__}.{module}")
        if hasattr(found, name):
            globals()[name] = getattr(found, name)  # the next look-up finds it at once
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
