"""TextGenerator: a prompt in, tokens with their text out as they are drawn."""

import codecs
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from yocto_model.cache import Reader, check_count, checked_rows, make_generators
from yocto_model.config import SamplingOptions
from yocto_model.errors import InputError
from yocto_model.generate import stream
from yocto_model.gpt import GPT

FinishReason = Literal["length", "stop", "eos"]


class Decoder(Protocol):
    """Turns ids into text one at a time: what each completes, and what is left at the end."""

    def push(self, token: int, /) -> str: ...
    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """The part of a tokenizer that generation needs; any object with it will do."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str, /) -> list[int]: ...
    def decode_bytes(self, ids: Sequence[int], /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token that was drawn.

    Attributes:
        id: its id.
        text: the characters it completed; empty while a character is still incomplete, and for
            the token that ends a text.
        logprob: natural log-probability before any filter, if asked for.
        alternatives: the likeliest (id, logprob) at this place, if asked for.
    """

    id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt of a batch; for all fields but `text`, see `TextStream`."""

    text: str
    prompt_ids: list[int]
    tokens: list[Token]
    finish_reason: FinishReason | None


class StopFilter:
    """Passes tokens on until their text contains a stop string, which is never shown.

    Tokens that may begin a stop string are held back until that is known. If stops overlap, the one
    that is complete first counts.

    Args:
        stops: one string or several; none lets everything through.

    Attributes:
        stopped: whether a stop string was found.

    Raises:
        InputError: a stop string is empty.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(self.stops):
            raise InputError("a stop string must not be empty")
        self.stopped = False
        self._held: list[Token] = []

    def push(self, token: Token) -> list[Token]:
        """Add a token; return those that are safe to show, the last cut where a stop begins."""
        if not self.stops:
            return [token]
        self._held.append(token)
        text = "".join(held.text for held in self._held)
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found)[1], cut=True)
        return self._release(len(text) - self._overlap(text))

    def finish(self, *, torn: bool = False) -> list[Token]:
        """The tokens held back; if `torn`, only what cannot be the beginning of a stop string."""
        text = "".join(held.text for held in self._held)
        return self._release(len(text) - (self._overlap(text) if torn else 0), cut=True)

    def _release(self, n_characters: int, *, cut: bool = False) -> list[Token]:
        out = []
        while self._held and len(self._held[0].text) <= n_characters:
            out.append(self._held.pop(0))
            n_characters -= len(out[-1].text)
        if cut and self._held:
            if n_characters:
                out.append(replace(self._held[0], text=self._held[0].text[:n_characters]))
            self._held = []
        return out

    def _overlap(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        lengths = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)


