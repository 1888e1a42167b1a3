"""From the words of a command line to a frozen dataclass: the same rules for every command.

Defaults < the file named by --config < flags. Words are checked here, against the table of
fields.py, so that all problems are reported together and in one line; tyro then fills the
dataclass, and writes the help and the completions of a shell.

A command's module must not import torch or prompt_toolkit before `load` has returned: that is what
keeps --help and every typing error quick.
"""

import contextlib
import io
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from yocto_cli.command import run_command
from yocto_cli.config_file import dump_toml, read_config
from yocto_cli.errors import UsageError, WorkFailedError
from yocto_cli.fields import Bare, CommandLineOnly, Flag, flags_of, suggestion
from yocto_cli.screen.terminal import no_colour, one_line

__all__ = [
    "Bare",
    "CommandArguments",
    "CommandLineOnly",
    "UsageError",
    "WorkFailedError",
    "dump_toml",
    "load",
    "load_one_of",
    "run_command",
]

T = TypeVar("T")

_FLAG = re.compile(r"--[A-Za-z][\w-]*(=.*)?", re.DOTALL)
_WORDS_OF_BOOL = {"true": True, "1": True, "false": False, "0": False}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class CommandArguments:
    """What every command takes; a command's dataclass derives from it."""

    config: Annotated[str | None, CommandLineOnly()] = field(default=None, compare=False)
    """A TOML file with values for these flags; flags on the command line win."""
    debug: Annotated[bool, CommandLineOnly()] = field(default=False, compare=False)
    """Show the traceback of an error."""


def load(cls: type[T], argv: Sequence[str], *, prog: str, description: str = "") -> T:
    """Parse a command line.

    Underscores and hyphens are the same in the name of a flag. A boolean flag is written `--debug`,
    `--no_debug` or `--debug=false`; a list is written once, with all its values.

    Args:
        cls: a frozen dataclass; fields that are dataclasses become titled groups in the help, but
            flags are named by their own field alone. Types: bool, int, float, str, a Literal of
            str, any of these or None (default None), and tuples of any length (default empty).
            The text under a field is its help.
        argv: the words after the command's name.
        prog: the command's name.
        description: what the help says first, kept as it is written.

    Raises:
        UsageError: what must be changed, all problems together.
        SystemExit: 0, after `--help` or a completion script.
    """
    flags = flags_of(cls)
    if any(word in ("-h", "--help") or word.startswith("--tyro-") for word in argv):
        _run_tyro(cls, argv, prog, description, asked_for_help=True)
    given, problems = _read_words(argv, flags, prog)
    in_file: dict[str, list[str]] = {}
    if given.get("config"):
        try:
            in_file = read_config(given["config"][-1], flags)
        except UsageError as error:
            problems += error.problems
    values = in_file | given
    if not problems:  # an unknown flag may be the missing one, misspelt
        missing = [f"--{f.name}" for f in flags.values() if f.required and f.name not in values]
        if missing:
            problems.append(f"missing {' and '.join(missing)}; see {prog} --help")
    if problems:
        raise UsageError(problems)
    words = [word for name, texts in values.items() for word in _as_words(flags[name], texts)]
    return _run_tyro(cls, words, prog, description)


def load_one_of(
    commands: Mapping[str, type[T]], argv: Sequence[str], *, prog: str, example: str = ""
) -> tuple[str, T]:
    """Parse a command line whose first word chooses among commands.

    Args:
        commands: a dataclass as `load` takes it, for each word.
        argv: the words after the command's name.
        prog: the command's name.
        example: shown in the help; `{}` stands for the word.

    Returns:
        The word and the filled dataclass.

    Raises:
        UsageError: no such word, or what `load` raises.
        SystemExit: 0, after `--help` or a completion script.
    """
    choices = ", ".join(commands)
    first = argv[0] if argv else ""
    if first in commands:
        description = f"{_first_line(commands[first])}\n\n{example.format(first)}".strip()
        return first, load(
            commands[first], argv[1:], prog=f"{prog} {first}", description=description
        )
    if first in ("-h", "--help"):
        print(f"usage: {prog} {{{','.join(commands)}}} [OPTIONS]\n")
        for name, cls in commands.items():
            print(f"  {name:6} {_first_line(cls)}")
        print(f"\nThe options of each: {prog} {next(iter(commands))} --help")
        raise SystemExit(0)
    if _completion(argv):
        _print_completion(commands, argv, prog)
    if first and not first.startswith("-"):
        hint = suggestion(first, list(commands), "") or f"; choose {choices}"
        raise UsageError(f"unknown command {one_line(first[:40])!r}{hint}")
    raise UsageError(f"the first word must be one of {choices}; see {prog} --help")


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _print_completion(commands: Mapping[str, type[T]], argv: Sequence[str], prog: str) -> None:
    """Only here does tyro see the commands as its own, to write completions for all of them."""
    tyro.extras.subcommand_cli_from_dict(
        dict(commands),
        args=list(argv),
        prog=prog,
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_REGISTRY,
    )


