"""`--tokenizer_path`, `--vocab_path` and `--mode`: three ways to say what files know already.

Where they are given and contradict, or contradict what is found, the command refuses.
"""

from typing import Literal

from yocto_tokenizers import Tokenizer, load_tokenizer

from yocto_cli.errors import UsageError
from yocto_cli.screen.terminal import one_line

Mode = Literal["char", "token"]


def named_tokenizer(tokenizer_path: str | None, vocab_path: str | None) -> Tokenizer | None:
    """The tokenizer that the flags name, or None.

    Raises:
        UsageError: they name two that differ, or `--vocab_path` is no vocabulary of characters.
        TokenizerError: a file cannot be read.
    """
    by_vocab = None if vocab_path is None else load_tokenizer(vocab_path)
    by_path = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if by_vocab is not None and by_vocab.kind != "char":
        raise UsageError(
            f"--vocab_path {one_line(str(vocab_path))} is a {by_vocab.kind} tokenizer, not a "
            "vocabulary of characters; give it as --tokenizer_path"
        )
    if by_vocab is not None and by_path is not None:
        if by_vocab.fingerprint() != by_path.fingerprint():
            raise UsageError("--tokenizer_path and --vocab_path name two tokenizers; keep one")
        return by_path
    return by_path if by_vocab is None else by_vocab


def check_mode(mode: Mode | None, tokenizer: Tokenizer, *, where: str) -> None:
    """Refuse a `--mode` that is not the tokenizer's.

    Args:
        mode: "char", "token", or None if it was left out.
        tokenizer: what was found.
        where: what it belongs to, as the message is to say.

    Raises:
        UsageError: they contradict.
    """
    found: Mode = "char" if tokenizer.kind == "char" else "token"
    if mode is not None and mode != found:
        units = "characters" if found == "char" else "tokens"
        raise UsageError(
            f"--mode {mode}, but {one_line(where)} is made of {tokenizer.vocab_size} {units} "
            f"({tokenizer.kind}); leave --mode out"
        )
