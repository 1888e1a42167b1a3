"""Command lines and configuration files become dataclasses, or one line that says what to do."""

import argparse
import dataclasses
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_cli.arguments import (
    REQUIRED,
    CommandArguments,
    Flag,
    dump_toml,
    flag,
    flags_of,
    load,
    load_one_of,
    replaced,
    values_of,
)
from yocto_cli.command import UsageError, run_command
from yocto_cli.prepare import COMMANDS, CharArguments
from yocto_cli.sample import SampleArguments
from yocto_cli.train_settings import ModelFlags, TrainArguments, TrainingFlags
from yocto_model.config import GPTConfig
from yocto_train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model."""

    n_layer: int = flag(4, "How many layers.")
    arch: Literal["gpt2", "modern"] = flag("gpt2", "Which architecture.")


@dataclass(frozen=True, kw_only=True)
class Example(CommandArguments):
    """An example with every kind of flag."""

    text_path: str = flag("book.txt", "A text.")
    lr: float = flag(1e-3, "Learning rate.")
    seed: int | None = flag(None, "Seed.", shown="a new one")
    history: bool = flag(True, "Keep 100% of it.")
    stop: tuple[str, ...] = flag((), "Texts that end it.")
    sizes: tuple[int, ...] = flag((), "Numbers.")
    resume: str | None = flag(None, "Go on with a run.", bare="latest", in_files=False)
    model: Model = dataclasses.field(default_factory=lambda: Model(n_layer=5))
    name: str | None = flag(None, "A plain field behind a group.")


CLASSES: list[Any] = [Example, *COMMANDS.values(), SampleArguments, TrainArguments]


def parse(*words: str) -> Example:
    return load(Example, words, prog="x")


def refuse(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    return str(caught.value)


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.property
@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_arrives_as_it_is(text: str, stops: list[str]) -> None:
    """What is joined to a flag by `=` is taken literally, and a list may be given in parts."""
    found = parse(f"--text_path={text}", *(f"--stop={stop}" for stop in stops))
    assert (text, tuple(stops)) == (found.text_path, found.stop)


def test_a_list_takes_several_values_or_several_flags() -> None:
    """Both forms mean the same, and may be mixed."""
    assert parse("--stop", "a", "b").stop == ("a", "b")
    assert parse("--stop", "a", "--stop", "b", "c").stop == ("a", "b", "c")
    assert parse("--sizes", "1", "--sizes=-2").sizes == (1, -2)


def value_for(each: Flag) -> str:
    if each.choices:
        return each.choices[-1]
    return {int: "3", float: "0.25", str: "word", bool: "true"}[each.type]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_flag_is_accepted_in_both_spellings(cls: Any) -> None:
    """Underscores and hyphens name the same flag, with `=` or a space before the value."""
    needed = {
        f.name: f"--{f.name}={value_for(f)}" for f in flags_of(cls).values() if not optional(f)
    }
    for each in flags_of(cls).values():
        if each.name == "config":
            continue  # names a file, which a section below gives it
        rest = [word for name, word in needed.items() if name != each.name]
        hyphens = f"--{each.name.replace('_', '-')}"
        last = [hyphens] if each.type is bool else [hyphens, value_for(each)]
        forms = [[f"--{each.name}={value_for(each)}"], last]
        found = [values_of(load(cls, [*rest, *form], prog="x"))[each.name] for form in forms]
        assert found[0] == found[1]
        one = each.parse(value_for(each))
        assert found[0] == ((one,) if each.many else one)


def optional(each: Flag) -> bool:
    return each.default is not REQUIRED


@pytest.mark.parametrize(("words", "expected"), [
    ("--debug", True), ("--no_debug", False), ("--no-debug", False), ("--debug=true", True),
    ("--debug=1", True), ("--debug=False", False), ("--no_debug=false", True),
    ("--debug --no_debug", False),
])  # fmt: skip
def test_a_boolean_flag_has_several_forms(words: str, expected: bool) -> None:
    """Bare, negated, or with a value; the last one counts."""
    assert expected == parse(*words.split()).debug
    assert parse().history
    assert not parse("--no_history").history


@pytest.mark.parametrize(("words", "expected"), [
    ("", None), ("--resume", "latest"), ("--resume --debug", "latest"),
    ("--resume run-3", "run-3"), ("--resume=None", "None"),
])  # fmt: skip
def test_a_flag_may_stand_alone(words: str, expected: str | None) -> None:
    """A bare `--resume` means the newest run, and no word means "no flag"."""
    assert expected == parse(*words.split()).resume


NO_INTEGERS = ("1e3", "1_000", "\u0661\u0662", "\t5", "", "None", "9" * 5000)
NO_FLOATS = ("nan", "1e400", "1_0", "abc")


@pytest.mark.parametrize(("words", "what"), [
    ("--max_itrs 5", "unknown flag --max_itrs; see x --help"),
    ("--n_layr 5", "did you mean --n_layer?"),
    ("--n-layr=5", "did you mean --n_layer?"),
    ("--n_laye=5", "did you mean --n_layer?"),
    ("--hist", "did you mean --history?"),
    ("-s 5", "unknown flag -s"),
    ("book.txt", "unexpected argument book.txt"),
    ("--seed", "--seed needs a value"),
    ("--stop", "--stop needs a value"),
    ("--text_path --seed 3", "--text_path needs a value; one that begins with -"),
    ("--debug=maybe", "--debug needs true or false, not 'maybe'"),
    ("--arch gpt3", "--arch must be one of gpt2, modern, not 'gpt3'; did you mean gpt2?"),
    *((f"--seed={text}", "--seed needs a whole number") for text in NO_INTEGERS),
    ("--sizes 1 x", "--sizes needs a whole number"),
    *((f"--lr={text}", "--lr needs a finite number") for text in NO_FLOATS),
    ("--config nowhere.toml", "cannot read --config nowhere.toml: No such file"),
    ("--config .", "cannot read --config .: Is a directory; name a TOML file"),
    ("--config a\x00b", "--config a␀b"),
])  # fmt: skip
def test_a_bad_command_line_gets_one_line_that_helps(
    words: str, what: str, refused: Callable[[Callable[..., int], Sequence[str]], str]
) -> None:
    """Exit code 2, one line, no traceback, no escapes; it names the flag and the remedy."""

    def parse_only(argv: list[str]) -> None:
        parse(*argv)

    def main(argv: Sequence[str]) -> int:
        return run_command(parse_only, prog="x", argv=argv)

    line = refused(main, words.split(" "))
    assert line.startswith("x: error: ")
    assert what in line


def test_what_is_missing_is_named_together() -> None:
    """Flags without a default, in one message."""
    with pytest.raises(UsageError, match="missing --out_dir and --text_path; see x --help"):
        load(CharArguments, [], prog="x")


@pytest.mark.parametrize(("words", "what"), [
    ([], "the first word must name a command; choose char, word, bpe"),
    (["--config", "x"], "the first word must name a command; choose char, word, bpe"),
    (["chr"], "unknown command 'chr'; did you mean char?"),
    (["train"], "unknown command 'train'; choose char, word, bpe"),
])  # fmt: skip
def test_the_first_word_chooses_the_command(words: list[str], what: str) -> None:
    """Without a known one the choices are named."""
    with pytest.raises(UsageError, match=what.replace("?", r"\?")):
        load_one_of(COMMANDS, words, prog="x")


def test_mistakes_in_a_dataclass_are_found_at_once() -> None:
    """Two fields of one name, or a type without a flag."""
    twice = dataclasses.make_dataclass("Twice", [("n_layer", int, 1), ("m", Model, Model())])
    with pytest.raises(argparse.ArgumentError, match="--n_layer: conflicting option string"):
        load(twice, [], prog="x")
    with pytest.raises(TypeError, match="no flag for the type"):
        flags_of(dataclasses.make_dataclass("Odd", [("path", Path)]))


# --- help ----------------------------------------------------------------------------------------


def printed(capsys: Any, action: Callable[[], object]) -> str:
    with pytest.raises(SystemExit) as stop:
        action()
    assert not stop.value.code
    return str(capsys.readouterr().out)


def test_help_comes_from_the_dataclass(capsys: Any) -> None:
    """Flags with their texts and defaults, groups by title, the description as it was given."""
    text = "Does it.\n\nExamples:\n  x --lr 1"
    shown = printed(capsys, lambda: load(Example, ["--help"], prog="x", description=text))
    for part in (
        text, "--n_layer INT", "How many layers. (default: 5)", "\nmodel:\n", "--no_history",
        "turn off: Keep 100% of it.", "Seed. (default: a new one)", "--arch {gpt2,modern}",
    ):  # fmt: skip
        assert part in shown
    root = printed(capsys, lambda: load_one_of(COMMANDS, ["--help"], prog="x"))
    for name in COMMANDS:
        assert f"\n  {name} " in root
    assert "e.g. bpe" in printed(
        capsys, lambda: load_one_of(COMMANDS, ["bpe", "--help"], prog="x", example="e.g. {}")
    )


SHORT_HELP = ["train", "sample", "eval", "export", *(f"prepare {name}" for name in COMMANDS)]


@pytest.mark.parametrize("command", SHORT_HELP)
@pytest.mark.parametrize("columns", ["60", "80"])
def test_short_help_fits_a_small_window(
    command: str, columns: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 60 x 15: the main flags, a line each, all of which exist; `--help` is named and longer."""
    monkeypatch.setenv("COLUMNS", columns)
    name, *words = command.split()
    main = importlib.import_module(f"yocto_cli.{name}").main
    assert main([*words, "-h"]) == 0
    short = capsys.readouterr().out
    assert max(map(len, short.splitlines())) < int(columns)
    assert short.count("\n") < 15
    assert "--help shows all flags" in short
    assert main([*words, "--help"]) == 0
    long = capsys.readouterr().out
    assert set(re.findall(r"^  (--\w+)", short, re.MULTILINE)) < set(re.findall(r"--\w+", long))


