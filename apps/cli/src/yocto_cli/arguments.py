"""From a command line to a frozen dataclass: argparse, over the dataclass's own table of fields.

Defaults < the TOML file named by --config < flags. A command's module must not import torch or
prompt_toolkit before `load` has returned: that keeps --help and every typing error quick.
"""

import argparse
import dataclasses
import itertools
import math
import re
import shutil
import textwrap
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from yocto_cli.command import UsageError

T = TypeVar("T")

REQUIRED: Any = MISSING
_FLAG = re.compile(r"--([A-Za-z][\w-]*)(=.*)?", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_WANTED = {
    bool: "true or false",
    int: "a whole number in plain digits, such as 1000",
    float: "a finite number such as 0.1 or 3e-4",
    str: "a text in quotes",
}
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
_LIMIT_BYTES = 1 << 16  # of a configuration file
_MOST_DOTS = 100  # in a word of it: tomllib takes the square of the parts of a key, and more


def flag(
    default: Any,
    help: str,  # noqa: A002 - argparse's word, and that of `yocto_model.settings.setting`
    *,
    shown: str | None = None,
    bare: str | None = None,
    word: str | None = None,
    in_files: bool = True,
    escapes: bool = False,
) -> Any:
    r"""A field of a command's dataclass.

    Args:
        default: the field's default; REQUIRED if it has none.
        help: one line for --help.
        shown: what --help shows as the default, if that depends on other things.
        bare: the value of a flag that is given without one, as in `--resume`.
        word: what usage calls it, if it may be given without its name, in the order of such fields.
        in_files: False for a flag of a single invocation, which no TOML file may hold.
        escapes: whether `\n`, `\t` and `\\` on a command line mean line end, tab and backslash.
    """
    metadata = {
        "help": help, "shown": shown, "bare": bare, "word": word, "in_files": in_files,
        "escapes": escapes,
    }  # fmt: skip
    return dataclasses.field(default=default, compare=in_files, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CommandArguments:
    """What every command has; a command's dataclass derives from it."""

    #: Names of the flags that `-h` shows; if empty, those in no group. `--help` shows all.
    SHORT: ClassVar[tuple[str, ...]] = ()

    config: str | None = flag(None, "a TOML file with values for these flags", in_files=False)
    debug: bool = flag(False, "show the traceback of an error", in_files=False)


# --- the table of flags --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag: a field of the command's dataclass, or of a group (a dataclass) in it.

    Attributes:
        name: the name of the field, and of the flag with underscores.
        type: bool, int, float or str.
        choices: the values of a Literal.
        many: whether it is a tuple of values.
        default: the field's default, or REQUIRED.
        group: the fields that lead to it from the command's dataclass.
        notes: the field's metadata.
    """

    name: str
    type: type
    choices: tuple[str, ...] = ()
    many: bool = False
    default: Any = None
    group: tuple[str, ...] = ()
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def in_files(self) -> bool:
        """Whether a TOML file may hold it."""
        return bool(self.notes.get("in_files", True))

    def parse(self, text: str, where: str = "") -> Any:
        """The value that a text stands for.

        Args:
            text: as it was typed.
            where: what an error puts before the name.

        Raises:
            UsageError: the text is not such a value; the message begins with `where` and the name.
        """
        if self.choices and text not in self.choices:
            hint = suggestion(text, self.choices)
            allowed = ", ".join(self.choices)
            raise UsageError(f"{where}{self.name} must be one of {allowed}, not {text!r}{hint}")
        if self.type is str:
            return text
        if self.type is bool and text.lower() in ("true", "1", "false", "0"):
            return text.lower() in ("true", "1")
        if self.type is int and _INTEGER.fullmatch(text):
            return int(text)
        if self.type is float and _FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        raise UsageError(f"{where}{self.name} needs {_WANTED[self.type]}, not {text!r}")


def flags_of(owner: Any) -> dict[str, Flag]:
    """The flags of a dataclass and of the groups in it, by name, in order.

    Args:
        owner: the class, or an instance, whose values are then the defaults.
    """
    return {each.name: each for each in _flags(owner)}


def _flags(owner: Any, group: tuple[str, ...] = ()) -> Iterator[Flag]:
    cls = owner if isinstance(owner, type) else type(owner)
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, many = hints[field.name], False
        default = field.default
        if isinstance(owner, cls):
            default = getattr(owner, field.name)
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(hint):
            yield from _flags(default, (*group, field.name))
            continue
        if get_origin(hint) is tuple:
            hint, many = get_args(hint)[0], True
        if get_origin(hint) in (Union, types.UnionType):  # X | None: None is the absent flag
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        kind = str if choices else hint
        if kind not in _WANTED:
            raise TypeError(f"{field.name}: no flag for the type {hint}")
        yield Flag(
            name=field.name, type=kind, choices=choices, many=many, default=default,
            group=group, notes=field.metadata,
        )  # fmt: skip


def values_of(instance: object) -> dict[str, Any]:
    """The value of each flag, by name."""
    return {name: each.default for name, each in flags_of(instance).items()}


def replaced(instance: T, values: Mapping[str, Any]) -> T:
    """A copy with other values for some flags, which are named without their groups."""
    return _filled(type(instance), {**values_of(instance), **values})


def _filled(cls: type[T], values: Mapping[str, Any]) -> T:
    chosen, hints = {}, get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type] # T is a dataclass
        hint = hints[field.name]
        is_group = dataclasses.is_dataclass(hint)
        chosen[field.name] = _filled(hint, values) if is_group else values[field.name]
    return cls(**chosen)


def suggestion(word: str, known: Collection[str], prefix: str = "", *, shortest: int = 3) -> str:
    """`; did you mean --lr?`, or nothing when no known word is close.

    A word of at least `shortest` characters also matches a known one that begins with it.
    """
    close = get_close_matches(word, known, n=1) or [
        name for name in known if len(word) >= shortest and name.startswith(word)
    ]
    return f"; did you mean {prefix}{close[0]}?" if close else ""


# --- command lines -------------------------------------------------------------------------------


def load(cls: type[T], argv: Sequence[str], *, prog: str, description: str = "") -> T:
    """Parse a command line.

    Underscores and hyphens are the same in the name of a flag. A boolean flag is written `--debug`,
    `--no_debug` or `--debug=false`; a list takes several values, or is given several times.

    Args:
        cls: a frozen dataclass of `flag` fields; fields that are dataclasses become titled groups
            in the help, but flags are named by their own field alone. Types: bool, int, float, str,
            a Literal of str, any of these or None, and tuples of any length.
        argv: the arguments after the command's name.
        prog: the command's name.
        description: what the help says first, kept as it is written.

    Raises:
        UsageError: the message says what must be changed.
        SystemExit: 0, after help or the version.
    """
    return _Parser(cls, prog=prog, description=description).load(cls, argv)


def load_one_of(
    commands: Mapping[str, type[T]], argv: Sequence[str], *, prog: str, example: str = ""
) -> tuple[str, T]:
    """Parse a command line whose first word chooses among commands.

    Args:
        commands: a dataclass as `load` takes it, for each word.
        argv: the arguments after the command's name.
        prog: the command's name.
        example: shown in the help of a command; `{}` stands for its word.

    Returns:
        The word and the filled dataclass.

    Raises:
        UsageError: the first word names no command, or as `load` raises it.
        SystemExit: 0, after help or the version.
    """
    first = argv[0] if argv else ""
    about = {name: (cls.__doc__ or "").strip().partition("\n")[0] for name, cls in commands.items()}
    if first in commands:
        text = f"{about[first]}\n\n{example.format(first)}".strip()
        cls = commands[first]
        return first, load(cls, argv[1:], prog=f"{prog} {first}", description=text)
    if first in ("-h", "--help", "--version"):
        text = f"commands:\n{_table(about)}"
        load(CommandArguments, [first], prog=f"{prog} COMMAND", description=text)
    is_word = first and not first.startswith("-")
    what = f"unknown command {first!r}" if is_word else "the first word must name a command"
    hint = suggestion(first, commands) or f"; choose {', '.join(commands)}"
    raise UsageError(f"{what}{hint}; see {prog} --help")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser with the flags of a dataclass."""

    def __init__(self, cls: type, *, prog: str, description: str) -> None:
        self.flags = flags_of(cls)
        own = [n for n, f in self.flags.items() if not f.group and n not in ("config", "debug")]
        self.short = [n for n in self.flags if n in (getattr(cls, "SHORT", ()) or own)]
        self._words = [f for f in self.flags.values() if f.notes.get("word")]
        words = [f.notes["word"] for f in self._words]
        super().__init__(
            prog=prog,
            description=description,
            usage=" ".join(["%(prog)s", *words, "[--flag VALUE ...]"]),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=26),
            allow_abbrev=False,
            exit_on_error=False,
            add_help=False,
        )
        both = "show the main flags (-h) or all (--help)" if self.short else "show all flags"
        self.add_argument("-h", "--help", nargs=0, action=_Help, help=both)
        self.add_argument("--version", nargs=0, action=_Version, help="show the version")
        groups: dict[tuple[str, ...], Any] = {(): self}
        for each in _flags(cls):  # two of one name are refused
            if each.group not in groups:
                groups[each.group] = self.add_argument_group(" ".join(each.group))
            _add(groups[each.group], each)

    def load(self, cls: type[T], argv: Sequence[str]) -> T:
        """Parse a command line; see `yocto_cli.arguments.load`."""
        flags = self.flags
        try:
            namespace, unknown = self.parse_known_args([_as_argparse(word, flags) for word in argv])
        except argparse.ArgumentError as error:
            name, problem = str(error.argument_name).partition("/")[0], error.message
            if problem.startswith("expected"):
                problem = f"needs a value; one that begins with - must be written {name}=..."
            raise UsageError(f"{name} {problem}") from error
        for each in self._words:
            if each.name not in namespace and unknown and not unknown[0].startswith("-"):
                setattr(namespace, each.name, each.parse(unknown.pop(0)))
        if unknown:
            word = unknown[0].partition("=")[0]
            kind, hint = "unexpected argument", ""
            if word.startswith("-"):
                kind, hint = "unknown flag", suggestion(word.lstrip("-"), flags, "--")
            raise UsageError(f"{kind} {word}{hint or f'; see {self.prog} --help'}")
        given = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(namespace).items()}
        in_file = _read_toml(str(given["config"]), flags) if given.get("config") else {}
        values = {f.name: f.default for f in flags.values()} | in_file | given
        missing = [
            f.notes.get("word") or f"--{f.name}"
            for f in flags.values()
            if values[f.name] is REQUIRED
        ]
        if missing:
            raise UsageError(f"missing {' and '.join(missing)}; see {self.prog} --help")
        return _filled(cls, values)


