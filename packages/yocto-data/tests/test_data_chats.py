"""Chats: every format is read as the same conversation, and what is learned of it is exact."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from yocto_data import (
    Chat,
    ChatDataset,
    ChatOptions,
    DataError,
    DataMeta,
    Message,
    ShortDataError,
    TextPart,
    TokenDataset,
    Tokenizer,
    iter_chats,
    load_bin,
    prepare_chats,
    verify_tokens,
)
from yocto_data.chats.layouts import dialogues_and_texts, whatsapp_chats
from yocto_data.chats.messages import alternating
from yocto_data.chats.reading import _values
from yocto_data.prep.sources import CHATS, expand_sources

NewDirectory = Callable[[], Path]
Refused = Callable[..., str]
ChatTokens = tuple[list[int], list[bool]]

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
REPLIES = TEXTS.filter(str.strip)


@st.composite
def chats(draw: st.DrawFn, *, words: st.SearchStrategy[str] = REPLIES) -> Chat:
    """Maybe a system message, then user and assistant by turns."""
    turns = draw(st.lists(st.tuples(words, words), min_size=1, max_size=4))
    messages = [Message("system", draw(words))] if draw(st.booleans()) else []
    for question, reply in turns:
        messages += [Message("user", question), Message("assistant", reply)]
    return tuple(messages)


def both(record: dict[str, Any], chat: Chat) -> dict[str, Any]:
    """A record of one question and answer, with the system text if there is one."""
    return record | ({"system": chat[0].content} if chat[0].role == "system" else {})


def sharegpt(chat: Chat) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m.role], "value": m.content} for m in chat], "id": 7}


def openai(chat: Chat) -> dict[str, Any]:
    parts = [[{"type": "text", "text": m.content[:3]}, m.content[3:]] for m in chat]
    messages = [{"role": m.role, "content": part} for m, part in zip(chat, parts, strict=True)]
    return {"messages": messages, "tools": None}


def saved(chat: Chat) -> dict[str, Any]:
    turns = [m for m in chat if m.role != "system"]
    return {
        "text": "User: something else",
        "format": "yocto-chat",
        "system": chat[0].content if chat[0].role == "system" else "",
        "turns": [
            {"user": user.content, "assistant": reply.content, "finish": "stop", "seeds": []}
            for user, reply in zip(turns[::2], turns[1::2], strict=True)
        ],
    }


def by_name(chat: Chat) -> dict[str, Any]:
    return {"messages": [m._asdict() for m in chat]}


def completion(chat: Chat) -> dict[str, Any]:
    messages = by_name(chat)["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def alpaca(chat: Chat) -> dict[str, Any]:
    question, reply = chat[-2:]
    return both({"instruction": question.content, "input": "", "output": reply.content}, chat)


def pair(first: str, second: str, chat: Chat) -> dict[str, Any]:
    return both({first: chat[-2].content, second: chat[-1].content}, chat)


FORMATS: dict[str, Callable[[Chat], dict[str, Any]]] = {
    "messages": by_name, "parts": openai, "ShareGPT": sharegpt, "saved": saved,
    "prompt as messages": completion, "Alpaca": alpaca,
    "question": partial(pair, "question", "answer"), "input": partial(pair, "input", "output"),
    "prompt": partial(pair, "prompt", "completion"),
}  # fmt: skip
SHORT = {"Alpaca", "question", "input", "prompt"}  # these hold one question and its answer


def write(folder: Path, name: str, records: Iterable[object], **options: Any) -> Path:
    """Records as the name's ending says."""
    if ".jsonl" in name:
        text = "".join(json.dumps(record, **options) + "\n" for record in records)
    else:
        text = json.dumps(list(records), **options)
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


@pytest.mark.property
@given(
    chat=chats(),
    form=st.sampled_from(sorted(FORMATS)),
    ending=st.sampled_from(["jsonl", "json", "jsonl.gz", "json.gz"]),
)
@example(chat=(Message("user", "\u2028None"), Message("assistant", "\x85a")), form="saved",
         ending="jsonl")  # fmt: skip
