"""Conversations to learn from: how they are written down, in what vocabulary, what is learned.

This module brings NumPy in, so commands import it after they have parsed their flags.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from yocto_data import (
    ChatOptions,
    DataMeta,
    DecodingError,
    Message,
    TextPart,
    iter_chats,
    prepare_chats,
)
from yocto_data.chats.reading import ChatCorpus
from yocto_data.prep.sources import CHATS, expand_sources
from yocto_data.prep.token_files import TokenFile
from yocto_tokenizers import (
    PLAIN,
    TURNS,
    CharTokenizer,
    ChatTemplate,
    Segment,
    Tokenizer,
    encode_segments,
    load_tokenizer,
    template_for,
)

from yocto_cli.command import UsageError
from yocto_cli.prepare import ENCODING, READING, Kind, Progress, learner, watched

_NAMED = {"plain": PLAIN, "turns": TURNS}
_TEMPLATE_NAME = "chat_template.jinja"
_TOKEN = re.compile(r"<\|?/?\w+\|?>")  # as templates spell special tokens
END_OF_TEXT = "<|endoftext|>"
_SPEAKERS = (re.compile(r"^User: ", re.MULTILINE), re.compile(r"^Assistant: ", re.MULTILINE))
_LOOKED_AT = 100  # conversations or parts of texts, to tell what files hold


class ChatEncoder:
    """The ids of a conversation, and which of them are learned.

    Learned is what the assistant says, and what ends its turn: the template's token for that, or in
    a plain layout the text by which the end is recognised, which is how the next speaker is
    announced or, behind the last reply, the first stop string. It can be sent to other processes.

    Args:
        template: Jinja source of the chat template.
        tokenizer: makes the ids.

    Raises:
        ChatTemplateError: it is no template, or none in which a user and an assistant speak.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.template, self._tokenizer = ChatTemplate(template), tokenizer
        self._end_id = self.template.end_id(tokenizer)
        self._ending = next(iter(self.template.stops(tokenizer)), None)
        self._encode_short = lru_cache(maxsize=4096)(tokenizer.encode)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.template.source, self._tokenizer)

    def __call__(self, chat: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether it is learned.

        Raises:
            TokenizerError: the template or the vocabulary cannot write this conversation.
        """
        if chat[0].role == "system" and not chat[0].content.strip():
            chat = chat[1:]  # as yocto-chat asks without a system text
        segments = self.segments(chat)
        ids: list[int] = []
        learned: list[bool] = []
        n_learned = 0
        parts = encode_segments(segments, self._tokenizer, encode=self._encode)
        for segment, part in zip(segments, parts, strict=True):
            if segment.message is not None:
                message = chat[segment.message]
                is_learned = message.role == "assistant" and message.trained
                n_learned = len(part) if is_learned else 0
            elif n_learned:  # behind a reply
                n_learned = len(part)
                if self._end_id is not None:
                    n_learned = part.index(self._end_id) + 1 if self._end_id in part else 0
            ids += part
            learned += [True] * n_learned + [False] * (len(part) - n_learned)
        return ids, learned

    def _encode(self, text: str) -> list[int]:
        """Ids of a text; those of short ones, as templates write again and again, are kept."""
        return self._encode_short(text) if len(text) <= 32 else self._tokenizer.encode(text)

    def segments(self, chat: Sequence[Message]) -> list[Segment]:
        """The conversation as the template writes it, to its end."""
        messages = [{"role": message.role, "content": message.content} for message in chat]
        segments = self.template.segments(messages, self._tokenizer)
        if self._ending is not None and chat[-1].role == "assistant":
            segments[-1] = Segment(self._ending, None)
        return segments


# --- templates and vocabularies ------------------------------------------------------------------


def _template(
    named: str | None, sources: Sequence[str], kind: Kind, tokenizer: Tokenizer | None,
    tokenizer_path: str | None,
) -> str:  # fmt: skip
    """The source of the template to use; `yocto-prepare chat --help` says the rule."""
    if named is not None:
        source = named_template(named)
        if tokenizer is not None and source == TURNS:
            lacking = set(turn_tokens(source)).difference(tokenizer.special_tokens, [END_OF_TEXT])
            if lacking:
                raise UsageError(
                    f"the named tokenizer has no {', '.join(sorted(lacking))}; use --template plain"
                )
        return source
    if tokenizer is not None:
        from yocto_train.runs.opening import template_in  # noqa: PLC0415 - brings torch in

        path = Path(tokenizer_path or "")
        own = template_in(path if path.is_dir() else path.parent) if tokenizer_path else None
        is_foreign = tokenizer.kind == "huggingface"
        return template_for(own, tokenizer, pretrained=is_foreign).source
    is_text = all(source.kind == "text" for source in expand_sources(sources, CHATS))
    return PLAIN if kind == "char" and is_text else TURNS


def named_template(named: str) -> str:
    """The source of a template that --template names: `plain`, `turns`, or a file."""
    from yocto_cli.asking import read_template  # noqa: PLC0415 - brings torch in

    return _NAMED.get(named) or read_template(Path(named).expanduser()).source


def turn_tokens(template: str) -> tuple[str, ...]:
    """The special tokens that a vocabulary needs for a template: none for a plain layout."""
    blank = CharTokenizer("\n", special_tokens=("<s>", "</s>"))
    own = "".join(segment.text for segment in _probe(template, blank) if segment.message is None)
    names = dict.fromkeys(_TOKEN.findall(own))
    if names and "</s>" not in names:
        names[END_OF_TEXT] = None  # between texts
    return tuple(names)


def _probe(template: str, tokenizer: Tokenizer) -> list[Segment]:
    """A conversation in which everybody speaks whom the template knows."""
    exchange = [Message("user", "?"), Message("assistant", "?")] * 2
    encoder = ChatEncoder(template, tokenizer)
    try:
        return encoder.segments([Message("system", "?"), *exchange])
    except ValueError:  # it has no system text
        return encoder.segments(exchange)


def _said(chats: Iterable[tuple[Message, ...] | TextPart], template: str) -> Iterator[str]:
    """What a vocabulary is learned from: the messages, and all that the template adds to them."""
    names = turn_tokens(template)
    blank = CharTokenizer("\n", special_tokens=names)
    own = [
        part
        for segment in _probe(template, blank)
        for part in re.split("|".join(map(re.escape, names)) or "(?!)", segment.text)
    ]
    frame = [part.replace("?", "") for part in own]
    for chat in chats:
        texts = [chat.text] if isinstance(chat, TextPart) else [*frame, *(m.content for m in chat)]
        yield from filter(None, texts)


# --- the work ------------------------------------------------------------------------------------


def hold_chats(sources: Sequence[str], *, me: str | None = None) -> bool:
    """Whether one of the files holds conversations, as far as its beginning shows.

    Raises:
        DataError: they cannot be read; but the encoding of texts is not looked at.
    """
    files = expand_sources(sources, CHATS)
    corpus = ChatCorpus(sources=files, options=ChatOptions(me=me))
    n_texts = 0  # of files of text, which may be any number
    for file in files:
        n_looked_at = _LOOKED_AT if file.kind != "text" or n_texts < 10 * _LOOKED_AT else 1
        with suppress(DecodingError), closing(corpus.documents_in(file)) as documents:
            for each in islice(documents, n_looked_at):
                if type(each.content) is tuple:
                    return True
                n_texts += file.kind == "text"
    return False


def prepare_conversations(
    sources: Sequence[str],
    out_dir: str | Path,
    *,
    kind: Kind = "char",
    vocab_size: int | None = None,
    tokenizer: Tokenizer | None = None,
    tokenizer_path: str | None = None,
    template: str | None = None,
    source: str | None = None,
    progress: Progress = lambda *_: None,
    workers: int = 1,
    **options: Any,
) -> tuple[DataMeta, Tokenizer]:
    """Learn a tokenizer from what is said, and encode it.

    Args:
        sources: files, directories or globs.
        out_dir: the directory to make.
        kind: of the tokenizer to learn.
        vocab_size: the most ids that it may have.
        tokenizer: used instead of learning one.
        tokenizer_path: where that was found, maybe with its template.
        template: `plain`, `turns`, or a file; None for what fits, see the help.
        source: the template itself, which then is not looked for.
        progress: told what is happening.
        workers: processes that encode.
        options: fields of `ChatOptions`.

    Raises:
        UsageError: the template cannot be read.
        DataError: the conversations cannot be used, or the work failed.
        TokenizerError: the template cannot be used, or no vocabulary can be learned.
    """
    source = source or _template(template, sources, kind, tokenizer, tokenizer_path)
    if tokenizer is None:
        names = turn_tokens(source)
        if kind == "bpe":  # it has an end of text of its own
            names = tuple(name for name in names if name != END_OF_TEXT)
        learn = learner(kind, vocab_size, special_tokens=names)
        reading = {name: options[name] for name in (*READING, "me", "max_bad") if name in options}
        said = _said(iter_chats(sources, **reading), source)
        tokenizer = learn(watched(said, sources, progress))
    meta = prepare_chats(
        list(sources), out_dir, tokenizer=tokenizer, encode=ChatEncoder(source, tokenizer),
        template=source, workers=workers,
        progress=lambda done, total, _: progress(ENCODING, done, total), **options,
    )  # fmt: skip
    return meta, tokenizer


def template_of(data_dir: Path, meta: DataMeta, tokenizer: Tokenizer) -> str | None:
    """How a model that learned from this data is to be asked; None if nobody speaks in it.

    Texts that hold dialogues all the same are plain. That is kept too, so that names of a foreign
    tokenizer are not taken for the model's way of talking.
    """
    if meta.chats is not None:
        path = data_dir / _TEMPLATE_NAME
        return None if meta.chats.template is None else path.read_text(encoding="utf-8")
    ids = np.memmap(data_dir / meta.train.file, dtype=meta.dtype, mode="r")[: 1 << 16]
    text = tokenizer.decode(ids)
    return PLAIN if all(speaker.search(text) for speaker in _SPEAKERS) else None


def ends_of(template: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a reply, besides the one that ends a text."""
    end_id = None if template is None else ChatTemplate(template).end_id(tokenizer)
    return () if end_id is None else (end_id,)


# --- --show --------------------------------------------------------------------------------------


def shown(data_dir: Path, meta: DataMeta, number: int) -> Iterator[list[tuple[str, int, bool]]]:
    """The first `number` documents of the training split: text, id, and whether it is learned.

    They are read from the files, so that what is shown is what will be learned.
    """
    assert meta.chats is not None  # noqa: S101 - it has just been prepared
    tokenizer = load_tokenizer(data_dir)
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    file = TokenFile(data_dir / meta.train.file)
    bounds = [*file.beside["starts"].array[: number + 1].tolist(), meta.train.tokens]
    for begin, end in pairwise(bounds[: number + 1]):
        mask = file.beside["mask"].array[begin >> 3 : (end + 7) >> 3]
        bits = np.unpackbits(mask, bitorder="little")[begin & 7 :].tolist()
        decoder = tokenizer.stream_decoder()
        yield [
            (names.get(i) or decoder.push(i), i, bool(bit))
            for i, bit in zip(file.array[begin:end].tolist(), bits, strict=False)
        ]
