"""Configuration files: TOML whose keys are the flags; section headers are decoration."""

import json
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yocto_cli.errors import UsageError
from yocto_cli.fields import Flag, flags_of, suggestion
from yocto_cli.screen.terminal import one_line

_LIMIT_BYTES = 1 << 20


def read_config(path: str, flags: Mapping[str, Flag]) -> dict[str, list[str]]:
    """The values a file gives to flags, written as they would be on the command line.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has keys or values that no flag takes;
            all of its problems together, each with its line.
    """
    text = _read(path)
    shown = one_line(path)
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{shown} is not valid TOML: {error}; correct it") from error
    values: dict[str, list[str]] = {}
    problems: list[str] = []
    for key, value in _leaves(content):
        problem = _key_problem(key, values, flags)
        if problem is None:
            try:
                values[key] = _as_written(flags[key], value)
            except ValueError as error:
                problem = f"{key} {error}"
        if problem is not None:
            problems.append(f"{shown}{_line_of(key, text)}: {problem}")
    if problems:
        raise UsageError(problems)
    return values


def _read(path: str) -> str:
    shown = one_line(path)
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"--config {shown} is not a regular file; name a TOML file")
        if status.st_size > _LIMIT_BYTES:
            raise UsageError(f"--config {shown} is larger than 1 MiB; name a TOML file")
        return Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--config {shown} is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read --config {shown}: {reason}; check the path") from error


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


def _key_problem(
    key: str, values: Mapping[str, list[str]], flags: Mapping[str, Flag]
) -> str | None:
    if key in values:
        return f"the key '{key}' is there twice; keep one"
    if key not in flags:
        known = [flag.name for flag in flags.values() if flag.in_files]
        hint = suggestion(key, known, "'").replace("?", "'?")
        return f"unknown key '{one_line(key)}'{hint or '; remove it'}"
    return None if flags[key].in_files else f"'{key}' belongs on the command line; remove it"


def _as_written(flag: Flag, value: Any) -> list[str]:
    """The value as words of a command line; ValueError says what should be there instead."""
    if flag.many:
        if not isinstance(value, list):
            raise ValueError(f"needs a list such as [{_example(flag)}]")
        return [_word(flag, item) for item in value]
    return [_word(flag, value)]


def _word(flag: Flag, value: Any) -> str:
    # In Python a bool is an int; in a configuration it is not.
    fits = type(value) is flag.type or (flag.type is float and type(value) is int)
    if not fits:
        found = type(value).__name__
        raise ValueError(f"needs {_wanted(flag)} such as {_example(flag)}, found a {found}")
    word = str(value).lower() if flag.type is bool else str(value)
    if problem := flag.problem(word):
        raise ValueError(problem)
    return word


def _wanted(flag: Flag) -> str:
    return {bool: "true or false,", int: "a whole number", float: "a number"}.get(
        flag.type, "a text in quotes"
    )


def _example(flag: Flag) -> str:
    return {bool: "true", int: "10", float: "0.1"}.get(
        flag.type, json.dumps(flag.choices[0] if flag.choices else "text")
    )


def _line_of(key: str, text: str) -> str:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.partition("=")[0].strip().strip("\"'").rpartition(".")[2] == key:
            return f":{number}"
    return ""


def dump_toml(instance: object) -> str:
    """A configuration as TOML that `--config` reads back to an equal one.

    None is left out, for TOML has no null, and so are the fields that belong to one invocation.

    Args:
        instance: of a dataclass that `load` can fill.
    """
    lines: list[str] = []
    section: tuple[str, ...] = ()
    # A key after a header belongs to the section, so those without one come first.
    for flag in sorted(flags_of(type(instance)).values(), key=lambda flag: flag.group):
        value = _value_of(instance, flag)
        if value is None or not flag.in_files:
            continue
        if flag.group != section:
            section = flag.group
            lines += ["", f"[{'.'.join(section)}]"]
        lines.append(f"{flag.name} = {_toml(value)}")
    return "\n".join(lines).strip("\n") + "\n"


def _value_of(instance: Any, flag: Flag) -> Any:
    for name in flag.group:
        instance = getattr(instance, name)
    return getattr(instance, flag.name)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Not the ASCII form: its pairs of surrogates for an emoji are no TOML. DEL must be escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
