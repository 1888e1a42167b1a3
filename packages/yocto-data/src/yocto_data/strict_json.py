"""JSON read strictly: duplicate keys, NaN, huge numbers and deep nesting are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NoReturn

from yocto_data.errors import show


def parse(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: one line that says what is wrong with the text.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key '{show(key)}' stands there twice")
            seen.add(key)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


class Fields:
    """The members of one JSON object, read with a type each; nothing may be missing or left over.

    Args:
        value: what was parsed; anything but an object is refused.
        where: how errors name the object, such as ``splits.train``.
        error: makes the exception to raise from one line of text.
    """

    def __init__(self, value: object, where: str, error: Callable[[str], Exception]) -> None:
        self._error = error
        self._where = where
        if not isinstance(value, Mapping):
            raise error(f"{where or 'the top level'} must be an object, found {_kind(value)}")
        self._left: dict[str, object] = dict(value)

    def integer(self, key: str, *, minimum: int = 0) -> int:
        """A whole number, at least ``minimum``; ``true`` and ``1.0`` are not numbers here."""
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(f"{self._name(key)} must be an integer, found {_kind(value)}")
        if value < minimum:
            raise self._error(f"{self._name(key)} must be at least {minimum}, found {value}")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(f"{self._name(key)} must be a number, found {_kind(value)}")
        return float(value)

    def string(self, key: str) -> str:
        """A string."""
        value = self._take(key)
        if not isinstance(value, str):
            raise self._error(f"{self._name(key)} must be a string, found {_kind(value)}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.string(key)
        if value not in allowed:
            raise self._error(
                f"{self._name(key)} must be one of {', '.join(allowed)}, found '{show(value)}'"
            )
        return value

    def array(self, key: str) -> list[object]:
        """A list."""
        value = self._take(key)
        if not isinstance(value, list):
            raise self._error(f"{self._name(key)} must be a list, found {_kind(value)}")
        return value

    def nested(self, key: str) -> Fields:
        """An object inside this one."""
        return Fields(self._take(key), self._name(key), self._error)

    def absent(self, key: str) -> bool:
        """Whether the key is there and holds null; if so it counts as read."""
        if self._left.get(key, 0) is not None:
            return False
        del self._left[key]
        return True

    def finish(self) -> None:
        """Refuse members that nobody asked for."""
        if self._left:
            keys = ", ".join(show(key) for key in sorted(self._left)[:3])
            raise self._error(f"unknown key in {self._where or 'the top level'}: {keys}")

    def _take(self, key: str) -> object:
        if key not in self._left:
            raise self._error(f"{self._name(key)} is missing")
        return self._left.pop(key)

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {
        int: "an integer",
        float: "a fraction",
        str: "a string",
        list: "a list",
    }
    return names.get(type(value), "an object")