class _Help(argparse.Action):
    def __call__(self, parser: Any, _namespace: Any, _values: Any, flag: Any = None) -> None:
        if not parser.short or flag == "--help":
            parser.print_help()
            parser.exit()
        columns = shutil.get_terminal_size().columns - 1
        print(textwrap.fill((parser.description or "").partition("\n\n")[0], columns), end="\n\n")
        print(_table({f"--{name}": parser.flags[name].notes["help"] for name in parser.short}))
        print(f"{parser.prog} --help shows all flags")
        parser.exit()


def _table(rows: Mapping[str, str]) -> str:
    """Names, and what they are about up to the first pause, in lines that fit the window."""
    width = max(map(len, rows))
    cells = shutil.get_terminal_size().columns - width - 5
    briefs = {
        name: textwrap.shorten(re.split("[;:] ", about)[0], cells, placeholder=" ...")
        for name, about in rows.items()
    }
    return "\n".join(f"  {name:{width}}  {brief}" for name, brief in briefs.items())


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata  # noqa: PLC0415 - only for this

        command = parser.prog.partition(" ")[0]
        try:
            print(command, metadata.version(command))  # yocto-chat is a package of its own
        except metadata.PackageNotFoundError:
            print(command, metadata.version("yocto-cli"))
        parser.exit()


