"""Checks that several modules ask of their arguments."""

from __future__ import annotations

from yocto_data.errors import OptionError, show


def require_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is no integer from ``low`` to ``high``; ``True`` and ``1.0`` are none.

    Raises:
        OptionError: names the argument, its range and what was found.
    """
    if isinstance(value, int) and not isinstance(value, bool):  # noqa: SIM102
        if low <= value and (high is None or value <= high):
            return
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise OptionError(f"{name} must be an integer {bounds}, found {show(repr(value))}")


def require_word(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is not one of a few words.

    Raises:
        OptionError: names the argument, the words and what was found.
    """
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, found {show(repr(value))}")
