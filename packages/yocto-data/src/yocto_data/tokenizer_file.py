"""The tokenizer's file in a data directory, and what meta.json says of the tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path

from yocto_data import fsops
from yocto_data.errors import OptionError, TokenizerUseError, show
from yocto_data.meta import LARGEST_VOCABULARY, TokenizerMeta
from yocto_data.options import require_integer
from yocto_data.protocol import Tokenizer
from yocto_data.regular import open_regular


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The tokenizer's ``vocab_size``, if it is one.

    Raises:
        TokenizerUseError: it is no integer of at least 1, or beyond what 32 bits hold.
    """
    try:
        require_integer("the tokenizer's vocab_size", tokenizer.vocab_size, 1, LARGEST_VOCABULARY)
    except OptionError as error:
        raise TokenizerUseError(str(error)) from None
    return tokenizer.vocab_size


def save_tokenizer(tokenizer: Tokenizer | None, directory: Path) -> TokenizerMeta:
    """Let the tokenizer write its file, sync it, and describe it; members it lacks become None.

    Raises:
        TokenizerUseError: its ``save`` does not write a file into the directory.
        WriteError: the system refused.
    """
    kind = getattr(tokenizer, "kind", None)
    fingerprint = getattr(tokenizer, "fingerprint", None)
    save = getattr(tokenizer, "save", None)
    file = sha256 = None
    if save is not None:
        before = set(directory.iterdir())
        with fsops.translated(directory):
            path = Path(save(directory))
            for written in sorted(set(directory.iterdir()) - before):
                fsops.sync_path(written)
        if path.parent != directory or path in before or not path.is_file():
            raise TokenizerUseError(
                f"the tokenizer's save was given {show(directory.name)} to write a file into, and "
                f"returned {show(path)}"
            )
        file, sha256 = path.name, _sha256(path)
    name = fingerprint() if callable(fingerprint) else None
    if not isinstance(name, str | None):
        raise TokenizerUseError(
            f"the tokenizer's fingerprint must be a str, found {type(name).__name__}"
        )
    return TokenizerMeta(
        kind=kind if isinstance(kind, str) else None,
        fingerprint=name,
        file=file,
        sha256=sha256,
    )


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
