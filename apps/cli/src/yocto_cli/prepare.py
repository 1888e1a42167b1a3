"""yocto-prepare: turns texts into a data directory that yocto-train reads.

It learns a tokenizer, then lets yocto-data do the rest. Packages that bring NumPy in are imported
by the functions that use them, after the flags have been parsed.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from yocto_cli.arguments import REQUIRED, CommandArguments, flag, load_one_of
from yocto_cli.command import UsageError, next_command, run_command
from yocto_cli.model_arguments import named_tokenizer
from yocto_cli.screen.terminal import ProgressBar, counted, say, show_marked

if TYPE_CHECKING:
    from yocto_data import DataMeta
    from yocto_tokenizers import Tokenizer

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
Learn = Callable[[Iterator[str]], "Tokenizer"]
Kind = Literal["char", "word", "bpe"]

PROG = "yocto-prepare"
VOCAB_SIZE = 8000
LEARNING = "learning the vocabulary"
ENCODING = "encoding"
_SAMPLE_CHARACTERS = 1_000_000  # on which a named tokenizer is tried
READING = ("encoding", "errors", "keep_cr")  # options that say how files are read
_CHECKED = (*READING, "val_ratio", "seed")  # before anything is read
_OPTIONS = (*_CHECKED, "force")
_OF_PIECES = ("newline", "shrink", "character_coverage")
KINDS: dict[Kind, tuple[str, ...]] = {
    "char": ("char",), "word": ("word",), "bpe": ("sentencepiece", "huggingface"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutArguments(CommandArguments):
    """What all commands have in common."""

    SHORT: ClassVar[tuple[str, ...]] = (
        "text_path", "data_dir", "out_dir", "dtype", "tokenizer", "vocab_size", "template", "me",
        "show", "val_ratio", "force",
    )  # fmt: skip

    out_dir: str = flag(REQUIRED, "the data directory to make")
    force: bool = flag(False, "replace a data directory that already exists")
    tokenizer_path: str | None = flag(None, "use this tokenizer instead of learning one")
    vocab_path: str | None = flag(None, "the same, for a vocabulary of characters")


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(OutArguments):
    """What texts and chats have in common."""

    text_path: tuple[str, ...] = flag(REQUIRED, "files, directories, globs or addresses")
    val_ratio: float = flag(0.1, "share of the text kept for validation")
    seed: int = flag(1337, "chooses the documents kept for validation, if there are several")
    encoding: str = flag("utf-8", "encoding of the texts")
    errors: Literal["strict", "replace", "ignore"] = flag(
        "strict", "what to do with bytes that are not in that encoding"
    )
    keep_cr: bool = flag(False, "keep line ends of Windows and old Macs, which chats never send")
    workers: int = flag(0, "processes that encode; 0 means one per core")

    def learning_flags(self) -> dict[str, object]:
        """The flags that were given and matter only for learning, with their values."""
        common = {field.name for field in fields(PrepareArguments)}
        own = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        common |= {"text_field", "template", "me", "max_bad", "show", "show_ids"}
        return {n: v for n, (v, default) in own.items() if n not in common and v != default}


@dataclass(frozen=True, kw_only=True)
class CharArguments(PrepareArguments):
    """One token per character: a small vocabulary, nothing to learn."""

    text_field: str = flag("text", "the key of the text in the records of .jsonl files")


@dataclass(frozen=True, kw_only=True)
class WordArguments(CharArguments):
    """One token per word, run of white space or symbol; rare words become <unk>."""

    vocab_size: int | None = flag(None, "the most tokens in the vocabulary", shown=str(VOCAB_SIZE))


@dataclass(frozen=True, kw_only=True)
class BpeArguments(CharArguments):
    """Pieces of words, learned by sentencepiece (BPE); every text can be written in them."""

    vocab_size: int | None = flag(
        None, "the number of tokens, 256 of which are bytes", shown=str(VOCAB_SIZE)
    )
    newline: Literal["atomic", "merged"] = flag(
        "atomic", "keep line ends as tokens of their own, or let pieces hold them"
    )
    character_coverage: float = flag(
        0.9995, "share of the characters that become pieces; the others are written in bytes"
    )
    shrink: bool = flag(False, "accept fewer tokens if the text does not yield as many")


@dataclass(frozen=True, kw_only=True)
class ChatArguments(PrepareArguments):
    """Conversations, of which only what the assistant says is learned; texts are learned whole."""

    tokenizer: Literal["char", "word", "bpe"] | None = flag(
        None, "what to learn from all that is said", shown="char"
    )
    vocab_size: int | None = flag(None, "the most tokens of words or bpe", shown=str(VOCAB_SIZE))
    template: str | None = flag(
        None, "plain, turns (special tokens), or a file with a chat template",
        shown="the named tokenizer's own; plain for characters of text files; else turns",
    )  # fmt: skip
    me: str | None = flag(None, "who of a WhatsApp export is the assistant")
    max_bad: float = flag(0.01, "share of the records that may be unusable")
    show: int = flag(0, "show so many conversations, what is learned marked", bare="1")
    show_ids: bool = flag(False, "show them with the ids of all tokens")


@dataclass(frozen=True, kw_only=True)
class ImportArguments(OutArguments):
    """Token files that nanoGPT's scripts wrote; a meta.pkl beside them is never opened."""

    data_dir: str = flag(REQUIRED, "the directory that holds train.bin and val.bin")
    dtype: Literal["uint16", "uint32"] = flag(REQUIRED, "type of the ids in those files")
    vocab_size: int | None = flag(None, "how many ids there are", shown="as the tokenizer has")


