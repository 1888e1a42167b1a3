"""yocto-eval: how well models predict a text, in figures that can be compared."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yocto_cli.arguments import REQUIRED, CommandArguments, flag, load
from yocto_cli.command import UsageError, WorkFailedError, run_command
from yocto_cli.model_arguments import CKPT_HELP, OpeningFlags
from yocto_cli.sample import talk
from yocto_cli.screen.terminal import say

if TYPE_CHECKING:
    from torch import Tensor
    from yocto_tokenizers import Tokenizer
    from yocto_train import OpenedModel

PROG = "yocto-eval"
_DESCRIPTION = f"""\
Measures how well models predict a text: loss in nats per token, and bits per byte of the text,
which can be compared across models and tokenizers.

Examples:
  {PROG} --text_path other.txt
  {PROG} --ckpt checkpoints/my SmolLM2-135M --text_path other.txt --stride 128"""
_WINDOW = 1024  # tokens: the usual one, and a longer one costs a small computer much time
_LARGEST_TEXT_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class EvalArguments(CommandArguments):
    """The flags of yocto-eval."""

    ckpt: tuple[str, ...] = flag((), f"models: each {CKPT_HELP}", shown="newest run")
    text_path: str = flag(REQUIRED, "a text, a directory or a glob")
    stride: int = flag(
        0, "tokens between windows; 0 sets them end to end, fewer is slower", shown="0"
    )
    max_ctx_tokens: int | None = flag(
        None, "tokens in a window", shown=f"the model's, at most {_WINDOW}"
    )
    opening: OpeningFlags = field(default_factory=OpeningFlags)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    model: str
    loss: float  # nats per token
    bits_per_byte: float
    exact: bool  # whether the tokenizer keeps all of the text, so that bits per byte mean something
    tokens: int
    window: int
    seconds: float

    def __str__(self) -> str:
        mark = " " if self.exact else "*"
        return (
            f"{self.loss:9.4f} {self.bits_per_byte:10.4f}{mark} {self.tokens:11,} "
            f"{self.window:7,} {self.seconds:8.1f}  {self.model}"
        )


_HEADER = f"{'loss':>9} {'bits/byte':>10}  {'tokens':>11} {'window':>7} {'seconds':>8}  model"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-eval; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv, rephrase=_in_words)


def _main(argv: list[str]) -> int:
    arguments = load(EvalArguments, argv, prog=PROG, description=_DESCRIPTION)
    window = arguments.max_ctx_tokens
    if arguments.stride < 0 or (window is not None and window < 2):
        raise UsageError("--stride must not be negative, and --max_ctx_tokens at least 2")
    pieces = _read(arguments.text_path)
    if len(arguments.ckpt) > 1:  # a wrong last one is not found after an hour
        for named in arguments.ckpt:
            _opened(named, arguments)
    for number, ckpt in enumerate(arguments.ckpt or (None,)):
        row = _measured(ckpt, pieces, arguments)
        if not number:
            way = f"windows that begin every {arguments.stride} tokens, scored where they are new"
            say(f"{arguments.text_path}: {way if arguments.stride else 'consecutive windows'}")
            say(_HEADER)
        say(str(row))
        if not row.exact:
            talk("note: * its tokenizer loses a part of the text: do not compare its bits per byte")
    return 0


def _read(path: str) -> list[str]:
    """The pieces that a text is encoded in, as yocto-prepare encodes them."""
    from yocto_data import iter_texts  # noqa: PLC0415 - brings NumPy in

    pieces, size = [], 0
    for piece in iter_texts(path):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST_TEXT_BYTES:
            raise UsageError(f"{path} holds more than {_LARGEST_TEXT_BYTES >> 20} MiB; give a part")
    return pieces


def _in_words(message: str) -> str:
    """A package's message, whose advice is an argument that is no flag here."""
    return re.sub(r"; .*\bpass (encoding|errors)=.*", "; convert it to UTF-8", message)


def _opened(ckpt: str | None, arguments: EvalArguments) -> "tuple[OpenedModel, Tokenizer, int]":
    """A model, its tokenizer, and the tokens in a window, which the flags must fit."""
    from yocto_cli.models import load_model  # noqa: PLC0415 - brings torch in

    opened, tokenizer = load_model(ckpt, arguments.opening)
    block_size, stride = opened.model.config.block_size, arguments.stride
    window = arguments.max_ctx_tokens or min(_WINDOW, block_size)
    if window > block_size:
        raise UsageError(
            f"--max_ctx_tokens {window} is more than {opened.path} sees; give at most {block_size}"
        )
    if stride > window:
        raise UsageError(
            f"--stride {stride} is longer than the windows of {window} tokens of {opened.path}"
        )
    return opened, tokenizer, window


def _measured(ckpt: str | None, pieces: list[str], arguments: EvalArguments) -> Row:
    """Open a model and measure it."""
    opened, tokenizer, window = _opened(ckpt, arguments)
    from yocto_model import inference_copy  # noqa: PLC0415 - brings torch in
    from yocto_train import bits_per_byte, evaluate_ids  # noqa: PLC0415

    for note in opened.notes:
        talk(f"note: {note}")
    flags, stride = arguments.opening, arguments.stride
    ids, n_bytes, exact = _encoded(tokenizer, pieces, str(opened.path))
    model = inference_copy(opened.model, "float32" if flags.dtype == "auto" else flags.dtype)
    n_ids = tokenizer.vocab_size
    found = evaluate_ids(model, ids, window=window, stride=stride or None, vocab_size=n_ids)
    if not math.isfinite(found.loss):
        raise WorkFailedError(
            f"{opened.path}: the model's output is not finite, so there is no loss to tell; "
            "its weights are damaged or too large"
        )
    return Row(
        model=str(opened.path), loss=found.loss, exact=exact, tokens=found.tokens, window=window,
        bits_per_byte=bits_per_byte(found.loss, n_bytes / found.tokens), seconds=found.seconds,
    )  # fmt: skip


def _encoded(tokenizer: "Tokenizer", pieces: list[str], where: str) -> "tuple[Tensor, int, bool]":
    """The ids of a text, how many bytes all but the first stand for, and whether none is lost."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from yocto_tokenizers import UnknownCharacterError  # noqa: PLC0415

    from yocto_cli.models import begin_ids, unknown_characters  # noqa: PLC0415

    try:
        parts = [tokenizer.encode_to_numpy(piece) for piece in pieces]
    except UnknownCharacterError as error:
        raise UsageError(f"{where}: {unknown_characters(error, tokenizer.vocab_size)}") from error
    texts = [piece.encode() for piece in pieces]
    decoded = map(tokenizer.decode_bytes, parts)
    # Some tokenizers put a space in front of a text; nothing is lost by it.
    exact = all(map(lambda back, text: back in (text, b" " + text), decoded, texts))
    ids = np.concatenate([np.array(begin_ids(tokenizer), dtype=np.int64), *parts])
    if len(ids) < 2:
        raise UsageError("the text is too short: it has fewer than two tokens; give a longer one")
    first = len(tokenizer.decode_bytes(ids[:1]))  # no target: nothing is before it
    return torch.from_numpy(ids), sum(map(len, texts)) - first, exact
