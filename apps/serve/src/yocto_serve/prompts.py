"""From messages to the ids of a prompt, by the model's chat template."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from yocto_tokenizers import ChatTemplateError, Segment, UnknownCharacterError, encode_segments

from yocto_serve.models import Loaded
from yocto_serve.protocol import ApiError

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is given, and what is left out."""

    ids: list[int]
    hidden: int = 0  # the oldest messages that are left out
    unknown: str = ""  # characters that are left out, as the model has none of them


def chat_prompt(model: Loaded, messages: Messages, *, room: int, truncate: bool) -> Prompt:
    """The prompt for a reply to the last message, or for the rest of a reply that comes last.

    Args:
        model: is asked.
        messages: of the conversation.
        room: how many tokens to leave for the reply, at most half of the window.
        truncate: whether the oldest turns leave where the window is too small; system texts stay.

    Raises:
        ApiError: the template refuses the messages, or they do not fit.
    """
    window = model.window
    budget = window - min(room, window // 2) if truncate else window - 1
    n_system = next((i for i, each in enumerate(messages) if each["role"] != "system"), 0)
    system, said = list(messages[:n_system]), list(messages[n_system:])
    ids = _encoded(model, [*system, *said])
    # A conversation may begin where the user speaks.
    starts = [i for i, each in enumerate(said) if each["role"] == "user"]
    start = 0
    if len(ids) > budget and truncate and starts:

        def size(at: int) -> int:
            return len(_encoded(model, [*system, *said[at:]]))

        found = bisect_left(starts, -budget, key=lambda at: -size(at))
        start = starts[min(found, len(starts) - 1)]
        ids = _encoded(model, [*system, *said[start:]])
    if len(ids) > budget:
        raise ApiError(
            f"the messages take {len(ids)} tokens, and this model has room for {budget}; shorten "
            "them" + ("" if truncate else ', or set "truncation": "auto" to drop the oldest'),
            param="messages",
            code="context_length_exceeded",
        )
    text = "".join(each["content"] for each in messages)
    return Prompt(ids=ids, hidden=start, unknown="".join(_unknown(model, text)))


def text_prompt(model: Loaded, prompt: str | list[int]) -> Prompt:
    """The prompt of a completion; an empty text becomes what texts begin with.

    Raises:
        ApiError: it holds what the model does not know, or is too long.
    """
    ids = prompt if isinstance(prompt, list) else _text_ids(model, prompt)
    if wrong := [i for i in ids if not 0 <= i < model.tokenizer.vocab_size]:
        last = model.tokenizer.vocab_size - 1
        raise ApiError(f"prompt: {wrong[0]} is not an id; ids are from 0 to {last}", param="prompt")
    if not 0 < len(ids) <= model.window:
        raise ApiError(
            f"the prompt has {len(ids)} tokens; this model takes 1 to {model.window}",
            param="prompt",
            code="context_length_exceeded" if ids else None,
        )
    return Prompt(ids=ids)


def _text_ids(model: Loaded, text: str) -> list[int]:
    if not text:
        begin = model.tokenizer.bos_id
        return _known_ids(model, "\n") or [0 if begin is None else begin]
    if unknown := _unknown(model, text):
        named = ", ".join(f"U+{ord(character):04X}" for character in unknown[:5])
        raise ApiError(f"the model does not know {named}; leave it out", param="prompt")
    try:
        return model.tokenizer.encode(text)
    except ValueError as error:
        raise ApiError(f"the prompt cannot be encoded: {error}", param="prompt") from error


def _encoded(model: Loaded, messages: Messages) -> list[int]:
    """The ids of a conversation whose last message is to be answered, or to be continued."""
    *before, last = messages
    continued = last["role"] == "assistant" and bool(before)
    asked = before if continued else messages
    try:
        segments = model.template.segments(asked, model.tokenizer, add_generation_prompt=True)
        if continued:
            segments.append(Segment(_lead(model, segments[-1].text) + last["content"], len(before)))
        ids = encode_segments(
            segments, model.tokenizer, encode=lambda text: _known_ids(model, text)
        )
    except ChatTemplateError as error:
        raise ApiError(str(error), param="messages") from error
    return [*chain(*ids)]


def _lead(model: Loaded, begins: str) -> str:
    """The space in front of a reply, where the template writes one that the prompt lacks."""
    exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    spoken = model.template.segments(exchange, model.tokenizer)[-2].text
    return " " if spoken.startswith(" ") and not begins.endswith(" ") else ""


def _known_ids(model: Loaded, text: str) -> list[int]:
    """The ids of everything in a text that can be encoded."""
    unknown = _unknown(model, text)
    known = text.translate({ord(character): None for character in unknown}) if unknown else text
    try:
        return model.tokenizer.encode(known)
    except UnknownCharacterError:
        return []


def _unknown(model: Loaded, text: str) -> list[str]:
    """The characters of a text that cannot be encoded."""
    if find := getattr(model.tokenizer, "unknown_characters", None):
        return list(find(text))
    return list(dict.fromkeys(c for c in text if "\ud800" <= c <= "\udfff"))
