"""A running batch: texts that are continued together, each joining when it comes.

A token costs a pass over all weights, and that pass serves sixteen rows nearly as fast as one. So
whoever serves several people lets their texts share it. Each text is what it would be alone.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yocto_model.cache import KVCache, make_generators, n_common
from yocto_model.config import SamplingOptions
from yocto_model.errors import InputError, SamplingError
from yocto_model.fast.decoding import OneToken
from yocto_model.generate import window_start
from yocto_model.gpt import GPT
from yocto_model.sampling import next_ids
from yocto_model.text import FinishReason, TextGenerator, TextStream, Token, Tokenizer

# Tokens of prompts that are read in a step: each delays all rows that are being continued.
_CHUNK, _CHUNK_UNDISTURBED = 64, 256


class Job:
    """A text that a `RunningBatch` continues.

    Attributes:
        options: how its tokens are chosen.
        error: why it ended without a reason: the model's output was not finite.
        window: the ids that the model sees of the text so far.
        cache: what it has read of them.
    """

    def __init__(
        self, text: TextStream, options: SamplingOptions, seed: int | None, model: GPT
    ) -> None:
        self.text, self.options = text, options
        [self.generator] = make_generators(1, seed)
        self.error: SamplingError | None = None
        self.block_size = model.config.block_size
        self.start = window_start(len(text.prompt_ids), self.block_size)
        self.window = text.prompt_ids[self.start :]
        self.last_read = 0
        weight = model.token_emb.weight
        self._empty = KVCache(model.config, capacity=0, device=weight.device, dtype=weight.dtype)
        self.cache = self._empty

    @property
    def prompt_ids(self) -> list[int]:
        """The ids that are continued."""
        return self.text.prompt_ids

    @property
    def tokens(self) -> list[Token]:
        """All tokens drawn so far, as in `TextStream`."""
        return self.text.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """As in `TextStream`; None as well if it was cancelled or failed."""
        return self.text.finish_reason

    @property
    def unread(self) -> int:
        """How many ids the model must read before the next can be drawn."""
        return len(self.window) - self.cache.length

    def append(self, token: int) -> None:
        """Add what was drawn; where the window slides, everything is to be read again."""
        self.window.append(token)
        start = window_start(self.start + len(self.window), self.block_size)
        if start > self.start:
            self.window = self.window[start - self.start :]
            self.start = start
            self.cache.truncate(0)

    def forget(self) -> None:
        """Give up the cache."""
        self.cache = self._empty


@dataclass(eq=False)
class _Kept:
    """The cache of a text that has ended, and the ids that it holds."""

    ids: list[int]
    cache: KVCache


class RunningBatch:
    """Continues many texts at once; they come and go at any token.

    Each is what `TextGenerator.stream` makes of it alone, up to the rounding of sums: with float32
    weights, texts differ only where two tokens are equally likely to six digits.

    One thread must make all calls.

    Args:
        model: the model; it is put in evaluation mode, and its weights must stay as they are.
        tokenizer: as for `TextGenerator`.
        end_ids: as for `TextGenerator`.
        max_rows: how many texts are continued at a time; the others wait, first come, first served.
        max_tokens: how many tokens' keys and values are kept, of texts that run and, in the room
            that these leave, of texts that have ended; but never less than `block_size`. Where
            running texts have no room, those that came last wait, and are read again later.

    Raises:
        InputError: the tokenizer has ids that the model lacks, or a number is below 1.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        end_ids: Collection[int] = (),
        max_rows: int = 16,
        max_tokens: int = 16_384,
    ) -> None:
        for name, number in (("max_rows", max_rows), ("max_tokens", max_tokens)):
            if number < 1:
                raise InputError(f"{name} must be at least 1, not {number}")
        self.model, self.max_rows = model, max_rows
        self.max_tokens = max(max_tokens, model.config.block_size)
        self._texts = TextGenerator(model, tokenizer, end_ids=end_ids)
        self._vocab_size = tokenizer.vocab_size
        self._one_token = OneToken(model)
        self._waiting: deque[Job] = deque()
        self._rows: list[Job] = []  # in the order in which they came
        self._kept: list[_Kept] = []  # the last used is last
        self._ended: list[Job] = []  # before they could run
        self._n_steps = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._rows or self._ended)

    def add(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        options: SamplingOptions | None = None,
        **more: Any,
    ) -> Job:
        """Queue a text; arguments and errors as in `TextGenerator.stream`."""
        options = options or SamplingOptions()
        text = self._texts.stream(prompt, max_new_tokens, options=options, **more)
        job = Job(text, options, more.get("seed"), self.model)
        (self._ended if job.finish_reason else self._waiting).append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Take a text out, running or waiting; no more of it is returned. Else do nothing."""
        for jobs in (self._waiting, self._ended):
            if job in jobs:
                jobs.remove(job)
        if job in self._rows:
            self._leave(job)

    @torch.inference_mode()
    def step(self) -> list[tuple[Job, list[Token]]]:
        """One token for every text that has been read.

        Returns:
            Those texts and the tokens that may now be shown, as `TextStream.add` gives them; and
            those that ended, which `finish_reason` or `error` tells.
        """
        self._n_steps += 1
        ended, self._ended = self._ended, []
        self._admit()
        read = self._read_prompts()
        for job in list(self._rows):
            if job.unread == 1 and job in self._rows:
                self._make_room(job)
        ready = [job for job in self._rows if job.unread == 1]
        if ready:
            idx = torch.tensor(
                [job.window[-1:] for job in ready], device=ready[0].cache.keys.device
            )
            x = self._one_token(idx, *(job.cache for job in ready))
            read += zip(ready, self.model.logits(x[:, -1]), strict=True)
        # Whoever had to make room after it was read is read again, and has drawn nothing.
        read = [(job, logits[: self._vocab_size]) for job, logits in read if job in self._rows]
        return [(job, []) for job in ended] + self._draw(read)

    def _admit(self) -> None:
        """Let waiting texts run while there are rows and room for them."""
        while self._waiting and len(self._rows) < self.max_rows:
            job = self._waiting[0]
            wanted = sum(max(j.cache.capacity, self._capacity(j)) for j in [*self._rows, job])
            if self._rows and wanted > self.max_tokens:
                return
            self._rows.append(self._waiting.popleft())
            for kept in self._kept:
                n_ids = len(kept.ids)
                # What it began with is all there is: the turn before, in a chat. No need to copy.
                if job.cache.length < n_ids < len(job.window) and job.window[:n_ids] == kept.ids:
                    job.cache = kept.cache
            self._kept = [kept for kept in self._kept if kept.cache is not job.cache]

    def _read_prompts(self) -> list[tuple[Job, Tensor]]:
        """Read a number of ids of those texts that have more than one to read, in turns."""
        reading = [job for job in self._rows if job.unread > 1]
        budget = _CHUNK_UNDISTURBED if len(reading) == len(self._rows) else _CHUNK
        done = []
        for job in sorted(reading, key=lambda job: job.last_read):
            if budget <= 0:
                break
            if job not in self._rows or not self._make_room(job):
                continue
            self._recall(job)
            begun, n = job.cache.length, min(budget, job.unread)
            idx = torch.tensor([job.window[begun : begun + n]], device=job.cache.keys.device)
            x = self.model.hidden_states(idx, cache=job.cache)
            budget -= n
            job.last_read = self._n_steps
            if not job.unread:
                done.append((job, self.model.logits(x[:, -1])[0]))
        return done

    def _recall(self, job: Job) -> None:
        """Copy the keys and values of the longest beginning that another text shares with it."""
        others = [_Kept(j.window[: j.cache.length], j.cache) for j in self._rows if j is not job]
        shared = [(n_common(other.ids, job.window), other) for other in [*self._kept, *others]]
        n, best = max(shared, key=lambda found: found[0], default=(0, None))
        n, held = min(n, len(job.window) - 1), job.cache.length
        if best is None or n <= held:
            return
        job.cache.keys[:, :, :, held:n] = best.cache.keys[:, :, :, held:n]
        job.cache.values[:, :, :, held:n] = best.cache.values[:, :, :, held:n]
        job.cache.advance(n - held)
        if best in self._kept:
            self._kept.remove(best)
            self._kept.append(best)

    def _draw(self, read: list[tuple[Job, Tensor]]) -> list[tuple[Job, list[Token]]]:
        """Draw an id for each text; texts with equal options together, which is faster."""
        groups: dict[SamplingOptions, list[tuple[Job, Tensor, Tensor]]] = {}
        for job, logits in read:
            uniform = torch.rand(1, generator=job.generator, dtype=torch.float64)
            groups.setdefault(job.options, []).append((job, logits, uniform))
        return [drawn for group in groups.values() for drawn in self._drawn(group)]

    def _drawn(self, group: list[tuple[Job, Tensor, Tensor]]) -> list[tuple[Job, list[Token]]]:
        jobs, rows, uniforms = zip(*group, strict=True)
        windows = [job.window for job in jobs]
        try:
            ids = next_ids(torch.stack(rows), jobs[0].options, torch.cat(uniforms), windows)
        except SamplingError as error:
            if len(group) > 1:  # it is not everybody's
                return [drawn for one in group for drawn in self._drawn([one])]
            jobs[0].error = error
            self._leave(jobs[0])
            return [(jobs[0], [])]
        out = []
        for job, token, logits in zip(jobs, ids.tolist(), rows, strict=True):
            out.append((job, job.text.add(token, logits)))
            if job.finish_reason is None:
                job.append(token)
            else:
                self._leave(job)
        return out

    def _leave(self, job: Job) -> None:
        """Free a row; what it has read is kept for a text that begins alike."""
        self._rows.remove(job)
        ids, cache = job.window[: job.cache.length], job.cache
        job.forget()
        self._kept = [kept for kept in self._kept if kept.ids != ids[: len(kept.ids)]]
        self._kept.append(_Kept(ids, cache))
        while self._kept and self._held() > self.max_tokens:
            del self._kept[0]

    def _held(self) -> int:
        caches = [job.cache for job in self._rows] + [kept.cache for kept in self._kept]
        return sum(cache.capacity for cache in caches)

    def _capacity(self, job: Job) -> int:
        """Tokens for which a text gets room: more than it has, so that it seldom needs more."""
        n = len(job.window)
        return min(self.model.config.block_size, n + n // 4 + 64)

    def _make_room(self, job: Job) -> bool:
        """Give its cache room for all its ids; False if it has to wait instead."""
        held, capacity = job.cache, self._capacity(job)
        if len(job.window) <= held.capacity:
            return True
        while self._held() - held.capacity + capacity > self.max_tokens:
            if self._kept:
                del self._kept[0]
            elif len(self._rows) == 1:
                break
            else:
                last = self._rows.pop()
                last.forget()
                self._waiting.appendleft(last)
                if last is job:
                    return False
        keys = held.keys
        job.cache = KVCache(
            self.model.config, capacity=capacity, device=keys.device, dtype=keys.dtype
        )
        job.cache.keys[:, :, :, : held.length] = keys[:, :, :, : held.length]
        job.cache.values[:, :, :, : held.length] = held.values[:, :, :, : held.length]
        job.cache.advance(held.length)
        return True
