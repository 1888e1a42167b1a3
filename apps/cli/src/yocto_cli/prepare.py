"""yocto-prepare: texts to a data directory that yocto-train reads."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from yocto_cli.arguments import CommandArguments, UsageError, load_one_of, run_command
from yocto_cli.command import next_command
from yocto_cli.screen.progress import ProgressBar
from yocto_cli.screen.terminal import counted, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yocto_data import DataMeta
    from yocto_tokenizers import Tokenizer

PROG = "yocto-prepare"
_VOCAB_SIZE = 8000


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(CommandArguments, ABC):
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

    @abstractmethod
    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """Make the tokenizer that the flags describe."""

    def learning_flags(self) -> dict[str, object]:
        """The flags that only learning heeds, as far as they were given, and their values."""
        common = {field.name for field in fields(PrepareArguments)}
        own = [field for field in fields(self) if field.name not in common]
        values = {field.name: getattr(self, field.name) for field in own}
        return {f.name: values[f.name] for f in own if values[f.name] != f.default}


@dataclass(frozen=True, kw_only=True)
class CharArguments(PrepareArguments):
    """One token per character: a small vocabulary, nothing to learn."""

    chat_tokens: bool = False
    """Add the special tokens of a conversation to the vocabulary."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """Every character of the texts."""
        from yocto_tokenizers import CHAT_TOKENS, CharTokenizer  # noqa: PLC0415 - brings NumPy in

        return CharTokenizer.train(texts, special_tokens=CHAT_TOKENS if self.chat_tokens else ())


@dataclass(frozen=True, kw_only=True)
class WordArguments(PrepareArguments):
    """One token per word, run of white space or symbol; rare words become <unk>."""

    vocab_size: int | None = None
    """How many tokens there are, at most; 8000 if left out."""
    chat_tokens: bool = False
    """Add the special tokens of a conversation to the vocabulary."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """The most frequent words of the texts."""
        from yocto_tokenizers import CHAT_TOKENS, WordLevelTokenizer  # noqa: PLC0415 - the same

        return WordLevelTokenizer.train(
            texts,
            vocab_size=_vocab_size(self.vocab_size),
            special_tokens=CHAT_TOKENS if self.chat_tokens else (),
        )


@dataclass(frozen=True, kw_only=True)
class BpeArguments(PrepareArguments):
    """Pieces of words, learned by sentencepiece (BPE); every text can be written in them."""

    vocab_size: int | None = None
    """How many tokens there are, 256 of them bytes; 8000 if left out."""
    newline: Literal["atomic", "merged"] = "atomic"
    """Keep line ends as tokens of their own, or let pieces hold them."""
    character_coverage: float = 0.9995
    """Share of the characters that become pieces; the others are written in bytes."""
    shrink: bool = False
    """Take fewer tokens where the text does not yield as many as --vocab_size."""

    def learn(self, texts: "Iterator[str]") -> "Tokenizer":
        """The pieces that shorten the texts most, and always the tokens of a conversation."""
        from yocto_tokenizers import SentencePieceTokenizer  # noqa: PLC0415 - brings NumPy in

        return SentencePieceTokenizer.train(
            texts,
            vocab_size=_vocab_size(self.vocab_size),
            newline=self.newline,
            character_coverage=self.character_coverage,
            shrink=self.shrink,
        )


def _vocab_size(given: int | None) -> int:
    return _VOCAB_SIZE if given is None else given


@dataclass(frozen=True, kw_only=True)
class ImportArguments(CommandArguments):
    """Token files that nanoGPT's scripts wrote; a meta.pkl beside them is never opened."""

    data_dir: str
    """The directory that holds train.bin and val.bin."""
    out_dir: str
    """The data directory to make."""
    dtype: Literal["uint16", "uint32"]
    """Type of the ids, which the files themselves do not say."""
    vocab_size: int | None = None
    """How many ids there are; the tokenizer's number if left out."""
    tokenizer_path: str | None = None
    """The tokenizer that made the files; it goes along."""
    vocab_path: str | None = None
    """The same, for a vocabulary of characters."""
    force: bool = False
    """Replace a data directory that is there."""


COMMANDS: dict[str, type[CommandArguments]] = {
    "char": CharArguments,
    "word": WordArguments,
    "bpe": BpeArguments,
    "import": ImportArguments,
}
_KINDS = {"char": ("char",), "word": ("word",), "bpe": ("sentencepiece", "huggingface")}
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
    if isinstance(arguments, ImportArguments):
        _import(arguments)
    elif isinstance(arguments, PrepareArguments):
        _prepare(command, arguments)


