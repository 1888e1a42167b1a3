"""The text of sources as a stream, which is what a tokenizer is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from yocto_data.cutting import SafeCutter
from yocto_data.decoding import Errors, check_encoding
from yocto_data.documents import Corpus, Tally
from yocto_data.options import require_integer
from yocto_data.sources import PathLike, expand_sources

DEFAULT_CHUNK_CHARS = 1 << 20


def open_corpus(
    sources: PathLike | Sequence[PathLike], *, encoding: str, errors: str, text_field: str
) -> Corpus:
    """Check the settings, find the files; nothing is read yet."""
    return Corpus(
        encoding=check_encoding(encoding, errors),
        errors=errors,
        text_field=text_field,
        sources=expand_sources(sources),
    )


def iter_texts(
    sources: PathLike | Sequence[PathLike],
    *,
    encoding: str = "utf-8",
    errors: Errors = "strict",
    chunk_chars: int = DEFAULT_CHUNK_CHARS,
    text_field: str = "text",
) -> Iterator[str]:
    """The decoded text of files, directories and globs, in pieces, in bounded memory.

    The pieces are those that ``prepare`` encodes: no piece spans two documents, and within one they
    are cut where no token crosses. A byte order mark is dropped; line ends stay as they are.

    Args:
        sources: one path or several; see ``prepare``.
        encoding: of the text, by Python's names.
        errors: ``strict`` raises at the first wrong byte, ``replace`` and ``ignore`` go on.
        chunk_chars: length of a piece, about.
        text_field: the key of the text in the records of .jsonl files.

    Raises:
        OptionError: an argument is out of its range (at the call, not at the first piece).
        SourceError: a source is missing, no regular file, empty, or not in the encoding.
        SourceChangedError: a source changed while it was being read.
    """
    require_integer("chunk_chars", chunk_chars, 1)
    corpus = open_corpus(sources, encoding=encoding, errors=errors, text_field=text_field)
    return _pieces(corpus, chunk_chars)


def _pieces(corpus: Corpus, chunk_chars: int) -> Iterator[str]:
    with closing(corpus.documents(Tally())) as documents:
        for document in documents:
            cutter = SafeCutter(chunk_chars)
            for block in document.blocks:
                yield from cutter.push(block)
            yield from cutter.flush()
