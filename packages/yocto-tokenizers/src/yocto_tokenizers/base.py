"""What the rungs share: from ids to bytes by one table, and everything that follows from it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np

from yocto_tokenizers.errors import quoted
from yocto_tokenizers.ids import IdArray, Ids, checked_ids, id_dtype
from yocto_tokenizers.special_tokens import ASSISTANT, BOS, EOS, USER
from yocto_tokenizers.storage import is_directory, read_bytes, write_bytes
from yocto_tokenizers.streaming import StreamDecoder
from yocto_tokenizers.texts import checked_texts


class BaseTokenizer(ABC):
    """A tokenizer that decodes by concatenation: an id always stands for the same bytes.

    A rung supplies `encode`, the table of bytes, its fingerprint and its file content.
    """

    kind: ClassVar[str]
    #: The name of its file in a data directory or a checkpoint.
    file_name: ClassVar[str]

    def __init__(self, *, vocab_size: int, special_tokens: Mapping[str, int]):
        self._vocab_size = vocab_size
        self._special_tokens = dict(special_tokens)
        self._token_bytes: Sequence[bytes] | None = None

    @property
    def vocab_size(self) -> int:
        """How many ids there are; every id below is valid."""
        return self._vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Name and id of each token that no text produces and that decodes to nothing."""
        return MappingProxyType(self._special_tokens)

    @property
    def bos_id(self) -> int | None:
        """Id of `<s>`, which begins a document, or None."""
        return self._special_tokens.get(BOS)

    @property
    def eos_id(self) -> int | None:
        """Id of `</s>`, which ends a document or a reply, or None."""
        return self._special_tokens.get(EOS)

    @property
    def user_id(self) -> int | None:
        """Id of `<|user|>`, which begins what the user says, or None."""
        return self._special_tokens.get(USER)

    @property
    def assistant_id(self) -> int | None:
        """Id of `<|assistant|>`, which begins what the model says, or None."""
        return self._special_tokens.get(ASSISTANT)

    @property
    def unk_id(self) -> int | None:
        """Id that stands for what the vocabulary lacks, or None if the rung has none."""
        return None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of one text.

        Raises:
            TextError: the text is no `str`, or holds a lone surrogate.
        """

    def encode_to_numpy(self, text: str) -> IdArray:
        """The same ids: uint16 if `vocab_size <= 65536`, else uint32; shape `(n,)`."""
        return np.array(self.encode(text), dtype=id_dtype(self._vocab_size))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of several texts, each as `encode` gives them."""
        return [self.encode(text) for text in checked_texts(texts)]

    def decode(self, ids: Ids) -> str:
        """`decode_bytes(ids)` read as UTF-8; invalid bytes become U+FFFD, special ids add nothing.

        Raises:
            TokenIdError: ids are not one dimension of integers in `range(vocab_size)`.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Ids) -> bytes:
        """The exact bytes of the ids, nothing replaced.

        Raises:
            TokenIdError: ids are not one dimension of integers in `range(vocab_size)`.
        """
        table = self._byte_table()
        return b"".join([table[i] for i in checked_ids(ids, self._vocab_size).tolist()])

    def stream_decoder(self) -> StreamDecoder:
        """A new decoder that takes one id at a time and returns whole characters."""
        return StreamDecoder(self._byte_table())

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the tokenizer atomically; into a directory under its own name.

        Returns:
            The path of the file written.

        Raises:
            TokenizerWriteError: the system refused; an old file is whole.
        """
        return write_bytes(path, self.file_name, self.to_bytes())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote: the file, or a directory that holds it under its own name.

        Raises:
            TokenizerFileError: the file is missing, damaged, or of another kind.
        """
        file = Path(path) / cls.file_name if is_directory(path) else Path(path)
        return cls.from_bytes(read_bytes(file), source=quoted(file))

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 (hex) of the content: equal exactly for tokenizers that behave alike."""

    @abstractmethod
    def _make_byte_table(self) -> Sequence[bytes]:
        """The bytes of each id, in id order; empty for special tokens."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """What `save` writes."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, content: bytes, *, source: str = "the content") -> Self:
        """The tokenizer that `to_bytes` gave.

        Args:
            content: the bytes of a file.
            source: what messages call them, such as the quoted name of the file.

        Raises:
            TokenizerFileError: the bytes are damaged, or of another kind.
        """

    def _byte_table(self) -> Sequence[bytes]:
        if self._token_bytes is None:
            self._token_bytes = self._make_byte_table()
        return self._token_bytes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self._vocab_size})"
