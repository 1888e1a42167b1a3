"""What yocto-data asks of a tokenizer: three members, and five that it uses when they are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Any object that turns text into ids and back.

    Five more members are used when the object has them, and need no declaration:

    - `encode_to_numpy(text) -> np.ndarray`: the same ids as `encode`, as a one-dimensional
      array of integers, without the detour over a list.
    - `save(path) -> Path`: writes the tokenizer's file into the directory `path` and returns
      the path of that file.
    - `fingerprint() -> str`: names the content, so that data and model can be matched.
    - `kind: str`: a short word, recorded in meta.json. Objects of kind `"char"` encode faster
      than text travels to another process and are never sent to workers.
    - `eos_id: int | None`: what stands between documents when there are several.
    """

    @property
    def vocab_size(self) -> int:
        """Every id in `range(vocab_size)` is valid."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence of ids."""