@example(chat=(Message("user", ""), Message("assistant", "a")), form="ShareGPT", ending="json")
def test_one_conversation_in_every_format(
    new_directory: NewDirectory, chat: Chat, form: str, ending: str
) -> None:
    """Whatever its keys and its file are, a conversation is read as it was said."""
    if form in SHORT:
        chat = tuple(m for m in chat if m.role == "system") + chat[-2:]
    path = write(new_directory(), f"a.{ending}", [FORMATS[form](chat)] * 2, ensure_ascii=False)
    assert [chat, chat] == list(iter_chats(path, keep_cr=True))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.mark.property
@given(
    values=st.lists(JSON, max_size=6),
    cuts=st.lists(st.integers(1, 9), max_size=99),
    layout=st.sampled_from([None, 0, 2]),
    is_array=st.booleans(),
)
@example(values=[12, 34], cuts=[2] * 9, layout=None, is_array=True)
@example(values=[[1, 2], "[", "]"], cuts=[1] * 99, layout=None, is_array=True)
def test_json_is_parsed_as_it_arrives(
    tmp_path_factory: Any, values: list[Any], cuts: list[int], layout: int | None, is_array: bool
) -> None:
    """The members of an array, or values one after another, however the text is cut."""
    assume(is_array or not values or not isinstance(values[0], list))
    dumps = partial(json.dumps, indent=layout)
    text = dumps(values) if is_array else "\n".join(map(dumps, values)) + "\n"
    blocks, at = [], 0
    for size in cuts:
        blocks.append(text[at : at + size])
        at += size
    blocks = [block for block in [*blocks, text[at:]] if block]
    source = expand_sources(__file__)[0]
    assert values == [value for value, _ in _values(source, iter(blocks))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"text": "a"}', "behind record 1 (the file is cut off)"),
        ('[{"text": "a"}, {"te', "behind record 1 (Unterminated string"),
        ("[" * 99_999, "behind record 0 (nested too deeply)"),
        ("{1}", "behind record 0 (Expecting property name"),
    ],
)
def test_a_json_file_that_is_none(tmp_path: Path, refused: Refused, text: str, says: str) -> None:
    """Behind a syntax error nothing can be told apart: the file is refused by name."""
    (tmp_path / "a.json").write_text(text)
    assert says in refused(DataError, lambda: list(iter_chats(tmp_path / "a.json")))


ROLES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.booleans()), min_size=1)