@pytest.mark.parametrize("command", ["prepare", "train", "sample", "eval", "export"])
def test_every_command_has_a_version(command: str, capsys: Any) -> None:
    """Its name and its package's number."""
    assert importlib.import_module(f"yocto_cli.{command}").main(["--version"]) == 0
    assert f"yocto-{command} {version('yocto-cli')}\n" == capsys.readouterr().out


# --- TOML ----------------------------------------------------------------------------------------


def value(each: Flag) -> st.SearchStrategy[Any]:
    """Any value of a flag: quotes, emoji, controls, U+007F, tiny and huge numbers."""
    of_type: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(exclude_categories=["Cs"])),
    }
    one = st.sampled_from(each.choices) if each.choices else of_type[each.type]
    return st.lists(one, min_size=1, max_size=3).map(tuple) if each.many else one


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


@pytest.mark.property
@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data())
def test_defaults_give_way_to_the_file_and_the_file_to_flags(
    cls: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is dumped loads equal; a flag replaces what the file says, and adds nothing to it."""
    flags = {name: each for name, each in flags_of(cls).items() if each.in_files}
    needed = [f"--{f.name}={value_for(f)}" for f in flags.values() if not optional(f)]
    base = load(cls, needed, prog="x")
    changed = sorted(data.draw(st.sets(st.sampled_from(sorted(flags)), min_size=1)))
    in_file = {name: data.draw(value(flags[name])) for name in changed}
    path = tmp_path_factory.mktemp("order") / "a.toml"
    path.write_bytes(dump_toml(replaced(base, in_file)).encode())
    config = ["--config", str(path)]
    assert replaced(base, in_file) == load(cls, config, prog="x")
    name = data.draw(st.sampled_from(changed))
    on_top = data.draw(value(flags[name]))
    words = [
        f"--{name}={text}".replace("\\", "\\\\" if flags[name].notes.get("escapes") else "\\")
        for text in (on_top if flags[name].many else (on_top,))
    ]
    expected = replaced(base, {**in_file, name: on_top})
    assert expected == load(cls, [*config, *words], prog="x")
    assert expected == load(cls, [*words, *config], prog="x")


@pytest.mark.parametrize(("text", "what"), [
    ("max_itrs = 7", "a.toml: unknown key 'max_itrs'; remove it"),
    ("\n[m]\nn_layr = 7", "a.toml: unknown key 'n_layr'; did you mean n_layer?"),
    ("lr = 1\nlr = 2", "a.toml is not valid TOML"),
    ("lr = 1\n[m]\nlr = 2", "a.toml: the key 'lr' is given twice"),
    ("lr = ", "is not valid TOML: Invalid value (at end of document)"),
    ("x = " + "[" * 5000, "is not valid TOML"),
    ("seed = " + "9" * 5000, "is not valid TOML"),
    ('seed = "5"', "a.toml: seed needs a whole number in plain digits, such as 1000, not the"),
    ("seed = true", "such as 1000, not True"),
    ("seed = 5.0", "seed needs a whole number"),
    ("lr = true", "3e-4, not True"),
    ("lr = nan", "lr needs a finite number"),
    ("history = 1", "history needs true or false"),
    ("text_path = 2020-01-01", "text_path needs a text in quotes"),
    ('arch = "gpt3"', "a.toml: arch must be one of gpt2, modern"),
    ('stop = "x"', "stop needs a list such as [...]"),
    pytest.param("a" + ".a" * 30_000 + " = 1", "holds a name of over 100 parts", id="deep"),
    ("stop = [1]", "stop needs a text in quotes"),
    ('resume = "x"', "'resume' belongs on the command line"),
    ('config = "b.toml"', "'config' belongs on the command line"),
])  # fmt: skip
def test_a_bad_configuration_file_gets_its_name_its_key_and_a_remedy(
    text: str, what: str, tmp_path: Path
) -> None:
    """Unknown keys, wrong types and broken syntax."""
    message = refuse("--config", toml(tmp_path, text))
    assert what in message
    assert "a.toml" in message
    assert len(message) < len(str(tmp_path)) + 200


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    """Not UTF-8, or far too large; a byte order mark and CRLF are fine."""
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"lr = 1 # \xff")
    assert "byte 0xff in position 9" in refuse("--config", str(bad))
    bad.write_bytes(b"#" * (2 << 20))
    assert "larger than 64 KiB" in refuse("--config", str(bad))
    bad.write_bytes(b"\xef\xbb\xbflr = 2\r\nseed = 1\r\n")
    assert Example(lr=2.0, seed=1) == parse("--config", str(bad))


# --- one place per setting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "source", "all_of_them"),
    [(ModelFlags, GPTConfig, False), (TrainingFlags, TrainConfig, True)],
)
def test_flags_for_settings_are_the_settings_own(
    group: Any, source: Any, all_of_them: bool
) -> None:
    """Type and help of a flag are those of the field it sets; without the flag it is None."""
    flags, own = flags_of(group), flags_of(source)
    shared = set(flags) & set(own)
    for name in shared:
        assert (own[name].type, own[name].choices) == (flags[name].type, flags[name].choices)
        assert own[name].notes.get("help", "") == flags[name].notes["help"]
        assert flags[name].default is None
    assert all_of_them <= (shared == set(own))
    assert len(shared) >= 7