def _add(group: Any, each: Flag) -> None:
    shown, default = each.notes.get("shown"), each.default
    if shown is None and default is not False and default not in (None, REQUIRED, (), ""):
        shown = str(default)
    about = each.notes.get("help", "").replace("%", "%%")
    options = dict[str, Any](dest=each.name, default=argparse.SUPPRESS)
    if each.type is bool:  # help names the one that changes something
        on, off = about, argparse.SUPPRESS
        if shown == "True":
            on, off = off, f"turn off: {about}"
        group.add_argument(f"--{each.name}", action="store_true", help=on, **options)
        group.add_argument(f"--no_{each.name}", action="store_false", help=off, **options)
        return
    brief = "" if not shown else f" ({shown})" if "by " in shown else f" (default: {shown})"
    options["help"] = about + (" (required)" if default is REQUIRED else brief)
    metavar = {int: "INT", float: "FLOAT"}.get(each.type, "TEXT")
    options |= {"choices": each.choices} if each.choices else {"metavar": metavar}
    options["type"] = partial(_typed, each)
    if each.many:
        options |= {"nargs": "+", "action": "extend"}
    if each.notes.get("bare") is not None:
        options |= {"nargs": "?", "const": each.notes["bare"]}
    group.add_argument(f"--{each.name}", **options)


