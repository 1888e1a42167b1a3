"""How replies are written: JSON objects, and the chunks of a stream, as OpenAI's clients read them.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from yocto_model import Token

from yocto_serve.engine import Drawn, Row
from yocto_serve.models import Loaded


def event(value: object) -> bytes:
    """One server-sent event (WHATWG HTML, 9.2)."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


@dataclass
class Text:
    """One text of a reply, as far as it goes."""

    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None


class Writer:
    """Writes the replies to one request; its subclasses say in which form.

    Args:
        model: replies.
        rows: what is drawn.
        n_prompt: tokens of the prompts, each counted once.
        usage: whether a stream ends with the numbers of tokens.
        notes: fields of ours, added to the end: the seed, what was left out.
    """

    kind, chunk, prefix = "", "", ""  # names of the object, of a chunk; what an id begins with

    def __init__(
        self, model: Loaded, rows: Sequence[Row], *, n_prompt: int, usage: bool,
        notes: dict[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.n_prompt, self.n_tokens = model, n_prompt, 0
        self.texts = [Text() for _ in rows]
        self._logprobs, self._usage, self._notes = rows[0].logprobs, usage, notes
        self._names = {token: name for name, token in model.tokenizer.special_tokens.items()}
        ident = f"{self.prefix}-{secrets.token_hex(12)}"
        self._head = {"id": ident, "created": int(time.time()), "model": model.id}

    def take(self, drawn: Sequence[Drawn]) -> dict[int, list[Token]]:
        """Add what was drawn; the new tokens of each text that got any, or its end."""
        news: dict[int, list[Token]] = {}
        for each in drawn:
            text = self.texts[each.index]
            self.n_tokens += len(each.tokens)
            # The token that ends a text is counted, and is not a part of it.
            tokens = [token for token in each.tokens if token.id not in self.model.end_ids]
            shown = self._shown(text, tokens)
            news.setdefault(each.index, []).extend(shown)
            text.tokens += shown
            text.finish = each.finish
        return news

    def whole(self) -> bytes:
        """The reply as one object."""
        choices = [
            self._choice(index, self._content(index, _joined(text.tokens)), text.tokens)
            | {"finish_reason": text.finish}
            for index, text in enumerate(self.texts)
        ]
        body = {**self._head, "object": self.kind, "choices": choices, "usage": self._counts()}
        return msgspec.json.encode({**body, "yocto": self._notes})

    def beginning(self) -> bytes:
        """What a stream begins with."""
        return b""

    def chunks(self, drawn: Sequence[Drawn]) -> bytes:
        """What a stream says of what was drawn."""
        written = []
        for index, tokens in self.take(drawn).items():
            text = _joined(tokens)
            if text or (tokens and self._logprobs):
                written.append(self._chunk(self._choice(index, self._delta(text), tokens)))
            if finish := self.texts[index].finish:
                choice = self._choice(index, self._delta(None)) | {"finish_reason": finish}
                written.append(self._chunk(choice, yocto=self._notes))
        return b"".join(written)

    def ending(self) -> bytes:
        """What a stream ends with."""
        counts = event(self._body([]) | {"usage": self._counts()}) if self._usage else b""
        return counts + b"data: [DONE]\n\n"

    def _counts(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": self.n_prompt + self.n_tokens,
        }

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "object": self.chunk, "choices": choices, **usage}

    def _chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        return event(self._body([choice]) | more)

    def _choice(
        self, index: int, content: dict[str, Any], tokens: Sequence[Token] | None = None
    ) -> dict[str, Any]:
        likely = self._likely(index, tokens) if self._logprobs and tokens is not None else None
        return {"index": index, **content, "logprobs": likely, "finish_reason": None}

    def _bytes(self, token: int) -> bytes:
        if name := self._names.get(token):
            return name.encode()
        return self.model.tokenizer.decode_bytes([token])

    def _shown(self, text: Text, tokens: list[Token]) -> list[Token]:
        """New tokens of a text, as they are shown."""
        del text
        return tokens

    def _content(self, index: int, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, text: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _likely(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        raise NotImplementedError


class ChatWriter(Writer):
    """Replies to POST /v1/chat/completions; `continued` if they go on with a reply."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, *arguments: Any, continued: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._continued = continued

    def beginning(self) -> bytes:
        """The role, once for each text."""
        delta = {"delta": {"role": "assistant", "content": ""}}
        return b"".join(self._chunk(self._choice(i, delta)) for i in range(len(self.texts)))

    def _shown(self, text: Text, tokens: list[Token]) -> list[Token]:
        # A plain-text model writes a space after the colon, which is not a part of its answer.
        if self._continued or _joined(text.tokens):
            return tokens
        shown: list[Token] = []
        for token in tokens:
            begun = _joined(shown)
            shown.append(token if begun else replace(token, text=token.text.lstrip()))
        return shown

    def _content(self, index: int, text: str) -> dict[str, Any]:
        del index
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}

    def _likely(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        del index
        content = []
        for token in tokens:
            others = [self._entry(*other) for other in token.alternatives]
            content.append(self._entry(token.id, token.logprob) | {"top_logprobs": others})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        content = self._bytes(token)
        text = content.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(content)}


class CompletionWriter(Writer):
    """Replies to POST /v1/completions; each begins with its `echoed` tokens, if there are any."""

    kind, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(
        self, *arguments: Any, echoed: Sequence[Sequence[Token]] = (), **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._offsets = [0] * len(self.texts)  # characters whose tokens have been described
        self._echoed = echoed
        for text, tokens in zip(self.texts, echoed, strict=False):
            text.tokens += tokens

    def beginning(self) -> bytes:
        """The prompts, if they are repeated."""
        return b"".join(
            self._chunk(self._choice(index, self._delta(_joined(tokens)), tokens))
            for index, tokens in enumerate(self._echoed)
        )

    def _content(self, index: int, text: str) -> dict[str, Any]:
        del index
        return {"text": text}

    def _delta(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def _likely(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []
        }  # fmt: skip
        for token in tokens:
            own = (token.id, token.logprob)
            top = {self._name(other): p for other, p in (*token.alternatives, own)}
            found["tokens"].append(self._name(token.id))
            found["token_logprobs"].append(token.logprob)
            found["top_logprobs"].append(None if token.logprob is None else top)
            found["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return found

    def _name(self, token: int) -> str:
        content = self._bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:  # a part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)
