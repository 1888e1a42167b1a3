"""A running batch: texts that are continued together, each joining when it comes.

A token costs a pass over all weights, and one pass serves sixteen texts for a few times the price
of one. So whoever serves several people lets them share it; each text is what it would be alone.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yocto_model.cache import KVCache, check_count, make_generators, n_common
from yocto_model.config import SamplingOptions
from yocto_model.errors import InputError, SamplingError
from yocto_model.fast.decoding import OneToken
from yocto_model.fast.inference import InferenceGPT
from yocto_model.fast.kernel import MOST_ROWS, FewRows
from yocto_model.generate import window_start
from yocto_model.gpt import GPT
from yocto_model.sampling import next_ids
from yocto_model.text import FinishReason, TextGenerator, TextStream, Token, Tokenizer

# Multiplications by which prompts are read in one step: about a tenth of a second on one core, for
# which the texts that are continued have to wait.
_WORK = 8_000_000_000
_LEAST_READ = 16  # tokens; fewer would hardly be cheaper
_SPARE = 64  # tokens by which a cache is too large at first, so that it seldom has to grow


class Job:
    """A text that a `RunningBatch` continues; read its attributes, change none.

    Attributes:
        options: how its tokens are chosen.
        error: why it ended without a `finish_reason`: the model's output was not finite.
    """

    def __init__(
        self, text: TextStream, options: SamplingOptions, seed: int | None, cache: KVCache
    ) -> None:
        self.options = options
        self.error: SamplingError | None = None
        # What follows is the batch's own.
        self.text = text
        [self.generator] = make_generators(1, seed)
        self.cache = cache  # of the beginning of `window`
        self.window = list(text.prompt_ids)  # what the model sees of the text so far
        self.start = 0  # where in the text that begins
        self.last_read = 0  # the step in which a part of it was read

    @property
    def prompt_ids(self) -> list[int]:
        """The ids that are continued."""
        return self.text.prompt_ids

    @property
    def tokens(self) -> list[Token]:
        """Every token drawn so far, as in `TextStream`."""
        return self.text.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """As in `TextStream`; it stays None if the text is cancelled or fails."""
        return self.text.finish_reason

    @property
    def unread(self) -> int:
        """How many ids must be read before the next can be drawn."""
        return len(self.window) - self.cache.length

    def slide(self, block_size: int) -> None:
        """Move the window if it must; all of it is to be read again then, at new positions."""
        start = window_start(self.start + len(self.window), block_size)
        if start > self.start:
            self.window, self.start = self.window[start - self.start :], start
            self.cache.truncate(0)


class _Held(NamedTuple):
    """A cache, and the ids that it has read."""

    ids: list[int]
    cache: KVCache


class RunningBatch:
    """Continues many texts at once, which come and go at any token.

    Each is what `TextGenerator.stream` makes of it alone, up to the order in which float32 sums
    are taken while a long prompt is read: it can only differ where two tokens are equally likely to
    about six digits. Only bfloat16 without a compiler rounds a row differently beside others.

    All calls must come from one thread.

    Args:
        model: it is put in evaluation mode; its weights must stay as they are.
        tokenizer: as for `TextGenerator`.
        end_ids: as for `TextGenerator`.
        max_rows: how many texts are continued at a time. The others wait; who came first is first.
        max_tokens: the most tokens whose keys and values are held: those of running texts and, in
            the room that is left, those of texts that have ended, for a text that begins alike.
            If running texts need more, the last to come wait, and are read again later. One alone
            gets what it needs.

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
            check_count(name, number)
            if not number:
                raise InputError(f"{name} must be at least 1")
        self.model, self.max_rows, self.max_tokens = model, max_rows, max_tokens
        self._texts = TextGenerator(model, tokenizer, end_ids=end_ids)
        self._vocab_size = tokenizer.vocab_size
        self._one_token = model.one_token if isinstance(model, InferenceGPT) else OneToken(model)
        self._most = MOST_ROWS if isinstance(self._one_token, FewRows) else max_rows  # in a call
        self._waiting: deque[Job] = deque()
        self._rows: list[Job] = []  # in the order in which they came
        self._kept: list[_Held] = []  # in the order in which they ended
        self._n_steps = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._rows)

    def add(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        options: SamplingOptions | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        alternatives: int = 0,
        logprobs: bool = False,
    ) -> Job:
        """Let a text join as soon as there is a row for it.

        Arguments and errors are those of `TextGenerator.stream`.
        """
        options = options or SamplingOptions()
        text = self._texts.stream(
            prompt,
            max_new_tokens,
            options=options,
            stop=stop,
            seed=seed,
            alternatives=alternatives,
            logprobs=logprobs,
        )
        job = Job(text, options, seed, self._new_cache(0))
        job.slide(self.model.config.block_size)
        self._waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Take a text out; `step` does not return it again. One that has ended stays as it is."""
        if job in self._rows:
            self._leave(job)
        elif job in self._waiting:
            self._waiting.remove(job)

    @torch.inference_mode()
    def step(self) -> list[tuple[Job, list[Token]]]:
        """Draw a token for every text whose prompt is read, and read on in the others.

        Returns:
            The texts that got a token, each with the tokens that may be shown now, perhaps none;
            and those that ended: they have a `finish_reason` or an `error`.
        """
        self._n_steps += 1
        ended = [job for job in self._waiting if job.finish_reason]  # no token was asked for
        for job in ended:
            self._waiting.remove(job)
        for job in self._rows:
            if not job.unread:  # the last step failed before it had its token
                job.cache.truncate(job.cache.length - 1)
        self._admit()
        read = self._read_prompts()
        for job in list(self._rows):
            if job.unread == 1 and job in self._rows:
                self._make_room(job)
        ready = [job for job in self._rows if job.unread == 1]
        for first in range(0, len(ready), self._most):
            jobs = ready[first : first + self._most]
            x = self._one_token(
                self._tensor(job.window[-1:] for job in jobs), *(job.cache for job in jobs)
            )
            read += zip(jobs, self.model.logits(x[:, -1]), strict=True)
        # Who had to give up its row after it was read will be read again.
        read = [(job, logits[: self._vocab_size]) for job, logits in read if job in self._rows]
        return [(job, []) for job in ended] + self._draw(read)

    def _admit(self) -> None:
        """Let waiting texts run while there are rows and room for them."""
        while self._waiting and len(self._rows) < self.max_rows:
            job = self._waiting[0]
            needed = sum(map(self._capacity, [*self._rows, job]))
            if self._rows and needed > self.max_tokens:
                return
            self._rows.append(self._waiting.popleft())
            # All of a chat's last turn is the beginning of its next: no need for a copy.
            found = [held for held in self._kept if held.ids == job.window[: len(held.ids)]]
            best = max(found, key=lambda held: len(held.ids), default=None)
            if best is not None and len(best.ids) < len(job.window):
                self._kept.remove(best)
                job.cache = best.cache

    def _read_prompts(self) -> list[tuple[Job, Tensor]]:
        """Read some ids of texts that have more than one unread, in turns; logits of the done."""
        reading = [job for job in self._rows if job.unread > 1]
        budget = max(_LEAST_READ, _WORK // self.model.config.n_parameters)
        if len(reading) == len(self._rows):
            budget *= 4  # nobody waits, except for the next to come
        done = []
        for job in sorted(reading, key=lambda job: job.last_read):
            if not budget:
                break
            if job not in self._rows or not self._make_room(job):
                continue
            self._recall(job)
            part = job.window[job.cache.length :][:budget]
            x = self.model.hidden_states(self._tensor([part]), cache=job.cache)
            budget -= len(part)
            job.last_read = self._n_steps
            if not job.unread:
                done.append((job, self.model.logits(x[:, -1])[0]))
        return done

    def _recall(self, job: Job) -> None:
        """Copy what another text has read already, if it begins like this one."""
        running = [_Held(j.window[: j.cache.length], j.cache) for j in self._rows if j is not job]
        for held in [*self._kept, *running]:
            n_shared = min(n_common(held.ids, job.window), len(job.window) - 1)
            if n_shared > job.cache.length:
                _copy(held.cache, job.cache, n_shared)

    def _draw(self, read: list[tuple[Job, Tensor]]) -> list[tuple[Job, list[Token]]]:
        """Draw an id for each text; for those with equal options together, which is faster."""
        groups: dict[SamplingOptions, list[tuple[Job, Tensor, Tensor]]] = {}
        for job, logits in read:
            uniform = torch.rand(1, generator=job.generator, dtype=torch.float64)
            groups.setdefault(job.options, []).append((job, logits, uniform))
        return [drawn for group in groups.values() for drawn in self._draw_group(group)]

    def _draw_group(self, group: list[tuple[Job, Tensor, Tensor]]) -> list[tuple[Job, list[Token]]]:
        jobs, rows, uniforms = zip(*group, strict=True)
        windows = [job.window for job in jobs]
        try:
            ids = next_ids(torch.stack(rows), jobs[0].options, torch.cat(uniforms), windows)
        except SamplingError as error:
            if len(group) > 1:  # the others are not to blame
                return [drawn for one in group for drawn in self._draw_group([one])]
            jobs[0].error = error
            self._leave(jobs[0])
            return [(jobs[0], [])]
        out = []
        for job, token, logits in zip(jobs, ids.tolist(), rows, strict=True):
            out.append((job, job.text.add(token, logits)))
            if job.finish_reason:
                self._leave(job)
            else:
                job.window.append(token)
                job.slide(self.model.config.block_size)
        return out

    # --- rows and room -------------------------------------------------------------------------

    def _leave(self, job: Job) -> None:
        """Free a row. What was read is kept, in place of what is a part of it."""
        self._rows.remove(job)
        new = _Held(job.window[: job.cache.length], job.cache)
        job.cache = self._new_cache(0)
        if job.error is None and self._n_held() + new.cache.capacity <= self.max_tokens:
            self._kept = [held for held in self._kept if held.ids != new.ids[: len(held.ids)]]
            self._kept.append(new)

    def _make_room(self, job: Job) -> bool:
        """Give a running text's cache room for its window; False if it has to wait instead."""
        old, capacity = job.cache, self._capacity(job)
        if capacity == old.capacity:
            return True
        while self._n_held() - old.capacity + capacity > self.max_tokens:
            if self._kept:
                del self._kept[0]
            elif len(self._rows) == 1:
                break
            else:
                last = self._rows.pop()
                last.cache = self._new_cache(0)
                self._waiting.appendleft(last)
                if last is job:
                    return False
        job.cache = self._new_cache(capacity)
        _copy(old, job.cache, old.length)
        return True

    def _capacity(self, job: Job) -> int:
        """What its cache has room for, if that will do; else what it will get."""
        n = len(job.window)
        if n <= job.cache.capacity:
            return job.cache.capacity
        return min(self.model.config.block_size, n + n // 4 + _SPARE)

    def _n_held(self) -> int:
        caches = [job.cache for job in self._rows] + [held.cache for held in self._kept]
        return sum(cache.capacity for cache in caches)

    def _new_cache(self, capacity: int) -> KVCache:
        weight = self.model.token_emb.weight
        place: Any = {"device": weight.device, "dtype": weight.dtype}
        return KVCache(self.model.config, capacity=capacity, **place)

    def _tensor(self, rows: Any) -> Tensor:
        return torch.tensor(list(rows), device=self.model.token_emb.weight.device)


def _copy(source: KVCache, target: KVCache, length: int) -> None:
    """Copy what `target` lacks of the first `length` tokens that both have in common."""
    begin = target.length
    target.keys[..., begin:length, :] = source.keys[..., begin:length, :]
    target.values[..., begin:length, :] = source.values[..., begin:length, :]
    target.advance(length - begin)