def _typed(each: Flag, text: str) -> Any:
    """The value of a flag as it was typed: a shell has no simple way to write a line end."""
    if each.notes.get("escapes"):
        text = re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], text)
    return each.parse(text, "--")


def _as_argparse(word: str, flags: Mapping[str, Flag]) -> str:
    """An argument as argparse knows it: `--max-iters` with underscores, `--force=false` negated."""
    match = _FLAG.fullmatch(word)
    if match is None:
        return word
    name, value = match[1].replace("-", "_"), match[2] or ""
    each = flags.get(name.removeprefix("no_"))
    if not value or each is None or each.type is not bool:
        return f"--{name}{value}"
    is_on = each.parse(value[1:], "--") is (name == each.name)
    return f"--{'' if is_on else 'no_'}{each.name}"


# --- TOML ----------------------------------------------------------------------------------------


def _read_toml(path: str, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """The values that a file gives to flags; its section headers are ignored."""
    from yocto_data.prep.files import open_regular  # noqa: PLC0415 - only for this

    try:
        with open_regular(Path(path)) as file:
            text = file.read(_LIMIT_BYTES + 1).decode("utf-8-sig")
        if len(text) > _LIMIT_BYTES:
            raise UsageError(f"--config {path} is larger than 64 KiB; name a TOML file")
        if any(word.count(".") > _MOST_DOTS for word in re.findall(r"[\w.\"'-]+", text)):
            raise UsageError(f"--config {path} holds a name of over {_MOST_DOTS} parts; shorten it")
        content = tomllib.loads(text.replace("\r\n", "\n"))
    except OSError as error:
        why = f"{error.strerror}; name a TOML file"
        raise UsageError(f"cannot read --config {path}: {why}") from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise UsageError(f"--config {path} is not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    sections = [part for part in content.values() if isinstance(part, dict)]
    plain = {name: value for name, value in content.items() if not isinstance(value, dict)}
    for name, value in itertools.chain(*(part.items() for part in [plain, *sections])):
        if name in values:
            raise UsageError(f"{path}: the key {name!r} is given twice; keep one")
        if name not in flags:
            hint = suggestion(name, [each.name for each in flags.values() if each.in_files])
            raise UsageError(f"{path}: unknown key {name!r}{hint or '; remove it'}")
        if not flags[name].in_files:
            raise UsageError(f"{path}: {name!r} belongs on the command line; remove it")
        values[name] = _from_toml(flags[name], value, f"{path}: ")
    return values


def _from_toml(each: Flag, value: Any, where: str) -> Any:
    if each.many:
        if not isinstance(value, list):
            raise UsageError(f"{where}{each.name} needs a list such as [...]")
        return tuple(_from_toml(dataclasses.replace(each, many=False), v, where) for v in value)
    # In Python a bool is an int; in a configuration it is not.
    if type(value) is each.type or (each.type is float and type(value) is int):
        return each.parse(str(value), where)
    found = f"{'the text ' if isinstance(value, str) else ''}{value!r}"
    raise UsageError(f"{where}{each.name} needs {_WANTED[each.type]}, not {found[:40]}")


def dump_toml(instance: object) -> str:
    """A configuration as TOML; `--config` reads an equal one from it.

    Left out are None, since TOML has no null, empty lists, and what belongs to one invocation.

    Args:
        instance: of a dataclass that `load` can fill.
    """
    import tomli_w  # noqa: PLC0415 - not needed to parse a command line

    content: dict[str, Any] = {}
    for each in flags_of(instance).values():
        if each.default not in (None, ()) and each.in_files:
            table = content.setdefault(".".join(each.group), {}) if each.group else content
            table[each.name] = each.default
    return tomli_w.dumps(content)
