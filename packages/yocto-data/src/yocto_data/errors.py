"""The exceptions of yocto-data, and how a path is shown in them."""

from __future__ import annotations

import os


class DataError(ValueError):
    """Base of every error that yocto-data raises on purpose.

    ::

        DataError (ValueError)
        |- OptionError          an argument is out of its range
        |- SourceError          an input text cannot be used
        |  |- DecodingError     its bytes are not in the named encoding
        |  `- RecordError       a line of a .jsonl file is not a record with a text
        |- TokenizerUseError    the tokenizer refused a text, or gave ids out of range
        |- OutputError          the output directory cannot be used
        |  `- InUseError        another process is writing it
        |- MetaError            meta.json is malformed, damaged or newer than this program
        |  `- MissingMetaError  there is no meta.json
        |- TokenFileError       a .bin file is not what it should be
        |  `- ShortDataError    it holds too few tokens for the context
        |- WindowIndexError     no window starts there (also an IndexError)
        |- StateError           a saved sampler state belongs to something else
        `- WorkError            the input was fine, the work failed
           |- SourceChangedError  a source changed while it was being read
           |- WriteError          the disk is full, not writable, ...
           `- WorkerError         a worker process could not start, or died

    Everything outside ``WorkError`` is for the user to change; its message is one line that says
    what, where, and what to do.
    """


class OptionError(DataError):
    """An argument is out of its range."""


class SourceError(DataError):
    """An input text cannot be used."""


class DecodingError(SourceError):
    """The bytes of a source are not in the named encoding."""


class RecordError(SourceError):
    """A line of a .jsonl file is not a record with a text."""


class TokenizerUseError(DataError):
    """The tokenizer refused a text, or returned ids that its vocabulary does not have."""


class OutputError(DataError):
    """The output directory cannot be used."""


class InUseError(OutputError):
    """Another process is writing the output directory."""


class MetaError(DataError):
    """meta.json is malformed, damaged, or newer than this program."""


class MissingMetaError(MetaError):
    """There is no meta.json, so the directory is no prepared data set."""


class TokenFileError(DataError):
    """A .bin file is missing, is not a token file, or is not the one meta.json describes."""


class ShortDataError(TokenFileError):
    """A split holds too few tokens for the context."""


class WindowIndexError(DataError, IndexError):
    """No window of the data set starts at that index."""


class StateError(DataError):
    """A saved sampler state belongs to other data or other settings."""


class WorkError(DataError):
    """The input was fine and the work failed."""


class SourceChangedError(WorkError):
    """A source changed while it was being read."""


class WriteError(WorkError):
    """Writing failed: the disk is full, not writable, or broken."""


class WorkerError(WorkError):
    """A worker process could not be started, or died."""


_SHOWN_CHARS = 160


def show(value: str | os.PathLike[str], limit: int = _SHOWN_CHARS) -> str:
    """A path or quoted text as one safe line: unprintable characters are escaped.

    A path may hold line ends, terminal codes, or bytes that are not UTF-8; none of them may
    reach a terminal from an error message. Of what is long, the two ends are shown.
    """
    text = os.fspath(value)
    if len(text) <= limit and text.isprintable():
        return text
    if len(text) > 2 * limit:
        text = text[:limit] + text[-limit:]
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )
    if len(escaped) > limit:
        escaped = f"{escaped[: limit - 53]}...{escaped[-50:]}"
    return escaped


def reason(error: OSError) -> str:
    """The system's own words for an ``OSError``, without numbers and paths."""
    return error.strerror or type(error).__name__
