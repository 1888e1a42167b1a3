"""One table for settings: each dataclass field carries its own help text and range.

Checks, command line flags, help and TOML keys all come from `dataclasses.fields`, so a setting is
written once. Importing this module does not import torch.
"""

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from yocto_model.errors import quoted


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word that argparse and its readers use
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its help and its range.

    Args:
        default: the field's default.
        help: one sentence, shown by `--help` too.
        low: the smallest value allowed.
        high: the largest value allowed.
        above: values must be larger than this.
        below: values must be smaller than this.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"help": help, **given})


def problems(owner: Any) -> list[str]:
    """What is wrong with the fields of a dataclass instance: one sentence each, or nothing.

    Types come from the annotations: bool, int, float, str, a Literal of words, any of these or
    None. Whole numbers count as float, and NumPy's numbers as Python's.
    """
    hints = get_type_hints(type(owner))
    found = (_problem(f, hints[f.name], getattr(owner, f.name)) for f in dataclasses.fields(owner))
    return [problem for problem in found if problem is not None]


def _problem(field: "dataclasses.Field[Any]", hint: Any, value: object) -> str | None:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        allowed = ", ".join(get_args(hint))
        # The type first: comparing an array with a word gives an array.
        fits = isinstance(value, str) and value in get_args(hint)
        return None if fits else f"{field.name} must be one of {allowed}, not {quoted(value)}"
    if hint in (bool, str):
        fits, rule = isinstance(value, hint), "true or false" if hint is bool else "a text"
    else:
        fits, rule = _is_in_range(value, hint, field.metadata), _range(hint, field.metadata)
    return None if fits else f"{field.name} must be {rule}, not {quoted(value)}"


def _is_in_range(value: Any, kind: type, bounds: types.MappingProxyType[Any, Any]) -> bool:
    if isinstance(value, bool) or not hasattr(value, "__index__" if kind is int else "__float__"):
        return False
    try:
        number = value.__index__() if kind is int else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last from a tensor
        return False
    return (
        -math.inf < number < math.inf  # compared, not converted: some integers fit no float
        and number >= bounds.get("low", -math.inf)
        and number <= bounds.get("high", math.inf)
        and number > bounds.get("above", -math.inf)
        and number < bounds.get("below", math.inf)
    )


def _range(kind: type, bounds: types.MappingProxyType[Any, Any]) -> str:
    """`a whole number from 1 to 2,147,483,648`, `a number above 0`."""
    words = [
        f"{word} {bounds[name]:,}"
        for name, word in (("low", "from"), ("above", "above"), ("high", "to"), ("below", "below"))
        if name in bounds
    ]
    return " ".join(["a whole number" if kind is int else "a number", *words])
