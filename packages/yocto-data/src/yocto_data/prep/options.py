"""How texts become tokens: every setting that shapes the files, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from yocto_data.errors import DataError, integer, require_one_of
from yocto_data.prep.decoding import Errors, check_encoding

SplitBy = Literal["auto", "position", "documents"]
Position = Literal["before", "after"]


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The settings of `prepare` and, as far as they concern reading, of `iter_texts`.

    Each field's metadata holds a "help" text, from which a command line can make its flags. A value
    out of its range is a `DataError`.
    """

    val_ratio: float = field(default=0.1, metadata=_help("share of the text kept for validation"))
    seed: int = field(default=1337, metadata=_help("chooses the documents kept for validation"))
    encoding: str = field(default="utf-8", metadata=_help("encoding of the texts"))
    errors: Errors = field(
        default="strict", metadata=_help("what to do with bytes that are not in that encoding")
    )
    text_field: str = field(default="text", metadata=_help("key of the text in .jsonl records"))
    split_by: SplitBy = field(
        default="auto", metadata=_help("cut the text at one position, or keep its documents whole")
    )
    separator: int | Literal["auto"] | None = field(
        default="auto", metadata=_help("id between documents; auto: the tokenizer's end token")
    )
    separator_position: Position = field(
        default="after", metadata=_help("whether the separator stands before or after a document")
    )
    chunk_chars: int = field(
        default=1 << 20, metadata=_help("about how many characters are encoded at a time")
    )

    def __post_init__(self) -> None:
        if not 0 < self.val_ratio < 1:  # nan fails, too
            raise DataError(f"val_ratio must be above 0 and below 1, found {self.val_ratio!r}")
        require_one_of("split_by", self.split_by, get_args(SplitBy))
        require_one_of("separator_position", self.separator_position, get_args(Position))
        require_one_of("errors", self.errors, get_args(Errors))
        plain = {
            "val_ratio": float(self.val_ratio),
            "seed": integer("seed", self.seed, 0, (1 << 64) - 1),
            "encoding": check_encoding(self.encoding),
            "chunk_chars": integer("chunk_chars", self.chunk_chars, 1),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, options: PrepareOptions | None, changes: dict[str, Any]) -> PrepareOptions:
        """Options given as an object, as keywords, or as both."""
        return replace(options or cls(), **changes)