def _read_words(
    argv: Sequence[str], flags: dict[str, Flag], prog: str
) -> tuple[dict[str, list[str]], list[str]]:
    """The values of the flags that are there, as texts; and what is wrong with them."""
    values: dict[str, list[str]] = {}
    problems: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        flag = _find(name.replace("-", "_"), flags) if _FLAG.fullmatch(word) else None
        if flag is None:
            problems.append(_stranger(word, flags, prog))
            _take_values(words)  # they belong to it
            continue
        if flag.many and flag.name in values:
            problems.append(
                f"--{flag.name} is there twice; give all values after one --{flag.name}"
            )
        if flag.type is bool:
            texts = [_bool_text(flag, name, text if equals else None)]
        elif equals:
            texts = [text, *(_take_values(words) if flag.many else ())]
        else:
            texts = _take_values(words, None if flag.many else 1) or _bare(flag)
        problems += _problems(flag, texts)
        values[flag.name] = texts
    return values, problems


def _find(name: str, flags: dict[str, Flag]) -> Flag | None:
    flag = flags.get(name) or flags.get(name.removeprefix("no_"))
    return flag if flag and (flag.name == name or flag.type is bool) else None


def _stranger(word: str, flags: dict[str, Flag], prog: str) -> str:
    shown = one_line(word if len(word) <= 60 else f"{word[:57]}...")
    if not word.startswith("-"):
        return f"unexpected argument {shown!r}; see {prog} --help"
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    hint = suggestion(name, list(flags), "--") or f"; see {prog} --help"
    return f"unknown flag {shown.partition('=')[0]}{hint}"


def _take_values(words: list[str], at_most: int | None = None) -> list[str]:
    """Remove and return the values at the front; a word spelled like a flag is none."""
    taken: list[str] = []
    while words and not _FLAG.fullmatch(words[0]) and len(taken) != at_most:
        taken.append(words.pop(0))
    return taken


def _bare(flag: Flag) -> list[str]:
    return [] if flag.bare is None else [flag.bare]


def _bool_text(flag: Flag, name: str, text: str | None) -> str:
    said = _WORDS_OF_BOOL.get("true" if text is None else text.lower())
    if said is None:
        return text or ""
    negated = name.replace("-", "_") != flag.name
    return str(said is not negated).lower()


def _problems(flag: Flag, texts: list[str]) -> list[str]:
    if not texts:
        return [
            f"--{flag.name} needs a value; one that begins with -- is given as --{flag.name}=..."
        ]
    if flag.type is bool and texts[0] not in _WORDS_OF_BOOL:
        return [f"--{flag.name} takes true or false, not {one_line(texts[0][:40])!r}"]
    return [f"--{flag.name} {problem}" for text in texts if (problem := flag.problem(text))]


def _as_words(flag: Flag, texts: list[str]) -> list[str]:
    if flag.type is bool:
        return [f"--{'' if texts[0] == 'true' else 'no_'}{flag.name}"]
    return [f"--{flag.name}={text}" for text in texts]


def _run_tyro(
    cls: type[T], words: Sequence[str], prog: str, description: str, *, asked_for_help: bool = False
) -> T:
    markers: tuple[Any, ...] = (tyro.conf.OmitArgPrefixes,)
    if not asked_for_help:
        # One word per value, so that a value may look like anything; help shows the usual form.
        markers += (tyro.conf.UseAppendAction,)
    caught = io.StringIO()
    with _plain_if_asked(), contextlib.redirect_stderr(caught):
        try:
            return tyro.cli(
                cls,
                args=["--help"] if asked_for_help and not _completion(words) else list(words),
                prog=prog,
                description=description or None,
                use_underscores=True,
                config=markers,
                registry=_REGISTRY,
            )
        except SystemExit as stop:
            if not stop.code:
                raise
    # Everything was checked before, so this is for what only tyro can know.
    text = _ESCAPES.sub("", caught.getvalue())
    lines = [line.strip("│╭╮╰╯─ ") for line in text.splitlines()]
    body = lines[1 : lines.index("", 1)] if "" in lines[1:] else lines
    raise UsageError(f"{' '.join(filter(None, body))}; see {prog} --help")


def _completion(words: Sequence[str]) -> bool:
    return any(word.startswith("--tyro-") for word in words)


@contextlib.contextmanager
def _plain_if_asked() -> Iterator[None]:
    """Tyro does not know NO_COLOR, but does know a terminal without colours."""
    before = os.environ.get("TERM")
    if no_colour():
        os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TERM", None)
        else:
            os.environ["TERM"] = before


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A flag that is absent by default takes its type's values; the word None is not among them."""
    inner = [t for t in get_args(info.type) if t is not type(None)]
    if get_origin(info.type) not in (Union, types.UnionType) or len(inner) != 1:
        return None
    choices = get_args(inner[0]) if get_origin(inner[0]) is Literal else ()
    kind = str if choices else inner[0]
    if kind not in (int, float, str):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(choices)}}}" if choices else kind.__name__.upper(),
        choices=choices or None,
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )
