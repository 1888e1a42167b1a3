"""The flags that name a model and say how it draws tokens: the same for every command.

`--tokenizer_path`, `--vocab_path` and `--mode` are three ways to say what the files already say. If
they contradict each other or the files, the command refuses.

Nothing here imports NumPy before a tokenizer is loaded, or torch before a model is opened.
"""

import dataclasses
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from yocto_model.config import SamplingOptions
from yocto_model.errors import SamplingError

from yocto_cli.arguments import flag
from yocto_cli.command import UsageError

if TYPE_CHECKING:
    from yocto_tokenizers import Tokenizer

CKPT_HELP = (
    "a run, a step in it, its latest or best; a Hugging Face folder, a .gguf, nanoGPT's ckpt.pt, "
    "hf:owner/name"
)
_OPTIONS = {field.name: field for field in dataclasses.fields(SamplingOptions)}


@dataclass(frozen=True, kw_only=True)
class TokenizerFlags:
    """What the files already say; a value that is given is checked against them."""

    mode: Literal["char", "token"] | None = flag(None, "what the ids stand for; it is only checked")
    tokenizer_path: str | None = flag(None, "the tokenizer, if the files hold none")
    vocab_path: str | None = flag(None, "the same, for a vocabulary of characters")


def named_tokenizer(tokenizer_path: str | None, vocab_path: str | None) -> "Tokenizer | None":
    """The tokenizer that the user names, or None.

    Raises:
        UsageError: two different ones are named, or `--vocab_path` is no vocabulary of characters.
        TokenizerError: a file cannot be read.
    """
    from yocto_tokenizers import load_tokenizer  # noqa: PLC0415 - brings NumPy in

    by_vocab = None if vocab_path is None else load_tokenizer(vocab_path)
    by_path = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if by_vocab is not None and by_vocab.kind != "char":
        raise UsageError(
            f"--vocab_path {vocab_path} is a {by_vocab.kind} tokenizer, not a vocabulary of "
            "characters; give it as --tokenizer_path"
        )
    both = [each.fingerprint() for each in (by_vocab, by_path) if each is not None]
    if len(set(both)) > 1:
        raise UsageError(
            "--tokenizer_path and --vocab_path name different tokenizers; use only one of them"
        )
    return by_path if by_vocab is None else by_vocab


def matching_tokenizer(
    named: "Tokenizer | None", own: "Tokenizer | None", *, mode: str | None,
    fingerprint: str | None, where: str,
) -> "Tokenizer":  # fmt: skip
    """The tokenizer of data or of a checkpoint, unless the flags contradict it.

    Args:
        named: the tokenizer that the user names.
        own: the tokenizer that is stored with the data or the checkpoint.
        mode: what --mode says.
        fingerprint: the fingerprint of the tokenizer that made the ids, if it is known.
        where: the data or the checkpoint, for messages.

    Raises:
        UsageError: there is none, or the flags contradict what is found.
    """
    tokenizer = named or own
    if tokenizer is None:
        raise UsageError(f"{where} holds no tokenizer; name one with --tokenizer_path")
    if fingerprint not in (None, tokenizer.fingerprint()):
        raise UsageError(
            f"the named {tokenizer.kind} tokenizer ({tokenizer.vocab_size} ids) does not belong to "
            f"{where}; leave the flag out"
        )
    found = "char" if tokenizer.kind == "char" else "token"
    if mode not in (None, found):
        units = "characters" if found == "char" else "tokens"
        raise UsageError(
            f"--mode {mode}, but {where} has a vocabulary of {tokenizer.vocab_size} {units} "
            f"({tokenizer.kind}); leave --mode out"
        )
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class OpeningFlags(TokenizerFlags):
    """Where models are, and what becomes of their weights."""

    ckpt_dir: str = flag("checkpoints", "the directory that holds the runs")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"] = flag(
        "auto", "type of the weights; auto is float32, or one of 16 bits for a large model"
    )
    threads: int = flag(0, "processor threads that compute", shown="by the model's size")


@dataclass(frozen=True, kw_only=True)
class ModelArguments(OpeningFlags):
    """Which model; without flags, the newest run's newest checkpoint."""

    ckpt: str | None = flag(None, CKPT_HELP, shown="newest run")


@dataclass(frozen=True, kw_only=True)
class SamplingArguments(SamplingOptions):
    """How tokens are drawn: the model's options, and when to end."""

    temperature: float = flag(0.8, _OPTIONS["temperature"].metadata["help"])
    max_new_tokens: int = flag(200, "the most tokens to add")
    stop: tuple[str, ...] = flag(
        (), r"strings that end the text, not shown; \n, \t, \\ as in C", escapes=True
    )
    seed: int | None = flag(None, "equal seeds give equal text", shown="a new one, printed")

    def __post_init__(self) -> None:
        """Accept any value: `problems` says what is wrong, and names flags."""

    def problems(self) -> list[str]:
        """What is out of range, one line each."""
        found = []
        try:
            self._options()
        except SamplingError as error:
            found = [f"--{problem}" for problem in str(error).split("; ")]
        if self.max_new_tokens < 1:
            found.append(f"--max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            found.append(f"--seed must be from 0 to 2^63 - 1, not {self.seed}")
        if "" in self.stop:
            found.append("--stop must not be empty; leave it out")
        return found

    def options(self) -> SamplingOptions:
        """The part that yocto-model knows.

        Raises:
            UsageError: values are out of range; the message names all of them.
        """
        if problems := self.problems():
            raise UsageError("; ".join(problems))
        return self._options()

    def _options(self) -> SamplingOptions:
        return SamplingOptions(**{name: getattr(self, name) for name in _OPTIONS})

    def seed_or_drawn(self) -> int:
        """The seed, or a new one, short enough to be typed again."""
        return secrets.randbelow(2**31) if self.seed is None else self.seed