def _prepare(command: str, arguments: PrepareArguments) -> None:
    from yocto_cli import preparing  # noqa: PLC0415 - brings torch in

    if not arguments.text_path:
        raise UsageError("--text_path names nothing; name a text file, a directory or a glob")
    if arguments.workers < 0:
        raise UsageError(f"--workers must be 0 (one per core) or more, not {arguments.workers}")
    preparing.check_target(arguments.out_dir, val_ratio=arguments.val_ratio, force=arguments.force)
    tokenizer = _named_tokenizer(command, arguments)
    with ProgressBar() as progress:
        meta, tokenizer = preparing.prepare_texts(
            arguments.text_path,
            arguments.out_dir,
            learn=arguments.learn,
            tokenizer=tokenizer,
            val_ratio=arguments.val_ratio,
            seed=arguments.seed,
            encoding=arguments.encoding,
            errors=arguments.errors,
            workers=arguments.workers or os.cpu_count() or 1,
            force=arguments.force,
            progress=progress.update,
            text_field=arguments.text_field,
        )
    rate = preparing.unknown_rate(arguments.out_dir, meta, tokenizer)
    _say(arguments.out_dir, meta, rate)


def _named_tokenizer(command: str, arguments: PrepareArguments) -> "Tokenizer | None":
    from yocto_cli.tokenizer_flags import named_tokenizer  # noqa: PLC0415 - brings NumPy in

    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    if tokenizer is None:
        return None
    if tokenizer.kind not in _KINDS[command]:
        right = next((name for name, kinds in _KINDS.items() if tokenizer.kind in kinds), None)
        raise UsageError(
            f"the tokenizer named is of the kind {tokenizer.kind}; use {PROG} {right or 'bpe'}"
        )
    given = arguments.learning_flags()
    if given.get("vocab_size") == tokenizer.vocab_size:
        del given["vocab_size"]
    if given:
        flags = " and ".join(f"--{name}" for name in given)
        raise UsageError(
            f"the tokenizer named has its {tokenizer.vocab_size} ids already and learns nothing; "
            f"leave {flags} out"
        )
    return tokenizer


def _import(arguments: ImportArguments) -> None:
    from yocto_data import import_nanogpt  # noqa: PLC0415 - brings NumPy in

    from yocto_cli import preparing  # noqa: PLC0415 - the same
    from yocto_cli.tokenizer_flags import named_tokenizer  # noqa: PLC0415 - the same

    preparing.check_target(arguments.out_dir, force=arguments.force)
    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    vocab_size = arguments.vocab_size
    if vocab_size is None:
        if tokenizer is None:
            raise UsageError(
                "the files do not say how many ids there are; give --vocab_size, or the tokenizer "
                "that made them as --tokenizer_path"
            )
        vocab_size = tokenizer.vocab_size
    with ProgressBar() as progress:
        meta = import_nanogpt(
            arguments.data_dir,
            arguments.out_dir,
            dtype=arguments.dtype,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            force=arguments.force,
            progress=preparing.encoding_progress(progress.update),
        )
    _say(arguments.out_dir, meta)


def _say(out_dir: str, meta: "DataMeta", unknown: float | None = None) -> None:
    """What was made, what is worth knowing about it, and the next command."""
    ids = {"char": "characters", "word": "words"}.get(meta.tokenizer.kind or "", "tokens")
    tokens = f"{meta.train.tokens:,} tokens for training, {meta.val.tokens:,} for validation"
    print(f"{one_line(out_dir)}: {meta.vocab_size} {ids}; {tokens}")
    for note in _notes(meta, unknown):
        print(f"note: {note}")
    words = ["--data_dir", out_dir]
    if meta.tokenizer.file is None:
        words += ["--tokenizer_path", "TOKENIZER"]
    print(f"next: {next_command('yocto-train', *words)}")


def _notes(meta: "DataMeta", unknown: float | None) -> list[str]:
    notes = []
    if meta.tokenizer.file is None:
        notes.append("the tokenizer of these ids is not among the files; training asks for it")
    if unknown is not None and unknown > 0:
        notes.append(f"{unknown:.2%} of the tokens are words outside the vocabulary (<unk>)")
    if (text := meta.text) is not None:
        found = (
            (text.boms_dropped, "byte order mark", "dropped"),
            (text.replaced, "place", f"not in {text.encoding}, handled as {text.errors} says"),
            (text.control_characters, "control character", "kept as they are"),
            (text.unsafe_cuts, "cut", "in the middle of long words, where tokens may differ"),
        )
        notes += [f"{counted(n, what)} {end}" for n, what, end in found if n]
    return notes


def in_flags(message: str) -> str:
    """A package's advice to pass an argument, as advice to give a flag.

    `pass shrink=True` becomes `pass --shrink`, `use force` becomes `use --force`.
    """
    # What a tokenizer does with characters it lacks is no flag: here they stay an error.
    message = re.sub(r', or encode with errors="replace".*', "", message)
    names = "|".join(field.name for cls in COMMANDS.values() for field in fields(cls))
    message = re.sub(rf"(?<!-)\b({names})=True\b", r"--\1", message)
    message = re.sub(rf"(?<!-)\b({names})=", r"--\1=", message)
    return re.sub(rf"\b(use|pass|lower|with) ({names})\b(?!=)", r"\1 --\2", message)
