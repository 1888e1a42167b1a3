"""The flags of every command, what forms they take, and the first word that chooses a command."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_cli.arguments import (
    Bare,
    CommandArguments,
    CommandLineOnly,
    UsageError,
    load,
    load_one_of,
)
from yocto_cli.fields import Flag, flags_of, integer_problem
from yocto_cli.prepare import COMMANDS, BpeArguments, CharArguments, WordArguments
from yocto_cli.sample import SampleArguments
from yocto_cli.train_arguments import TrainArguments

ALL_ARGUMENTS: list[Any] = [
    CharArguments, WordArguments, BpeArguments, SampleArguments, TrainArguments,
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Example(CommandArguments):
    """A flag that is on, and one that may stand alone."""

    history: bool = True
    """Keep the history."""
    resume: Annotated[str | None, Bare("latest"), CommandLineOnly()] = None
    """Go on with a run."""


def parse(*words: str) -> Example:
    return load(Example, words, prog="x")


def words_for(cls: Any) -> list[str]:
    """What a command line cannot do without."""
    return [f"--{flag.name}=here" for flag in flags_of(cls).values() if flag.required]


@pytest.mark.parametrize("cls", ALL_ARGUMENTS)
def test_every_command_can_be_parsed_without_its_optional_flags(cls: Any) -> None:
    """A parser exists for each command: its names are unique, its types have a flag."""
    loaded = load(cls, words_for(cls), prog="x")
    assert cls is type(loaded)


def value_for(flag: Flag) -> str:
    if flag.choices:
        return flag.choices[-1]
    return {int: "3", float: "0.25", str: "word", bool: "true"}[flag.type]


@pytest.mark.parametrize("cls", ALL_ARGUMENTS)
def test_every_flag_is_accepted_in_both_spellings(cls: Any) -> None:
    """Underscores and hyphens name the same flag, with `=` or a space before the value."""
    for flag in flags_of(cls).values():
        rest = [w for w in words_for(cls) if not w.startswith(f"--{flag.name}=")]
        hyphens = f"--{flag.name.replace('_', '-')}"
        forms = [[f"--{flag.name}={value_for(flag)}"], [hyphens, value_for(flag)]]
        if flag.type is bool:
            forms[1] = [hyphens]
        if flag.name == "config":
            continue  # names a file, which the next section gives it
        found = [load(cls, [*rest, *form], prog="x") for form in forms]
        assert found[0] == found[1], flag.name
        if flag.in_files and not flag.required and flag.type is not bool:
            assert found[0] != load(cls, rest, prog="x"), flag.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--debug"], True),
        (["--no_debug"], False),
        (["--no-debug"], False),
        (["--debug=true"], True),
        (["--debug=1"], True),
        (["--debug=False"], False),
        (["--debug=0"], False),
        (["--no_debug=false"], True),
        (["--debug", "--no_debug"], False),
    ],
)
def test_a_boolean_flag_has_several_forms(words: list[str], expected: bool) -> None:
    """Bare, negated, or with a value; the last one counts."""
    assert expected == parse(*words).debug


def test_a_flag_that_is_on_by_default_can_be_switched_off() -> None:
    """`--no_history` is the way to say it."""
    assert parse().history
    assert not parse("--no_history").history


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--resume"], "latest"),
        (["--resume", "--debug"], "latest"),
        (["--resume", "run-3"], "run-3"),
        (["--resume=run-3"], "run-3"),
        (["--resume", "None"], "None"),
    ],
)
def test_a_flag_may_stand_alone(words: list[str], expected: str | None) -> None:
    """A bare `--resume` means the newest run, and no word means "no flag"."""
    assert expected == parse(*words).resume


def test_what_is_missing_is_named_together() -> None:
    """Flags without a default, in one message."""
    with pytest.raises(UsageError, match="missing --text_path and --out_dir; see x --help"):
        load(CharArguments, [], prog="x")


@pytest.mark.property
@given(st.text(alphabet="0123456789+-_ .e\u0660\u00b2", max_size=25))
def test_there_is_one_syntax_of_integers(text: str) -> None:
    """A sign and ASCII digits, nothing else: what Python takes beyond that is refused."""
    accepted = integer_problem(text) is None
    assert accepted == (re.fullmatch(r"[+-]?[0-9]+", text) is not None and len(text) <= 20)


@pytest.mark.parametrize("default", [3, None])
def test_mistakes_in_a_dataclass_are_found_at_once(default: int | None) -> None:
    """Two fields of one name, an optional field that is not None, a type without a flag."""

    @dataclass(frozen=True)
    class Optional:
        seed: int | None = default

    @dataclass(frozen=True)
    class Doubled:
        seed: int = 1
        group: Optional = Optional()

    with pytest.raises(TypeError, match="seed"):
        flags_of(Doubled)
    if default is not None:
        with pytest.raises(TypeError, match="seed is optional"):
            flags_of(Optional)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "the first word must be one of char, word, bpe"),
        (["--text_path", "x"], "the first word must be one of char, word, bpe"),
        (["chr"], "unknown command 'chr'; did you mean char?"),
        (["train"], "unknown command 'train'; choose char, word, bpe"),
    ],
)
def test_the_first_word_chooses_the_command(words: list[str], what: str) -> None:
    """Without a known one the choices are named."""
    with pytest.raises(UsageError, match=re.escape(what)):
        load_one_of(COMMANDS, words, prog="x")
