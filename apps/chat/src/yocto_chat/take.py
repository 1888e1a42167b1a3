"""Take: one reply while it is drawn, and what is known about it afterwards.

As in film, /retry makes another take of the same scene.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yocto_cli.sampling_arguments import SamplingArguments
from yocto_model import StopFilter, Token

from yocto_chat.chat_model import ChatModel
from yocto_chat.conversation import Finish, Prompt

#: How many of the likeliest tokens are kept at each place of a take.
ALTERNATIVES = 8


@dataclass(frozen=True)
class Span:
    """A piece of a reply that one token made; `token` is its index in the take."""

    text: str
    token: int
    logprob: float | None = None


class Take(Iterator[list[Span]]):
    """Draws a reply; iterating gives what it says, piece by piece, some of them empty.

    Stop strings are looked for here and not by the speaker: the beginning of one may lie in the
    tokens that are kept, and an iteration per token lets Ctrl-C be noticed at every one.

    Args:
        model: who speaks.
        prompt: what it is given.
        settings: how tokens are drawn.
        seed: equal seeds give equal replies to equal prompts.
        stops: strings that end the reply.
        begins_line: whether white space at the front is to be left out.
        kept: the tokens that the reply is to begin with.

    Attributes:
        prompt: the same.
        settings: the same.
        seed: the same.
        spans: what has been said.
        finish: why it ended; None while it goes on.
        seconds: how long it took.
        seconds_to_first: how long it took until the first character; None if there was none.
    """

    def __init__(
        self,
        model: ChatModel,
        prompt: Prompt,
        *,
        settings: SamplingArguments,
        seed: int,
        stops: Sequence[str],
        begins_line: bool,
        kept: Sequence[Token] = (),
    ) -> None:
        self.prompt, self.settings, self.seed = prompt, settings, seed
        self.spans: list[Span] = []
        self.finish: Finish | None = None
        self.seconds = 0.0
        self.seconds_to_first: float | None = None
        self._filter = StopFilter((*stops, *settings.stop))
        self._at_beginning = begins_line
        self._kept = tuple(kept)
        self._token, self._offset = 0, 0  # how far into the tokens' text what was said reaches
        self._started = time.perf_counter()
        self._stream = model.speaker.stream(
            [*prompt.ids, *(token.id for token in kept)],
            max(0, prompt.room - len(kept)),
            options=settings.options(),
            stop=(),
            seed=seed,
            alternatives=ALTERNATIVES,
            logprobs=True,
        )
        self.spans = self._spans(self._filter.push("".join(token.text for token in kept)))
        if self._filter.stopped:
            self._end("stop")

    @property
    def tokens(self) -> Sequence[Token]:
        """Every token of the reply, those of a stop string too."""
        return [*self._kept, *self._stream.tokens] if self._kept else self._stream.tokens

    @property
    def text(self) -> str:
        """What has been said."""
        return "".join(span.text for span in self.spans)

    @property
    def context_tokens(self) -> int:
        """How much of the window prompt and reply take."""
        return len(self.prompt.ids) + len(self.tokens)

    @property
    def n_drawn(self) -> int:
        """How many tokens were drawn, as against kept."""
        return len(self._stream.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Tokens drawn per second, reading the prompt included."""
        return self.n_drawn / self.seconds if self.seconds else 0.0

    def stop(self) -> None:
        """End it here; what was said stays."""
        self._end("stopped")

    def __next__(self) -> list[Span]:
        if self.finish is not None:
            raise StopIteration
        piece = next(self._stream, None)
        text = self._last_text() if piece is None else self._filter.push(piece)
        spans = self._spans(text)
        self.seconds = time.perf_counter() - self._started
        if spans:
            self.seconds_to_first = self.seconds_to_first or self.seconds
            self.spans += spans
        if piece is None or self._filter.stopped:
            self._end(self._reason())
        return spans

    def _end(self, finish: Finish) -> None:
        self.finish = finish
        self.seconds = time.perf_counter() - self._started

    def _reason(self) -> Finish:
        if self._filter.stopped or self._stream.finish_reason == "eos":
            return "stop"
        return "window" if self.prompt.room_is_window else "limit"

    def _last_text(self) -> str:
        """What was held back, unless the reply was cut amid what would have ended it."""
        text = self._filter.finish()
        cut = self._stream.finish_reason == "length"
        return "" if cut and any(stop.startswith(text) for stop in self._filter.stops) else text

    def _spans(self, piece: str) -> list[Span]:
        """The piece cut where one token ends and the next begins."""
        tokens, spans = self.tokens, []
        while piece and tokens:
            token = tokens[self._token]
            # Half a character at the very end is made up for by the decoder: no token's text.
            is_last = self._token == len(tokens) - 1
            left = len(piece) if is_last else len(token.text) - self._offset
            text, piece = piece[:left], piece[left:]
            spans.append(Span(text, self._token, token.logprob))
            self._offset += len(text)
            if piece:
                self._token, self._offset = self._token + 1, 0
        return self._without_margin(spans)

    def _without_margin(self, spans: list[Span]) -> list[Span]:
        """Without empty spans, and without white space at the beginning of the reply."""
        shown = []
        for span in spans:
            text = span.text.lstrip() if self._at_beginning else span.text
            if text:
                self._at_beginning = False
                shown.append(Span(text, span.token, span.logprob))
        return shown