COMMANDS: dict[str, type[OutArguments]] = {
    "char": CharArguments,
    "word": WordArguments,
    "bpe": BpeArguments,
    "chat": ChatArguments,
    "import": ImportArguments,
}
_EXAMPLE = f"Example: {PROG} {{}} --text_path book.txt --out_dir data/book"
_CHAT_EXAMPLE = f"""\
Reads messages, ShareGPT's, Alpaca's and other records of .jsonl and .json, conversations that
yocto-chat saved, exports of WhatsApp, and texts with lines "User: " and "Assistant: ".

Example: {PROG} {{}} --text_path chats.jsonl --out_dir data/chats --show"""
_IMPORT_EXAMPLE = (
    f"Example: {PROG} {{}} --data_dir nanoGPT/data/shakespeare_char --out_dir data/imported "
    "--dtype uint16 --vocab_path data/book/vocab.json"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-prepare; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv, rephrase=in_flags)


def _main(argv: list[str]) -> None:
    examples = {"import": _IMPORT_EXAMPLE, "chat": _CHAT_EXAMPLE}
    example = examples.get(argv[0] if argv else "", _EXAMPLE)
    command, arguments = load_one_of(COMMANDS, argv, prog=PROG, example=example)
    if isinstance(arguments, ImportArguments):
        import_files(arguments)
    elif isinstance(arguments, CharArguments | ChatArguments):
        prepare_files(command, arguments)


def in_flags(message: str) -> str:
    """A package's advice to pass an argument, as advice to give a flag.

    `pass shrink=True` becomes `pass --shrink`, `use force` becomes `use --force`.
    """
    # What a tokenizer does with unknown characters is not a flag: here they stay an error.
    message = re.sub(r', or encode with errors="replace".*', "", message)
    names = "|".join(field.name for cls in COMMANDS.values() for field in fields(cls))
    message = re.sub(rf"^({names}) must", r"--\1 must", message)
    message = re.sub(rf"(?<!-)\b({names})=True\b", r"--\1", message)
    message = re.sub(rf"(?<!-)\b({names})=", r"--\1=", message)
    return re.sub(rf"\b(use|pass|lower|with) ({names})\b(?!=)", r"\1 --\2", message)


# --- the work ------------------------------------------------------------------------------------


