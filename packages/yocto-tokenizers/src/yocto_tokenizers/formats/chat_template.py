r"""How a model is asked: its chat template, by which a conversation becomes ids.

A chat template is a Jinja text (`chat_template.jinja` in a Hugging Face folder) that writes
messages as the model saw them in training. It is rendered as Hugging Face `transformers` does it,
in a sandbox, and cut at the messages. Names in the template's own text become special tokens, names
in a message never do: nobody's message can end a turn or speak for somebody else.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.errors import ChatTemplateError, shown
from yocto_tokenizers.formats.sandbox import compiled, render

#: A line per speaker, as in data/philosophy.txt. A reply of verse keeps its lines.
PLAIN = r"""
{%- for message in messages -%}
    {%- set text = message.content | trim -%}
    {%- set line = text.split("\n") | map("trim") | select | join(" ") -%}
    {%- if message.role == "system" -%}
        {{ text + "\n\n" }}
    {%- elif message.role == "user" -%}
        {{ "User: " + line + "\n" }}
    {%- elif "\n\n" in text or "\nUser:" in text or "\nAssistant:" in text -%}
        {{ "Assistant: " + line + "\n" }}
    {%- else -%}
        {{ "Assistant: " + text + "\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "Assistant:" }}
{%- endif -%}
"""

#: Ours for models that learn chats: short, as windows are. llama.cpp and ollama know its end.
TURNS = """
{%- for message in messages -%}
    {{ "<|" + message.role + "|>" + message.content | trim + "<|im_end|>" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<|assistant|>" }}
{%- endif -%}
"""

#: https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
CHATML = r"""
{%- for message in messages -%}
    {{ "<|im_start|>" + message.role + "\n" + message.content | trim + "<|im_end|>\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<|im_start|>assistant\n" }}
{%- endif -%}
"""

_LARGEST_CHARACTERS = 1 << 20
_MARK = "\ue000"  # for private use (Unicode 23.5): no text means anything by it
#: Role and content, as `{"role": "user", "content": "Hi"}`.
Message = Mapping[str, str]


class Segment(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    message: int | None  # the index of the message that says it; None for the template's own text


class ChatTemplate:
    """A chat template. Every message is stripped, as most templates do.

    Args:
        source: the Jinja text.
        name: what errors call it.

    Raises:
        ChatTemplateError: it is not a Jinja template.
    """

    def __init__(self, source: str, *, name: str = "the chat template"):
        self.source, self.name = source, name
        self._frames: dict[tuple[object, ...], list[str]] = {}
        self._tokens: dict[BaseTokenizer, dict[str, str]] = {}
        if len(source) > _LARGEST_CHARACTERS:
            raise ChatTemplateError(
                f"{name} has {len(source)} characters, more than any template needs "
                f"({_LARGEST_CHARACTERS}); give another"
            )
        try:
            self._template = compiled(source, is_foreign=source not in (PLAIN, TURNS, CHATML))
        except Exception as error:  # Python's limits on nested code, too, as Jinja compiles to it
            raise ChatTemplateError(
                f"{name} is not a Jinja template ({shown(str(error))}); correct it or give another"
            ) from error

    def segments(
        self,
        messages: Sequence[Message],
        tokenizer: BaseTokenizer,
        *,
        add_generation_prompt: bool = False,
    ) -> list[Segment]:
        """The conversation in parts, which joined are the rendered text.

        The template's own text, which may be empty, and messages by turns; own text comes first and
        last. A space in front of a message belongs to the message: tokenizers join it with a word.

        Args:
            messages: what was said.
            tokenizer: names `bos_token`, `eos_token` and so on for the template.
            add_generation_prompt: end where the model's reply begins.

        Raises:
            ChatTemplateError: the template refuses the messages, leaves one out, or changes with
                what one of them says.
        """
        contents = [message["content"].strip() for message in messages]
        mark = _MARK
        while any(mark in content for content in contents):
            mark += _MARK
        marks = [f"{mark}{index}{mark}" for index in range(len(contents))]

        def rendered(texts: Sequence[str]) -> str:
            said = [{**message, "content": text}
                    for message, text in zip(messages, texts, strict=True)]  # fmt: skip
            return self._rendered(said, tokenizer, add_generation_prompt)

        # Own text and index by turns, with marks in place of the messages. This is the same for all
        # conversations of as many turns, unless the template tells the time.
        pattern = re.compile(f"{mark}([0-9]+){mark}")
        key = (*(message["role"] for message in messages), add_generation_prompt, mark, tokenizer)
        frame = self._frames.get(key) or pattern.split(rendered(marks))
        if "strftime_now" not in self.source and len(self._frames) < 256:
            self._frames[key] = frame
        owns, order = frame[::2], list(map(int, frame[1::2]))
        if left_out := set(range(len(contents))).difference(order):
            role = messages[min(left_out)]["role"]
            raise ChatTemplateError(f"{self.name} leaves out what the {role} says; give another")
        said = [contents[index] for index in order]
        whole = "".join(chain(*zip(owns, said, strict=False), owns[-1:]))
        # Ours are known to write messages as they are; of others each conversation is looked at.
        if self.source not in (TURNS, CHATML) and whole != (whole := rendered(contents)):
            # What a template makes of a message, such as one line, stands between the same own text
            # and a mark behind the message.
            ended = [text + end for text, end in zip(contents, marks, strict=True)]
            filled = pattern.split(rendered(ended))[::2]
            said = [text[len(own) :] for own, text in zip(owns, filled, strict=False)]
        found: list[Segment] = []
        for own, text, index in zip(owns, said, order, strict=False):
            space = " " if own.endswith(" ") else ""
            found += (Segment(own.removesuffix(space), None), Segment(space + text, index))
        found.append(Segment(owns[-1], None))
        if "".join(segment.text for segment in found) != whole:
            raise ChatTemplateError(
                f"{self.name} changes with what a message says, so that it cannot be told from the "
                "template's own text; say it in other words, or give another template"
            )
        return found

    def end_id(self, tokenizer: BaseTokenizer) -> int | None:
        """Id of the special token that ends a reply; None if none does, as in plain text."""
        [ids] = encode_segments([self._after_reply(tokenizer)], tokenizer, encode=lambda _text: [])
        return ids[0] if ids else None

    def stops(self, tokenizer: BaseTokenizer) -> tuple[str, ...]:
        """Strings that end a reply where no token does: how the next speaker is announced."""
        if self.end_id(tokenizer) is not None:
            return ()
        after = self._after_reply(tokenizer).text
        asked = self.segments([_USER], tokenizer, add_generation_prompt=True)[-1].text
        # Where a speaker takes a line, a blank line is the end of the conversation.
        is_by_line = after.startswith("\n") and not after.startswith("\n\n")
        stops = ["\n\n" * is_by_line, after.rstrip() or after, asked.rstrip()]
        return tuple(dict.fromkeys(filter(None, stops)))

    def default_system(self, tokenizer: BaseTokenizer) -> str:
        """The system text that the template itself writes where a conversation has none."""
        try:
            before, said, between, *_ = self.segments([_SYSTEM, _USER], tokenizer)
            alone = self.segments([_USER], tokenizer)[0].text
        except ChatTemplateError:  # it knows no system text
            return ""
        head = before.text + said.text.removesuffix(_SYSTEM["content"])
        is_written = said.message == 0 and len(alone) > len(head) + len(between.text)
        if not (is_written and alone.startswith(head) and alone.endswith(between.text)):
            return ""
        return alone[len(head) : len(alone) - len(between.text)].strip()

    def _after_reply(self, tokenizer: BaseTokenizer) -> Segment:
        """What stands between a reply and the next message."""
        segments = self.segments([_USER, _REPLY, _USER], tokenizer)
        return segments[[segment.message for segment in segments].index(1) + 1]

    def _rendered(
        self, messages: list[dict[str, str]], tokenizer: BaseTokenizer, add_generation_prompt: bool
    ) -> str:
        if (tokens := self._tokens.get(tokenizer)) is None:
            names: dict[int | None, str] = {i: name for name, i in tokenizer.special_tokens.items()}
            tokens = self._tokens[tokenizer] = {
                f"{kind}_token": names.get(getattr(tokenizer, f"{kind}_id", None), "")
                for kind in ("bos", "eos", "unk", "pad")
            }
        n_characters = sum(len(message["content"]) for message in messages)
        try:
            return render(
                self._template, n_characters, messages=messages, tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, **tokens,
            )  # fmt: skip
        except Exception as error:  # a template is a program: it may fail in any way
            raise ChatTemplateError(
                f"{self.name} refuses these messages ({shown(str(error), 120)})"
            ) from error


_SYSTEM = {"role": "system", "content": "S"}
_USER = {"role": "user", "content": "U"}
_REPLY = {"role": "assistant", "content": "A"}


def template_for(
    source: str | None, tokenizer: BaseTokenizer, *, pretrained: bool = False
) -> ChatTemplate:
    """The template by which a model is asked.

    Args:
        source: what its files say, if they do.
        tokenizer: of the model.
        pretrained: whether it comes from elsewhere. Then tokens of ChatML in its vocabulary mean
            that it has seen them; a vocabulary of our own holds tokens that no text used.

    Raises:
        ChatTemplateError: `source` is not a template.
    """
    if source is not None:
        return ChatTemplate(source, name="the model's chat template")
    if pretrained and {"<|im_start|>", "<|im_end|>"} <= {*tokenizer.special_tokens}:
        return ChatTemplate(CHATML, name="ChatML")
    return ChatTemplate(PLAIN, name="the plain layout")


def encode_segments(
    segments: Sequence[Segment],
    tokenizer: BaseTokenizer,
    *,
    encode: Callable[[str], list[int]] | None = None,
) -> list[list[int]]:
    """The ids of each segment: special tokens by their name in a template's text, and only there.

    Args:
        segments: as `ChatTemplate.segments` gives them.
        tokenizer: knows the special tokens.
        encode: used for text instead of `tokenizer.encode`, to leave out what that refuses.
    """
    encode = encode or tokenizer.encode
    special = tokenizer.special_tokens
    continued = _continuing(tokenizer, encode)
    found: list[list[int]] = []
    in_text = False  # whether text stands right in front, and not a special token
    for segment in segments:
        is_own = segment.message is None and special
        ids: list[int] = []
        for part in tokenizer.special_names.split(segment.text) if is_own else [segment.text]:
            if is_own and part in special:
                ids.append(special[part])
                in_text = False
            elif part:
                ids += continued(part) if in_text else encode(part)
                in_text = True
        found.append(ids)
    return found


def _continuing(
    tokenizer: BaseTokenizer, encode: Callable[[str], list[int]]
) -> Callable[[str], list[int]]:
    """`encode` for a part in the middle of a text.

    Tokenizers of Llama's kind put a space in front of every text, which only the first part of a
    text may have: it is put in front of a line break instead, and both are dropped.
    """
    if tokenizer.kind not in ("huggingface", "sentencepiece"):
        return encode
    lead = encode("\n")
    if encode("\na") == lead + encode("a"):
        return encode

    def without_space(text: str) -> list[int]:
        ids = encode("\n" + text)
        return ids[len(lead) :] if ids[: len(lead)] == lead else encode(text)

    return without_space
