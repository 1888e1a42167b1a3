"""What every tokenizer offers, as a structural type: nothing has to inherit from it."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from yocto_tokenizers.ids import IdArray, Ids
from yocto_tokenizers.streaming import StreamDecoder


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.

    Every id in `range(vocab_size)` is valid, and no text produces an id of `special_tokens`.
    """

    @property
    def kind(self) -> str:
        """`"char"`, `"word"`, `"sentencepiece"` or `"huggingface"`."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Name and id of each token that no text produces and that decodes to nothing."""

    @property
    def bos_id(self) -> int | None:
        """Id that begins a document, or None; never -1."""

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document or a reply, or None."""

    @property
    def user_id(self) -> int | None:
        """Id that begins what the user says, or None."""

    @property
    def assistant_id(self) -> int | None:
        """Id that begins what the model says, or None."""

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""

    def encode_to_numpy(self, text: str) -> IdArray:
        """The same ids: uint16 if `vocab_size <= 65536`, else uint32; shape `(n,)`."""

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of several texts, each as `encode` gives them."""

    def decode(self, ids: Ids) -> str:
        """`decode_bytes(ids)` read as UTF-8; invalid bytes become U+FFFD."""

    def decode_bytes(self, ids: Ids) -> bytes:
        """The exact bytes of the ids, nothing replaced."""

    def stream_decoder(self) -> StreamDecoder:
        """A new decoder that takes one id at a time."""

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a file, or into a directory under the kind's own name; returns the path written."""

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote."""

    def fingerprint(self) -> str:
        """sha256 (hex) of the content: equal exactly for tokenizers that behave alike."""
