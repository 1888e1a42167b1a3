"""`--tokenizer_path`, `--vocab_path` and `--mode`: three ways to say what files know already.

Where they are given and contradict, or contradict what is found, the command refuses. This module
brings NumPy in.
"""

from yocto_tokenizers import Tokenizer, load_tokenizer

from yocto_cli.command import UsageError


def named_tokenizer(tokenizer_path: str | None, vocab_path: str | None) -> Tokenizer | None:
    """The tokenizer that the user names, or None.

    Raises:
        UsageError: they name two that differ, or `--vocab_path` is not a vocabulary of characters.
        TokenizerError: a file cannot be read.
    """
    by_vocab = None if vocab_path is None else load_tokenizer(vocab_path)
    by_path = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if by_vocab is not None and by_vocab.kind != "char":
        raise UsageError(
            f"--vocab_path {vocab_path} is a {by_vocab.kind} tokenizer, not a vocabulary of "
            "characters; give it as --tokenizer_path"
        )
    if by_vocab is not None and by_path is not None:
        if by_vocab.fingerprint() != by_path.fingerprint():
            raise UsageError("--tokenizer_path and --vocab_path name two tokenizers; keep one")
        return by_path
    return by_path if by_vocab is None else by_vocab


def matching_tokenizer(
    named: Tokenizer | None, own: Tokenizer | None, *, mode: str | None, fingerprint: str | None,
    where: str,
) -> Tokenizer:  # fmt: skip
    """The tokenizer of data or of a checkpoint, unless the flags contradict it.

    Args:
        named: by the user.
        own: what lies beside the ids.
        mode: what --mode says.
        fingerprint: of the tokenizer that made the ids, as far as it is known.
        where: what it belongs to, for messages.

    Raises:
        UsageError: there is none, or the flags contradict what is found.
    """
    tokenizer = named or own
    if tokenizer is None:
        raise UsageError(f"{where} holds no tokenizer; name it with --tokenizer_path")
    if fingerprint not in (None, tokenizer.fingerprint()):
        raise UsageError(
            f"the named {tokenizer.kind} tokenizer ({tokenizer.vocab_size} ids) is not the one of "
            f"{where}; leave the flag out"
        )
    found = "char" if tokenizer.kind == "char" else "token"
    if mode not in (None, found):
        units = "characters" if found == "char" else "tokens"
        raise UsageError(
            f"--mode {mode}, but {where} is made of {tokenizer.vocab_size} {units} "
            f"({tokenizer.kind}); leave --mode out"
        )
    return tokenizer
