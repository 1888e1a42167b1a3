"""Command lines and configuration files become dataclasses, or one line that says what to do."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_cli.arguments import (
    Bare,
    CommandArguments,
    CommandLineOnly,
    UsageError,
    dump_toml,
    load,
    run_command,
)
from yocto_cli.fields import Flag, flags_of
from yocto_cli.prepare import BpeArguments, CharArguments, WordArguments
from yocto_cli.sample import SampleArguments
from yocto_cli.train_arguments import TrainArguments

ALL_ARGUMENTS: list[Any] = [
    CharArguments, WordArguments, BpeArguments, SampleArguments, TrainArguments,
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model."""

    n_layer: int = 4
    """How many layers."""
    arch: Literal["gpt2", "modern"] = "gpt2"
    """Which architecture."""


@dataclass(frozen=True, kw_only=True)
class Example(CommandArguments):
    """An example with every kind of flag."""

    text_path: str = "book.txt"
    """A text."""
    lr: float = 1e-3
    """Learning rate."""
    seed: int | None = None
    """Seed."""
    history: bool = True
    """Keep the history."""
    stop: tuple[str, ...] = ()
    """Texts that end it."""
    sizes: tuple[int, ...] = ()
    """Numbers."""
    resume: Annotated[str | None, Bare("latest"), CommandLineOnly()] = None
    """Go on with a run."""
    model: Model = Model()
    name: str | None = None
    """A plain field behind a group."""


def parse(*words: str) -> Example:
    return load(Example, words, prog="x")


def refuse(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    return str(caught.value)


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-x", "--", "-1", "", "a=b", "None", "-- two", "\n", "é😀"])
def test_a_value_may_look_like_anything(value: str) -> None:
    """A word after a flag is its value, unless it is spelled like a flag itself."""
    assert value == parse("--text_path", value).text_path
    assert value == parse(f"--text_path={value}").text_path
    assert (value, "b") == parse("--stop", value, "b").stop


def test_a_value_spelled_like_a_flag_needs_an_equals_sign() -> None:
    """`--text_path --seed` is a missing value; `--text_path=--seed` is not."""
    assert "--text_path needs a value" in refuse("--text_path", "--seed", "3")
    assert parse("--text_path=--seed").text_path == "--seed"


@pytest.mark.property
@given(st.text(), st.lists(st.text(), min_size=1))
def test_any_text_arrives_as_it_is(text: str, stops: list[str]) -> None:
    """What is joined to a flag by `=` is taken literally."""
    words = [f"--text_path={text}", *(f"--stop={stops[0]}",)]
    assert (text, (stops[0],)) == (parse(*words).text_path, parse(*words).stop)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--max_itrs", "5"], "unknown flag --max_itrs"),
        (["--n_layr", "5"], "did you mean --n_layer?"),
        (["--n-layr=5"], "did you mean --n_layer?"),
        (["--n_laye=5"], "did you mean --n_layer?"),
        (["--hist"], "did you mean --history?"),
        (["-s", "5"], "unknown flag -s"),
        (["book.txt"], "unexpected argument 'book.txt'"),
        (["--seed"], "--seed needs a value"),
        (["--stop"], "--stop needs a value"),
        (["--stop", "a", "--stop", "b"], "--stop is there twice"),
        (["--debug=maybe"], "--debug takes true or false, not 'maybe'"),
        (["--arch", "gpt3"], "--arch must be one of gpt2, modern, not 'gpt3'; did you mean gpt2?"),
        (["--seed", "1e3"], "--seed needs a whole number"),
        (["--seed=1_000"], "--seed needs a whole number"),
        (["--seed=\u0661\u0662"], "--seed needs a whole number"),
        (["--seed= 5"], "--seed needs a whole number"),
        (["--seed=2.5"], "--seed needs a whole number"),
        (["--seed="], "--seed needs a whole number"),
        (["--seed=None"], "--seed needs a whole number"),
        (["--seed=" + "9" * 5000], "--seed is out of range"),
        (["--sizes", "1", "x"], "--sizes needs a whole number"),
        (["--lr=nan"], "--lr needs a number"),
        (["--lr=inf"], "--lr needs a number"),
        (["--lr=1e400"], "--lr needs a finite number"),
        (["--lr=1_0"], "--lr needs a number"),
        (["--lr=abc"], "--lr needs a number"),
        (["--config", "nowhere.toml"], "cannot read --config nowhere.toml: No such file"),
        (["--config", "."], "is not a regular file"),
        (["--config", "a\0b"], "cannot read --config"),
    ],
)
def test_bad_words_get_one_line_that_helps(
    words: list[str],
    what: str,
    refused: Callable[[Callable[..., int], Sequence[str]], str],
) -> None:
    """Exit code 2, one line, no traceback, no escapes; it names the flag and the remedy."""

    def parse_only(argv: list[str]) -> None:
        load(Example, argv, prog="x")

    def main(argv: Sequence[str]) -> int:
        return run_command(parse_only, prog="x", argv=argv)

    line = refused(main, words)
    assert line.startswith("x: error: ")
    assert what in line