def prepare_files(command: str, arguments: "CharArguments | ChatArguments") -> None:
    """yocto-prepare char, word, bpe and chat."""
    from yocto_data.prep.directory import check_target, resolve_target  # noqa: PLC0415 - NumPy

    if not arguments.text_path:
        raise UsageError("--text_path is empty; name a text file, a directory or a glob")
    if arguments.workers < 0:
        raise UsageError(f"--workers must be 0 (one per core) or more, not {arguments.workers}")
    if getattr(arguments, "show", 0) < 0:
        raise UsageError("--show must be 0 or more")
    # Before a vocabulary is learned.
    check_target(resolve_target(arguments.out_dir), force=arguments.force)
    named = _named_tokenizer(command, arguments)
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    options["workers"] = arguments.workers or os.cpu_count() or 1
    with ProgressBar() as progress:
        options |= {"tokenizer": named, "progress": progress.update}
        if isinstance(arguments, CharArguments):
            own = {n: getattr(arguments, n) for n in _OF_PIECES if hasattr(arguments, n)}
            size = getattr(arguments, "vocab_size", None)
            meta, tokenizer = prepare_texts(
                arguments.text_path, arguments.out_dir, text_field=arguments.text_field,
                learn=learner(cast("Kind", command), size, **own), **options,
            )  # fmt: skip
            losses = None if named is None else _losses(arguments, named)
        else:
            from yocto_cli.chats import prepare_conversations  # noqa: PLC0415 - brings NumPy in

            meta, tokenizer = prepare_conversations(
                arguments.text_path, arguments.out_dir, kind=arguments.tokenizer or "char",
                vocab_size=arguments.vocab_size, template=arguments.template,
                tokenizer_path=arguments.tokenizer_path or arguments.vocab_path, me=arguments.me,
                max_bad=arguments.max_bad, **options,
            )  # fmt: skip
            losses = None  # yocto-train says them of every tokenizer
    if isinstance(arguments, ChatArguments) and arguments.show:
        from yocto_cli.chats import shown  # noqa: PLC0415 - brings NumPy in

        for document in shown(Path(arguments.out_dir), meta, arguments.show):
            show_marked(document, with_ids=arguments.show_ids)
    found = notes_on(meta, tokenizer, arguments.text_path)
    if unknown := _unknown_rate(arguments.out_dir, meta, tokenizer):
        found.append(f"note: {unknown:.2%} of the tokens are words outside the vocabulary (<unk>)")
    if losses:
        found.append(f"note: the tokenizer loses a part of the text: at its beginning, {losses}")
        found.append("note: so do not compare bits per byte with those of other tokenizers")
    _say(arguments.out_dir, meta, found)


def _losses(arguments: CharArguments, tokenizer: "Tokenizer") -> str | None:
    """What a tokenizer that learned from other texts loses of these, if anything, in numbers."""
    from yocto_data import iter_texts  # noqa: PLC0415 - brings NumPy in
    from yocto_tokenizers import round_trip  # noqa: PLC0415 - brings NumPy in

    sample, reading = "", {name: getattr(arguments, name) for name in READING}
    for piece in iter_texts(arguments.text_path, text_field=arguments.text_field, **reading):
        sample += piece
        if len(sample) >= _SAMPLE_CHARACTERS:
            break
    found = round_trip(tokenizer, sample[:_SAMPLE_CHARACTERS])
    return None if found.exact else found.summary()


def learner(
    kind: Kind, vocab_size: int | None, *, special_tokens: Sequence[str] = (), **options: Any
) -> Learn:
    """What makes a tokenizer of a kind from texts.

    Args:
        kind: characters, words or pieces.
        vocab_size: the most tokens; None for 8,000.
        special_tokens: names that texts cannot spell.
        options: of pieces; unless they say otherwise, a short text may yield fewer.
    """
    import yocto_tokenizers as tokenizers  # noqa: PLC0415 - brings NumPy in

    options["special_tokens"] = special_tokens
    if kind == "char":
        if vocab_size is not None:
            raise UsageError("--vocab_size is for words and pieces; add --tokenizer word or bpe")
        return partial(tokenizers.CharTokenizer.train, **options)
    options["vocab_size"] = VOCAB_SIZE if vocab_size is None else vocab_size
    if kind == "word":
        return partial(tokenizers.WordLevelTokenizer.train, **options)
    return partial(tokenizers.SentencePieceTokenizer.train, **{"shrink": True, **options})


