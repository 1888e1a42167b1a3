"""The flags of a command, read off its dataclass: the one table that parsing derives from."""

import dataclasses
import math
import re
import types
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Bare:
    """Annotates a field whose flag may stand without a value: it then has this one."""

    value: str


@dataclasses.dataclass(frozen=True)
class CommandLineOnly:
    """Annotates a field that belongs to one invocation: no configuration file holds it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One field at the end of a path of groups.

    Attributes:
        name: the field's name, and the flag's with underscores.
        group: the names of the groups around it, outermost first.
        type: bool, int, float or str.
        choices: the values allowed, of a Literal; else empty.
        many: a tuple of values.
        required: it has no default.
        bare: the value of the flag when it stands alone, or None.
        in_files: whether a configuration file may hold it.
    """

    name: str
    group: tuple[str, ...]
    type: type
    choices: tuple[str, ...]
    many: bool
    required: bool
    bare: str | None
    in_files: bool

    def problem(self, value: str) -> str | None:
        """What is wrong with a value as it was written, or None."""
        if self.choices and value not in self.choices:
            hint = suggestion(value, self.choices, "")
            return f"must be one of {', '.join(self.choices)}, not {value!r}{hint}"
        if self.type is int:
            return integer_problem(value)
        if self.type is float:
            return float_problem(value)
        return None


def integer_problem(text: str) -> str | None:
    """Why this is no whole number; the one integer syntax of flags and files, or None if it is."""
    if not _INTEGER.fullmatch(text):
        return f"needs a whole number in plain digits, such as 1000, not {_short(text)}"
    return f"is out of range: {_short(text)}" if len(text) > 20 else None


def float_problem(text: str) -> str | None:
    """Why this is no finite number, or None if it is."""
    if not _FLOAT.fullmatch(text):
        return f"needs a number such as 0.1 or 3e-4, not {_short(text)}"
    return None if math.isfinite(float(text)) else f"needs a finite number, not {_short(text)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def suggestion(word: str, known: Collection[str], prefix: str, *, shortest: int = 3) -> str:
    """`; did you mean --lr?`, or nothing when no known word is close.

    A word that is only the beginning of a known one counts from `shortest` characters on.
    """
    close = get_close_matches(word, known, n=1) or [
        name for name in known if len(word) >= shortest and name.startswith(word)
    ]
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def flags_of(cls: type) -> dict[str, Flag]:
    """The flags of a dataclass and the groups (dataclasses) in it, by name, in order.

    Raises:
        TypeError: two fields have one name, an optional field has a default that is not None, a
            list is not empty by default, or a field has a type with no flag: mistakes of ours.
    """
    found: dict[str, Flag] = {}
    _collect(cls, (), found)
    return found


def _collect(cls: type, group: tuple[str, ...], found: dict[str, Flag]) -> None:
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, notes = hints[field.name], ()
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)  # type: ignore[assignment]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)  # noqa: S101 - an annotation is never an instance
            _collect(hint, (*group, field.name), found)
            continue
        if field.name in found:
            raise TypeError(f"{cls.__name__}: two fields are called {field.name}")
        found[field.name] = _flag(field, hint, notes, group)


def _flag(
    field: "dataclasses.Field[Any]", hint: Any, notes: Sequence[object], group: tuple[str, ...]
) -> Flag:
    many = optional = False
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        hint, many = get_args(hint)[0], True
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        hint = Union[tuple(t for t in get_args(hint) if t is not type(None))]  # noqa: UP007
        optional = True
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    required = field.default is field.default_factory is dataclasses.MISSING
    if kind not in (bool, int, float, str):
        raise TypeError(f"{field.name}: no flag for the type {hint}")
    if optional and field.default is not None:
        raise TypeError(f"{field.name} is optional: its default must be None, as TOML has no null")
    if many and not required and field.default != ():
        raise TypeError(f"{field.name} is a list: it must be empty by default")
    return Flag(
        name=field.name,
        group=group,
        type=kind,
        choices=choices,
        many=many,
        required=required,
        bare=next((note.value for note in notes if isinstance(note, Bare)), None),
        in_files=not any(isinstance(note, CommandLineOnly) for note in notes),
    )
