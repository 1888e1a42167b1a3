"""From the flags of yocto-train to a directory of prepared data, and to what is in it.

This module is imported after the flags have been parsed: it brings torch in.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from yocto_data import DataError, DataMeta, ShortDataError
from yocto_data.prep.directory import check_target, resolve_target
from yocto_data.prep.sources import CHATS, expand_sources, read_whole
from yocto_tokenizers import Tokenizer, load_tokenizer

from yocto_cli.chats import hold_chats, named_template, prepare_conversations
from yocto_cli.command import UsageError, next_command
from yocto_cli.model_arguments import matching_tokenizer, named_tokenizer
from yocto_cli.origin import Origin
from yocto_cli.plan import Data
from yocto_cli.prepare import (
    KINDS,
    Kind,
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
_CHAT_VOCAB_SIZE = 4_000  # so that nearly all words of a question are whole
_UNITS = {"char": "at character level", "word": "in words", "bpe": "in pieces of words"}


def data_directory(flags: DataFlags, origin: Origin | None = None) -> Path:
    """The directory of prepared data; a text, or chats, are prepared first, unless they are.

    Args:
        flags: what to learn from.
        origin: the model to go on from, for which they are prepared.
    """
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
    wanted = _Wanted.by(flags, origin)
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
    template: str | None  # its source; None for what fits the files
    model: str | None = None  # the name of the one that is gone on from

    @classmethod
    def by(cls, flags: DataFlags, origin: Origin | None) -> "_Wanted":
        sources = flags.text_path or (str(DEFAULT_TEXT),)
        template = None if flags.template is None else named_template(flags.template)
        if origin is None:
            named = named_tokenizer(flags.tokenizer_path, flags.vocab_path)
        else:
            if template is not None:
                origin = origin.for_template(template)
            template, named = template or origin.template, origin.tokenizer
        try:
            are_chats = hold_chats(sources, me=flags.me)
        except DataError as error:
            raise UsageError(_advice(str(error), sources, flags.tokenizer or "char")) from error
        is_token = flags.mode == "token" or (flags.mode is None and are_chats)
        kind: Kind = "bpe" if is_token else "char"
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
        return cls(
            sources=sources, are_chats=are_chats, kind=kind, tokenizer=named, flags=flags,
            template=template, model=None if origin is None else origin.opened.name,
        )  # fmt: skip

    @property
    def shown(self) -> str:
        return " and ".join(self.sources)

    @property
    def name(self) -> str:
        """Of the directory: all that meta.json does not say is in it."""
        stem = re.sub(r"[*?\[\]]", "", Path(self.sources[0]).stem) or "texts"
        flags = self.flags
        size = None if flags.vocab_size is None else str(flags.vocab_size)
        template = None if flags.template is None else Path(flags.template).stem
        parts = (flags.me, template, self.model or self.kind, size)
        return "-".join([stem, *(re.sub(r"[^\w.-]+", "-", part) for part in parts if part)])

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
            meta.chats is None
            or self.template is None
            or meta.chats.template == sha256(self.template.encode()).hexdigest(),
        )
        if not all(fits):
            return False
        sources = expand_sources(self.sources, CHATS)  # a directory may mean several files
        return tuple(map(read_whole, sources)) == meta.sources

    def prepare(self, directory: Path) -> None:
        """Make it."""
        ratio = _VAL_RATIO if self.flags.val_ratio is None else self.flags.val_ratio
        try:
            check_target(resolve_target(directory), force=False)
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
            size = _CHAT_VOCAB_SIZE if self.kind == "bpe" else None
            return prepare_conversations(
                self.sources, directory, kind=self.kind, vocab_size=self.flags.vocab_size or size,
                tokenizer=self.tokenizer, tokenizer_path=path, me=self.flags.me,
                val_ratio=val_ratio, source=self.template,
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


def open_data(
    flags: DataFlags, data_dir: Path, origin: Origin | None = None
) -> tuple[Data, Tokenizer]:
    """The prepared data, and its tokenizer or the one that the flags name.

    With a model to go on from, it is the model's own, perhaps with tokens for turns.

    Raises:
        UsageError: a flag contradicts the data.
        DataError: it is not a data directory.
        TokenizerError: a tokenizer cannot be read.
    """
    if not (data_dir / "meta.json").is_file():
        found = "is a file" if data_dir.is_file() else "holds no meta.json"
        if not data_dir.exists():
            raise UsageError(
                f"--data_dir {data_dir} does not exist; give the place to which the prepared data "
                "was moved, or, for a new run, a text as --text_path"
            )
        raise UsageError(
            f"--data_dir {data_dir} {found}: it must be a directory that yocto-prepare made; to "
            "train on a text, give it as --text_path"
        )
    meta = DataMeta.load(data_dir)
    named, own = named_tokenizer(flags.tokenizer_path, flags.vocab_path), None
    if named is None and meta.tokenizer.file is not None:
        own = load_tokenizer(data_dir)
    made_with, where = meta.tokenizer.fingerprint, str(data_dir)
    if origin is not None:
        if origin.tokenizer.fingerprint() != made_with and meta.chats and meta.chats.template:
            template = (data_dir / "chat_template.jinja").read_text(encoding="utf-8")
            origin = origin.for_template(template)
        if origin.tokenizer.fingerprint() != made_with:
            raise UsageError(
                f"{data_dir} was not prepared with the tokenizer of {origin.opened.path}; give "
                "the text itself as --text_path"
            )
        return Data(data_dir, meta, origin), origin.tokenizer
    tokenizer = matching_tokenizer(named, own, mode=flags.mode, fingerprint=made_with, where=where)
    return Data(data_dir, meta), tokenizer