def _named_tokenizer(command: str, arguments: PrepareArguments) -> "Tokenizer | None":
    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    if tokenizer is None:
        return None
    right = kind_of(tokenizer)
    wanted = getattr(arguments, "tokenizer", None) or right if command == "chat" else command
    if wanted != right:
        raise UsageError(f"the named tokenizer has the kind {tokenizer.kind}; use {PROG} {right}")
    given = arguments.learning_flags()
    if given.get("vocab_size") == tokenizer.vocab_size:
        del given["vocab_size"]
    if given:
        flags = " and ".join(f"--{name}" for name in given)
        raise UsageError(
            f"the named tokenizer already has its {tokenizer.vocab_size} ids and learns nothing; "
            f"leave {flags} out"
        )
    return tokenizer


def kind_of(tokenizer: "Tokenizer") -> Kind:
    """What its tokens are: characters, words or pieces."""
    return next((name for name, kinds in KINDS.items() if tokenizer.kind in kinds), "bpe")


def import_files(arguments: ImportArguments) -> None:
    """yocto-prepare import."""
    from yocto_data import import_nanogpt  # noqa: PLC0415 - brings NumPy in
    from yocto_data.prep.directory import check_target, resolve_target  # noqa: PLC0415 - the same

    check_target(resolve_target(arguments.out_dir), force=arguments.force)
    tokenizer = named_tokenizer(arguments.tokenizer_path, arguments.vocab_path)
    vocab_size = arguments.vocab_size
    if vocab_size is None:
        if tokenizer is None:
            raise UsageError(
                "the files do not say how many ids there are; give --vocab_size, or name the "
                "tokenizer that made them with --tokenizer_path"
            )
        vocab_size = tokenizer.vocab_size
    with ProgressBar() as progress:
        meta = import_nanogpt(
            arguments.data_dir, arguments.out_dir, dtype=arguments.dtype, vocab_size=vocab_size,
            tokenizer=tokenizer, force=arguments.force,
            progress=lambda done, total, _: progress.update(ENCODING, done, total),
        )  # fmt: skip
    _say(arguments.out_dir, meta)


def _say(out_dir: str, meta: "DataMeta", notes: Sequence[str] = ()) -> None:
    """What was made, what is worth knowing about it, and the next command."""
    unit = {"char": "character", "word": "word"}.get(meta.tokenizer.kind or "", "token")
    tokens = counted(meta.train.tokens, "token")
    said = f"{tokens} for training, {meta.val.tokens:,} for validation"
    say(f"{out_dir}: {counted(meta.vocab_size, unit)}; {said}")
    for line in notes:
        say(line)
    flags = ["--data_dir", out_dir]
    if meta.tokenizer.file is None:
        say("note: the files do not include the tokenizer of these ids; training needs it")
        flags += ["--tokenizer_path", "TOKENIZER"]
    say(f"next: {next_command('yocto-train', *flags)}")


def notes_on(meta: "DataMeta", tokenizer: "Tokenizer", sources: Sequence[str]) -> list[str]:
    """What was made of texts or chats, what was changed or passed over, and how it was split."""
    from yocto_data.prep.sources import CHATS, TEXTS, passed_over  # noqa: PLC0415 - brings NumPy in

    text, options, lines = meta.text, meta.options, _said_of_chats(meta)
    assert text is not None  # noqa: S101 - it was prepared, not imported
    assert options is not None  # noqa: S101 - the same
    left = list(map(str, passed_over(sources, TEXTS if meta.chats is None else CHATS)))
    # What Latin-1 has at 0x80 to 0x9F nobody means.
    western = "; --encoding cp1252 may be right" if text.encoding == "iso8859-1" else ""
    found = (
        (len(left), "file", f"of another kind left out, such as {''.join(left[:1])}"),
        (text.empty_documents, "empty text", "passed over"),
        (text.boms_dropped, "byte order mark", "dropped"),
        (text.replaced, "place", f"not in {text.encoding}, handled as --errors {text.errors}"),
        (text.control_characters, "control character", f"kept{western}"),
        (text.unsafe_cuts, "cut", "in the middle of long words, where tokens may differ"),
    )
    lines += (f"note: {counted(n, what)} {end}" for n, what, end in found if n)
    if text.newlines == "lf":
        lines.append("note: line ends of Windows or old Macs became LF; --keep_cr keeps them")
    if meta.chats is None and text.documents > 1:
        mark = "nothing" if meta.separator is None else "a line end"
        mark = "an end token" if meta.separator and tokenizer.eos_id is not None else mark
        lines.append(f"note: {counted(text.documents, 'document')}, {mark} after each")
        if options.split_by == "position":
            lines.append("note: whole ones would not make the share for validation: one is cut")
    share = meta.val.tokens / (meta.train.tokens + meta.val.tokens)
    # Tokens, where it was said of characters.
    if options.split_by == "documents" and not 0.6 < share / options.val_ratio < 1.4:
        lines.append(
            f"note: {share:.1%} is for validation, not {options.val_ratio:.1%}: what belongs "
            "together is not cut"
        )
    return lines


