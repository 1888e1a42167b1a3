"""Generation: read the context, draw the next id, append it, and repeat."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from yocto_model.cache import Reader, check_count, checked_rows, make_generators
from yocto_model.config import SamplingOptions
from yocto_model.sampling import next_ids

if TYPE_CHECKING:
    from yocto_model.gpt import GPT


def window_start(n_tokens: int, block_size: int) -> int:
    """Index of the first token that the model sees of a context of `n_tokens`.

    A long text slides through the model's window. nanoGPT moves it by one token for each new one,
    which changes every position and so forces a full pass per token. We move it in hops of a
    quarter: one full pass then serves many tokens, and as the rule depends on nothing but
    `n_tokens`, the text is the same with and without a cache.
    """
    if n_tokens <= block_size:
        return 0
    hop = max(1, block_size // 4)
    return -(-(n_tokens - block_size) // hop) * hop  # rounded up to whole hops


def stream(
    reader: Reader,
    rows: list[list[int]],
    max_new_tokens: int,
    *,
    options: SamplingOptions,
    generators: Sequence[torch.Generator],
    vocab_size: int | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Extend each of B rows by one id at a time; the rows grow, and the caller may stop anywhere.

    Each step draws one number from each row's generator. Only ids below `vocab_size` are drawn, or
    any if it is None. Yields the new ids, and the unfiltered logits (B, V) they were drawn from.
    """
    block_size = reader.model.config.block_size
    for _ in range(max_new_tokens):
        # Read. Nothing but the ids goes in; what was read before comes from the reader's cache.
        # So a stream can be left, and continued with any other reader.
        windows = [row[window_start(len(row), block_size) :] for row in rows]
        logits = reader.next_logits(windows)[:, :vocab_size]  # (B, V)
        # Draw. Each row has randomness of its own, so its text does not depend on its neighbours.
        uniforms = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        ids = next_ids(logits, options, uniforms, windows).tolist()
        # Append: what was drawn is part of the context for what comes next. Nothing is planned
        # ahead; if a sentence holds together, that is the work of the logits alone.
        for row, token in zip(rows, ids, strict=True):
            row.append(token)
        yield ids, logits


def generate_ids(  # noqa: D417, PLR0917 - the field's signature; options have their own page
    model: "GPT",
    idx: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token: int | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[Sequence[int]] = (),
    seed: int | Sequence[int] | None = None,
    use_cache: bool = True,
) -> Tensor:
    """`GPT.generate`: continue each row of ids. For text, see `TextGenerator`.

    From `temperature` to `repetition_penalty`, see `SamplingOptions`; None is off.

    Args:
        idx: int64 (B, T), or B lists of ids that may differ in length.
        max_new_tokens: how many to add.
        eos_token: a row that draws it has ended, and is filled up with it.
        stop: rows of ids, such as [[13, 13]]; a continuation ends before the first of them in it.
        seed: row b gets seed + b, or seed[b]; equal seeds give equal ids. None draws one.
        use_cache: False reads the whole window again for each token: the same ids, slower.

    Returns:
        int64 (B, T + n), n at most `max_new_tokens`; shorter rows are filled up with `eos_token`,
        or 0 without one.
    """
    options = SamplingOptions(
        temperature=temperature, top_k=top_k or 0, top_p=1.0 if top_p is None else top_p,
        min_p=min_p or 0.0, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    check_count("max_new_tokens", max_new_tokens)
    rows = checked_rows(idx, model.config.vocab_size)
    stops = checked_rows(stop, model.config.vocab_size, what="stop", least=0)
    generators = make_generators(len(rows), seed)
    starts, ends = [len(row) for row in rows], [0] * len(rows)  # 0: not ended yet
    was_training = model.training
    reader = Reader(model.eval(), use_cache=use_cache)  # evaluation: dropout is off
    try:
        for _ in stream(reader, rows, max_new_tokens, options=options, generators=generators):
            # A row that has ended still grows with the others, and the excess is cut off below:
            # rows of one length keep the cache simple, and a batch costs little more than a row.
            for b, row in enumerate(rows):
                ends[b] = ends[b] or _end(row, starts[b], stops, eos_token)
            if all(ends):
                break
    finally:
        model.train(was_training)
    whole = [torch.tensor(row[: end or None]) for row, end in zip(rows, ends, strict=True)]
    full = pad_sequence(whole, batch_first=True, padding_value=eos_token or 0)
    return full.to(model.token_emb.weight.device)


def _end(row: list[int], start: int, stops: list[list[int]], eos_token: int | None) -> int:
    """Where a row is cut if what it gained after `start` ends in a stop or `eos_token`; else 0."""
    gained = row[start:]
    cuts = [len(row) - len(stop) for stop in stops if gained[-len(stop) :] == stop]
    if row[-1] == eos_token:
        cuts.append(len(row))
    return min(cuts, default=0)
