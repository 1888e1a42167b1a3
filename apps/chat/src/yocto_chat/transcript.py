r"""Conversations as files: one JSON object per line, the format that training reads.

    {"text": "User: ...\nAssistant: ...\n\n", "format": "yocto-chat", "turns": [...], ...}

`text` is what yocto-prepare takes from a .jsonl file: a chat that went well is a training text. The
rest is what /load and a replay need: seeds, settings, and the hash of the model.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, get_args

from yocto_cli.arguments import flags_of
from yocto_cli.command import UsageError
from yocto_cli.model_arguments import SamplingArguments
from yocto_data.prep.files import open_regular

from yocto_chat.conversation import Conversation, Finish, Reply, Turn, joined_lines

_MAX_BYTES = 16 << 20
_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Transcript:
    """What a file holds: a conversation, how its last reply was drawn, and by which model."""

    conversation: Conversation
    settings: SamplingArguments
    run: str
    step: int | None  # None for a model that comes from elsewhere
    sha256: str | None

    def record(self) -> dict[str, Any]:
        """As JSON has it; turns without a reply are left out."""
        turns = [
            {"user": turn.message, "assistant": reply.text, "finish": reply.finish,
             "seeds": list(reply.seeds)}
            for turn in self.conversation.turns
            if (reply := turn.reply) and turn.answered
        ]  # fmt: skip
        return {
            "text": training_text(self.conversation),
            "format": "yocto-chat",
            "format_version": 1,
            "system": self.conversation.system,
            "turns": turns,
            "settings": {**asdict(self.settings), "stop": list(self.settings.stop)},
            "checkpoint": {"run": self.run, "step": self.step, "sha256": self.sha256},
        }


def training_text(conversation: Conversation) -> str:
    """The conversation as data/philosophy.txt has it: a line per speaker, then a blank one."""
    system = _BLANK_LINES.sub("\n", conversation.system.strip())
    lines = [system, ""] if system else []
    for turn in conversation.turns:
        if turn.reply and turn.answered:
            lines.append(f"User: {joined_lines(turn.message)}")
            lines.append(f"Assistant: {joined_lines(turn.reply.text)}")
    return "\n".join([*lines, "", ""])


def free_name(directory: Path) -> Path:
    """The first of chat-001.jsonl, chat-002.jsonl, ... that is free."""
    paths = (directory / f"chat-{number:03d}.jsonl" for number in count(1))
    return next(path for path in paths if not os.path.lexists(path))


def save(path: Path, transcript: Transcript) -> None:
    """Write a new file that only its owner can read.

    Raises:
        UsageError: the file already exists, or the system refuses.
    """
    line = json.dumps(transcript.record(), allow_nan=False) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(line)
        except OSError:
            path.unlink()  # half a file would keep the name taken
            raise
    except FileExistsError as error:
        raise UsageError(f"{path} already exists; give another name") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {reason}") from error


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as `messages`, which many programs train on; no cut reply is to be learned.

    Raises:
        UsageError: no reply ended by itself.
    """
    messages: list[dict[str, Any]] = []
    if system := conversation.system.strip():
        messages.append({"role": "system", "content": system})
    for turn in conversation.turns:
        if turn.reply and turn.answered:
            weight = {} if turn.reply.finish == "stop" else {"weight": 0}
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": turn.reply.text, **weight})
    if all("weight" in message for message in messages if message["role"] == "assistant"):
        raise UsageError("no reply ended by itself, so there is none to learn from; use /continue")
    return messages


def add_messages(path: Path, conversation: Conversation) -> None:
    """Append a conversation to a file of chats, in one piece; a new file only its owner can read.

    Raises:
        UsageError: it is no regular file, or the system refuses; or as `messages_of` does.
    """
    line = json.dumps({"messages": messages_of(conversation)}) + "\n"
    try:
        if path.exists() and not path.is_file():  # a FIFO would block
            raise UsageError(f"{path} is not a regular file; give another name")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # what stands there was left without a line end
                    line = f"\n{line}"
            file.write(line.encode("ascii"))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {reason}") from error


def load(path: Path) -> Transcript:
    """Read what `save` wrote.

    What is read is written again and compared: a value that is missing, of the wrong type or
    without meaning comes out different. `text` may differ, as it only repeats the turns.

    Raises:
        UsageError: it cannot be read, or is not such a file; what is wrong, and where.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; name a file that /save wrote"
        ) from error
    if len(content) > _MAX_BYTES:
        limit = f"{_MAX_BYTES >> 20} MiB"
        raise UsageError(f"{path} is larger than {limit}; name a file that /save wrote")
    lines = [line for line in content.split(b"\n") if line.strip()]
    if len(lines) != 1:
        raise UsageError(f"{path} holds {len(lines)} conversations; /load takes one, in one line")
    try:
        record = json.loads(lines[0].decode("utf-8-sig"))
        transcript = _transcript_of(record)
        written = transcript.record()
        problems = transcript.settings.problems() or [
            f"its {key!r} is not what /save writes"
            for key in written
            if key != "text" and written[key] != record[key]
        ]
    except KeyError as error:
        problems = [f"{error} is missing"]
    except ValueError as error:
        problems = [str(error)]
    except (AttributeError, TypeError, RecursionError):
        problems = ["its content is not what /save writes"]
    if problems:
        raise UsageError(f"{path} is not a saved conversation: {problems[0].removeprefix('--')}")
    return transcript


def _transcript_of(record: dict[str, Any]) -> Transcript:
    turns = []
    for turn in record["turns"]:
        if turn["finish"] not in get_args(Finish):
            raise ValueError(f"'finish' must be one of {', '.join(get_args(Finish))}")
        seeds = tuple(int(seed) for seed in turn["seeds"])
        reply = Reply(text=str(turn["assistant"]), finish=turn["finish"], seeds=seeds)
        turns.append(Turn(message=str(turn["user"]), reply=reply))
    settings: dict[str, Any] = {
        name: tuple(map(flag.type, value)) if flag.many else value and flag.type(value)
        for name, flag in flags_of(SamplingArguments).items()
        for value in (record["settings"][name],)
    }
    model = record["checkpoint"]
    return Transcript(
        conversation=Conversation(system=str(record["system"]), turns=tuple(turns)),
        settings=SamplingArguments(**settings),
        run=str(model["run"]),
        step=None if model["step"] is None else int(model["step"]),
        sha256=model["sha256"] and str(model["sha256"]),
    )
