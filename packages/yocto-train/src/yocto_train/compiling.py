"""torch.compile for a model's blocks: tried once, kept where it works."""

import contextlib

import torch
from yocto_model import GPT

from yocto_train.evaluate import cross_entropy


def compile_blocks(
    model: GPT, *, rows: int, tokens: int, autocast: torch.dtype | None
) -> str | None:
    """Let torch.compile fuse the operations inside each block, or leave the model as it was.

    All blocks share what is compiled for the first one, so that a deep model takes no longer than a
    shallow one. A forward and a backward pass of the shape that training has are made at once: a
    machine without a compiler is found here and not in the first step. Weights, gradients and
    random states are as before.

    Args:
        model: on its device.
        rows: of one forward pass of training.
        tokens: length of each row.
        autocast: dtype of matrix products, or None.

    Returns:
        None, or in a few words why it does not work here.
    """
    device = next(model.parameters()).device
    was_training = model.training
    for block in model.blocks:
        block.compile(dynamic=False)
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.train()
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits = model(ids)
            cross_entropy(logits, ids).backward()  # type: ignore[no-untyped-call] # torch has no type here
    except Exception as error:  # noqa: BLE001 - whatever the compiler lacks, training goes on without
        for block in model.blocks:
            block._compiled_call_impl = None  # noqa: SLF001 - torch has no public way back
        return _first_line(error)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return None


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """Around what is no training step: each new shape would be compiled for a minute."""
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:120] if lines else type(error).__name__
