"""OpenAI's protocol: what requests hold, what is refused, how replies are written.

https://platform.openai.com/docs/api-reference: chat completions and (legacy) completions, with the
fields that other servers add: top_k, min_p, repetition_penalty. Unknown fields are ignored, those
that would change the text and are not offered are refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from yocto_model import SamplingError, SamplingOptions

MOST_TEXTS = 16  # of one request

# Fields that change the text and are not offered, and the values that change nothing.
_NOT_OFFERED: Mapping[str, Sequence[object]] = {
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "modalities": (None, ["text"]),
    "audio": (None,),
}
_INSTEAD = {
    "frequency_penalty": "use repetition_penalty",
    "presence_penalty": "use repetition_penalty",
    "best_of": "use n",
}

Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Stop = Annotated[str, Meta(max_length=1_000)]
Seed = Annotated[int, Meta(ge=-(1 << 63), lt=(1 << 63) - MOST_TEXTS)]
T = TypeVar("T", bound="CommonRequest")


class ApiError(Exception):
    """What a client did wrong, or what went wrong here, as the protocol says it.

    Args:
        message: what, where, what to do.
        status: of HTTP.
        kind: the protocol's `type`.
        param: the field that is wrong.
        code: a word that programs look for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code

    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        said = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": said}


# --- requests ------------------------------------------------------------------------------------


class Part(Struct):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(Struct):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    """How a reply is streamed."""

    include_usage: bool | None = None


class CommonRequest(Struct, kw_only=True):
    """What requests for chats and for completions share."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_TEXTS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def options(self, temperature: float) -> SamplingOptions:
        """How tokens are drawn; `temperature` where the request does not say."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),  # -1 is off elsewhere
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        try:
            return SamplingOptions(**{"temperature": temperature, **chosen})
        except SamplingError as error:
            raise ApiError(str(error), param=str(error).split()[0]) from error

    def stops(self) -> tuple[str, ...]:
        """The strings that end the text."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, stops))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(CommonRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of a reply."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_alternatives(self) -> int:
        """How many of the likeliest tokens are told at each place."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs", param="top_logprobs")
        return self.top_logprobs or 0

    def plain_messages(self) -> list[dict[str, str]]:
        """Role and text of each message."""
        return [_plain(message, number) for number, message in enumerate(self.messages)]


class CompletionRequest(CommonRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts: texts, or rows of ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        if ids and len(ids) == len(self.prompt):
            return [ids]
        if ids or not self.prompt:
            raise ApiError("prompt must be a text, ids, or a list of one of these", param="prompt")
        return [each for each in self.prompt if not isinstance(each, int)]


def parsed(kind: type[T], content: bytes) -> T:
    """A request's body.

    Raises:
        ApiError: it is not JSON, a field is missing or wrong, or it asks for what is not offered.
    """
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    for name, neutral in _NOT_OFFERED.items():
        if name in body and body[name] not in neutral:
            instead = _INSTEAD.get(name, "leave it out")
            message = f"{name} is not offered by this server; {instead}"
            raise ApiError(message, param=name, code="unsupported_parameter")
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        found = re.search(r"`\$\.(\w+)|field `(\w+)`", str(error))
        message = str(error).replace("`$.", "`").replace("Object missing", "missing the")
        raise ApiError(message, param=found and (found[1] or found[2])) from error


def _plain(message: Message, number: int) -> dict[str, str]:
    """A message as chat templates take it."""
    where = f"messages[{number}]"
    if message.role in ("tool", "function"):
        raise ApiError(
            f"{where}: tools are not offered by this server, so there is no role {message.role}",
            param="messages",
        )
    parts = message.content or ""
    if not isinstance(parts, str):
        others = {part.type for part in parts if part.type not in ("text", "input_text")}
        if others:
            kinds = ", ".join(sorted(others))
            raise ApiError(f"{where}: only text can be read, not {kinds}", param="messages")
        parts = "\n".join(part.text or "" for part in parts)
    if message.role != "assistant" and not parts.strip():
        raise ApiError(f"{where} is empty; say something", param="messages")
    return {"role": "system" if message.role == "developer" else message.role, "content": parts}
