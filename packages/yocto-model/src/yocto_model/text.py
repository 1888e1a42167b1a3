"""TextGenerator: a prompt in, pieces of text out as they are made."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from yocto_model.errors import InputError
from yocto_model.generation import (
    Context,
    Step,
    check_count,
    checked_rows,
    make_generators,
    stream,
)
from yocto_model.gpt import GPT
from yocto_model.sampling import SamplingOptions

FinishReason = Literal["length", "stop", "eos"]


class Decoder(Protocol):
    """Turns ids into text one at a time."""

    def push(self, token: int, /) -> str:
        """The text that is complete after this id."""
        ...

    def finish(self) -> str:
        """What is left at the end."""
        ...


class Tokenizer(Protocol):
    """The part of a tokenizer that generation needs; any object with it will do."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def encode(self, text: str, /) -> list[int]:
        """Text to ids."""
        ...

    def decode_bytes(self, ids: Sequence[int], /) -> bytes:
        """Ids to UTF-8 bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token that was drawn.

    Attributes:
        id: its id.
        text: the characters it completed; empty while a character is still incomplete.
        logprob: natural log-probability before any filter, if asked for.
        alternatives: the likeliest (id, logprob) at this place, if asked for.
    """

    id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class StopFilter:
    """Lets text through until one of some strings appears, which is never let out.

    A tail that could still become a stop string is held back, and no more than that. Where stops
    overlap, the one that is complete first counts, so it does not matter how the text is cut up.

    Args:
        stops: one string or several; none lets everything through.

    Raises:
        InputError: a stop string is empty.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(self.stops):
            raise InputError("a stop string must not be empty")
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text; return what is safe to show."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((self._overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and will not become a stop string after all."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if stop.startswith(text[-length:]):
                return length
        return 0


class TextStream(Iterator[str]):
    """Pieces of text as they are made; afterwards, what was made and why it ended.

    Each token gives a piece, an empty one where it completes no character, is a special token or
    may begin a stop string; what was held back to the end comes as one more.

    Attributes:
        prompt_ids: the ids that were continued.
        tokens: every token drawn so far.
        finish_reason: None while running; "length", "stop" (a stop string) or "eos".
        pieces: where the text comes from.
    """

    def __init__(self, prompt_ids: list[int]) -> None:
        self.prompt_ids = prompt_ids
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self.pieces: Iterator[str] = iter(())

    def __next__(self) -> str:
        return next(self.pieces)


class TextGenerator:
    """Continues text with a model and its tokenizer, in evaluation mode.

    Successive prompts that begin alike, as the turns of a chat do, are not read again: the
    key/value cache is kept for the longest common beginning. It knows nothing of weights that
    change: while training, make a new TextGenerator for each sample.

    Args:
        model: the model; it is put in evaluation mode.
        tokenizer: any object with `vocab_size`, `encode` and `decode_bytes`; its
            `stream_decoder()` and `eos_id` are used where it has them.

    Raises:
        InputError: the tokenizer has ids that the model has not.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model "
                f"{model.config.vocab_size}; they do not belong together"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._context: Context | None = None
        self._reader: TextStream | None = None  # whose text the context holds

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
        """Start generating; iterate over the result to get text.

        Several streams may be read in turns; going on with the one read last is fastest.

        Args:
            prompt: text, or ids; at least one token.
            max_new_tokens: how many tokens at most.
            options: how tokens are chosen.
            stop: a string, or several, that end the text and are not part of it.
            seed: equal seeds give equal text; None draws one.
            alternatives: keep this many likeliest tokens with each `Token`.
            logprobs: keep each token's log-probability.

        Raises:
            InputError: an empty prompt, an id that the tokenizer has not, an empty stop string, or
                a number out of range.
        """
        check_count("max_new_tokens", max_new_tokens)
        check_count("alternatives", alternatives)
        prompt_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        [ids] = checked_rows([prompt_ids], self.tokenizer.vocab_size)
        generators, stops = make_generators(1, seed), StopFilter(stop)
        if self._context is None:
            self._context = Context(self.model, [ids])
        steps = stream(
            self._context,
            max_new_tokens,
            options=options or SamplingOptions(),
            generators=generators,
            vocab_size=self.tokenizer.vocab_size,
        )
        result = TextStream(ids)
        steps = self._in_turns(result, self._context, steps)
        result.pieces = self._pieces(result, steps, stops, alternatives, logprobs)
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
        return "".join(self.stream(prompt, max_new_tokens, options=options, stop=stop, seed=seed))

    def _in_turns(
        self, result: TextStream, context: Context, steps: Iterator[Step]
    ) -> Iterator[Step]:
        """The steps, each with the context set to this stream if another one has used it."""
        while True:
            if self._reader is not result:
                context.restart([*result.prompt_ids, *(token.id for token in result.tokens)])
                self._reader = result
            step = next(steps, None)
            if step is None:
                return
            yield step

    def _pieces(
        self,
        result: TextStream,
        steps: Iterator[Step],
        stops: StopFilter,
        alternatives: int,
        logprobs: bool,
    ) -> Iterator[str]:
        eos_id = getattr(self.tokenizer, "eos_id", None)
        decoder = self._decoder()
        for step in steps:
            token = step.ids[0]
            text = decoder.push(token)
            result.tokens.append(describe(step, text, alternatives, logprobs))
            if token == eos_id:
                result.finish_reason = "eos"
                break
            yield stops.push(text)  # an empty piece too: the reader may leave after any token
            if stops.stopped:
                result.finish_reason = "stop"
                return
        rest = stops.push(decoder.finish())
        rest += stops.finish()
        result.finish_reason = result.finish_reason or ("stop" if stops.stopped else "length")
        if rest:
            yield rest

    def _decoder(self) -> Decoder:
        make = getattr(self.tokenizer, "stream_decoder", None)
        decoder: Decoder = make() if make is not None else _BytesDecoder(self.tokenizer)
        return decoder


def describe(step: Step, text: str, alternatives: int, logprobs: bool) -> Token:
    """The `Token` of a step of one row."""
    token = step.ids[0]
    if not alternatives and not logprobs:
        return Token(id=token, text=text)
    table = step.logits[0].float().log_softmax(dim=-1)  # (V,)
    top = torch.topk(table, min(alternatives, table.shape[0]))
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Token(id=token, text=text, logprob=float(table[token]), alternatives=tuple(likeliest))


class _BytesDecoder:
    """For a tokenizer without a stream decoder: whole characters from the bytes of each id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int, /) -> str:
        return self._utf8.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)