def test_problems_are_reported_together() -> None:
    """One run shows what is wrong with all of the words, and counts what does not fit."""
    message = refuse("--lr=x", "--n_layr=3", "--seed=y")
    assert message.startswith("3 problems: (1) --lr needs")
    assert "(2) unknown flag --n_layr; did you mean --n_layer?" in message
    assert "(3) --seed needs" in message
    assert re.search(r"^20 problems: .* and \d+ more$", refuse(*["--wrong"] * 20))


# --- TOML ----------------------------------------------------------------------------------------


def instances(cls: Any) -> st.SearchStrategy[Any]:
    """Configurations of a command, of any content."""
    flags = [flag for flag in flags_of(cls).values() if flag.in_files]
    return st.fixed_dictionaries({flag.name: values(cls, flag) for flag in flags}).map(
        lambda chosen: build(cls, chosen)
    )


def values(cls: Any, flag: Flag) -> st.SearchStrategy[Any]:
    of_type: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(exclude_categories=["Cs"])),
    }
    one = st.sampled_from(flag.choices) if flag.choices else of_type[flag.type]
    if flag.many:
        return st.lists(one, min_size=int(flag.required), max_size=3).map(tuple)
    default: Any = cls
    for name in flag.group:
        default = next(f.type for f in dataclasses.fields(default) if f.name == name)
    field = next(f for f in dataclasses.fields(default) if f.name == flag.name)
    return st.none() | one if field.default is None else one


def build(cls: Any, chosen: dict[str, Any]) -> Any:
    arguments = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            arguments[field.name] = build(field.type, chosen)
        elif field.name in chosen:
            arguments[field.name] = chosen[field.name]
    return cls(**arguments)


