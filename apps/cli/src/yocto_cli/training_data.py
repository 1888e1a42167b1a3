"""Where the tokens come from: a directory that was prepared, or a text that is prepared first.

This module is imported after the flags have been parsed: it brings torch in.
"""

import hashlib
from pathlib import Path

from yocto_data import DataMeta, DecodingError, ShortDataError
from yocto_tokenizers import Tokenizer, load_tokenizer

from yocto_cli.command import next_command
from yocto_cli.errors import UsageError
from yocto_cli.preparing import prepare_char
from yocto_cli.screen.display import say
from yocto_cli.screen.terminal import one_line
from yocto_cli.tokenizer_flags import check_mode, named_tokenizer
from yocto_cli.train_arguments import DataFlags

DEFAULT_TEXT = Path("data") / "philosophy.txt"
_SHORTEST_CONTEXT = 8
_VAL_RATIO = 0.1


def data_directory(flags: DataFlags) -> Path:
    """The prepared data; a text is prepared first, unless that was done before."""
    if flags.text_path is None and flags.data_dir is not None:
        return Path(flags.data_dir)
    if flags.text_path is None and not DEFAULT_TEXT.is_file():
        raise UsageError(
            f"there is no {DEFAULT_TEXT} here; give --text_path YOUR.txt, or --data_dir with what "
            "yocto-prepare made"
        )
    if flags.mode == "token":
        raise UsageError(
            "--mode token needs a tokenizer that is trained first: yocto-prepare bpe "
            "--text_path ..., then give its --out_dir as --data_dir"
        )
    text = Path(flags.text_path or DEFAULT_TEXT)
    directory = Path(flags.data_dir or Path("data") / f"{text.stem}-char")
    if not (directory / "meta.json").is_file() or not _made_from(directory, text, flags.val_ratio):
        if flags.data_dir is not None and directory.is_dir() and any(directory.iterdir()):
            raise UsageError(
                f"{one_line(str(directory))} holds something else than {one_line(str(text))} as "
                "asked for; give another --data_dir, or leave --text_path out to train on what is "
                "there"
            )
        _prepare(text, directory, flags)
    return directory


def _prepare(text: Path, directory: Path, flags: DataFlags) -> None:
    replaces = (directory / "meta.json").is_file()
    try:
        prepare_char(
            str(text),
            directory,
            val_ratio=_VAL_RATIO if flags.val_ratio is None else flags.val_ratio,
            force=flags.data_dir is None,
            block_size=_SHORTEST_CONTEXT,
        )
    except ShortDataError as error:
        raise UsageError(
            f"{one_line(str(text))} is too short: a model needs some thousand characters to "
            "learn from, and a part of them to be tested on; give a longer text"
        ) from error
    except DecodingError as error:
        what = str(error).partition("; ")[0]
        how = next_command(
            "yocto-prepare", "char", "--text_path", str(text), "--out_dir", str(directory),
            "--encoding", "latin-1",
        )  # fmt: skip
        raise UsageError(
            f"{what}; prepare it in its encoding, such as {how}, then give --data_dir {directory}"
        ) from error
    if replaces:
        say(f"replaced the data in {one_line(str(directory))}: it was not this text so divided")
    say(f"prepared {one_line(str(text))} at character level in {one_line(str(directory))}")


def _made_from(directory: Path, text: Path, val_ratio: float | None) -> bool:
    """Whether a data directory holds exactly this text, divided as asked for."""
    meta = DataMeta.load(directory)
    sources = meta.sources
    if not text.is_file() or len(sources) != 1:
        return False
    if val_ratio is not None and (meta.options is None or meta.options.val_ratio != val_ratio):
        return False
    with text.open("rb") as file:
        return sources[0].sha256 == hashlib.file_digest(file, "sha256").hexdigest()


def open_data(flags: DataFlags, data_dir: Path) -> tuple[DataMeta, Tokenizer]:
    """The description of prepared data, and its tokenizer or the one that the flags name.

    Raises:
        UsageError: a flag contradicts the data.
        DataError: it is no data directory.
        TokenizerError: a tokenizer cannot be read.
    """
    meta = DataMeta.load(data_dir)
    named = named_tokenizer(flags.tokenizer_path, flags.vocab_path)
    tokenizer = named or load_tokenizer(data_dir)
    shown = one_line(str(data_dir))
    if meta.tokenizer.fingerprint not in (None, tokenizer.fingerprint()):
        raise UsageError(
            f"the {tokenizer.kind} tokenizer ({tokenizer.vocab_size} ids) is not the one that "
            f"{shown} was prepared with; leave the flag out, or prepare the text with it"
        )
    check_mode(flags.mode, tokenizer, where=shown)
    return meta, tokenizer
