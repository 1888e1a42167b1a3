"""A trained model, ready to write: what yocto-sample, yocto-chat and yocto-serve start from.

A wrong name is refused before torch is imported, which takes seconds.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yocto_model
from yocto_tokenizers import TokenizerError, UnknownCharacterError
from yocto_train import FoundModel, OpenedModel, find_model, open_model

from yocto_cli.command import UsageError
from yocto_cli.model_arguments import (
    ModelArguments,
    OpeningFlags,
    matching_tokenizer,
    named_tokenizer,
)
from yocto_cli.threads import use_threads

if TYPE_CHECKING:
    from yocto_model import TextGenerator
    from yocto_tokenizers import Tokenizer


def load_generator(
    named: ModelArguments, found: FoundModel | None = None
) -> tuple[OpenedModel, "TextGenerator"]:
    """Open a model and everything needed to continue text with it.

    Args:
        named: the flags.
        found: what they name, if it has been found already.

    Raises:
        UsageError: flags contradict each other or the model.
        TrainError: there is no such model, it is damaged, or the device is not available.
        TokenizerError: a named tokenizer cannot be read.
    """
    opened, tokenizer = load_model(found or named.ckpt, named)
    model = yocto_model.inference_copy(opened.model, named.dtype)
    opened = replace(opened, model=model)  # lets the original go
    return opened, yocto_model.TextGenerator(model, tokenizer, end_ids=opened.end_ids)


def load_model(
    ckpt: str | FoundModel | None, flags: OpeningFlags
) -> tuple[OpenedModel, "Tokenizer"]:
    """A model with its weights as they are stored, and its tokenizer or the one that is named.

    Raises as `load_generator` does.
    """
    tokenizer = named_tokenizer(flags.tokenizer_path, flags.vocab_path)
    found = ckpt if isinstance(ckpt, FoundModel) else located(ckpt, flags)
    from yocto_train import place  # noqa: PLC0415 - imports torch

    device = place(flags.device, "auto").device
    # A run is looked at again: while it trains, what was found may be gone.
    source = ckpt if found.checkpoint is not None else found
    opened = open_model(source, root=flags.ckpt_dir, device=device, tokenizer=tokenizer)
    return opened, matching_tokenizer(
        opened.tokenizer, None, mode=flags.mode, fingerprint=None, where=str(opened.path)
    )


def located(ckpt: str | None, flags: OpeningFlags) -> FoundModel:
    """Where a model is; torch, once it is imported, uses the threads that suit its size."""
    use_threads(flags.threads)  # refuses a wrong number before anything is looked for
    found = find_model(ckpt, root=flags.ckpt_dir)
    use_threads(flags.threads, n_bytes=found.n_bytes)
    return found


def model_line(opened: OpenedModel, generator: "TextGenerator") -> str:
    """The model in one line: where, step, size, window, validation loss, device, weights."""
    model, checkpoint = generator.model, opened.checkpoint
    n = model.config.n_parameters
    is_char = getattr(generator.tokenizer, "kind", None) == "char"
    parts = [
        str(opened.path) if checkpoint is None else f"{opened.name} step {checkpoint.step}",
        f"{n:,} parameters" if n < 100_000 else f"{n / 1e6:.2f}M parameters",
        f"sees {model.config.block_size} {'characters' if is_char else 'tokens'}",
    ]
    if checkpoint is not None and checkpoint.val_loss is not None:
        parts.append(f"val loss {checkpoint.val_loss:.3f}")
    parts.append(str(model.token_emb.weight.device))
    if (kind := getattr(model, "kind", "float32")) != "float32":
        parts.append(f"{kind} weights")
    return ", ".join(parts)


def replaced_dtype(dtype: str, generator: "TextGenerator") -> str | None:
    """Why the weights are not of the type that --dtype asks for; None if they are."""
    model = generator.model
    if dtype == "auto" or not isinstance(model, yocto_model.InferenceGPT) or dtype == model.kind:
        return None
    return f"--dtype {dtype} is {model.kind} on this machine: {model.reason}"


def prompt_ids(generator: "TextGenerator", prompt: str) -> list[int]:
    """The ids of a prompt; an empty one becomes a line end, after which a text begins.

    The token that a tokenizer made elsewhere puts in front of every text is in front, or alone.

    Raises:
        UsageError: the model's vocabulary lacks a character; the first ones are named.
    """
    tokenizer = generator.tokenizer
    begin = begin_ids(tokenizer)
    try:
        return begin + tokenizer.encode(prompt) if prompt else begin or _first_ids(generator)
    except UnknownCharacterError as error:
        raise UsageError(unknown_characters(error, tokenizer.vocab_size)) from error
    except TokenizerError as error:
        raise UsageError(f"the prompt cannot be encoded: {error}") from error


def begin_ids(tokenizer: Any) -> list[int]:
    """The id that the tokenizer puts in front of every text by itself, if it does."""
    return [tokenizer.bos_id] if getattr(tokenizer, "adds_bos", False) else []


def unknown_characters(error: UnknownCharacterError, vocab_size: int) -> str:
    """`'é' (U+00E9) is not among the model's 65 characters; leave it out`."""
    are, it = ("is", "it") if len(error.characters) == 1 else ("are", "them")
    named = named_characters(list(error.characters))
    return f"{named} {are} not among the model's {vocab_size} characters; leave {it} out"


def named_characters(characters: Sequence[str]) -> str:
    """`'é' (U+00E9), 'ü' (U+00FC) and 3 more`, for up to five characters."""
    shown = [f"'{c}' (U+{ord(c):04X})" for c in characters[:5]]
    more = len(characters) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _first_ids(generator: "TextGenerator") -> list[int]:
    tokenizer = generator.tokenizer
    try:
        if ids := tokenizer.encode("\n"):
            return ids
    except UnknownCharacterError:  # the text it was trained on was one line
        pass
    beginning = getattr(tokenizer, "bos_id", None)
    return [0 if beginning is None else beginning]
