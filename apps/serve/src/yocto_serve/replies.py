"""How replies are written: JSON objects, and the chunks of a stream, as OpenAI's clients read them.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
from yocto_model import Token

from yocto_serve.engine import Drawn, Row
from yocto_serve.models import Loaded

Json = dict[str, Any]
_SCORED_AT_ONCE = 256  # tokens: the logits of a large vocabulary take much memory


def event(value: object) -> bytes:
    """One server-sent event (WHATWG HTML, 9.2)."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


class Writer:
    """Writes the replies to one request.

    Args:
        model: replies.
        rows: what is drawn.
        is_chat: whether they are written as chat completions, or as completions.
        trims: whether white space is left out where a reply begins.
        echoed: tokens with which the texts begin, for each text if there are any.
        n_prompt: tokens of the prompts, each counted once.
        usage: whether a stream ends with the numbers of tokens.
        notes: fields of ours, added to the end: the seed, what was left out.

    Attributes:
        texts: the tokens of each text, as they are shown.
        finishes: why each text ended; None as long as it goes on.
        n_tokens: how many were drawn.
    """

    def __init__(
        self, model: Loaded, rows: Sequence[Row], *, is_chat: bool, trims: bool = False,
        echoed: Sequence[Sequence[Token]] = (), n_prompt: int, usage: bool, notes: Json,
    ) -> None:  # fmt: skip
        self.model, self.n_prompt, self.n_tokens = model, n_prompt, 0
        self.texts: list[list[Token]] = [[*tokens] for tokens in echoed] or [[] for _ in rows]
        self.finishes: list[str | None] = [None for _ in rows]
        self._is_chat, self._trims, self._echoed = is_chat, trims, bool(echoed)
        self._logprobs, self._usage, self._notes = rows[0].logprobs, usage, notes
        self._names = {token: name for name, token in model.tokenizer.special_tokens.items()}
        self._offsets = [0 for _ in rows]  # characters whose tokens have been described
        ident = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._head = {"id": ident, "created": int(time.time()), "model": model.id}
        self._kind = "chat.completion" if is_chat else "text_completion"

    def take(self, drawn: Sequence[Drawn]) -> dict[int, list[Token]]:
        """Add what was drawn; the new tokens of each text that got any, or its end."""
        news: dict[int, list[Token]] = {each.index: [] for each in drawn}
        for each in drawn:
            text = self.texts[each.index]
            self.n_tokens += len(each.tokens)
            for token in each.tokens:
                if token.id in self.model.generator.end_ids:  # counted, and no part of the text
                    continue
                # A plain-text model writes a space after the colon, which is no part of its answer.
                if self._trims and not any(before.text for before in text):
                    token = replace(token, text=token.text.lstrip())  # noqa: PLW2901
                text.append(token)
                news[each.index].append(token)
            self.finishes[each.index] = each.finish
        return news

    # --- at once, or as a stream -----------------------------------------------------------------

    def whole(self) -> bytes:
        """The reply as one object."""
        choices = []
        for index, (tokens, finish) in enumerate(zip(self.texts, self.finishes, strict=True)):
            message = {"role": "assistant", "content": _joined(tokens), "refusal": None}
            content = {"message": message} if self._is_chat else {"text": _joined(tokens)}
            choices.append(self._choice(index, content, tokens, finish))
        body = {**self._head, "object": self._kind, "choices": choices, "usage": self._counts()}
        return msgspec.json.encode({**body, "yocto": self._notes})

    def beginning(self) -> bytes:
        """What a stream begins with: who speaks, or the prompts if they are repeated."""
        written = b""
        for index, tokens in enumerate(self.texts):
            if self._is_chat:
                delta = {"delta": {"role": "assistant", "content": ""}}
                written += self._chunk(self._choice(index, delta))
            elif self._echoed:
                written += self._chunk(self._choice(index, {"text": _joined(tokens)}, tokens))
        return written

    def chunks(self, drawn: Sequence[Drawn]) -> bytes:
        """What a stream says of what was drawn."""
        written = b""
        for index, tokens in self.take(drawn).items():
            text = _joined(tokens)
            if text or (tokens and self._logprobs):
                content = {"delta": {"content": text}} if self._is_chat else {"text": text}
                written += self._chunk(self._choice(index, content, tokens))
            if finish := self.finishes[index]:
                nothing: Json = {"delta": {}} if self._is_chat else {"text": ""}
                choice = self._choice(index, nothing, finish=finish)
                written += self._chunk(choice, yocto=self._notes)
        return written

    def ending(self) -> bytes:
        """What a stream ends with."""
        counts = event({**self._body(), "usage": self._counts()}) if self._usage else b""
        return counts + b"data: [DONE]\n\n"

    def _counts(self) -> Json:
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": self.n_prompt + self.n_tokens,
        }

    def _body(self, *choices: Json) -> Json:
        kind = f"{self._kind}.chunk" if self._is_chat else self._kind
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "object": kind, "choices": choices, **usage}

    def _chunk(self, choice: Json, **more: Any) -> bytes:
        return event(self._body(choice) | more)

    def _choice(
        self, index: int, content: Json, tokens: Sequence[Token] | None = None,
        finish: str | None = None,
    ) -> Json:  # fmt: skip
        """A text, or a part of it, with the log-probabilities of its tokens if they are given."""
        wanted = self._logprobs and tokens is not None
        logprobs = self._described(index, tokens or ()) if wanted else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}

    # --- log-probabilities -----------------------------------------------------------------------

    def _described(self, index: int, tokens: Sequence[Token]) -> Json:
        """The log-probabilities of tokens of a text: a list of tokens for chats, else columns."""
        own = [self._entry(token.id, token.logprob) for token in tokens]
        others = [[self._entry(*other) for other in token.alternatives] for token in tokens]
        if self._is_chat:
            pairs = zip(own, others, strict=True)
            content = [entry | {"top_logprobs": likely} for entry, likely in pairs]
            return {"content": content, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return {
            "tokens": [entry["token"] for entry in own],
            "token_logprobs": [entry["logprob"] for entry in own],
            "top_logprobs": [
                None if entry["logprob"] is None  # the first of a text that is echoed
                else {each["token"]: each["logprob"] for each in (*likely, entry)}
                for entry, likely in zip(own, others, strict=True)
            ],
            "text_offset": offsets,
        }  # fmt: skip

    def _entry(self, token: int, logprob: float | None) -> Json:
        """A token with its log-probability; a part of a character is named by its bytes."""
        name = self._names.get(token)
        content = self.model.tokenizer.decode_bytes([token]) if name is None else name.encode()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        return {"token": text, "logprob": logprob, "bytes": list(content)}


def _joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


@torch.no_grad()
def scored(model: Loaded, ids: Sequence[int], alternatives: int | None) -> list[Token]:
    """What `echo` repeats: the tokens of a text, with log-probabilities unless that is None."""
    decoder = model.tokenizer.stream_decoder()
    texts = [decoder.push(token) for token in ids]
    texts[-1] += decoder.finish()
    tokens = [Token(id=token, text=text) for token, text in zip(ids, texts, strict=True)]
    if alternatives is None:
        return tokens
    device = model.model.token_emb.weight.device
    x = model.model.hidden_states(torch.tensor([ids], device=device))[0]  # (T, C)
    for first in range(0, len(ids) - 1, _SCORED_AT_ONCE):
        logits = model.model.logits(x[first : first + _SCORED_AT_ONCE])[
            :, : model.tokenizer.vocab_size
        ]
        table = logits.float().log_softmax(dim=-1)
        top = torch.topk(table, min(alternatives, table.shape[-1]))
        for row, at in enumerate(range(first + 1, min(first + len(table) + 1, len(ids)))):
            likeliest = zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            logprob = float(table[row, ids[at]])
            tokens[at] = replace(tokens[at], logprob=logprob, alternatives=(*likeliest,))
    return tokens
