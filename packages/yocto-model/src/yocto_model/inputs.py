"""Checks of what callers pass: counts, rows of ids, seeds. All before any work starts."""

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from yocto_model.errors import InputError, quoted


def check_count(name: str, number: object) -> None:
    """Raise InputError, which calls it `name`, unless it is a whole number from 0 on."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(f"{name} must be a whole number >= 0, not {quoted(number)}")


def checked_rows(
    rows: Tensor | Iterable[Iterable[int]], vocab_size: int, *, what: str = "prompt", least: int = 1
) -> list[list[int]]:
    """The rows as lists of int; InputError unless each holds at least one id of the vocabulary."""
    if isinstance(rows, Tensor):
        if rows.dim() != 2:
            raise InputError(f"ids must have shape (batch, tokens), not {tuple(rows.shape)}")
        rows = rows.tolist()
    try:
        checked = [[operator.index(token) for token in row] for row in rows]
    except TypeError as error:
        raise InputError(f"a {what} must be rows of whole numbers, such as [[1, 2, 3]]") from error
    name = "row" if what == "prompt" else what
    if len(checked) < least:
        raise InputError(f"there is no {what}: give at least one row of ids")
    for number, row in enumerate(checked):
        if not row:
            raise InputError(f"{name} {number} is empty: a {what} needs at least one token")
        for token in row:
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"id {quoted(token)} in {name} {number} is outside 0..{vocab_size - 1}"
                )
    return checked


def make_generators(n_rows: int, seed: int | Sequence[int] | None) -> list[torch.Generator]:
    """One CPU generator per row: row b is seeded with `seed + b`, or with `seed[b]`.

    Raises:
        InputError: the number of seeds is not the number of rows, or one is out of range.
    """
    if seed is None:
        seed = int(torch.randint(2**62, (1,)))
    if isinstance(seed, Sequence) and len(seed) != n_rows:
        raise InputError(f"{len(seed)} seeds for {n_rows} rows")
    try:
        seeds = seed if isinstance(seed, Sequence) else [seed + row for row in range(n_rows)]
        return [torch.Generator().manual_seed(operator.index(number)) for number in seeds]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("a seed must be a whole number from -2^63 to 2^64 - 1") from error