@pytest.mark.property
@pytest.mark.parametrize("cls", [Example, *ALL_ARGUMENTS])
@given(data=st.data())
def test_a_dumped_configuration_loads_equal(
    cls: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """load(dump(c)) == c, with quotes, emoji, controls, U+007F, tiny and huge numbers."""
    config = data.draw(instances(cls))
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_bytes(dump_toml(config).encode())
    assert config == load(cls, ["--config", str(path)], prog="x")


@pytest.mark.parametrize("text", ['"', "\\", "\x7f", "😀", "\r\n\t", "\u0085\u2028", "'''", "#"])
def test_awkward_texts_survive_a_configuration_file(text: str, tmp_path: Path) -> None:
    """The cases that break a naive writer."""
    config = Example(text_path=text, stop=(text, ""), lr=1e-4, model=Model(n_layer=-1))
    path = tmp_path / "config.toml"
    path.write_bytes(dump_toml(config).encode())
    assert config == parse("--config", str(path))


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def test_defaults_give_way_to_the_file_and_the_file_to_flags(tmp_path: Path) -> None:
    """For each kind of flag, lists included: a flag replaces what the file says, adds nothing."""
    path = toml(
        tmp_path,
        'lr = 2\nseed = 7\nhistory = false\nstop = ["-x", "--seed"]\n'
        'sizes = [1, 2]\ntext_path = "f"\n[whatever]\nn_layer = 9\narch = "modern"\n',
    )
    in_file = Example(
        lr=2.0,
        seed=7,
        history=False,
        stop=("-x", "--seed"),
        sizes=(1, 2),
        text_path="f",
        model=Model(n_layer=9, arch="modern"),
    )
    assert in_file == parse("--config", path)
    on_top = ["--lr=3", "--seed=8", "--history", "--stop", "y", "--sizes", "5", "--text_path=g"]
    expected = Example(
        lr=3.0,
        seed=8,
        stop=("y",),
        sizes=(5,),
        text_path="g",
        model=Model(n_layer=1, arch="gpt2"),
    )
    flags = [*on_top, "--n_layer=1", "--arch=gpt2"]
    assert expected == parse("--config", path, *flags)
    assert expected == parse(*flags, "--config", path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("max_itrs = 7", "a.toml:1: unknown key 'max_itrs'; remove it"),
        ("\n[m]\nn_layr = 7", "a.toml:3: unknown key 'n_layr'; did you mean 'n_layer'?"),
        ("lr = 1\nlr = 2", "a.toml is not valid TOML"),
        ("lr = 1\n[m]\nlr = 2", "the key 'lr' is there twice"),
        ("lr = ", "is not valid TOML: Invalid value (at end of document)"),
        ("x = " + "[" * 5000, "is not valid TOML"),
        ('seed = "5"', "a.toml:1: seed needs a whole number such as 10, found a str"),
        ("seed = true", "seed needs a whole number such as 10, found a bool"),
        ("seed = 5.0", "seed needs a whole number"),
        ("lr = true", "lr needs a number such as 0.1, found a bool"),
        ("lr = nan", "lr needs a number"),
        ("lr = inf", "lr needs a number"),
        ("history = 1", "history needs true or false"),
        ("text_path = 5", "text_path needs a text in quotes"),
        ("text_path = 2020-01-01", "text_path needs a text in quotes"),
        ('arch = "gpt3"', "arch must be one of gpt2, modern"),
        ('stop = "x"', 'stop needs a list such as ["text"]'),
        ("stop = [1]", "stop needs a text in quotes"),
        ('resume = "x"', "'resume' belongs on the command line"),
        ('config = "b.toml"', "'config' belongs on the command line"),
        ("debug = true", "'debug' belongs on the command line"),
        ('"a\\u001bb" = 1', "unknown key 'a\u241bb'"),
    ],
)
def test_a_bad_configuration_file_gets_its_name_line_and_remedy(
    text: str, what: str, tmp_path: Path
) -> None:
    """Unknown keys, wrong types and broken syntax, each with where it is."""
    message = refuse("--config", toml(tmp_path, text))
    assert what in message
    assert "a.toml" in message


def test_file_and_flags_are_judged_together(tmp_path: Path) -> None:
    """Problems of both are in one message."""
    message = refuse("--config", toml(tmp_path, "sed = 1"), "--lr=x")
    assert "2 problems" in message
    assert "--lr" in message
    assert "'sed'" in message


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Not UTF-8, or far too large; a byte order mark and CRLF are fine."""
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"lr = 1 # \xff")
    assert "is not UTF-8 at byte 9" in refuse("--config", str(bad))
    bad.write_bytes(b"#" * (2 << 20))
    assert "larger than 1 MiB" in refuse("--config", str(bad))
    bad.write_bytes(b"\xef\xbb\xbflr = 2\r\nseed = 1\r\n")
    assert Example(lr=2.0, seed=1) == parse("--config", str(bad))