def _said_of_chats(meta: "DataMeta") -> list[str]:
    """What conversations there are, how much of them is learned, and what was left out."""
    chats = meta.chats
    if chats is None:
        return []
    learned, tokens = chats.train.trained + chats.val.trained, meta.train.tokens + meta.val.tokens
    texts = f", {counted(chats.texts, 'part')} of texts" if chats.texts else ""
    replies = f"{chats.replies:,} {'reply' if chats.replies == 1 else 'replies'}"
    share = f"{learned:,} of {tokens:,} tokens are learned ({learned / tokens:.0%})"
    lines = [f"{counted(chats.conversations, 'conversation')} with {replies}{texts}; {share}"]
    if chats.untrained:
        what = counted(chats.untrained, "conversation")
        lines.append(f"note: {what} without a reply to learn from left out")
    for bad in chats.dropped:
        where = f", the first in {bad.first}" if bad.first else ""
        lines.append(f"note: {counted(bad.count, 'record')} dropped{where}: {bad.what}")
    return lines


def prepare_texts(
    sources: str | Sequence[str],
    out_dir: str | Path,
    *,
    learn: Learn,
    tokenizer: "Tokenizer | None" = None,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> "tuple[DataMeta, Tokenizer]":
    """Learn a tokenizer from texts, and encode them with it.

    Args:
        sources: files, directories or globs.
        out_dir: the directory to make.
        learn: makes a tokenizer from the texts.
        tokenizer: used instead of learning one.
        progress: told what is happening.
        options: passed to `yocto_data.prepare`.

    Raises:
        DataError: a text cannot be used, or the work failed.
        TokenizerError: no vocabulary can be learned from the text.
    """
    from yocto_data import iter_texts, prepare  # noqa: PLC0415 - brings NumPy in
    from yocto_data.prep.sources import expand_sources  # noqa: PLC0415 - the same

    if tokenizer is None:
        reading = {n: options[n] for n in (*_CHECKED, "text_field") if n in options}
        files = expand_sources(sources)
        # A line end tells documents apart, even if none of them holds one.
        between = ("\n",) if len(files) > 1 or files[0].kind == "jsonl" else ()
        texts = watched(iter_texts(sources, **reading), sources, progress)
        tokenizer = learn(chain(texts, between))

    def told(done: int, total: int, _: int) -> None:
        progress(ENCODING, done, total)

    return prepare(sources, out_dir, tokenizer=tokenizer, progress=told, **options), tokenizer


def watched(
    texts: Iterator[str], sources: str | Sequence[str], progress: Progress
) -> Iterator[str]:
    """The same texts; `progress` is told how many bytes have been read."""
    from yocto_data.prep.sources import CHATS, expand_sources  # noqa: PLC0415 - brings NumPy in

    total, done = sum(source.size for source in expand_sources(sources, CHATS)), 0
    for text in texts:
        done += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        progress(LEARNING, done, max(done, total))
        yield text


def _unknown_rate(out_dir: str, meta: "DataMeta", tokenizer: "Tokenizer") -> float | None:
    """Share of the tokens that stand for words outside the vocabulary, or None if none can."""
    from yocto_data.prep.token_files import TokenFile  # noqa: PLC0415 - brings NumPy in
    from yocto_tokenizers import WordLevelTokenizer  # noqa: PLC0415 - brings NumPy in

    if not isinstance(tokenizer, WordLevelTokenizer):
        return None
    files = (TokenFile(Path(out_dir) / split.file) for split in (meta.train, meta.val))
    unknown = sum(int((block == tokenizer.unk_id).sum()) for f in files for block in f.blocks())
    return unknown / (meta.train.tokens + meta.val.tokens)
