"""One record to one conversation: each format that people keep chats in, told by its keys."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from yocto_data.errors import shorten
from yocto_data.prep.documents import kind_of, text_of

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """What one speaker says at a time; `trained` matters for the assistant's, which are learned.

    `wordings` are other ways to say it: they make conversations of their own, see `worded`.
    """

    role: Role
    content: str
    trained: bool = True
    wordings: tuple[str, ...] = ()


#: A conversation: maybe a system message, then user and assistant by turns.
Chat = tuple[Message, ...]


_SPELLINGS: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "person"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "chatbot", "bing", "bard", "ai", "model", "claude"),
        "assistant",
    ),
}
_LISTS = {"messages": "messages", "conversations": "ShareGPT", "conversation": "ShareGPT"}
#: Keys of a question and its answer. One with an optional context is Alpaca's.
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
)


def chat_of(record: object) -> tuple[str, Chat | str]:
    """The name of a record's format, and its conversation, or the text of a record that is one.

    Formats: `messages` (OpenAI's), ShareGPT's `conversations`, Alpaca's `instruction`, `input`
    and `output`, prompt and completion in several spellings, what yocto-chat saves, and `text`.

    Raises:
        ValueError: it has none of these formats; the message says what is wrong with it.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object, found {kind_of(record)}")
    if record.get("format") == "yocto-chat":
        return "yocto-chat", alternating(_saved(record))
    for key, name in _LISTS.items():
        if key in record:
            return name, alternating(_messages(record[key], key))
    for question, answer in _PAIRS:
        if question in record and answer in record:
            name = "Alpaca" if question == "instruction" else f"{question}/{answer}"
            return name, alternating(_pair(record, question, answer))
    if "text" in record:
        return "text", text_of(record["text"], "'text'")
    keys = ", ".join(map(repr, record)) or "nothing"
    raise ValueError(f"no known format of chats has the keys {shorten(keys)}")


def alternating(messages: Iterable[Message]) -> Chat:
    """Join neighbours by one speaker, and let the user begin, if only with an empty message.

    Raises:
        ValueError: nothing is said, or a system message comes after others.
    """
    chat: list[Message] = []
    for message in messages:
        last = chat[-1] if chat else None
        if last is not None and last.role == message.role:
            # Half of a reply cannot be told from the other half: it is learned whole or not at all.
            content = f"{last.content}\n{message.content}"
            chat[-1] = Message(last.role, content, last.trained and message.trained)
            continue
        if message.role == "system" and last is not None:
            raise ValueError("a system message comes after others")
        if message.role == "assistant" and (last is None or last.role == "system"):
            chat.append(Message("user", ""))
        chat.append(message)
    if not chat:
        raise ValueError("it holds no message")
    return tuple(chat)


def worded(chat: Chat) -> list[Chat]:
    """A conversation as it stands, and for each other wording one that ends with its reply."""
    if not any(message.wordings for message in chat):
        return [chat]
    plain = tuple(message._replace(wordings=()) for message in chat)
    return [plain] + [
        (*plain[:i], plain[i]._replace(content=wording), plain[i + 1])
        for i, message in enumerate(chat[:-1])
        for wording in message.wordings
    ]


def is_trained(chat: Chat) -> bool:
    """Whether there is a reply to learn from."""
    return any(message.role == "assistant" and message.trained for message in chat)


def _messages(value: object, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"'{key}' must be a list, found {kind_of(value)}")
    return [_message(each, f"message {number}") for number, each in enumerate(value, start=1)]


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, found {kind_of(value)}")
    named = value.get("role", value.get("from"))
    role = _SPELLINGS.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        known = ", ".join(get_args(Role))
        raise ValueError(f"{where} is by {shorten(repr(named), 60)}; known are {known}")
    weight = value.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"{where} has a weight of {shorten(repr(weight), 60)}, not 0 or 1")
    content = value.get("content", value.get("value"))
    if isinstance(content, list):
        text = "".join(_part(part, where) for part in content)
    else:
        text = text_of(content, where)
    if role == "assistant" and not text.strip():
        raise ValueError(f"{where} is a reply without text")
    return Message(role, text, weight != 0)


def _part(part: object, where: str) -> str:
    """The text of one part of a message; images and calls of tools have none."""
    if isinstance(part, dict):
        if part.get("type", "text") != "text":
            kind = shorten(repr(part["type"]), 60)
            raise ValueError(f"{where} holds a part of type {kind}, which is no text")
        part = part.get("text")
    return text_of(part, f"a part of {where}")


def _pair(record: Mapping[str, Any], question: str, answer: str) -> list[Message]:
    found = []
    if record.get("system") not in (None, ""):
        found.append(Message("system", text_of(record["system"], "'system'")))
    for key, role in ((question, "user"), (answer, "assistant")):
        if isinstance(record[key], list):  # both may be lists of messages
            found += _messages(record[key], key)
            continue
        context = record.get("input", record.get("context")) if key == "instruction" else None
        parts = [record[key], *([] if context in (None, "") else [context])]
        text = "\n\n".join(text_of(part, f"'{key}'") for part in parts)
        found.append(_message({"role": role, "content": text}, f"'{key}'"))
    return found


def _saved(record: Mapping[str, Any]) -> list[Message]:
    """A conversation that yocto-chat saved. A reply that was cut off must not teach how to end."""
    system, turns = record.get("system"), record.get("turns")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("'turns' must be a list of objects")
    found = [Message("system", text_of(system, "'system'"))] if system else []
    for number, turn in enumerate(turns, start=1):
        where = f"turn {number}"
        weight = 1 if turn.get("finish", "stop") == "stop" else 0
        reply = {"role": "assistant", "content": turn.get("assistant"), "weight": weight}
        found += [Message("user", text_of(turn.get("user"), where)), _message(reply, where)]
    return found
