"""yocto-prepare: texts to a data directory that yocto-train reads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from yocto_cli.arguments import REQUIRED, CommandArguments, flag, load_one_of
from yocto_cli.command import run_command

PROG = "yocto-prepare"
VOCAB_SIZE = 8000


@dataclass(frozen=True, kw_only=True)
class OutArguments(CommandArguments):
    """What all commands have in common."""

    out_dir: str = flag(REQUIRED, "the data directory to make")
    force: bool = flag(False, "replace a data directory that already exists")
    tokenizer_path: str | None = flag(None, "use this tokenizer; nothing is learned then")
    vocab_path: str | None = flag(None, "the same, for a vocabulary of characters")


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(OutArguments):
    """What the three ways of dividing a text into tokens have in common."""

    text_path: tuple[str, ...] = flag(
        REQUIRED, "text files, directories or globs; a .jsonl file holds one document per line"
    )
    val_ratio: float = flag(0.1, "the part of the text that is kept for validation")
    seed: int = flag(1337, "chooses the validation documents, where there are several")
    encoding: str = flag("utf-8", "encoding of the texts")
    errors: Literal["strict", "replace", "ignore"] = flag(
        "strict", "what to do with bytes that are not in that encoding"
    )
    text_field: str = flag("text", "the key of the text in the records of .jsonl files")
    workers: int = flag(0, "processes that encode; 0 is one per core")

    def learning_flags(self) -> dict[str, object]:
        """The flags that matter only for learning, as far as they were given, and their values."""
        common = {field.name for field in fields(PrepareArguments)}
        own = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {n: v for n, (v, default) in own.items() if n not in common and v != default}


@dataclass(frozen=True, kw_only=True)
class CharArguments(PrepareArguments):
    """One token per character: a small vocabulary, nothing to learn."""

    chat_tokens: bool = flag(False, "add the special tokens of a conversation to the vocabulary")


@dataclass(frozen=True, kw_only=True)
class WordArguments(CharArguments):
    """One token per word, run of white space or symbol; rare words become <unk>."""

    vocab_size: int | None = flag(None, "the most tokens there may be", shown=str(VOCAB_SIZE))


@dataclass(frozen=True, kw_only=True)
class BpeArguments(PrepareArguments):
    """Pieces of words, learned by sentencepiece (BPE); every text can be written in them."""

    vocab_size: int | None = flag(
        None, "the number of tokens, 256 of which are bytes", shown=str(VOCAB_SIZE)
    )
    newline: Literal["atomic", "merged"] = flag(
        "atomic", "keep line ends as tokens of their own, or let pieces hold them"
    )
    character_coverage: float = flag(
        0.9995, "the part of the characters that become pieces; the others are written in bytes"
    )
    shrink: bool = flag(False, "make do with fewer tokens where the text yields fewer")


@dataclass(frozen=True, kw_only=True)
class ImportArguments(OutArguments):
    """Token files that nanoGPT's scripts wrote; a meta.pkl beside them is never opened."""

    data_dir: str = flag(REQUIRED, "the directory that holds train.bin and val.bin")
    dtype: Literal["uint16", "uint32"] = flag(REQUIRED, "type of the ids in those files")
    vocab_size: int | None = flag(None, "how many ids there are", shown="the tokenizer's number")


COMMANDS: dict[str, type[OutArguments]] = {
    "char": CharArguments,
    "word": WordArguments,
    "bpe": BpeArguments,
    "import": ImportArguments,
}
_EXAMPLE = f"Example: {PROG} {{}} --text_path book.txt --out_dir data/book"
_IMPORT_EXAMPLE = (
    f"Example: {PROG} {{}} --data_dir nanoGPT/data/shakespeare_char --out_dir data/imported "
    "--dtype uint16 --vocab_path data/book/vocab.json"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-prepare; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv, rephrase=in_flags)


def _main(argv: list[str]) -> None:
    example = _IMPORT_EXAMPLE if argv[:1] == ["import"] else _EXAMPLE
    command, arguments = load_one_of(COMMANDS, argv, prog=PROG, example=example)
    from yocto_cli import preparing  # noqa: PLC0415 - brings NumPy in

    if isinstance(arguments, ImportArguments):
        preparing.import_files(arguments)
    elif isinstance(arguments, PrepareArguments):
        preparing.prepare_files(command, arguments)


def in_flags(message: str) -> str:
    """A package's advice to pass an argument, as advice to give a flag.

    `pass shrink=True` becomes `pass --shrink`, `use force` becomes `use --force`.
    """
    # What a tokenizer does with unknown characters is not a flag: here they stay an error.
    message = re.sub(r', or encode with errors="replace".*', "", message)
    names = "|".join(field.name for cls in COMMANDS.values() for field in fields(cls))
    message = re.sub(rf"(?<!-)\b({names})=True\b", r"--\1", message)
    message = re.sub(rf"(?<!-)\b({names})=", r"--\1=", message)
    return re.sub(rf"\b(use|pass|lower|with) ({names})\b(?!=)", r"\1 --\2", message)
