r"""Our tokenizers in Hugging Face's layout, `tokenizer.json`.

The library `tokenizers`, and `AutoTokenizer` above it, give the same ids and the same text as ours
for every text, but for one choice of theirs: they find the names of special tokens in text, unless
told not to by `split_special_tokens=True`.

No regular expression is left to another engine's idea of a letter: the classes of the word level
are spelled out, range by range. No normalizer touches the text: pieces hold real spaces, so that
U+2581 is a character like any other.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

#: The key of the model under which a file of words says that it is ours; others pass over it.
MARKER = "yocto"


def head_of(document: dict[str, Any]) -> dict[str, Any]:
    """Where a parsed file of ours says what it is; empty if it is not ours."""
    model = document.get("model", {MARKER: document})
    head = model.get(MARKER) if isinstance(model, dict) else None
    return head if isinstance(head, dict) else {}


def whole_tokens(
    itos: Sequence[str],
    special_tokens: Mapping[str, int],
    *,
    pattern: str,
    unknown: str,
    marker: dict[str, Any] | None = None,
) -> bytes:
    """A tokenizer whose tokens are the parts that a pattern splits a text into.

    Args:
        itos: the string of each id.
        special_tokens: those of them that no text produces.
        pattern: a regular expression.
        unknown: the string whose id all other parts get; if there is none, they are an error.
        marker: what the file says of itself, if it is a file of ours.
    """
    model = {"type": "WordLevel", "unk_token": unknown, "vocab": {s: i for i, s in enumerate(itos)}}
    return document(
        [added_token(i, name, special=True) for name, i in special_tokens.items()],
        pre_tokenizer=split(pattern),
        decoder={"type": "Fuse"},
        model=model if marker is None else {**model, MARKER: marker},
    )


def split(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer whose parts are what a pattern finds, and what stands between."""
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


@cache
def explicit_pattern(*runs: str) -> str:
    r"""A pattern that splits into runs, and what is in none of them into single characters.

    Each run, such as `\s+`, is written as the ranges of the characters that Python's `re` finds in
    it. What means something inside brackets, as `]` and `-` do, may not be among them.
    """
    everything = "".join(map(chr, range(0x110000)))
    found = [re.findall(run, everything) for run in runs]
    ranges = ["".join(f"{part[0]}-{part[-1]}" for part in parts) for parts in found]
    return "|".join([*(f"[{inside}]+" for inside in ranges), r"[\s\S]"])


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    """A token that is found in text first, or, if special, in no text at all."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def document(added_tokens: list[dict[str, Any]], *, indent: int | None = 1, **parts: Any) -> bytes:
    """The file, from its parts; those not given are null. Without `indent` it is made faster."""
    nothing = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor"])
    content = {"version": "1.0", **nothing, "added_tokens": added_tokens, **parts}
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode("utf-8")