@pytest.mark.property
@given(said=ROLES, has_system=st.booleans())
@example(said=[("assistant", True)], has_system=True)
def test_turns_alternate(said: list[tuple[Any, bool]], has_system: bool) -> None:
    """Nothing said is lost; neighbours are joined; a beginning reply answers an empty message.

    A joined reply is learned if all of it is.
    """
    given = [Message(role, str(number), on) for number, (role, on) in enumerate(said)]
    chat = alternating([*([Message("system", "s")] if has_system else []), *given])
    turns = chat[has_system:]
    assert [("user", "assistant")[i % 2] for i in range(len(turns))] == [m.role for m in turns]
    assert (turns[0].content == "") == (said[0][0] == "assistant")
    words = "\n".join(m.content for m in turns if m.content).split("\n")
    assert [m.content for m in given] == words
    for turn in turns:
        parts = [given[int(word)] for word in turn.content.split()]
        assert all(part.role == turn.role for part in parts)
        assert turn.trained == all(part.trained for part in parts)


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("not json {", "not valid JSON (column 1: Expecting value)"),
        ('"text"', "a record must be an object, found a string"),
        ("[" * 99_999, "nested too deeply"),
        ({}, "no known format of chats has the keys nothing"),
        ({"a": 1, "chosen": "b"}, "has the keys 'a', 'chosen'"),
        ({"question": "q"}, "has the keys 'question'"),
        ({"messages": None}, "'messages' must be a list, found null"),
        ({"messages": []}, "it holds no message"),
        ({"messages": ["hi"]}, "message 1 must be an object, found a string"),
        ({"messages": [{"content": "a"}]}, "message 1 is by None; known are system, user"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 1 is by 'tool'; known"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 must hold text, found null"),
        ({"messages": [{"role": "user", "content": 7}]}, "must hold text, found a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "message 1 holds a part of type 'image_url', which is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
         "a part of message 1 must hold text, found null"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
         "a system message comes after others"),
        ({"messages": [{"role": "assistant", "content": " \n"}]}, "1 is a reply without text"),
        ({"messages": [{"role": "user", "content": "a", "weight": 0.5}]}, "a weight of 0.5, not 0"),
        ({"conversations": [{"from": "gpt", "value": "\ud800"}]}, "a lone surrogate (U+D800) at"),
        ({"question": "q", "answer": 42}, "'answer' must hold text, found a number"),
        ({"instruction": "q", "output": None}, "'output' must hold text, found null"),
        ({"prompt": "q", "completion": ""}, "'completion' is a reply without text"),
        ({"text": None}, "'text' must hold text, found null"),
        ({"format": "yocto-chat", "turns": [1]}, "'turns' must be a list of objects"),
    ],
)  # fmt: skip
def test_bad_records(tmp_path: Path, refused: Refused, record: Any, says: str) -> None:
    """One in a hundred is passed over; one in ninety-nine ends it, with file, line and reason."""
    bad = record if isinstance(record, str) else json.dumps(record)
    for good in (98, 99):
        lines = [json.dumps(GOOD)] * good
        lines.insert(3, bad)
        (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
        read: Callable[[], Any] = partial(list, iter_chats(tmp_path / "a.jsonl"))
        if good == 99:
            assert [(Message("user", "q"), Message("assistant", "a"))] * 99 == read()
        else:
            message = refused(DataError, read)
            assert (
                "1 of 99 records cannot be used, and max_bad is 0.01: a.jsonl, line 7: " in message
            )
            assert says in message


def test_what_is_said_twice_over(tmp_path: Path) -> None:
    """A context follows its instruction; weight 0 and a reply cut off are not learned.

    What is never learned is no conversation to train on, and counts as such.
    """
    replies = [{"role": "assistant", "content": "a", "weight": w} for w in (0, 1, True, None)]
    turns = [m for reply in replies for m in ({"role": "HUMAN ", "content": "q"}, reply)]
    cut_off = {"format": "yocto-chat", "system": "", "turns": [
        {"user": "q", "assistant": "a", "finish": finish} for finish in ("stop", "limit", "stopped")
    ]}  # fmt: skip
    records = [
        {"instruction": "q", "input": "i", "output": "a"},
        {"instruction": "q", "context": "i", "response": "a"},
        {"messages": turns},
        cut_off,
        {"messages": turns[:2]},
        {"messages": turns[2:3]},
    ]
    found = list(iter_chats(write(tmp_path, "a.jsonl", records)))
    assert (Message("user", "q\n\ni"), Message("assistant", "a")) == found[0] == found[1]
    spoken = [chat for chat in found if not isinstance(chat, TextPart)]
    learned = [[m.trained for m in chat if m.role == "assistant"] for chat in spoken[2:]]
    assert [[False, True, True, True], [True, False, False]] == learned


def test_none_is_never_a_text(tmp_path: Path) -> None:
    """An absent input or system text, or null, adds nothing."""
    records = [{"instruction": "q", "input": None, "output": "a", "system": None},
               {"instruction": "q", "output": "a", "system": ""}]  # fmt: skip
    chat = (Message("user", "q"), Message("assistant", "a"))
    assert [chat, chat] == list(iter_chats(write(tmp_path, "a.json", records)))


# --- files that are no JSON ---

PROSE = st.text(alphabet="ab: \t\u2028", min_size=1, max_size=9).filter(str.strip)


@pytest.mark.property
@given(
    parts=st.lists(PROSE | chats(words=st.sampled_from(["a", "b: c", "None", "d\ne"])), max_size=8),
    newline=st.sampled_from(["\n", "\r\n"]),
    blank=st.integers(1, 3),
    cuts=st.lists(st.integers(1, 20), max_size=30),
)
@example(parts=[(Message("user", "a"), Message("assistant", "b")), "a"], newline="\n", blank=2,
         cuts=[22])  # fmt: skip
@example(parts=["a", (Message("user", "a"), Message("assistant", "b"))], newline="\r\n", blank=2,
         cuts=[6])  # fmt: skip
def test_dialogues_and_texts(parts: list[Any], newline: str, blank: int, cuts: list[int]) -> None:
    """Paragraphs with speakers are conversations; the rest is text, to the character."""
    text = ""
    expected: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            if not expected or not isinstance(expected[-1], str):
                expected.append("")
            expected[-1] += part + newline * (1 + blank)
            text += part + newline * (1 + blank)
        else:
            part = part[part[0].role == "system" :]  # noqa: PLW2901 - texts have no system lines
            expected.append(part)
            names = {"user": "User: ", "assistant": "Assistant: "}
            lines = "\n".join(names[m.role] + m.content for m in part)
            text += lines.replace("\n", newline) + newline * (1 + blank)
    blocks, at = [], 0
    for size in cuts:
        blocks.append(text[at : at + size])
        at += size
    found = list(dialogues_and_texts([*blocks, text[at:]]))
    assert all(part.ends for part in found if isinstance(part, TextPart))
    assert expected == [part.text if isinstance(part, TextPart) else part for part in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n\n\n", []),
        ("User: a\nUser: b", ["User: a\nUser: b"]),  # nobody replies
        ("User: a\nAssistant:", ["User: a\nAssistant:"]),
        ("User: a\nAssistant:\nb", [(("user", "a"), ("assistant", "\nb"))]),
        ("\n\nAssistant: a", [(("user", ""), ("assistant", "a"))]),
        ("So\nUser: a\nAssistant: b", ["So\nUser: a\nAssistant: b"]),  # prose that quotes
        ("user: a\nassistant: b", ["user: a\nassistant: b"]),
        ("User: a\nAssistant: b\n \nc", [(("user", "a"), ("assistant", "b")), "c"]),
        ("User: a\nb\nOr: c\nAssistant: d", [(("user", "a\nb\nOr: c"), ("assistant", "d"))]),
        ("User: a\nAssistant: b\nOr: c", [(("user", "a"), ("assistant", "b\nOr: c"))]),
        ("User: a\nAssistant: b\n\nOr: c", [(("user", "a"), ("assistant", "b")), "Or: c"]),
    ],
)
def test_golden_dialogues(text: str, expected: list[Any]) -> None:
    """The rule for texts, spelled out."""
    found = [
        part.text if isinstance(part, TextPart) else tuple((m.role, m.content) for m in part)
        for part in dialogues_and_texts([text])
    ]
    assert expected == found


