"""What every tokenizer is: text to ids, ids to bytes by one table, and all that follows from it."""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Self, SupportsIndex, TypeAlias

import numpy as np

from yocto_tokenizers.errors import shown
from yocto_tokenizers.fast.checks import (
    IdArray,
    Ids,
    checked_id,
    checked_ids,
    checked_texts,
    file_at,
    id_dtype,
    read_bytes,
)

#: The special tokens of a conversation, in the order of their ids.
CHAT_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>")
BOS, EOS, USER, ASSISTANT = CHAT_TOKENS
UNK = "<unk>"
#: What a model folder calls the file that names the special tokens.
CONFIG_NAME = "tokenizer_config.json"

# What tokenizers in use call these tokens; the first spelling is ours.
_SPELLINGS = {
    "bos": (BOS, "<bos>", "<|bos|>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": (EOS, "<eos>", "<|eos|>", "<|end_of_text|>", "<|endoftext|>"),
    "user": (USER, "<|user_start|>"),
    "assistant": (ASSISTANT, "<|assistant_start|>"),
    "unk": (UNK,),
}


class BaseTokenizer(ABC):
    """Text to ids and back. `Tokenizer` is another name for it.

    Every id in `range(vocab_size)` is valid and stands for the same bytes wherever it appears, so
    that decoding is concatenation. No text produces an id of `special_tokens`.

    A subclass supplies `encode`, the bytes of each id, its fingerprint and its file.

    Attributes:
        kind: `"char"`, `"word"`, `"sentencepiece"` or `"huggingface"`.
        file_name: the name of its file in a data directory or a checkpoint.
        vocab_size: how many ids there are.
        special_tokens: name and id of each token that no text produces and that decodes to nothing.
    """

    kind: ClassVar[str]
    file_name: ClassVar[str]

    def __init__(self, *, vocab_size: int, special_tokens: Mapping[str, int]):
        self.vocab_size = vocab_size
        self.special_tokens: Mapping[str, int] = MappingProxyType(dict(special_tokens))

    @property
    def bos_id(self) -> int | None:
        """Id that begins a document, or None; never -1."""
        return self._special_id("bos")

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document or a reply, or None."""
        return self._special_id("eos")

    @property
    def adds_bos(self) -> bool:
        """Whether `bos_id` belongs in front of every text for the model; `encode` leaves it out."""
        return False

    @property
    def user_id(self) -> int | None:
        """Id that begins what the user says, or None."""
        return self._special_id("user")

    @property
    def assistant_id(self) -> int | None:
        """Id that begins what the model says, or None."""
        return self._special_id("assistant")

    @property
    def unk_id(self) -> int | None:
        """Id that stands for what the vocabulary lacks, or None if there is none."""
        return None

    @cached_property
    def special_names(self) -> re.Pattern[str]:
        """Splits a text at the names of special tokens, which it keeps; the longest come first."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})")

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of one text.

        Raises:
            TokenizerError: the text is not a `str`, or holds a lone surrogate.
        """

    def encode_to_numpy(self, text: str) -> IdArray:
        """The same ids: uint16 if `vocab_size <= 65536`, else uint32; shape `(n,)`."""
        return np.array(self.encode(text), dtype=id_dtype(self.vocab_size))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of several texts, each as `encode` gives them."""
        return [self.encode(text) for text in checked_texts(texts)]

    def decode(self, ids: Ids) -> str:
        """`decode_bytes(ids)` read as UTF-8; invalid bytes become U+FFFD, special ids add nothing.

        Raises:
            TokenizerError: ids are not one dimension of integers in `range(vocab_size)`.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Ids) -> bytes:
        """The exact bytes of the ids, nothing replaced; errors as in `decode`."""
        table = self._token_bytes
        return b"".join([table[i] for i in checked_ids(ids, self.vocab_size).tolist()])

    def stream_decoder(self) -> "StreamDecoder":
        """A new decoder that takes one id at a time and returns whole characters."""
        return StreamDecoder(self._token_bytes)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the tokenizer's file; into a directory under its own name.

        Returns:
            The path of the file written.
        """
        file = file_at(path, self.file_name)
        file.write_bytes(self.to_bytes())
        return file

    def folder_files(self, *, model_max_length: int | None = None) -> dict[str, bytes]:
        """The files by which a model folder opens this tokenizer, here and elsewhere, by name.

        They are Hugging Face's `tokenizer.json` and `tokenizer_config.json`, and our own file where
        it says more. `load_tokenizer` on a folder of them gives this tokenizer back.

        Args:
            model_max_length: the longest text that the model takes, in ids; None leaves it out.
        """
        names = {token_id: name for name, token_id in self.special_tokens.items()}
        ends = {"bos_token": self.bos_id, "eos_token": self.eos_id, "unk_token": self.unk_id}
        named = {key: None if i is None else names.get(i) for key, i in ends.items()}
        config = config_bytes(named, model_max_length=model_max_length)
        return {self.file_name: self.to_bytes(), CONFIG_NAME: config}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote: the file, or a directory that holds it under its own name.

        Raises:
            TokenizerFileError: the file is missing, damaged, or of another kind.
        """
        file = file_at(path, cls.file_name)
        return cls.from_bytes(read_bytes(file), source=shown(file))

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 (hex) of the content: equal exactly for tokenizers that behave alike."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """What `save` writes."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        """The tokenizer whose file holds these bytes.

        Args:
            content: what `to_bytes` gave.
            source: what messages call it, such as the quoted name of the file.

        Raises:
            TokenizerFileError: the bytes are damaged, or of another kind.
        """

    @cached_property
    @abstractmethod
    def _token_bytes(self) -> Sequence[bytes]:
        """The bytes of each id, in id order; empty for special tokens."""

    def _special_id(self, role: str) -> int | None:
        special = self.special_tokens
        return next((special[name] for name in _SPELLINGS[role] if name in special), None)

    def __reduce__(self) -> tuple[object, ...]:
        # Tables stay behind: the process that receives the copy builds its own when it encodes.
        return (type(self).from_bytes, (self.to_bytes(),))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"


Tokenizer: TypeAlias = BaseTokenizer


def config_bytes(names: Mapping[str, str | None], *, model_max_length: int | None = None) -> bytes:
    """A `tokenizer_config.json`: the names of `bos_token` and so on; what is None is left out."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        **names,
    }
    given = {key: value for key, value in config.items() if value is not None}
    return (json.dumps(given, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


class StreamDecoder:
    """Turns a stream of ids into text, one id at a time, in constant time per id.

    One token need not be one character: an emoji may be four byte tokens. Decoding each id alone
    would print four replacement marks, and decoding everything again for each id takes quadratic
    time. Here every id has its bytes, and Python's incremental UTF-8 decoder holds back unfinished
    characters.

    The pieces joined equal `decode` of all the ids, whatever the ids: bytes that are not valid
    UTF-8 become U+FFFD in both.

    Args:
        token_bytes: the bytes of each id, in id order; empty for special tokens.
    """

    def __init__(self, token_bytes: Sequence[bytes]):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: SupportsIndex) -> str:
        """The text that becomes complete with this id; often empty in the middle of a character.

        Raises:
            TokenizerError: the id is not an integer in `range(vocab_size)`.
        """
        return self._decoder.decode(self._token_bytes[checked_id(token_id, len(self._token_bytes))])

    def finish(self) -> str:
        """What is left: U+FFFD if the stream ended inside a character. Then it starts anew."""
        return self._decoder.decode(b"", final=True)
