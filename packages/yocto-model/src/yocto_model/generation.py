"""The token stream: read the prompt once, then draw, append, and repeat.

A context that outgrows `block_size` is cut in hops of a quarter of it: see `window_start`. The
cache is then read anew from the tokens that stay, once per hop; at 10.65M parameters and a window
of 256 that adds about a third to the time of a token.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yocto_model.cache import KVCache
from yocto_model.errors import InputError, quoted
from yocto_model.sampling import SamplingOptions, next_ids

if TYPE_CHECKING:
    from yocto_model.gpt import GPT


def window_start(n_tokens: int, block_size: int) -> int:
    """Index of the first token that a context of `n_tokens` shows to the model.

    nanoGPT moves its window by one token for each new one, which changes every position and so
    forces a full pass over the window per token. We move it in hops of a quarter of `block_size`:
    one full pass then serves many tokens, and as the rule depends on nothing but `n_tokens`, the
    text is the same with and without a cache.
    """
    if n_tokens <= block_size:
        return 0
    hop = max(1, block_size // 4)
    return -(-(n_tokens - block_size) // hop) * hop


class Context:
    """The rows of ids that a model is continuing, and what it has already read of them.

    Attributes:
        rows: B lists of ids, prompts and what was added.

    Args:
        model: in evaluation mode.
        rows: B prompts, each of at least one id; lengths may differ.
        use_cache: False reads the whole window again for each token: same logits, slower.

    Raises:
        InputError: no row, an empty row, or an id outside the vocabulary.
    """

    def __init__(
        self, model: "GPT", rows: Sequence[Sequence[int]], *, use_cache: bool = True
    ) -> None:
        self.model, self.use_cache = model, use_cache
        self.rows = checked_rows(rows, model.config.vocab_size)
        self._cache: KVCache | None = None
        self._starts: list[int] = []  # where the cached windows begin

    def append(self, ids: Sequence[int]) -> None:
        """Add one id to each row."""
        for row, token in zip(self.rows, ids, strict=True):
            row.append(token)

    def window(self, row: int) -> list[int]:
        """The ids of a row that the model sees."""
        return self.rows[row][window_start(len(self.rows[row]), self.model.config.block_size) :]

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Logits (B, V) of the token that follows each row."""
        starts = [window_start(len(row), self.model.config.block_size) for row in self.rows]
        cache = self._cache
        # After the last call each row has grown by what was appended, usually one id.
        unread = len(self.rows[0]) - self._starts[0] - cache.length if cache and self._starts else 0
        if cache is not None and cache.padding is not None:
            unread += int(cache.padding[0])
        if cache is None or starts != self._starts or unread < 1:
            self._starts = starts
            return self._read_windows(
                [row[start:] for row, start in zip(self.rows, starts, strict=True)]
            )
        device = cache.keys.device
        idx = torch.tensor([row[-unread:] for row in self.rows], device=device)  # (B, unread)
        return self._last_logits(idx, cache)

    def restart(self, ids: Sequence[int]) -> None:
        """Make `ids` the only row, keeping what the cache already knows of its beginning.

        Raises:
            InputError: no ids, or one outside the vocabulary.
        """
        old, self.rows = self.rows[0], checked_rows([ids], self.model.config.vocab_size)
        start = window_start(len(ids), self.model.config.block_size)
        if self._cache is None or len(self._starts) != 1 or self._starts != [start]:
            self._cache = None
            return
        # Keep the common prefix, but leave the last token: reading it gives the next logits.
        known = old[: start + self._cache.length]
        common = 0
        for a, b in zip(known, self.rows[0][:-1], strict=False):
            if a != b:
                break
            common += 1
        self._cache.truncate(max(0, common - start))

    def _read_windows(self, windows: list[list[int]]) -> Tensor:
        longest = max(map(len, windows))
        padding = [longest - len(window) for window in windows]
        weight = self.model.token_emb.weight
        idx = torch.tensor(
            [[0] * pad + window for pad, window in zip(padding, windows, strict=True)],
            device=weight.device,
        )  # (B, longest)
        cache = None
        if self.use_cache or any(padding):
            cache = KVCache(
                self.model.config,
                len(windows),
                padding=torch.tensor(padding, device=weight.device) if any(padding) else None,
                device=weight.device,
                dtype=weight.dtype,
            )
        self._cache = cache if self.use_cache else None
        return self._last_logits(idx, cache)

    def _last_logits(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        x = self.model.hidden_states(idx, cache=cache)  # (B, T, C)
        return self.model.logits(x[:, -1])  # (B, V)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One new token of each row.

    Attributes:
        ids: B ids.
        logits: (B, V), unfiltered, that they were chosen from.
    """

    ids: list[int]
    logits: Tensor

    def logprobs(self) -> list[float]:
        """Natural log-probability of each id in the model's own, unfiltered distribution."""
        table = self.logits.float().log_softmax(dim=-1)
        return [float(table[row, token]) for row, token in enumerate(self.ids)]


def stream(
    context: Context,
    max_new_tokens: int,
    *,
    options: SamplingOptions,
    generators: Sequence[torch.Generator],
    vocab_size: int | None = None,
) -> Iterator[Step]:
    """Extend each row of `context` by one id at a time.

    The caller may stop at any point; the context then holds exactly what was yielded.

    Args:
        context: the rows to continue; they grow.
        max_new_tokens: how many steps at most.
        options: how ids are chosen.
        generators: one CPU generator per row; each step takes one number from each.
        vocab_size: only ids below it exist; None allows all that the model has.

    Raises:
        SamplingError: logits from which nothing can be drawn.
    """
    for _ in range(max_new_tokens):
        logits = context.next_logits()[:, :vocab_size]
        uniforms = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        penalized = range(len(context.rows)) if options.repetition_penalty != 1.0 else ()
        windows = [context.window(row) for row in penalized]
        ids = next_ids(logits, options, uniforms, windows).tolist()
        context.append(ids)
        yield Step(ids=ids, logits=logits)


def generate_ids(
    model: "GPT",
    prompts: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    options: SamplingOptions,
    eos_token: int | None,
    stop: Sequence[Sequence[int]],
    seed: int | Sequence[int] | None,
    use_cache: bool,
) -> Tensor:
    """What `GPT.generate` does; see there for arguments, result and errors."""
    if isinstance(prompts, Tensor) and prompts.dim() != 2:
        raise InputError(f"ids must have shape (batch, tokens), not {tuple(prompts.shape)}")
    check_count("max_new_tokens", max_new_tokens)
    rows = prompts.tolist() if isinstance(prompts, Tensor) else prompts
    stops = checked_rows(stop, model.config.vocab_size, what="stop", least=0)
    was_training = model.training
    model.eval()  # dropout off
    try:
        context = Context(model, rows, use_cache=use_cache)
        generators = make_generators(len(rows), seed)
        starts, ends = list(map(len, context.rows)), [0] * len(rows)  # 0: not at its end yet
        for _ in stream(context, max_new_tokens, options=options, generators=generators):
            for number, row in enumerate(context.rows):
                if not ends[number]:
                    ends[number] = _stopped_at(row, starts[number], stops)
                if not ends[number] and row[-1] == eos_token:
                    ends[number] = len(row)
            if all(ends):
                break
    finally:
        model.train(was_training)
    whole = [row[: end or None] for row, end in zip(context.rows, ends, strict=True)]
    longest, fill = max(map(len, whole)), 0 if eos_token is None else eos_token
    full = [row + [fill] * (longest - len(row)) for row in whole]
    return torch.tensor(full, device=model.token_emb.weight.device)


def _stopped_at(row: list[int], start: int, stops: list[list[int]]) -> int:
    """Where a row is cut because what it gained after `start` ends in a stop; 0 if it does not."""
    lengths = [len(stop) for stop in stops if start <= len(row) - len(stop)]
    return min((len(row) - n for n in lengths if row[-n:] in stops), default=0)


def make_generators(n_rows: int, seed: int | Sequence[int] | None) -> list[torch.Generator]:
    """One CPU generator per row: row b is seeded with `seed + b`, or with `seed[b]`.

    Raises:
        InputError: the number of seeds is not the number of rows, or one is out of range.
    """
    if seed is None:
        seed = int(torch.randint(2**62, (1,)))
    if isinstance(seed, Sequence) and len(seed) != n_rows:
        raise InputError(f"{len(seed)} seeds for {n_rows} rows")
    try:
        seeds = seed if isinstance(seed, Sequence) else [seed + row for row in range(n_rows)]
        return [torch.Generator().manual_seed(operator.index(number)) for number in seeds]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("a seed must be a whole number from -2^63 to 2^64 - 1") from error


def check_count(name: str, number: object) -> None:
    """Raise InputError, which calls it `name`, unless it is a whole number from 0 on."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(f"{name} must be a whole number >= 0, not {quoted(number)}")


def checked_rows(
    rows: Iterable[Iterable[int]], vocab_size: int, *, what: str = "prompt", least: int = 1
) -> list[list[int]]:
    """The rows as lists of int; InputError unless each holds at least one id of the vocabulary."""
    try:
        checked = [[operator.index(token) for token in row] for row in rows]
    except TypeError as error:
        raise InputError(f"a {what} must be rows of whole numbers, such as [[1, 2, 3]]") from error
    name = "row" if what == "prompt" else what
    if len(checked) < least:
        raise InputError(f"there is no {what}: give at least one row of ids")
    for number, row in enumerate(checked):
        if not row:
            raise InputError(f"{name} {number} is empty: a {what} needs at least one token")
        for token in row:
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"id {quoted(token)} in {name} {number} is outside 0..{vocab_size - 1}"
                )
    return checked
