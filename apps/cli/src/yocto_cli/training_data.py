"""Where the tokens come from: a directory that was prepared, or a text that is prepared first.

This module is imported after the flags have been parsed: it brings torch in.
"""

import hashlib
from pathlib import Path

from yocto_data import DataMeta, ShortDataError
from yocto_tokenizers import Tokenizer, load_tokenizer

from yocto_cli.display import say
from yocto_cli.errors import UsageError
from yocto_cli.preparing import prepare_char
from yocto_cli.terminal import one_line
from yocto_cli.tokenizer_flags import check_mode, named_tokenizer
from yocto_cli.train_arguments import DataFlags

DEFAULT_TEXT = Path("data") / "philosophy.txt"
_SHORTEST_CONTEXT = 8


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
    if not (directory / "meta.json").is_file() or not _made_from(directory, text):
        try:
            prepare_char(
                str(text),
                directory,
                val_ratio=flags.val_ratio,
                force=flags.data_dir is None,
                block_size=_SHORTEST_CONTEXT,
            )
        except ShortDataError as error:
            raise UsageError(
                f"{one_line(str(text))} is too short: a model needs some thousand characters to "
                "learn from, and a part of them to be tested on; give a longer text"
            ) from error
        say(f"prepared {one_line(str(text))} at character level in {one_line(str(directory))}")
    return directory


def _made_from(directory: Path, text: Path) -> bool:
    """Whether a data directory holds exactly this text."""
    sources = DataMeta.load(directory).sources
    if not text.is_file() or len(sources) != 1:
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
