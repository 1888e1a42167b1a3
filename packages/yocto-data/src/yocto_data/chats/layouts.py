"""Conversations in files that are no JSON: lines with a speaker, and exports of WhatsApp."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby

from yocto_data.chats.messages import Chat, Message, Role, alternating
from yocto_data.errors import DataError, shorten
from yocto_data.prep.documents import TextPart

# --- a text with lines of speakers ---------------------------------------------------------------

_SPEAKER = re.compile(r"(User|Assistant):(?: |$)")
_WORDING = "Or: "  # the message above in other words
_PARAGRAPH_END = re.compile(r"\n(?:[^\S\n]*\n)+(?P<at_end>[^\S\n]*\Z)?")
# In characters. A longer paragraph is text, whatever it begins with; a longer text comes in parts.
_LONGEST_PARAGRAPH = 1 << 20
_PART = 1 << 16


def dialogues_and_texts(blocks: Iterable[str]) -> Iterator[Chat | TextPart]:
    """The conversations of a text, and the documents between them, as they stand there.

    A paragraph (blank lines are around it) is a conversation if its first line begins with
    `User: ` or `Assistant: ` and somebody replies; lines that name no speaker go on with the
    message before. Below a line of the user, each line that begins with `Or: ` is another wording.
    """
    text: list[str] = []
    size = 0
    for paragraph, is_whole in chain(_paragraphs(blocks), (("", False),)):  # the last is the end
        chat = _dialogue(paragraph) if is_whole else None
        ends = chat is not None or not paragraph
        # White space alone would make a last part that is none.
        if ends or size >= (_PART if paragraph.strip() else 4 * _LONGEST_PARAGRAPH):
            if any(map(str.strip, text)):
                yield TextPart("".join(text), ends)
            text, size = [], 0
        if chat is not None:
            yield chat
        else:
            text.append(paragraph)
            size += len(paragraph)


def _paragraphs(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Paragraphs with the blank lines behind them, and whether each is a whole one."""
    text, is_whole = "", True
    for block in blocks:
        text += block
        start = 0
        for match in _PARAGRAPH_END.finditer(text):
            if match["at_end"] is not None:
                break  # the next block may go on with blank lines
            yield text[start : match.end()], is_whole
            start, is_whole = match.end(), True
        text = text[start:]
        if len(text) > _LONGEST_PARAGRAPH:
            cut = len(text.rstrip()) or len(text)  # blank lines must not be cut apart
            yield text[:cut], False
            text, is_whole = text[cut:], False
    if text:
        yield text, is_whole


def _dialogue(paragraph: str) -> Chat | None:
    lines = [line.removesuffix("\r") for line in paragraph.split("\n") if line.strip()]
    if not lines or not _SPEAKER.match(lines[0]):
        return None
    found: list[Message] = []
    for line in lines:
        if match := _SPEAKER.match(line):
            role: Role = "user" if match[1] == "User" else "assistant"
            found.append(Message(role, line[match.end() :]))
            continue
        last, wording = found[-1], line.removeprefix(_WORDING)
        if wording != line and last.role == "user" and "\n" not in last.content:
            found[-1] = last._replace(wordings=(*last.wordings, wording))
        else:
            found[-1] = last._replace(content=f"{last.content}\n{line}")
    replies = [message for message in found if message.role == "assistant"]
    return alternating(found) if any(reply.content.strip() for reply in replies) else None


# --- WhatsApp ------------------------------------------------------------------------------------

# [12.03.24, 21:15:07] Name: text    on iOS, with marks of direction in front
# 3/12/24, 9:15 PM - Name: text      on Android
_STAMP = re.compile(
    r"[\u200e\u200f]*\[?(?P<day>\d{1,4}[./-]\d{1,2}[./-]\d{1,4}),?\s"
    r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\s?[AaPp]\.?\s?[Mm]\.?)?(?:\]| -) (?P<rest>.*)"
)
_SAID = re.compile(r"(?:~\s*)?([^:]{1,100}):(?: |$)")
# The app's own words, in the place of what an export leaves out. On iOS, and for edited messages,
# a mark stands in front of them; elsewhere they are in angle brackets, or these.
_APP = re.compile(
    r"\u200e.*|<[^<>\n]+>|.+ \(file attached\)|(?:image|video|audio|sticker|GIF|document) omitted"
    r"|(?:You deleted this message|This message was deleted)\.?|null|",
    re.DOTALL,
)
_EDITED = re.compile(r"\s*\u200e<[^<>\n]+>$")
_MARKS = "\u200e\u202a\u202c "  # of direction, around telephone numbers
_MOST_SPEAKERS = 20  # named in an error


def is_whatsapp(text: str) -> bool:
    """Whether the first line that says something is one of a WhatsApp export."""
    return bool(_STAMP.match(text.lstrip().partition("\n")[0]))


def whatsapp_chats(lines: Iterable[str], me: str | None, where: str) -> Iterator[Chat]:
    """A conversation for each day of an export; the assistant is the speaker `me`.

    Raises:
        DataError: nobody is `me`; the message names who speaks in the file `where`.
    """
    speakers: dict[str, None] = {}
    for _, day in groupby(_entries(lines), key=lambda entry: entry[0]):
        messages = []
        for _, speaker, text in day:
            if len(speakers) < _MOST_SPEAKERS or speaker == me:
                speakers.setdefault(speaker)
            messages.append(Message("assistant" if speaker == me else "user", text))
        if me is None:
            break
        yield alternating(messages)
    if me not in speakers:
        names = shorten(", ".join(speakers))
        problem = "is a WhatsApp export" if me is None else f"holds nothing by '{shorten(me, 60)}'"
        raise DataError(f"{where} {problem}; pass me=NAME for who is the assistant, of {names}")


def _entries(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Day, speaker and text of each message; a line without a date goes on with the one before."""
    day, said = "", [""]
    for line in chain(lines, (None,)):
        match = None if line is None else _STAMP.match(line)
        if line is not None and match is None:
            said.append(line.removesuffix("\r"))
            continue
        if speaker := _SAID.match(said[0]):  # else somebody joined, or a number has changed
            text = _EDITED.sub("", "\n".join([said[0][speaker.end() :], *said[1:]])).strip()
            if not _APP.fullmatch(text):
                yield day, speaker[1].strip(_MARKS), text
        if match is not None:
            day, said = match["day"], [match["rest"].removesuffix("\r")]
