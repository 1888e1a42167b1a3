"""How a model is asked: by its chat template, with as many old turns as fit.

What yocto-chat and yocto-serve share. A model is asked as its chat template says. One without a
template only continues text; it is given a dialogue to continue, in the form that
data/philosophy.txt has:

    User: What is time?
    Assistant: What the baker has too little of at four in the morning.

one line per speaker, and a blank line where the conversation ends. Characters that a model has
never seen are left out.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yocto_model
from yocto_data.prep.files import open_regular
from yocto_tokenizers import ChatTemplate, Segment, Tokenizer, encode_segments, template_for
from yocto_train import FoundModel, OpenedModel

from yocto_cli.command import UsageError
from yocto_cli.model_arguments import ModelArguments
from yocto_cli.models import load_generator

if TYPE_CHECKING:
    from yocto_model import TextGenerator

_LARGEST_TEMPLATE_BYTES = 8 << 20

#: A message as chat templates take it: its `role` and its `content`.
Message = dict[str, str]


def read_template(path: Path) -> ChatTemplate:
    """The chat template in a file; a `UsageError` if that cannot be read."""
    try:
        with open_regular(path) as file:
            # A larger one is refused by its length.
            source = file.read(_LARGEST_TEMPLATE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read --template {path}: {error.strerror}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--template {path} is not UTF-8 at byte {error.start}; convert it"
        ) from error
    return ChatTemplate(source, name=str(path))


def open_to_ask(
    named: ModelArguments,
    found: FoundModel | None = None,
    *,
    template: ChatTemplate | None = None,
) -> tuple[OpenedModel, "TextGenerator", ChatTemplate]:
    """The model that the flags name; texts of its generator end where replies do.

    Args:
        named: the flags.
        found: what they name, if it has been found already.
        template: is used instead of the model's own.

    Raises:
        ChatTemplateError: the model's own is no template, or one that cannot be used.
        UsageError, TrainError, TokenizerError: as `load_generator`.
    """
    opened, generator = load_generator(named, found)
    # The generator's type asks less of a tokenizer than those of yocto_tokenizers offer.
    tokenizer = cast("Tokenizer", generator.tokenizer)
    is_foreign = opened.checkpoint is None
    chosen = template or template_for(opened.template, tokenizer, pretrained=is_foreign)
    end_id = chosen.end_id(tokenizer)
    ends = generator.end_ids if end_id is None else (*generator.end_ids, end_id)
    return opened, yocto_model.TextGenerator(generator.model, tokenizer, end_ids=ends), chosen


# --- how messages become ids ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TurnParts:
    """The ids of a prompt in four parts, so that the turn to be answered can be shortened."""

    before: list[int]  # all that was said, and what announces the message; never cut
    message: list[int]  # loses its beginning first
    between: list[int]  # announces the reply; never cut
    reply: list[int]  # as far as it goes; loses its beginning last

    @property
    def ids(self) -> list[int]:
        return self.before + self.message + self.between + self.reply

    def fitted(self, n_tokens: int) -> tuple[list[int], int]:
        """The ids in at most `n_tokens`, as far as the frame allows, and how many were cut."""
        excess = len(self.ids) - n_tokens
        from_message = min(max(0, excess), len(self.message))
        from_reply = min(max(0, excess - from_message), len(self.reply))
        ids = self.before + self.message[from_message:] + self.between + self.reply[from_reply:]
        return ids, from_message + from_reply


class Layout:
    """How a model is asked: its chat template, and what follows from it.

    Args:
        template: of the model.
        tokenizer: of the model.
        n_remembered: of how many messages the ids are kept, so that a conversation that goes on is
            not encoded again for every reply.

    Attributes:
        stops: strings that end a reply.
        end_id: id that ends a reply; None where only strings do, as in plain text.
        default_system: the system text that the template writes where there is none.

    Raises:
        ChatTemplateError: the template cannot be used; its methods raise the same.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, *, n_remembered: int = 0
    ) -> None:
        self.template, self._tokenizer = template, tokenizer
        self.stops = template.stops(tokenizer)
        self.end_id = template.end_id(tokenizer)
        self.default_system = template.default_system(tokenizer)
        self._encode = lru_cache(maxsize=n_remembered)(partial(encode_known, tokenizer))
        exchange = [message("user", "?"), message("assistant", "!")]
        begins = template.segments(exchange[:1], tokenizer, add_generation_prompt=True)[-1].text
        # A space goes with the word after it: where it is no part of the prompt, the reply has it.
        spoken = template.segments(exchange, tokenizer)[-2].text
        self._lead = " " if spoken.startswith(" ") and not begins.endswith(" ") else ""

    def shown(self, text: str) -> str:
        """A user's message as the model sees it."""
        segments = self.template.segments([message("user", text)], self._tokenizer)
        return next(segment.text for segment in segments if segment.message == 0)

    def parts(self, messages: Sequence[Message]) -> TurnParts:
        """The ids that ask for a reply to the last message, or for the rest of one begun there."""
        continued = len(messages) > 1 and messages[-1]["role"] == "assistant"
        asked = messages[:-1] if continued else messages
        segments = self.template.segments(asked, self._tokenizer, add_generation_prompt=True)
        at = [segment.message for segment in segments].index(len(asked) - 1)
        reply = self._lead + messages[-1]["content"] if continued else ""
        segments.append(Segment(reply, len(asked)))
        ids = encode_segments(segments, self._tokenizer, encode=self._encode)
        return TurnParts(
            before=[*chain(*ids[:at])],
            message=ids[at],
            between=[*chain(*ids[at + 1 : -1])],
            reply=ids[-1],
        )


def message(role: str, content: str) -> Message:
    """A message as chat templates take it."""
    return {"role": role, "content": content}


def n_hidden(n_turns: int, size: Callable[[int], int], budget: int) -> int:
    """How many of the oldest turns leave, so that a prompt fits; all where none could stay.

    Args:
        n_turns: how many may leave.
        size: the tokens of the prompt without so many of the oldest turns.
        budget: the tokens that it may take.
    """
    if size(0) <= budget:
        return 0
    return bisect_left(range(n_turns), -budget, key=lambda n: -size(n))


# --- characters that a model has never seen ------------------------------------------------------


def unknown_characters(tokenizer: Tokenizer, text: str) -> list[str]:
    """The distinct characters of `text` that cannot be encoded, in order of appearance."""
    if find := getattr(tokenizer, "unknown_characters", None):
        return list(find(text))
    # A tokenizer that accepts every character still cannot encode half a surrogate pair.
    return list(dict.fromkeys(c for c in text if "\ud800" <= c <= "\udfff"))


def known_part(tokenizer: Tokenizer, text: str) -> str:
    """`text` without the characters that the tokenizer cannot encode."""
    unknown = unknown_characters(tokenizer, text)
    return text.translate({ord(character): None for character in unknown}) if unknown else text


def encode_known(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of everything in `text` that can be encoded."""
    return tokenizer.encode(known_part(tokenizer, text))