@pytest.mark.property
@given(sizes=st.lists(st.integers(1, 90_000), min_size=1, max_size=8), last=st.booleans())
@example(sizes=[3_000_000, 1, 70_000], last=True)
@example(sizes=[1_099_999], last=True)  # a block ends between two line ends
def test_long_texts_come_in_parts(sizes: list[int], last: bool) -> None:
    """Joined they are the text, the last one ends it, and none is much longer than a paragraph."""
    text = "".join("a" * size + "\n\n" for size in sizes) + "User: a\nAssistant: b\n\n" * last
    blocks = [text[at : at + 100_000] for at in range(0, len(text), 100_000)]
    parts = [part for part in dialogues_and_texts(blocks) if isinstance(part, TextPart)]
    assert "".join("a" * size + "\n\n" for size in sizes) == "".join(part.text for part in parts)
    assert [False] * (len(parts) - 1) + [True] == [part.ends for part in parts]
    assert max(len(part.text) for part in parts) < (1 << 20) + 200_000


STAMPS = {
    "ios": ("\u200e[{d}.03.24, 21:15:07] ", "[{d}/03/24, 9:15:07\u202fPM] "),
    "android": ("{d}/03/24, 21:15 - ", "3/{d}/24, 9:15 PM - ", "{d}.03.24, 21:15 - "),
}
SAID = st.text(alphabet="ab:1/ ", min_size=1, max_size=8).map(str.strip).filter(bool)


