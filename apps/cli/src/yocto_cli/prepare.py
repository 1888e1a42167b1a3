"""yocto-prepare: texts to a data directory that yocto-train reads."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from yocto_cli.arguments import CommandArguments, UsageError, load_one_of, run_command
from yocto_cli.command import next_command
from yocto_cli.progress import ProgressBar
from yocto_cli.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yocto_data import DataMeta
    from yocto_tokenizers import Tokenizer

PROG = "yocto-prepare"


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(CommandArguments):
    """What all three ways of cutting a text have in common."""

    text_path: tuple[str, ...]
    """Text files, directories or globs; a .jsonl file holds one document per line."""
    out_dir: str
    """The data directory to make: train.bin, val.bin, the tokenizer, meta.json."""
    val_ratio: float = 0.1
    """Share of the text that is kept for validation."""
    seed: int = 1337
    """Chooses the validation documents, where there are several."""
    force: bool = False
    """Replace a data directory that is there."""
    tokenizer_path: str | None = None
    """Use this tokenizer instead of learning one."""
    vocab_path: str | None = None
    """The same, for a vocabulary of characters."""
    encoding: str = "utf-8"
    """Encoding of the texts."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that are not in that encoding."""
    text_field: str = "text"
    """The key of the text in the records of .jsonl files."""
    workers: int = 0
    """Processes that encode; 0 takes one per core."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """Make the tokenizer that the flags describe."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CharArguments(PrepareArguments):
    """One token per character: a small vocabulary, nothing to learn."""

    chat_tokens: bool = False
    """Add the special tokens of a conversation to the vocabulary."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """Every character of the texts."""
        from yocto_cli import preparing  # noqa: PLC0415 - brings torch in

        return preparing.learn_char(texts, chat_tokens=self.chat_tokens)


@dataclass(frozen=True, kw_only=True)
class WordArguments(PrepareArguments):
    """One token per word, run of white space or symbol; rare words become <unk>."""

    vocab_size: int = 8000
    """How many tokens there are, at most."""
    chat_tokens: bool = False
    """Add the special tokens of a conversation to the vocabulary."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """The most frequent words of the texts."""
        from yocto_cli import preparing  # noqa: PLC0415 - brings torch in

        return preparing.learn_word(texts, vocab_size=self.vocab_size, chat_tokens=self.chat_tokens)


@dataclass(frozen=True, kw_only=True)
class BpeArguments(PrepareArguments):
    """Pieces of words, learned by sentencepiece (BPE); every text can be written in them."""

    vocab_size: int = 8000
    """How many tokens there are; 256 of them are bytes."""
    newline: Literal["atomic", "merged"] = "atomic"
    """Keep line ends as tokens of their own, or let pieces hold them."""
    character_coverage: float = 0.9995
    """Share of the characters that become pieces; the others are written in bytes."""
    shrink: bool = False
    """Take fewer tokens where the text does not yield as many as --vocab_size."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """The pieces that shorten the texts most."""
        from yocto_cli import preparing  # noqa: PLC0415 - brings torch in

        return preparing.learn_bpe(
            texts,
            vocab_size=self.vocab_size,
            newline=self.newline,
            character_coverage=self.character_coverage,
            shrink=self.shrink,
        )


COMMANDS: dict[str, type[PrepareArguments]] = {
    "char": CharArguments,
    "word": WordArguments,
    "bpe": BpeArguments,
}
_KINDS = {"char": ("char",), "word": ("word",), "bpe": ("sentencepiece", "huggingface")}
_EXAMPLE = f"Example: {PROG} {{}} --text_path book.txt --out_dir data/book"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-prepare; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv, rephrase=in_flags)


def _main(argv: list[str]) -> None:
    command, arguments = load_one_of(COMMANDS, argv, prog=PROG, example=_EXAMPLE)
    _prepare(command, arguments)


def _prepare(command: str, arguments: PrepareArguments) -> None:
    from yocto_data import iter_texts, prepare  # noqa: PLC0415 - brings torch in

    from yocto_cli import preparing  # noqa: PLC0415 - the same

    if not arguments.text_path:
        raise UsageError("--text_path names nothing; name a text file, a directory or a glob")
    if arguments.workers < 0:
        raise UsageError(f"--workers must be 0 (one per core) or more, not {arguments.workers}")
    preparing.check_target(arguments.out_dir, val_ratio=arguments.val_ratio, force=arguments.force)
    tokenizer = _named_tokenizer(command, arguments)
    with ProgressBar() as progress:
        if tokenizer is None:
            texts = iter_texts(
                arguments.text_path,
                encoding=arguments.encoding,
                errors=arguments.errors,
                text_field=arguments.text_field,
            )
            tokenizer = arguments.learn(
                preparing.watched(texts, arguments.text_path, progress.update)
            )
        meta = prepare(
            arguments.text_path,
            arguments.out_dir,
            tokenizer=tokenizer,
            val_ratio=arguments.val_ratio,
            seed=arguments.seed,
            encoding=arguments.encoding,
            errors=arguments.errors,
            workers=arguments.workers or os.cpu_count() or 1,
            force=arguments.force,
            progress=preparing.encoding_progress(progress.update),
            text_field=arguments.text_field,
        )
    rate = preparing.unknown_rate(arguments.out_dir, meta, tokenizer)
    for line in summary(arguments.out_dir, meta, tokenizer, rate):
        print(line)


def _named_tokenizer(command: str, arguments: PrepareArguments) -> "Tokenizer | None":
    from yocto_cli.tokenizer_flags import named_tokenizer  # noqa: PLC0415 - brings NumPy in

    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    if tokenizer is not None and tokenizer.kind not in _KINDS[command]:
        right = next((name for name, kinds in _KINDS.items() if tokenizer.kind in kinds), None)
        raise UsageError(
            f"the tokenizer named is of the kind {tokenizer.kind}; use {PROG} {right or 'bpe'}"
        )
    return tokenizer


def summary(
    out_dir: str, meta: "DataMeta", tokenizer: "Tokenizer", unknown: float | None = None
) -> list[str]:
    """What was made, what is worth knowing about it, and the next command.

    Args:
        out_dir: the data directory.
        meta: its meta.json.
        tokenizer: its tokenizer.
        unknown: share of tokens outside the vocabulary, where there can be any.
    """
    ids = {"char": "characters", "word": "words"}.get(tokenizer.kind, "tokens")
    tokens = f"{meta.train.tokens:,} tokens for training, {meta.val.tokens:,} for validation"
    return [
        f"{one_line(out_dir)}: {tokenizer.vocab_size} {ids}; {tokens}",
        *(f"note: {note}" for note in _notes(meta, unknown)),
        f"next: {next_command('yocto-train', '--data_dir', out_dir)}",
    ]


def _notes(meta: "DataMeta", unknown: float | None) -> list[str]:
    notes = []
    if unknown is not None and unknown > 0:
        notes.append(f"{unknown:.2%} of the tokens are words outside the vocabulary (<unk>)")
    if (text := meta.text) is not None:
        counted = (
            (text.boms_dropped, "byte order mark", "dropped"),
            (text.replaced, "place", f"not in {text.encoding}, handled as {text.errors} says"),
            (text.control_characters, "control character", "kept as they are"),
            (text.unsafe_cuts, "cut", "in the middle of long words, where tokens may differ"),
        )
        notes += [f"{n:,} {what}{'s' * (n != 1)} {end}" for n, what, end in counted if n]
    return notes


def in_flags(message: str) -> str:
    """A package's advice to pass an argument, as advice to give a flag.

    `pass shrink=True` becomes `pass --shrink`, `use force` becomes `use --force`.
    """
    names = "|".join(field.name for cls in COMMANDS.values() for field in fields(cls))
    message = re.sub(rf"(?<!-)\b({names})=True\b", r"--\1", message)
    message = re.sub(rf"(?<!-)\b({names})=", r"--\1=", message)
    return re.sub(rf"\b(use|pass|lower|with) ({names})\b(?!=)", r"\1 --\2", message)
