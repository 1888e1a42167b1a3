"""OpenAI's protocol: what requests hold, and what is refused.

https://platform.openai.com/docs/api-reference: chat completions and (legacy) completions, with the
fields that other servers add: top_k, min_p, repetition_penalty. Unknown fields are ignored, those
that would change the text and are not offered are refused by name. Null is as good as no value.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from yocto_cli.asking import Message
from yocto_model import SamplingError, SamplingOptions

MOST_TEXTS = 16  # of one request

# Fields that change the text and are not offered, and the value that changes nothing.
_NOT_OFFERED: Mapping[str, object] = {
    "tools": [],
    "functions": [],
    "response_format": {"type": "text"},
    "logit_bias": {},
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "suffix": "",
    "best_of": 1,
    "modalities": ["text"],
    "audio": None,
}
_INSTEAD = {
    "frequency_penalty": "use repetition_penalty",
    "presence_penalty": "use repetition_penalty",
    "best_of": "use n",
}

Likeliest = Annotated[int, Meta(ge=0, le=20)]
Seed = Annotated[int, Meta(ge=-(1 << 63), lt=(1 << 63) - MOST_TEXTS)]
Stop = Annotated[str, Meta(max_length=1_000)]
T = TypeVar("T", bound="CommonRequest")


class ApiError(Exception):
    """What a client did wrong, or what went wrong here, as the protocol says it.

    Args:
        message: what, where, what to do.
        status: of HTTP; from 500 on, the client did nothing wrong.
        param: the field that is wrong.
        code: a word that programs look for.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}


# --- requests ------------------------------------------------------------------------------------


class Part(Struct):
    """A part of what is said in a message."""

    type: Literal["text", "input_text"]
    text: str


class Said(Struct):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class CommonRequest(Struct, kw_only=True):
    """What requests for chats and for completions share."""

    model: str = ""
    temperature: float
    top_p: float = 1
    top_k: int = 0
    min_p: float = 0
    repetition_penalty: float = 1
    seed: Seed = msgspec.field(default_factory=lambda: secrets.randbelow(1 << 31))
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] = ""
    n: Annotated[int, Meta(ge=1, le=MOST_TEXTS)] = 1
    stream: bool = False
    stream_options: dict[str, Any] = {}

    def options(self) -> SamplingOptions:
        """How tokens are drawn."""
        try:
            return SamplingOptions(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=max(0, self.top_k),  # -1 is off elsewhere
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
            )
        except SamplingError as error:
            raise ApiError(str(error), param=str(error).split()[0]) from error

    def stops(self) -> tuple[str, ...]:
        """The strings that end the text."""
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop))


class ChatRequest(CommonRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Said], Meta(min_length=1, max_length=10_000)]
    temperature: float = 0.2  # as in yocto-chat; the protocol's 1 is much for a small model
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    logprobs: bool = False
    top_logprobs: Likeliest = 0
    truncation: Literal["auto", "disabled"] = "disabled"

    @property
    def likeliest(self) -> int | None:
        """How many tokens to tell at each place; None where no probabilities are asked for."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs", param="top_logprobs")
        return self.top_logprobs if self.logprobs else None

    def plain_messages(self) -> list[Message]:
        """The messages as chat templates take them."""
        return [_plain(said, number) for number, said in enumerate(self.messages)]


class CompletionRequest(CommonRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    temperature: float = 0.8  # as in yocto-sample
    max_tokens: Annotated[int, Meta(ge=0, le=1 << 31)] = 16
    logprobs: Likeliest | None = None
    echo: bool = False

    @property
    def likeliest(self) -> int | None:
        """The same."""
        return self.logprobs

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
    given = {name: value for name, value in body.items() if value is not None}
    for name, neutral in _NOT_OFFERED.items():
        if given.get(name, neutral) != neutral:
            instead = _INSTEAD.get(name, "leave it out")
            message = f"{name} is not offered by this server; {instead}"
            raise ApiError(message, param=name, code="unsupported_parameter")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        found = re.search(r"`\$\.(\w+)|field `(\w+)`", str(error))
        message = str(error).replace("`$.", "`").replace("Object missing", "missing the")
        raise ApiError(message, param=found and (found[1] or found[2])) from error


def _plain(said: Said, number: int) -> Message:
    """A message as chat templates take it."""
    content = said.content or ""
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    if said.role != "assistant" and not content.strip():
        raise ApiError(f"messages[{number}] is empty; say something", param="messages")
    return {"role": "system" if said.role == "developer" else said.role, "content": content}
