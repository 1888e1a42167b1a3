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
from yocto_tokenizers import Tokenizer

from yocto_serve.engine import Drawn

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """One server-sent event (WHATWG HTML, 9.2)."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


@dataclass
class Text:
    """One text of a reply, as far as it goes."""

    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


class Writer:
    """Writes the replies to one request; `ChatWriter` and `CompletionWriter` differ in the form.

    Args:
        model: the name of what replies.
        tokenizer: gives tokens their bytes.
        n_texts: how many there are.
        n_prompt: tokens of the prompts.
        logprobs: whether to say how likely each token was.
        usage: whether a stream ends with the numbers of tokens.
        notes: fields of ours, added to the end: the seed, what was left out.
    """

    kind = ""  # of the object
    chunk = ""
    prefix = ""  # of the id

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        *,
        n_texts: int,
        n_prompt: int,
        logprobs: bool = False,
        usage: bool = False,
        notes: dict[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._logprobs, self._wants_usage = tokenizer, logprobs, usage
        self.texts = [Text() for _ in range(n_texts)]
        self.n_prompt, self.notes = n_prompt, notes or {}
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._is_special = {
            ident: name for name, ident in tokenizer.special_tokens.items()
        }  # decode to nothing

    def take(self, drawn: Sequence[Drawn]) -> list[tuple[int, list[Token], str | None]]:
        """Add what was drawn; for each text that got something, its new tokens, and its end."""
        news: dict[int, list[Token]] = {}
        for each in drawn:
            text = self.texts[each.index]
            shown = [self._shown(text, token) for token in each.tokens]
            text.tokens += shown
            text.finish = each.finish
            news.setdefault(each.index, []).extend(shown)
        return [(index, tokens, self.texts[index].finish) for index, tokens in news.items()]

    def whole(self, n_tokens: int) -> bytes:
        """The reply as one object."""
        choices = [
            {
                **self._content(index, text),
                "index": index,
                "logprobs": self._likely(index, text.tokens) if self._logprobs else None,
                "finish_reason": text.finish,
            }
            for index, text in enumerate(self.texts)
        ]
        body = {**self._head, "object": self.kind, "choices": choices}
        return msgspec.json.encode({**body, "usage": self.usage(n_tokens), "yocto": self.notes})

    def beginning(self) -> bytes:
        """The first chunk of each text."""
        return b""

    def chunks(self, drawn: Sequence[Drawn]) -> bytes:
        """The chunks for what was drawn."""
        written = []
        for index, tokens, finish in self.take(drawn):
            text = "".join(token.text for token in tokens)
            if text or (tokens and self._logprobs):
                likely = self._likely(index, tokens) if self._logprobs else None
                written.append(self._chunk(index, text, likely, None))
            if finish is not None:
                written.append(self._chunk(index, None, None, finish))
        return b"".join(written)

    def ending(self, n_tokens: int) -> bytes:
        """The last chunks."""
        if not self._wants_usage:
            return DONE
        body = {**self._head, "object": self.chunk, "choices": [], "usage": self.usage(n_tokens)}
        return event(body) + DONE

    def usage(self, n_tokens: int) -> dict[str, int]:
        """How many tokens were read and drawn."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": n_tokens,
            "total_tokens": self.n_prompt + n_tokens,
        }

    def _chunk(self, index: int, text: str | None, likely: Any, finish: str | None) -> bytes:
        choice = {**self._delta(text), "index": index, "logprobs": likely, "finish_reason": finish}
        body = {**self._head, "object": self.chunk, "choices": [choice]}
        if self._wants_usage:
            body["usage"] = None
        if finish is not None:
            body["yocto"] = self.notes
        return event(body)

    def _shown(self, text: Text, token: Token) -> Token:  # noqa: ARG002 - a hook
        return token

    def _content(self, index: int, text: Text) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, text: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _likely(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        raise NotImplementedError

    def _bytes(self, ident: int) -> bytes:
        if name := self._is_special.get(ident):
            return name.encode()
        return self._tokenizer.decode_bytes([ident])


class ChatWriter(Writer):
    """Replies to POST /v1/chat/completions."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def beginning(self) -> bytes:
        """The role, once for each text."""
        return b"".join(self._chunk(index, "", None, None) for index in range(len(self.texts)))

    def _shown(self, text: Text, token: Token) -> Token:
        # A plain-text model writes a space after the colon, which is not a part of its answer.
        return token if text.text else replace(token, text=token.text.lstrip())

    def _content(self, index: int, text: Text) -> dict[str, Any]:
        del index
        return {"message": {"role": "assistant", "content": text.text, "refusal": None}}

    def _delta(self, text: str | None) -> dict[str, Any]:
        if text == "":
            return {"delta": {"role": "assistant", "content": ""}}
        return {"delta": {} if text is None else {"content": text}}

    def _likely(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        del index
        content = [
            {
                **self._entry(token.id, token.logprob),
                "top_logprobs": [self._entry(*other) for other in token.alternatives],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, ident: int, logprob: float | None) -> dict[str, Any]:
        content = self._bytes(ident)
        return {
            "token": content.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(content),
        }


class CompletionWriter(Writer):
    """Replies to POST /v1/completions."""

    kind, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(
        self, *arguments: Any, echoed: Sequence[tuple[str, list[Token]]] = (), **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        #: For each text, the prompt that is repeated in front of it and its tokens.
        self._echoed = echoed or [("", [])] * len(self.texts)
        self._offsets = [0] * len(self.texts)

    def beginning(self) -> bytes:
        """The prompts, if they are repeated."""
        return b"".join(
            self._chunk(index, text, self._likely(index, tokens) if self._logprobs else None, None)
            for index, (text, tokens) in enumerate(self._echoed)
            if text
        )

    def _content(self, index: int, text: Text) -> dict[str, Any]:
        prompt, tokens = self._echoed[index]
        text.tokens = [*tokens, *text.tokens] if self._logprobs else text.tokens
        drawn = text.text if self._logprobs and tokens else prompt + text.text
        return {"text": drawn}

    def _delta(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def _likely(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None
                if token.logprob is None
                else {self._name(i): p for i, p in (*token.alternatives, (token.id, token.logprob))}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _name(self, ident: int) -> str:
        content = self._bytes(ident)
        try:
            return content.decode()
        except UnicodeDecodeError:  # a part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
