"""From the flags of yocto-train to a directory of prepared data, and to what is in it.

This module is imported after the flags have been parsed: it brings torch in.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yocto_data import DataError, DataMeta, ShortDataError
from yocto_data.prep.files import open_regular, sha256_of
from yocto_data.prep.sources import CHATS, expand_sources
from yocto_tokenizers import Tokenizer, load_tokenizer

from yocto_cli.chats import hold_chats, prepare_conversations
from yocto_cli.command import UsageError, next_command
from yocto_cli.model_arguments import matching_tokenizer, named_tokenizer
from yocto_cli.plan import Data
from yocto_cli.prepare import (
    KINDS,
    Kind,
    check_target,
    in_flags,
    kind_of,
    learner,
    notes_on,
    prepare_texts,
)
from yocto_cli.screen.terminal import say
from yocto_cli.train_settings import DEFAULT_TEXT, DataFlags

_SHORTEST_CONTEXT = 8
_VAL_RATIO = 0.1
_UNITS = {"char": "at character level", "word": "in words", "bpe": "in pieces of words"}


def data_directory(flags: DataFlags) -> Path:
    """The directory of prepared data; a text, or chats, are prepared first, unless they are."""
    if not flags.text_path and flags.data_dir is not None:
        for name in ("tokenizer", "vocab_size"):
            if getattr(flags, name) is not None:
                raise UsageError(
                    f"--{name} is for a text; leave it out, or give --text_path instead of "
                    "--data_dir"
                )
        return Path(flags.data_dir)
    if not flags.text_path and not DEFAULT_TEXT.is_file():
        raise UsageError(
            f"{DEFAULT_TEXT} is missing; give --text_path YOUR.txt, or --data_dir with a directory "
            "that yocto-prepare made"
        )
    wanted = _Wanted.by(flags)
    if flags.data_dir is not None:
        directory = Path(flags.data_dir)
        if directory.is_dir() and any(directory.iterdir()):
            if wanted.is_in(directory):
                return directory
            raise UsageError(
                f"{directory} was not prepared from {wanted.shown} with these settings; give "
                "another --data_dir, or leave --text_path out to train on what it holds"
            )
    else:  # data that runs may refer to is never replaced: another text gets another directory
        for number in itertools.count(1):
            directory = Path("data") / f"{wanted.name}{f'-{number:03}' if number > 1 else ''}"
            if not directory.exists():
                break
            if wanted.is_in(directory):
                return directory
    wanted.prepare(directory)
    return directory


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """Data as the flags ask for it."""

    sources: tuple[str, ...]
    are_chats: bool
    kind: Kind
    tokenizer: Tokenizer | None  # None where one is to be learned
    flags: DataFlags

    @classmethod
    def by(cls, flags: DataFlags) -> "_Wanted":
        sources = flags.text_path or (str(DEFAULT_TEXT),)
        named = named_tokenizer(flags.tokenizer_path, flags.vocab_path)
        kind: Kind = "bpe" if flags.mode == "token" else "char"
        kind = flags.tokenizer or (kind if named is None else kind_of(named))
        if flags.mode == "char" and kind != "char":
            raise UsageError(f"--mode char, but the tokenizer is {kind}; leave --mode out")
        if flags.mode == "token" and kind == "char":
            raise UsageError("--mode token, but --tokenizer char; leave --mode out")
        if named is not None and (flags.vocab_size is not None or kind != kind_of(named)):
            raise UsageError(
                f"the named tokenizer has {named.vocab_size} ids of the kind {kind_of(named)}; "
                "leave --tokenizer and --vocab_size out"
            )
        if named is None:
            learner(kind, flags.vocab_size)  # raises where they contradict each other
        try:
            are_chats = hold_chats(sources, me=flags.me)
        except DataError as error:
            raise UsageError(_advice(str(error), sources, kind)) from error
        return cls(sources=sources, are_chats=are_chats, kind=kind, tokenizer=named, flags=flags)

    @property
    def shown(self) -> str:
        return " and ".join(self.sources)

    @property
    def name(self) -> str:
        """Of the directory: all that meta.json does not say is in it."""
        stem = re.sub(r"[*?\[\]]", "", Path(self.sources[0]).stem) or "texts"
        me = None if self.flags.me is None else re.sub(r"\W+", "-", self.flags.me)
        size = None if self.flags.vocab_size is None else str(self.flags.vocab_size)
        return "-".join(filter(None, (stem, me, self.kind, size)))

    def is_in(self, directory: Path) -> bool:
        """Whether a data directory holds exactly this."""
        if not (directory / "meta.json").is_file():
            return False
        meta = DataMeta.load(directory)
        ratio, named, size = self.flags.val_ratio, self.tokenizer, self.flags.vocab_size
        fits = (
            ratio is None or (meta.options is not None and meta.options.val_ratio == ratio),
            named is None or named.fingerprint() == meta.tokenizer.fingerprint,
            size is None or meta.vocab_size <= size,
            meta.tokenizer.kind in KINDS[self.kind],
            (meta.chats is not None) == self.are_chats,
        )
        if not all(fits):
            return False
        sums = []
        for source in expand_sources(self.sources, CHATS):  # a directory may mean several files
            with open_regular(source.path) as file:
                sums.append(sha256_of(file))
        return sums == [source.sha256 for source in meta.sources]

    def prepare(self, directory: Path) -> None:
        """Make it."""
        ratio = _VAL_RATIO if self.flags.val_ratio is None else self.flags.val_ratio
        check_target(directory, force=False, val_ratio=ratio)
        try:
            meta, tokenizer = self._prepared(directory, ratio)
        except ShortDataError as error:
            raise UsageError(
                f"{self.shown} is too short: a model needs a few thousand characters to learn "
                "from, and some more to be tested on; give a longer text"
            ) from error
        except DataError as error:
            raise UsageError(_advice(str(error), self.sources, self.kind)) from error
        say(f"prepared {self.shown} {_UNITS[self.kind]} in {directory}")
        for line in notes_on(meta, tokenizer, self.sources):
            say(line)

    def _prepared(self, directory: Path, val_ratio: float) -> tuple[DataMeta, Tokenizer]:
        if self.are_chats:
            path = self.flags.tokenizer_path or self.flags.vocab_path
            return prepare_conversations(
                self.sources, directory, kind=self.kind, vocab_size=self.flags.vocab_size,
                tokenizer=self.tokenizer, tokenizer_path=path, me=self.flags.me,
                val_ratio=val_ratio,
            )  # fmt: skip
        return prepare_texts(
            self.sources, directory, learn=learner(self.kind, self.flags.vocab_size),
            tokenizer=self.tokenizer, block_size=_SHORTEST_CONTEXT, val_ratio=val_ratio,
        )  # fmt: skip


def _advice(message: str, sources: Sequence[str], kind: str) -> str:
    """A package's message for people: what is no flag here is one of yocto-prepare."""

    def prepared(command: str, flag: str, value: str) -> str:
        words = (command, "--text_path", *sources, "--out_dir", "data/mine", f"--{flag}", value)
        return f"use {next_command('yocto-prepare', *words)}, then --data_dir data/mine"

    message, found = re.subn(
        r"\bpass (encoding|errors|text_field)=([\w.-]+)",
        lambda match: prepared(kind, match[1], match[2]), message,
    )  # fmt: skip
    message, is_bad = re.subn(r", and max_bad is [\w.-]+", "", message)
    if is_bad and re.match(r"(\d+) of \1 .* no known format", message):
        message += f"; if a key holds texts, {prepared(kind, 'text_field', 'KEY')}"
    elif is_bad:
        message += f"; to leave out more, {prepared('chat', 'max_bad', 'SHARE')}"
    return message if found or is_bad else in_flags(message)


def open_data(flags: DataFlags, data_dir: Path) -> tuple[Data, Tokenizer]:
    """The prepared data, and its tokenizer or the one that the flags name.

    Raises:
        UsageError: a flag contradicts the data.
        DataError: it is not a data directory.
        TokenizerError: a tokenizer cannot be read.
    """
    if not (data_dir / "meta.json").is_file():
        found = "is a file" if data_dir.is_file() else "holds no meta.json"
        raise UsageError(
            f"--data_dir {data_dir} {found if data_dir.exists() else 'does not exist'}: it must be "
            "a directory that yocto-prepare made; to train on a text, give it as --text_path"
        )
    meta = DataMeta.load(data_dir)
    named, own = named_tokenizer(flags.tokenizer_path, flags.vocab_path), None
    if named is None and meta.tokenizer.file is not None:
        own = load_tokenizer(data_dir)
    made_with, where = meta.tokenizer.fingerprint, str(data_dir)
    tokenizer = matching_tokenizer(named, own, mode=flags.mode, fingerprint=made_with, where=where)
    return Data(data_dir, meta), tokenizer
