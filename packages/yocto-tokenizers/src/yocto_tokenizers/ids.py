"""Ids as they come in, checked once for every rung, before anything is looked up with them."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yocto_tokenizers.errors import TokenIdError, quoted

#: Token ids as they come in: lists, tuples, ranges, integer arrays, CPU tensors. One dimension.
Ids: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

#: Token ids as they go out: uint16 or uint32, shape (n,).
IdArray: TypeAlias = NDArray[np.unsignedinteger[Any]]


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The narrowest of the two types of token files that holds every id of the vocabulary."""
    return np.uint16 if vocab_size <= 65536 else np.uint32


def checked_ids(ids: object, vocab_size: int) -> NDArray[np.integer[Any]]:
    """The ids as an integer array of shape `(n,)`, every one in `range(vocab_size)`.

    The range is checked before any gather, because -1 would silently pick the last token.

    Raises:
        TokenIdError: not one dimension, not integers (a bool is none), or out of range.
    """
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise TokenIdError(
            f"ids of type {type(ids).__name__} cannot be read as an array; "
            "give one list, tuple, array or CPU tensor of integers"
        ) from error
    if array.ndim != 1:
        raise TokenIdError(
            f"ids have {array.ndim} dimensions, expected 1; give one sequence of ids"
        )
    if array.size == 0:
        return np.empty(0, dtype=np.int64)  # np.asarray([]) is float64, yet holds no float
    # NumPy reads [3, True] as [3, 1]: only the list itself still knows.
    if isinstance(ids, list | tuple) and not {bool, np.bool_}.isdisjoint(map(type, ids)):
        raise TokenIdError(f"ids hold a bool; ids are integers below {vocab_size}")
    if array.dtype.kind not in "iu":
        raise _wrong_kind(ids if isinstance(ids, list | tuple) else array.tolist(), vocab_size)
    if array.min() < 0 or array.max() >= vocab_size:
        position = int(np.flatnonzero((array < 0) | (array >= vocab_size))[0])
        raise TokenIdError(
            f"id {array[position]} at index {position} is out of range; "
            f"valid ids are 0 to {vocab_size - 1}"
        )
    return array


def _wrong_kind(ids: Iterable[object], vocab_size: int) -> TokenIdError:
    # NumPy makes floats of [0, 2**63] and objects of [2**70]: those are integers out of range.
    for position, value in enumerate(ids):
        if type(value) is int and not 0 <= value < vocab_size:
            return TokenIdError(
                f"id {quoted(value)} at index {position} is out of range; "
                f"valid ids are 0 to {vocab_size - 1}"
            )
        if type(value) is not int:
            return TokenIdError(
                f"id {quoted(value)} at index {position} is a {type(value).__name__}; "
                f"ids are integers below {vocab_size}"
            )
    return TokenIdError(f"ids are no integers below {vocab_size}")
