"""The sampling parameters as the chat changes them: the flags of `SamplingArguments`, by name.

Names, types and ranges are read off that one table, so that `/set top_p 2` and `--top_p 2` are
refused in the same words.
"""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from yocto_cli.arguments import UsageError
from yocto_cli.fields import Flag, flags_of
from yocto_cli.sampling_arguments import SamplingArguments

#: Every parameter that is one value.
PARAMETERS: dict[str, Flag] = {
    name: flag for name, flag in flags_of(SamplingArguments).items() if not flag.many
}
#: Commands that set one parameter, by its name or, where that is long, a shorter one.
SHORTCUTS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "max": "max_new_tokens",
}
_NO_VALUE = "random"


def parameter_named(name: str) -> str:
    """The parameter that a user means by its name or its shortcut.

    Raises:
        UsageError: there is none.
    """
    plain = name.replace("-", "_")
    full = SHORTCUTS.get(plain, plain)
    if full in PARAMETERS:
        return full
    close = get_close_matches(plain, [*PARAMETERS, *SHORTCUTS], n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(PARAMETERS)}"
    raise UsageError(f"no parameter is called {name!r}; {hint}")


def changed(settings: SamplingArguments, name: str, text: str) -> SamplingArguments:
    """The settings with a new value for one parameter.

    Args:
        settings: as they are.
        name: of the parameter.
        text: the value as it was typed; `random` makes the seed a new one for every reply.

    Raises:
        UsageError: the value is no number, or out of range.
    """
    flag = PARAMETERS[name]
    value: Any = None
    if not (name == "seed" and text == _NO_VALUE):
        if problem := flag.problem(text):
            raise UsageError(f"{name} {problem}")
        value = flag.type(text)
    new = replace(settings, **{name: value})
    if problems := new.problems():
        raise UsageError([problem.removeprefix("--") for problem in problems])
    return new


def shown(settings: SamplingArguments, name: str) -> str:
    """A parameter and its value, as it would be typed."""
    value = getattr(settings, name)
    return f"{name} {_NO_VALUE if value is None else value}"
