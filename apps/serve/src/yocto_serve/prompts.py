"""From messages and texts to the ids of a prompt, or to a refusal."""

from dataclasses import dataclass
from functools import cache

from yocto_cli.asking import Message, n_hidden, unknown_characters
from yocto_cli.command import UsageError
from yocto_cli.models import prompt_ids
from yocto_tokenizers import ChatTemplateError

from yocto_serve.models import Loaded
from yocto_serve.protocol import ApiError


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """What the model is given, and what is left out."""

    ids: list[int]
    hidden: int  # the oldest messages that are left out
    unknown: str  # characters that are left out, as the model has none of them


def chat_prompt(model: Loaded, messages: list[Message], *, room: int, truncate: bool) -> ChatPrompt:
    """The prompt for a reply to the last message, or for the rest of a reply that comes last.

    Args:
        model: is asked.
        messages: of the conversation.
        room: how many tokens to leave for the reply, at most half of the window.
        truncate: whether the oldest turns leave where the window is too small; system texts stay.

    Raises:
        ApiError: the template refuses the messages, or they do not fit.
    """
    budget = model.window - (min(room, model.window // 2) if truncate else 1)
    roles = [each["role"] for each in messages]
    n_system = next((i for i, role in enumerate(roles) if role != "system"), 0)
    # A conversation may begin where the user speaks.
    starts = [i for i in range(n_system, len(roles)) if roles[i] == "user"] if truncate else []

    @cache
    def ids(n_turns: int) -> list[int]:
        """Of the prompt without so many of the oldest turns."""
        begin = starts[n_turns] if n_turns else n_system
        return model.layout.parts([*messages[:n_system], *messages[begin:]]).ids

    try:
        left = n_hidden(max(0, len(starts) - 1), lambda n: len(ids(n)), budget)
        found = ids(left)
    except ChatTemplateError as error:
        raise ApiError(str(error), param="messages") from error
    if len(found) > budget:
        raise ApiError(
            f"the messages take {len(found)} tokens, and this model has room for {budget}; shorten "
            "them" + ("" if truncate else ', or set "truncation": "auto" to drop the oldest'),
            param="messages",
            code="context_length_exceeded",
        )
    said = "".join(each["content"] for each in messages)
    return ChatPrompt(
        ids=found,
        hidden=starts[left] - n_system if left else 0,
        unknown="".join(unknown_characters(model.tokenizer, said)),
    )


def text_prompt(model: Loaded, prompt: str | list[int]) -> list[int]:
    """The ids of a prompt of a completion; an empty text becomes what texts begin with.

    Raises:
        ApiError: it holds what the model does not know, or is too long.
    """
    try:
        ids = prompt if isinstance(prompt, list) else prompt_ids(model.generator, prompt)
    except UsageError as error:
        raise ApiError(str(error), param="prompt") from error
    n_ids = model.tokenizer.vocab_size
    if wrong := [i for i in ids if not 0 <= i < n_ids]:
        message = f"prompt: {wrong[0]} is not an id; ids are from 0 to {n_ids - 1}"
        raise ApiError(message, param="prompt")
    if not 0 < len(ids) <= model.window:
        raise ApiError(
            f"the prompt has {len(ids)} tokens; this model takes 1 to {model.window}",
            param="prompt",
            code="context_length_exceeded" if ids else None,
        )
    return ids
