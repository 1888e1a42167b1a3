"""Text to ids and back: characters, words, sentencepiece BPE."""

from importlib.metadata import version

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
from yocto_tokenizers.formats.loading import load_tokenizer
from yocto_tokenizers.formats.losses import RoundTrip, round_trip
from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
from yocto_tokenizers.word_level import WordLevelTokenizer

CharVocab = CharTokenizer

__version__ = version("yocto-tokenizers")

__all__ = [
    "CHATML",
    "CHAT_TOKENS",
    "PLAIN",
    "TURNS",
    "BaseTokenizer",
    "CharTokenizer",
    "CharVocab",
    "ChatTemplate",
    "ChatTemplateError",
    "HuggingFaceTokenizer",
    "RoundTrip",
    "Segment",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "TokenizerFileError",
    "UnknownCharacterError",
    "WordLevelTokenizer",
    "encode_segments",
    "gguf_fields",
    "load_tokenizer",
    "round_trip",
    "template_for",
    "tokenizer_from_gguf",
]