@pytest.mark.property
@given(
    entries=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["Anna", "Ben K."]),
                  st.lists(SAID, min_size=1, max_size=3)), min_size=1, max_size=12),
    stamp=st.sampled_from([stamp for stamps in STAMPS.values() for stamp in stamps]),
)  # fmt: skip
def test_whatsapp(entries: list[Any], stamp: str) -> None:
    """A day is a conversation, neighbours by one speaker are one message, lines stay lines."""
    entries.sort(key=lambda entry: entry[0])
    lines, expected = [], []
    for day, speaker, said in entries:
        lines += (stamp.format(d=day) + f"{speaker}: " + "\n".join(said)).split("\n")
        lines.append(stamp.format(d=day) + "Messages and calls are end-to-end encrypted.")
        lines.append(stamp.format(d=day) + f"{speaker}: <Media omitted>")
        role: Any = "assistant" if speaker == "Anna" else "user"
        expected.append((day, Message(role, "\n".join(said))))
    days = sorted({day for day, _ in expected})
    assume(any(speaker == "Anna" for _, speaker, _ in entries))
    assert [alternating(message for on, message in expected if on == day) for day in days] == list(
        whatsapp_chats(lines, "Anna", "a.txt")
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("\u200eBild weggelassen", None),
        ("<Medien ausgeschlossen>", None),
        ("image omitted", None),
        ("IMG-1.jpg (file attached)", None),
        ("This message was deleted", None),
        ("", None),
        ("a <b> c", "a <b> c"),
        ("so \u200e<This message was edited>", "so"),
    ],
)
def test_the_apps_own_words_go(said: str, expected: str | None) -> None:
    """What stands for an attachment or a deleted message was never said."""
    lines = ["12/03/24, 21:15 - Ben: hi", "12/03/24, 21:15 - ~\u202f\u202aAnna\u202c: yes",
             f"12/03/24, 21:16 - Ben: {said}"]  # fmt: skip
    (chat,) = whatsapp_chats(lines, "Anna", "a.txt")
    assert ([] if expected is None else [expected]) == [m.content for m in chat[2:]]


def test_who_is_the_assistant(tmp_path: Path, refused: Refused) -> None:
    """Without me, or with a name that nobody has, the speakers are named."""
    export = tmp_path / "a.txt"
    export.write_text("\u200e[12.03.24, 21:15:07] Anna: hi\n[12.03.24, 21:15:09] Ben: ho\n")
    for me, says in ((None, "is a WhatsApp export; pass me"), ("Bob", "holds nothing by 'Bob'")):
        message = refused(DataError, lambda me=me: list(iter_chats(export, me=me)))
        assert f"a.txt {says}" in message
        assert "Anna" in message
    assert 1 == len(list(iter_chats(export, me="Ben")))
    (tmp_path / "b.txt").write_text("User: a\nAssistant: b")
    message = refused(DataError, lambda: list(iter_chats(tmp_path / "b.txt", me="Ben")))
    assert "no source is a WhatsApp export" in message


def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    """A directory stands for its texts and records; a .json file is no text for `iter_texts`."""
    chat = (Message("user", "q"), Message("assistant", "a"))
    write(tmp_path, "a.json", [by_name(chat)])
    write(tmp_path, "b.jsonl.gz", [{"text": "User: q\nAssistant: a\n\nmore"}])
    (tmp_path / "c.txt").write_text("User: q\nAssistant: a")
    (tmp_path / "d.md").write_text("no")
    assert [chat, chat, TextPart("more"), chat] == list(iter_chats(tmp_path))
    assert 3 == len(expand_sources(tmp_path, CHATS))


WORDINGS = st.lists(st.sampled_from(["a", "Or: b", "User: c"]), max_size=2)


@pytest.mark.property
@given(
    asked=st.lists(st.lists(WORDINGS, min_size=1, max_size=3), min_size=1, max_size=4),
    val_ratio=st.floats(0.05, 0.95),
)
def test_other_wordings(
    new_directory: NewDirectory, asked: list[list[list[str]]], val_ratio: float
) -> None:
    """Each makes a conversation that ends with its reply; only what is worded once is held out."""
    folder, text = new_directory(), ""
    expected: list[Chat] = []
    whole: list[Chat] = []
    for number, turns in enumerate([*asked, [["a"] * 20]]):
        chat: Chat = ()
        reworded = []
        for turn, wordings in enumerate(turns):
            reply = Message("assistant", f"{number}-{turn}")
            reworded += [(*chat, Message("user", wording), reply) for wording in wordings]
            chat += (Message("user", f"{turn}?"), reply)
            said = [
                f"User: {turn}?",
                *map("Or: {}".format, wordings),
                f"Assistant: {reply.content}",
            ]
            text += "\n".join(said) + "\n"
        text += "\n"
        expected += [chat, *reworded]
        whole += [chat] * bool(reworded)
    path = folder / "a.txt"
    path.write_text(text, "utf-8")
    assert expected == list(iter_chats(path))
    try:
        prepared(path, folder / "out", val_ratio=val_ratio)
    except ShortDataError:  # nothing is left to hold out
        return
    learned = [ids for ids, _ in documents_of(folder / "out", "train")]
    assert all(tokens_of(chat)[0] in learned for chat in whole)


