"""Text to ids and back: characters, words, sentencepiece BPE."""

from importlib.metadata import version

from yocto_tokenizers.char import CharTokenizer
from yocto_tokenizers.chat import EncodedChat, encode_chat
from yocto_tokenizers.errors import (
    MissingExtraError,
    SpecialTokenError,
    TextError,
    TokenIdError,
    TokenizerError,
    TokenizerFileError,
    TokenizerWriteError,
    UnknownCharacterError,
    VocabularyError,
)
from yocto_tokenizers.files import load_tokenizer
from yocto_tokenizers.hugging_face import HuggingFaceTokenizer
from yocto_tokenizers.protocol import Tokenizer
from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
from yocto_tokenizers.special_tokens import CHAT_TOKENS
from yocto_tokenizers.streaming import StreamDecoder
from yocto_tokenizers.word_level import WordLevelTokenizer

__version__ = version("yocto-tokenizers")

__all__ = [
    "CHAT_TOKENS",
    "CharTokenizer",
    "EncodedChat",
    "HuggingFaceTokenizer",
    "MissingExtraError",
    "SentencePieceTokenizer",
    "SpecialTokenError",
    "StreamDecoder",
    "TextError",
    "TokenIdError",
    "Tokenizer",
    "TokenizerError",
    "TokenizerFileError",
    "TokenizerWriteError",
    "UnknownCharacterError",
    "VocabularyError",
    "WordLevelTokenizer",
    "encode_chat",
    "load_tokenizer",
]
