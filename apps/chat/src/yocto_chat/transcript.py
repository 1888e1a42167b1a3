r"""Conversations as files: one JSON object per line, the format that training reads.

    {"text": "User: ...\nAssistant: ...\n\n", "format": "yocto-chat", "turns": [...], ...}

`text` is what yocto-prepare takes from a .jsonl file: a chat that went well is a training text. The
rest is what /load and a replay need: seeds, settings, and the hash of the model.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, get_args

from yocto_cli.arguments import UsageError
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_cli.screen.terminal import one_line, visible

from yocto_chat.chat_model import ChatModel
from yocto_chat.conversation import Conversation, Finish, Reply, Turn
from yocto_chat.layout import joined_lines

_FORMAT = "yocto-chat"
_VERSION = 1
_MAX_BYTES = 16 << 20
_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What a file holds.

    Attributes:
        conversation: what was said.
        settings: how the last replies were drawn.
        checkpoint: the sha256 of the model that said it, if known.
    """

    conversation: Conversation
    settings: SamplingArguments
    checkpoint: str | None


def save(
    path: Path, conversation: Conversation, settings: SamplingArguments, model: ChatModel
) -> None:
    """Write a conversation to a new file that only its owner can read.

    Turns without a reply are left out.

    Raises:
        UsageError: something is there already, or the system refuses.
    """
    turns = [turn for turn in conversation.turns if turn.answered]
    record = {
        "text": training_text(conversation),
        "format": _FORMAT,
        "format_version": _VERSION,
        "system": conversation.system,
        "turns": [_turn_record(turn) for turn in turns],
        "settings": asdict(settings),
        "checkpoint": {"run": model.name, "step": model.step, "sha256": model.sha256},
    }
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(line.encode("ascii"))
    except FileExistsError as error:
        raise UsageError(f"{one_line(str(path))} is there already; give another name") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {one_line(str(path))}: {reason}") from error


def training_text(conversation: Conversation) -> str:
    """The conversation as data/philosophy.txt has it: a line per speaker, then a blank one."""
    lines = [_paragraph(conversation.system), ""] if conversation.system else []
    for turn in conversation.turns:
        if turn.reply and turn.answered:
            lines += [
                f"User: {joined_lines(turn.message)}",
                f"Assistant: {joined_lines(turn.reply.text)}",
            ]
    return "\n".join([*lines, "", ""])


def free_name(directory: Path) -> Path:
    """The first of chat-001.jsonl, chat-002.jsonl, ... that is free."""
    paths = (directory / f"chat-{number:03d}.jsonl" for number in count(1))
    return next(path for path in paths if not os.path.lexists(path))


def load(path: Path) -> Transcript:
    """Read what `save` wrote, safe to show.

    Raises:
        UsageError: it cannot be read, or is not a conversation; what is wrong and where.
    """
    try:
        if not path.is_file():
            raise UsageError(f"{one_line(str(path))} is not a file; name one that /save wrote")
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{one_line(str(path))} is larger than {_MAX_BYTES >> 20} MiB")
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{one_line(str(path))} is not UTF-8 at byte {error.start}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {one_line(str(path))}: {reason}") from error
    lines = [line for line in content.split("\n") if line.strip()]
    if len(lines) != 1:
        raise UsageError(f"{one_line(str(path))} holds {len(lines)} conversations; keep one line")
    try:
        return _parsed(_strict_json(lines[0]))
    except _BadRecordError as error:
        raise UsageError(f"{one_line(str(path))} is no saved conversation: {error}") from error


class _BadRecordError(ValueError):
    """What is wrong with the content of a file."""


def _strict_json(line: str) -> Mapping[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise _BadRecordError("a key occurs twice")
        return found

    def no_constant(name: str) -> Any:
        raise _BadRecordError(f"{name} is no JSON")

    try:
        record = json.loads(line, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, _BadRecordError):
            raise
        raise _BadRecordError("not valid JSON") from error
    if not isinstance(record, dict):
        raise _BadRecordError("not an object")
    return record


def _parsed(record: Mapping[str, Any]) -> Transcript:
    if record.get("format") != _FORMAT:
        raise _BadRecordError(f"its format is not {_FORMAT}")
    version = record.get("format_version")
    if type(version) is not int or version < 1:
        raise _BadRecordError("format_version must be a whole number")
    if version > _VERSION:
        raise _BadRecordError(f"format version {version} is newer than this program; upgrade it")
    turns = record.get("turns")
    if not isinstance(turns, list):
        raise _BadRecordError("turns must be a list")
    checkpoint = record.get("checkpoint")
    sha256 = checkpoint.get("sha256") if isinstance(checkpoint, dict) else None
    return Transcript(
        conversation=Conversation(
            system=_text(record.get("system", ""), "system", empty=True),
            turns=tuple(_turn(turn, f"turn {n}") for n, turn in enumerate(turns, start=1)),
        ),
        settings=_settings(record.get("settings", {})),
        checkpoint=sha256 if isinstance(sha256, str) else None,
    )


def _turn_record(turn: Turn) -> dict[str, Any]:
    assert turn.reply is not None  # noqa: S101 - only answered turns are saved
    return {
        "user": turn.message,
        "assistant": turn.reply.text,
        "finish": turn.reply.finish,
        "seeds": list(turn.reply.seeds),
    }


def _turn(record: object, where: str) -> Turn:
    if not isinstance(record, dict):
        raise _BadRecordError(f"{where} is not an object")
    finish = record.get("finish", "stop")
    seeds = record.get("seeds", [])
    if finish not in get_args(Finish):
        raise _BadRecordError(f"{where}: finish must be one of {', '.join(get_args(Finish))}")
    if not isinstance(seeds, list) or not all(type(s) is int and 0 <= s < 2**63 for s in seeds):
        raise _BadRecordError(f"{where}: seeds must be a list of whole numbers")
    return Turn(
        message=_text(record.get("user"), f"{where}: user"),
        reply=Reply(
            text=_text(record.get("assistant"), f"{where}: assistant"),
            finish=finish,
            seeds=tuple(seeds),
        ),
    )


def _settings(record: object) -> SamplingArguments:
    known = {field.name for field in fields(SamplingArguments)}
    if not isinstance(record, dict) or not set(record) <= known:
        raise _BadRecordError("settings must be an object of sampling parameters")
    stop = record.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise _BadRecordError("settings: stop must be a list of texts")
    values = {**record, "stop": tuple(stop)}
    default = SamplingArguments()
    for name, value in values.items():
        wanted = {type(getattr(default, name))} | ({int} if name == "seed" else set())
        wanted |= {int} if float in wanted else set()
        if type(value) not in wanted:
            raise _BadRecordError(f"settings: {name} has the wrong type")
    settings = SamplingArguments(**values)
    if problems := settings.problems():
        raise _BadRecordError(f"settings: {problems[0].removeprefix('--')}")
    return settings


def _text(value: object, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _BadRecordError(f"{where} must be a text")
    if not value.strip() and not empty:
        raise _BadRecordError(f"{where} is empty")
    return visible(value)


def _paragraph(text: str) -> str:
    return _BLANK_LINES.sub("\n", text.strip())