# --- the data directory ---

TURN = {"system": 256, "user": 257, "assistant": 258}
END = 259


def tokens_of(chat: Sequence[Message]) -> ChatTokens:
    """The bytes of each message between a turn's token and an end; replies and their ends count."""
    ids: list[int] = []
    trained: list[bool] = []
    for message in chat:
        said = [*message.content.encode(), END]
        learned = message.role == "assistant" and message.trained
        ids += [TURN[message.role], *said]
        trained += [False, *[learned] * len(said)]
    return ids, trained


class TurnTokenizer:
    """Bytes, tokens of turns, and one that ends a text."""

    kind = "turns"
    vocab_size = 300
    eos_id = 260

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()


def prepared(source: Any, out: Path, **options: Any) -> DataMeta:
    options = {"tokenizer": TurnTokenizer(), "encode": tokens_of, **options}
    return prepare_chats(source, out, **options)


def documents_of(out: Path, name: str) -> list[ChatTokens]:
    """The ids and the mask of each document of a split, read plainly."""
    ids = load_bin(out / f"{name}.bin").tolist()
    bits = np.unpackbits(np.fromfile(out / f"{name}.mask", np.uint8), bitorder="little")
    starts = np.fromfile(out / f"{name}.starts", "<u8").tolist()
    assert not bits[len(ids) :].any()
    mask = bits[: len(ids)].astype(bool).tolist()
    ends = [*starts[1:], len(ids)]
    return [(ids[a:b], mask[a:b]) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.property
@given(
    items=st.lists(chats() | PROSE.map(TextPart), min_size=2, max_size=12),
    chunk_chars=st.integers(1, 40),
    val_ratio=st.floats(0.05, 0.95),
)
def test_files_hold_what_encode_gave(
    new_directory: NewDirectory, items: list[Any], chunk_chars: int, val_ratio: float
) -> None:
    """Each document lies whole, in order, in one split, with its mask; meta.json counts exactly."""
    folder = new_directory()
    records = [{"text": item.text} if isinstance(item, TextPart) else by_name(item)
               for item in items]  # fmt: skip
    path = write(folder, "a.jsonl", records)
    meta = prepared(
        path, folder / "out", chunk_chars=chunk_chars, val_ratio=val_ratio, keep_cr=True
    )
    assert meta == DataMeta.load(folder / "out")
    expected: Counter[Any] = Counter()
    for item in items:
        if isinstance(item, TextPart):
            ids = [*item.text.encode(), 260]
            trained = [False, *[True] * (len(ids) - 1)]
        else:
            ids, trained = tokens_of(item)
        expected[tuple(ids), tuple(trained)] += 1
    assert meta.chats is not None
    found: Counter[Any] = Counter()
    for name in ("train", "val"):
        documents = documents_of(folder / "out", name)
        split, beside = getattr(meta, name), getattr(meta.chats, name)
        assert (len(documents), sum(map(sum, (mask for _, mask in documents)))) == (
            split.documents, beside.trained
        )  # fmt: skip
        found.update((tuple(ids), tuple(mask)) for ids, mask in documents)
        verify_tokens(folder / "out" / f"{name}.bin")
    assert expected == found
    spoken = [item for item in items if not isinstance(item, TextPart)]
    replies = sum(message.role == "assistant" for chat in spoken for message in chat)
    assert (len(spoken), replies, len(items) - len(spoken)) == (
        meta.chats.conversations, meta.chats.replies, meta.chats.texts
    )  # fmt: skip


def test_the_share_of_validation(tmp_path: Path) -> None:
    """Of 2,000 conversations a tenth is kept for validation, and the choice is that of texts."""
    path = write(tmp_path, "a.jsonl", [{"question": f"{n}", "answer": "a"} for n in range(2000)])
    meta = prepared(path, tmp_path / "out", val_ratio=0.1)
    numbers = [
        int(bytes(ids[1 : ids.index(END)])) for ids, _ in documents_of(tmp_path / "out", "val")
    ]
    assert [10, 16, 18, 30, 34, 38, 45, 55, 56] == [number for number in numbers if number < 60]
    assert 170 < (meta.val.documents or 0) < 230


def test_what_meta_says(tmp_path: Path) -> None:
    """Formats, what was dropped and why, and the template, word for word."""
    records: list[Any] = [GOOD] * 9
    records += [{"text": "User: q\nAssistant: a\n\nmore"}, {"a": 1}, {"b": 1}, {"a": 1}]
    records += [{"messages": [{"role": "user", "content": "q"}]}, {"question": "x", "answer": "a"}]
    records += [{"text": " \n"}]

    def encode(chat: Sequence[Message]) -> ChatTokens:
        if chat[0].content == "x":
            raise ValueError("the template\nrefuses x")
        return tokens_of(chat)

    meta = prepared(write(tmp_path, "a.jsonl", records), tmp_path / "out", encode=encode,
                    max_bad=0.3, template="{{ a }}\r\n\u20ac", val_ratio=0.5)  # fmt: skip
    assert meta.chats is not None
    assert meta.chats.template is not None
    assert meta.text is not None
    assert 1 == meta.text.empty_documents
    found = meta.chats
    assert [("question/answer", 10), ("text", 2), ("messages", 1)] == [
        (form.what, form.count) for form in found.formats
    ]
    assert [
        ("no known format of chats has the keys 'a'", 2, "a.jsonl, line 11"),
        ("no known format of chats has the keys 'b'", 1, "a.jsonl, line 12"),
        ("the template refuses x", 1, "a.jsonl, line 15"),
    ] == sorted((each.what, each.count, each.first) for each in found.dropped)
    assert (10, 10, 1, 1) == (found.conversations, found.replies, found.texts, found.untrained)
    written = (tmp_path / "out" / "chat_template.jinja").read_bytes()
    assert "{{ a }}\r\n\u20ac".encode() == written
    again = prepared(tmp_path / "a.jsonl", tmp_path / "out", force=True, max_bad=0.2)
    assert again.chats is not None
    assert again.chats.template is None
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    "case",
    [
        ([GOOD], {}, ShortDataError, "one conversation, or a text without any, cannot be"),
        ([], {}, DataError, "no reply to learn from, and no text"),
        ([{"messages": [{"role": "user", "content": "q"}]}] * 5, {}, DataError, "no reply to"),
        ([GOOD] * 5, {"max_bad": 1.5}, DataError, "max_bad must be from 0 to 1, found 1.5"),
        ([GOOD] * 5, {"max_bad": float("nan")}, DataError, "max_bad must be"),
        ([GOOD] * 5, {"split_by": "position"}, DataError, "conversations are not cut"),
        ([GOOD] * 5, {"workers": 0}, DataError, "workers must be"),
        ([GOOD] * 5, {"template": " \n"}, DataError, "the chat template is empty"),
        ([GOOD] * 5, {"encode": lambda chat: ([1, 300], [False, True])}, DataError,
         "5 of 5 records cannot be used, and max_bad is 0.01: a.jsonl, line 1: the tokenizer gave"),
        ([GOOD] * 5, {"encode": lambda chat: ([1, -1], [False, True])}, DataError, "gave id -1"),
        ([GOOD] * 5, {"encode": lambda chat: ([1, 2], [True])}, DataError, "2 ids, but a mask of"),
        ([GOOD] * 5, {"encode": lambda chat: ([1, 2], [0, 1])}, DataError, "a mask of int64"),
        ([GOOD] * 5, {"encode": lambda chat: ([1, 2], [True, False])}, DataError,
         "nothing in it is learned"),
        ([GOOD] * 5, {"encode": lambda chat: ([], [])}, DataError, "nothing in it is learned"),
        ([GOOD] * 5, {"encode": lambda chat: chat[9]}, DataError, "line 1: IndexError: tuple"),
        ([GOOD] * 5, {"encode": lambda chat: ([1], [True]), "max_bad": 1}, ShortDataError,
         "no conversation is left for"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, refused: Refused, case: Any) -> None:
    """One line, and nothing is written; so it is where nothing could be learned."""
    records, options, kind, says = case
    path = write(tmp_path, "a.jsonl", records)
    assert says in refused(kind, lambda: prepared(path, tmp_path / "out", **options))


def test_reasons_are_told_apart_up_to_ten(tmp_path: Path) -> None:
    """A file of another kind may hold any number of them."""
    records = [{f"key{n}": 1} for n in range(30)] + [GOOD] * 3
    meta = prepared(write(tmp_path, "a.jsonl", records), tmp_path / "out", max_bad=1)
    assert meta.chats is not None
    assert [1] * 10 + [20] == [each.count for each in meta.chats.dropped]
    assert "other reasons" == meta.chats.dropped[-1].what


@pytest.mark.parametrize(
    ("options", "after"), [({}, [260]), ({"separator": 7}, [7]), ({"separator": None}, [])]
)
def test_a_document_has_one_separator(tmp_path: Path, options: Any, after: list[int]) -> None:
    """It stands at the end of a document, however many parts that has, and nowhere in chats."""
    (tmp_path / "a.txt").write_text("a" * 70_000 + "\n\nb\n\nUser: q\nAssistant: a\n\nend")
    (tmp_path / "b.txt").write_text("\n")
    meta = prepared([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", **options)
    found = [ids for name in ("train", "val") for ids, _ in documents_of(tmp_path / "out", name)]
    chat, _ = tokens_of((Message("user", "q"), Message("assistant", "a")))
    texts = [[*b"a" * 70_000, 10, 10], [*b"b\n\n", *after], [*b"end", *after]]
    assert sorted([*texts, chat]) == sorted(found)
    assert meta.text is not None
    assert 1 == meta.text.empty_documents


SCRIPT = """
import sys
from yocto_data import prepare_chats

class Bytes:
    vocab_size = 256
    def encode(self, text): return list(text.encode())
    def decode(self, ids): return bytes(ids).decode()

def encode(chat):
    if "9" in chat[-1].content:
        raise ValueError("no nines")
    return list(chat[-1].content.encode()), [True] * len(chat[-1].content)

if __name__ == "__main__":
    for workers in (1, 3):
        meta = prepare_chats("a.jsonl", f"out{workers}", tokenizer=Bytes(), encode=encode,
                             workers=workers, chunk_chars=2000, max_bad=0.5)
        print(meta.fingerprint, meta.chats.dropped[0].count)
"""


def test_workers_change_nothing(tmp_path: Path) -> None:
    """Encoded by several processes, the files and what is counted are the same."""
    write(tmp_path, "a.jsonl", [{"question": "q" * 50, "answer": f"a{n}"} for n in range(300)])
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    one, several = done.stdout.splitlines()
    assert one == several
    assert one.split()[1] == str(sum("9" in str(n) for n in range(300)))


def test_options_make_flags() -> None:
    """Every setting of chats has a help text, as those of texts have."""
    fields = ChatOptions.__dataclass_fields__
    assert {"me", "max_bad"} < set(fields)
    assert all(field.metadata["help"] for field in fields.values())


@pytest.mark.parametrize("name", ["train.mask", "val.starts", "chat_template.jinja", "val.mask"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    """A flipped bit, anywhere in any file beside the tokens, is found by verification."""
    path = write(
        tmp_path, "a.jsonl", [{"question": f"{n}", "answer": "a" * n} for n in range(1, 40)]
    )
    prepared(path, tmp_path / "out", template="{{ messages }}", val_ratio=0.3)
    file = tmp_path / "out" / name
    split = tmp_path / "out" / ("train.bin" if name.startswith("train") else "val.bin")
    content = file.read_bytes()
    verify_tokens(split)
    changes = {"flipped": range(0, 8 * len(content), 7), "cut": [len(content) // 2], "gone": [0]}
    for at in changes[damage]:
        if damage == "flipped":
            changed = bytearray(content)
            changed[at // 8] ^= 1 << at % 8
            file.write_bytes(changed)
        elif damage == "cut":
            file.write_bytes(content[:at])
        else:
            file.unlink()
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            verify_tokens(split)


def test_chats_and_texts_are_told_apart(
    tmp_path: Path, make_data: Callable[..., Path], byte_tokenizer: Tokenizer
) -> None:
    """Texts are no chats; the tokens of chats are a token file as any other."""
    with pytest.raises(DataError, match="holds texts, not chats; use TokenDataset"):
        ChatDataset(make_data(range(9)) / "train.bin", 2)
    path = write(tmp_path, "a.jsonl", [GOOD] * 9)
    meta = prepared(path, tmp_path / "out")
    dataset = TokenDataset(tmp_path / "out" / "train.bin", 4)
    assert meta.train.tokens == dataset.n_tokens
    assert dataset.fingerprint != ChatDataset(tmp_path / "out" / "train.bin", 4).fingerprint
