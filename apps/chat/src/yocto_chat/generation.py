"""Generation: one reply while it is drawn, and what is known about it afterwards."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yocto_model
from yocto_cli.asking import Layout, open_to_ask
from yocto_cli.model_arguments import ModelArguments, SamplingArguments
from yocto_cli.models import model_line, replaced_dtype
from yocto_tokenizers import PLAIN, ChatTemplate, Tokenizer
from yocto_train import FoundModel

from yocto_chat.conversation import Finish, Prompt

if TYPE_CHECKING:
    from yocto_model import TextGenerator, TextStream, Token

#: How many of the likeliest tokens are kept at each place of a reply.
ALTERNATIVES = 8


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A model to talk to, and what is shown about it."""

    generator: "TextGenerator"
    tokenizer: Tokenizer
    block_size: int
    name: str  # of its run, its folder or its file
    line: str  # says which model it is
    n_parameters: int
    step: int | None = None  # None for a model that comes from elsewhere
    template: ChatTemplate = field(default_factory=lambda: ChatTemplate(PLAIN))
    run: Path | None = None
    sha256: str | None = None  # of the weights: it identifies the model in a saved conversation
    remarks: tuple[str, ...] = ()  # on how it was opened


def open_model(
    named: ModelArguments, found: FoundModel, *, template: ChatTemplate | None = None
) -> ChatModel:
    """The model that the flags name; arguments and errors are those of `open_to_ask`."""
    opened, generator, chosen = open_to_ask(named, found, template=template)
    replaced, checkpoint = replaced_dtype(named.dtype, generator), opened.checkpoint
    saved: dict[str, Any] = {}
    if checkpoint is not None:
        weights = checkpoint.manifest.files["model.safetensors"]
        saved = {"step": checkpoint.step, "run": checkpoint.run, "sha256": weights.sha256}
    return ChatModel(
        generator=generator,
        tokenizer=cast("Tokenizer", generator.tokenizer),
        block_size=generator.model.config.block_size,
        name=opened.name,
        line=model_line(opened, generator),
        n_parameters=generator.model.config.n_parameters,
        template=chosen,
        remarks=(*opened.notes, *([replaced] if replaced else [])),
        **saved,
    )


class Generation:
    """A reply: `run` draws it.

    Stop strings are looked for here and not by the generator: the beginning of one may lie in the
    tokens that are kept, and Ctrl-C is noticed at every token, even one that is held back.

    Args:
        model: draws it.
        prompt: what the model is given.
        layout: of the prompt; its stop strings end the reply.
        settings: how tokens are drawn.
        seed: equal seeds give equal replies to equal prompts.
        onward: where the window is full, gets what the reply says so far and how many tokens may
            follow; the prompt with which it goes on.
        before: what the reply already says, when it is continued.
        kept: the tokens to begin with.

    Attributes:
        shown: the tokens that were shown, each with the part of its text that was shown.
        finish: why it ended.
        seconds: how long it took.
        seconds_to_first: how long it took until the first character; None if there was none.
    """

    def __init__(
        self,
        model: ChatModel,
        prompt: Prompt,
        layout: Layout,
        *,
        settings: SamplingArguments,
        seed: int,
        onward: Callable[[str, int], Prompt],
        before: str = "",
        kept: "Sequence[Token]" = (),
    ) -> None:
        self.prompt, self.seed, self.before = prompt, seed, before
        self.shown: list[Token] = []
        self.finish: Finish = "stopped"
        self.seconds = 0.0
        self.seconds_to_first: float | None = None
        self._filter = yocto_model.StopFilter((*layout.stops, *settings.stop))
        # A plain-text model writes a space after the colon, which is not a part of its answer.
        self._trims_front = not before
        self._model, self._settings, self._onward = model, settings, onward
        self._kept = list(kept)
        self._earlier: list[Token] = []  # of the streams before this one
        self._stream = self._begun([*prompt.ids, *(token.id for token in kept)], prompt.room)

    def _begun(self, ids: list[int], room: int) -> "TextStream":
        """A stream of as many tokens as there are room and leave for."""
        self._n_given = len(ids)
        return self._model.generator.stream(
            ids,
            max(0, min(room, self._settings.max_new_tokens - len(self._earlier)) - len(self._kept)),
            options=self._settings.options(),
            seed=(self.seed + len(self._earlier)) % 2**63,  # another where the window was full
            alternatives=ALTERNATIVES,
            logprobs=True,
        )

    @property
    def tokens(self) -> "Sequence[Token]":
        """Every token of the reply, including those of a stop string."""
        return [*self._kept, *self._earlier, *self._stream.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.shown)

    @property
    def context_tokens(self) -> int:
        """How much of the window prompt and reply take."""
        return self._n_given + len(self._stream.tokens)

    @property
    def n_drawn(self) -> int:
        """How many tokens were drawn; those that were kept do not count."""
        return len(self._earlier) + len(self._stream.tokens)

    def run(
        self,
        write: "Callable[[Token], object]",
        *,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Draw the reply and `write` each token as it is shown, until `interrupted` says stop.

        Whatever ends it, what was said stays.

        Raises:
            ModelError: the model could not go on.
        """
        self._started = time.perf_counter()
        try:
            for token in self._drawn():
                self._show(self._filter.push(token), write)
                if ended := self._filter.stopped or token.id in self._model.generator.end_ids:
                    break
                if interrupted():
                    return
            else:
                ended = self._stream.finish_reason != "length"
            self._show(self._filter.finish(torn=not ended), write)
            self.finish = "stop" if ended else "limit"
        finally:
            self.seconds = time.perf_counter() - self._started

    def _drawn(self) -> "Iterator[Token]":
        """The tokens, one after the other; where the window is full, the oldest turns leave it."""
        yield from self._kept
        while True:
            yield from self._stream
            left = self._settings.max_new_tokens - len(self.tokens)
            if left <= 0 or self._stream.finish_reason != "length":
                return
            text = "".join(token.text for token in self.tokens)
            prompt = self._onward(self.before + (text if self.before else text.lstrip()), left)
            self._earlier = [*self._earlier, *self._stream.tokens]
            self._stream = self._begun(prompt.ids, prompt.room + len(self._kept))

    def _show(self, tokens: "Sequence[Token]", write: "Callable[[Token], object]") -> None:
        for token in tokens:
            if self._trims_front:
                token = replace(token, text=token.text.lstrip())  # noqa: PLW2901
                self._trims_front = not token.text
            if token.text and self.seconds_to_first is None:
                self.seconds_to_first = time.perf_counter() - self._started
            self.shown.append(token)
            write(token)