class TextStream(Iterator[Token]):
    """Tokens as they are drawn, and then why the text ended. The tokens' texts joined are the text.

    Attributes:
        prompt_ids: the ids that were continued.
        tokens: every token drawn so far: more than were given out while some may begin a stop
            string, which would be cut off.
        finish_reason: None until the last token is drawn; "length", "stop" (a stop string), "eos".
    """

    def __init__(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        tokenizer: Tokenizer,
        stop: str | Sequence[str],
        *,
        end_ids: Collection[int] = (),
        alternatives: int = 0,
        logprobs: bool = False,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None if max_new_tokens else "length"
        self.steps: Iterator[tuple[list[int], Tensor]] = iter(())
        self._max_new_tokens, self._alternatives = max_new_tokens, alternatives
        self._logprobs = logprobs or alternatives > 0
        self._stops = StopFilter(stop)
        self._end_ids = end_ids
        make_decoder = getattr(tokenizer, "stream_decoder", None)
        self._decoder: Decoder = make_decoder() if make_decoder else _BytesDecoder(tokenizer)
        self._ready: list[Token] = []

    def __next__(self) -> Token:
        while not self._ready:
            if self.finish_reason is not None:
                raise StopIteration
            ids, logits = next(self.steps)
            self._ready = self.add(ids[0], logits[0])
        return self._ready.pop(0)

    def add(self, token_id: int, logits: Tensor) -> list[Token]:
        """Count one more id as drawn from `logits` (V,); return the tokens that may be shown."""
        is_end = token_id in self._end_ids
        is_last = is_end or len(self.tokens) + 1 == self._max_new_tokens
        text = "" if is_end else self._decoder.push(token_id)
        if is_last:
            text += self._decoder.finish()
        self.tokens.append(self._described(token_id, text, logits))
        shown = self._stops.push(self.tokens[-1])
        if self._stops.stopped:
            self.finish_reason = "stop"
        elif is_last:
            self.finish_reason = "eos" if is_end else "length"
            shown += self._stops.finish()
        return shown

    def _described(self, token_id: int, text: str, logits: Tensor) -> Token:
        if not self._logprobs:
            return Token(id=token_id, text=text)
        table = logits.float().log_softmax(dim=-1)  # (V,)
        top = torch.topk(table, min(self._alternatives, table.shape[0]))
        likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        logprob = float(table[token_id])
        return Token(id=token_id, text=text, logprob=logprob, alternatives=likeliest)


class TextGenerator:
    """Continues text with a model and its tokenizer, in evaluation mode.

    Successive prompts that begin alike, as the turns of a chat do, are not read again: the
    key/value cache is kept for the longest common beginning. It does not notice when weights
    change: while training, make a new TextGenerator for each sample.

    Args:
        model: the model; it is put in evaluation mode.
        tokenizer: any object with `vocab_size`, `encode` and `decode_bytes`; its
            `stream_decoder()` and `eos_id` are used where it has them. Ids that it lacks are never
            drawn, even if the model has rows for them.
        end_ids: ids that end a text besides `eos_id`, such as that of a chat's turn.

    Attributes:
        end_ids: all ids that end a text.

    Raises:
        InputError: the tokenizer has ids that the model lacks.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, end_ids: Collection[int] = ()) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
                f"{model.config.vocab_size}; use the tokenizer of the model"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        eos_id: int | None = getattr(tokenizer, "eos_id", None)
        self.end_ids = frozenset(end_ids) | frozenset(() if eos_id is None else (eos_id,))
        self._reader = Reader(self.model)

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        options: SamplingOptions | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        alternatives: int = 0,
        logprobs: bool = False,
    ) -> TextStream:
        """Start generating; iterate over the result to get tokens.

        Several streams may be read in turns; going on with the one read last is fastest.

        Args:
            prompt: text, or ids; at least one token.
            max_new_tokens: the most tokens to add.
            options: how tokens are chosen.
            stop: a string, or several, that end the text and are not part of it.
            seed: equal seeds give equal text; None draws one.
            alternatives: keep this many likeliest tokens with each `Token`.
            logprobs: keep each token's log-probability.

        Raises:
            InputError: an empty prompt, an id that the tokenizer lacks, an empty stop string, or a
                number out of range.
        """
        check_count("max_new_tokens", max_new_tokens)
        check_count("alternatives", alternatives)
        [ids] = self._encoded([prompt])
        result = TextStream(
            ids,
            max_new_tokens,
            self.tokenizer,
            stop,
            end_ids=self.end_ids,
            alternatives=alternatives,
            logprobs=logprobs,
        )
        result.steps = self._steps(self._reader, [ids], max_new_tokens, options, seed)
        return result

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        options: SamplingOptions | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> str:
        """The continuation of `prompt` as one string; arguments as in `stream`."""
        tokens = self.stream(prompt, max_new_tokens, options=options, stop=stop, seed=seed)
        return "".join(token.text for token in tokens)

    def batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        *,
        options: SamplingOptions | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> list[Completion]:
        """Continue several prompts at once, several times as fast as one after the other.

        Prompt b gets seed + b, and the text that it would get alone. The cache needs memory for
        all of them, each at the length of the longest. Arguments as in `stream`.
        """
        check_count("max_new_tokens", max_new_tokens)
        rows = self._encoded(prompts)
        replies = [
            TextStream(ids, max_new_tokens, self.tokenizer, stop, end_ids=self.end_ids)
            for ids in rows
        ]
        texts = [""] * len(rows)
        for ids, logits in self._steps(Reader(self.model), rows, max_new_tokens, options, seed):
            for number, reply in enumerate(replies):
                if reply.finish_reason is None:
                    shown = reply.add(ids[number], logits[number])
                    texts[number] += "".join(token.text for token in shown)
            if all(reply.finish_reason for reply in replies):
                break
        return [
            Completion(text, reply.prompt_ids, reply.tokens, reply.finish_reason)
            for text, reply in zip(texts, replies, strict=True)
        ]

    def _encoded(self, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        ids = [self.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
        return checked_rows(ids, self.tokenizer.vocab_size)

    def _steps(
        self,
        reader: Reader,
        rows: list[list[int]],
        max_new_tokens: int,
        options: SamplingOptions | None,
        seed: int | None,
    ) -> Iterator[tuple[list[int], Tensor]]:
        return stream(
            reader,
            [list(row) for row in rows],
            max_new_tokens,
            options=options or SamplingOptions(),
            generators=make_generators(len(rows), seed),
            vocab_size=self.tokenizer.vocab_size,
        )


class _BytesDecoder:
    """For a tokenizer without a stream decoder: whole characters from the bytes of each id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int, /) -> str:
        return self._utf8.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)
