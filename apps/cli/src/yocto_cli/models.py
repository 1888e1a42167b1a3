"""A trained model, ready to write: what yocto-sample and yocto-chat start from.

This module brings torch in, so commands import it after they have parsed their flags.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from yocto_model import (
    GPT,
    InferenceGPT,
    InferenceKind,
    ModelError,
    TextGenerator,
    inference_copy,
    window_start,
)
from yocto_tokenizers import Tokenizer, TokenizerError, UnknownCharacterError
from yocto_train import Checkpoint, CheckpointError, Run, load_checkpoint, place

from yocto_cli.errors import UsageError
from yocto_cli.screen.terminal import one_line
from yocto_cli.tokenizer_flags import Mode, check_mode, named_tokenizer

T = TypeVar("T")


def load_generator(
    *,
    ckpt: str | None = None,
    ckpt_dir: str = "checkpoints",
    tokenizer_path: str | None = None,
    vocab_path: str | None = None,
    mode: Mode | None = None,
    device: str = "auto",
    dtype: InferenceKind = "auto",
) -> tuple[Checkpoint, TextGenerator]:
    """Open a checkpoint and everything needed to continue text with it.

    Args:
        ckpt: a run, a step directory or a .pt file; None for the newest run.
        ckpt_dir: where runs are.
        tokenizer_path: a tokenizer to use; it must be the one that the model was trained with.
        vocab_path: the same, for a vocabulary of characters.
        mode: "char" or "token", if the user said so.
        device: "auto" or what torch calls a device.
        dtype: of the weights; see `yocto_model.inference_copy`.

    Raises:
        UsageError: flags contradict each other or the checkpoint.
        TrainError: there is no such checkpoint, it is damaged, or the device is not here.
        TokenizerError: a named tokenizer cannot be read.
    """
    placement = place(device, "auto")
    named = named_tokenizer(tokenizer_path, vocab_path)

    def load(checkpoint: Checkpoint) -> tuple[Checkpoint, Tokenizer, GPT]:
        tokenizer = _tokenizer_of(checkpoint, named)
        check_mode(mode, tokenizer, where=str(checkpoint.directory))
        return checkpoint, tokenizer, checkpoint.load_model(device=placement.device)

    checkpoint, tokenizer, model = _found(load, ckpt, ckpt_dir)
    try:
        return checkpoint, TextGenerator(inference_copy(model, dtype), tokenizer)
    except ModelError as error:
        raise UsageError(f"{one_line(str(checkpoint.directory))}: {error}") from error


def _found(load: Callable[[Checkpoint], T], ckpt: str | None, ckpt_dir: str) -> T:
    """What is loaded from the checkpoint, though a training may be pruning meanwhile."""
    path = ckpt_dir if ckpt is None else ckpt
    shown = f"--{'ckpt_dir' if ckpt is None else 'ckpt'} {one_line(path[:100])}"
    if "\0" in path:
        raise UsageError(f"cannot read {shown}: the path holds a NUL character; name a run")
    try:
        return load_checkpoint(load, ckpt, root=ckpt_dir)
    except OSError as error:  # a name no system call takes, a directory nobody may read
        raise UsageError(f"cannot read {shown}: {error.strerror}; name a run") from error


def _tokenizer_of(checkpoint: Checkpoint, named: Tokenizer | None) -> Tokenizer:
    trained_with = checkpoint.manifest.tokenizer
    if named is None:
        if trained_with is None:
            raise UsageError(
                f"{one_line(str(checkpoint.directory))} holds no tokenizer; "
                "name it with --tokenizer_path or --vocab_path"
            )
        return checkpoint.load_tokenizer()
    if trained_with not in (None, named.fingerprint()):
        raise UsageError(
            f"the {named.kind} tokenizer named ({named.vocab_size} ids) is not the one that "
            f"{one_line(str(checkpoint.directory))} was trained with; leave the flag out"
        )
    return named


def model_line(checkpoint: Checkpoint, generator: TextGenerator) -> str:
    """The model in one line: where, step, size, window, validation loss, device, weights."""
    model = generator.model
    units = "characters" if _is_char(generator) else "tokens"
    facts = [
        f"{one_line(str(checkpoint.run))} step {checkpoint.step}",
        f"{_rounded(model.config.n_parameters)} parameters",
        f"sees {model.config.block_size} {units}",
    ]
    if checkpoint.val_loss is not None:
        facts.append(f"val loss {checkpoint.val_loss:.3f}")
    kind = [f"{model.kind} weights"] if isinstance(model, InferenceGPT) else []
    return ", ".join([*facts, str(model.token_emb.weight.device), *kind])


def replaced_dtype(dtype: str, generator: TextGenerator) -> str | None:
    """Why the weights are not what --dtype asked for, in a line; None if they are."""
    model = generator.model
    if dtype == "auto" or not isinstance(model, InferenceGPT) or dtype == model.kind:
        return None
    return f"--dtype {dtype} is {model.kind} here: {one_line(model.reason)}"


def _rounded(n: int) -> str:
    """`812`, `4.6K`, `0.82M`: a count in three figures or so."""
    if n < 1000:
        return str(n)
    return f"{n / 1e3:.1f}K" if n < 100_000 else f"{n / 1e6:.2f}M"


def steps_of(run: str) -> list[Path]:
    """The step directories of a run, in order.

    Raises:
        UsageError: there is none.
    """
    try:
        found = Run(run).steps()
    except (CheckpointError, ValueError):  # it cannot be read, or is no path
        found = []
    if not found:
        raise UsageError(f"no checkpoint in {one_line(run)}; name the directory of a run")
    return found


def prompt_ids(generator: TextGenerator, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one is a line end, where a text begins.

    Raises:
        UsageError: the model's vocabulary lacks a character; the first ones are named.
    """
    tokenizer = generator.tokenizer
    try:
        return tokenizer.encode(prompt) if prompt else _first_ids(generator)
    except UnknownCharacterError as error:
        raise UsageError(unknown_characters(error, tokenizer.vocab_size)) from error
    except TokenizerError as error:
        raise UsageError(f"the prompt cannot be encoded: {error}") from error


def unknown_characters(error: UnknownCharacterError, vocab_size: int) -> str:
    """`'é' (U+00E9) is not in this model's 65 characters`, for up to five characters."""
    shown = [f"'{one_line(c)}' (U+{ord(c):04X})" for c in list(error.characters)[:5]]
    more = len(error.characters) - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more else "")
    verb = "is" if len(error.characters) == 1 else "are"
    return f"{names} {verb} not in this model's {vocab_size} characters; leave them out"


def unseen_tokens(n_tokens: int, block_size: int) -> int:
    """How many tokens at the front of a prompt the model does not see."""
    return window_start(n_tokens, block_size)


def _first_ids(generator: TextGenerator) -> list[int]:
    tokenizer = generator.tokenizer
    try:
        if ids := tokenizer.encode("\n"):
            return ids
    except UnknownCharacterError:  # the text it was trained on was one line
        pass
    beginning = getattr(tokenizer, "bos_id", None)
    return [0 if beginning is None else beginning]


def _is_char(generator: TextGenerator) -> bool:
    return getattr(generator.tokenizer, "kind", None) == "char"
