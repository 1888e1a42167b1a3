"""The table "Data preparation" of bad input: one line that says what and where, nothing written."""

import gzip
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yocto_data import (
    DataError,
    DecodingError,
    OptionError,
    OutputError,
    ShortDataError,
    SourceError,
    Tokenizer,
    TokenizerUseError,
    iter_texts,
    load_bin,
)

Refused = Callable[..., str]
Prepare = Callable[..., Any]


def file(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def missing(folder: Path) -> Path:
    return folder / "no.txt"


def dangling(folder: Path) -> Path:
    (folder / "a.txt").symlink_to("nowhere")
    return folder / "a.txt"


def loop(folder: Path) -> Path:
    (folder / "a.txt").symlink_to("a.txt")
    return folder / "a.txt"


def below_a_file(folder: Path) -> Path:
    return file(folder, b"text") / "b.txt"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, r"no\.txt: No such file"),
        (dangling, "No such file"),
        (loop, "symbolic links"),
        (below_a_file, "Not a directory"),
        (lambda folder: str(folder / "*.md"), "matches no file"),
        (lambda folder: "", "a source has no name"),
    ],
)
def test_d1_missing(
    tmp_path: Path, run: Prepare, refused: Refused, make: Callable[[Path], Any], says: str
) -> None:
    """D1: what is not there is refused with the system's reason."""
    source = make(tmp_path)
    message = refused(SourceError, partial(run, source))
    assert says.replace("\\", "") in message
    assert says.replace("\\", "") in refused(SourceError, partial(iter_texts, source))


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root reads everything")
def test_d1_unreadable(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D1: a file without permission is refused with the system's reason."""
    source = file(tmp_path, b"text")
    source.chmod(0)
    assert "Permission denied" in refused(SourceError, partial(run, source))


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_d2_no_regular_file(
    tmp_path: Path, run: Prepare, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2: FIFO, socket and device are refused at once; a directory must hold texts."""
    os.mkfifo(tmp_path / "fifo.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        listener.bind("s.txt")
    for source in (tmp_path / "fifo.txt", tmp_path / "s.txt", "/dev/null", "/dev/zero"):
        assert "not a regular file" in refused(SourceError, partial(run, source))
        assert "not a regular file" in refused(
            SourceError, lambda source=source: list(iter_texts(source))
        )
    (tmp_path / "empty").mkdir()
    assert "holds no .txt" in refused(SourceError, partial(run, tmp_path / "empty"))
    outside = tmp_path.parent / "never"
    assert "not a regular file" in refused(SourceError, partial(run, tmp_path, out=outside))


@pytest.mark.parametrize(
    "case",
    [
        (b"a", {}, "leave a split without text"),
        (b"ab", {}, "the training split has 1 tokens, but needs at least 2"),
        (b"abcdefghij", {"block_size": 5}, "has 5 tokens, but needs at least 6 for a block_size"),
        (b"abcdefghij", {"block_size": 4, "val_ratio": 0.4}, "the validation split has 4 tokens"),
    ],
)
def test_d3_short(
    tmp_path: Path, run: Prepare, refused: Refused, case: tuple[bytes, Any, str]
) -> None:
    """D3: a split shorter than the context and one is refused, naming the tokens needed."""
    content, options, says = case
    message = refused(ShortDataError, partial(run, file(tmp_path, content), **options))
    assert says in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""),
        ("a.txt", b"\xef\xbb\xbf"),
        ("a.jsonl", b""),
        ("a.txt.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_d3_empty(
    tmp_path: Path, run: Prepare, refused: Refused, name: str, content: bytes
) -> None:
    """D3: an empty source is refused by name, even beside others."""
    source = file(tmp_path, content, name)
    other = file(tmp_path, b"words enough", "b.txt")
    assert f"{name} is empty" in refused(SourceError, partial(run, [other, source]))


def test_d4_latin_1(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D4: the byte and its offset are named, and how to name the encoding; named, it works."""
    source = file(tmp_path, "voil\u00e0 un texte".encode("latin-1"))
    message = refused(DecodingError, partial(run, source))
    assert "a.txt is not UTF-8 at byte 4 (0xE0" in message
    assert "latin-1" in message
    run(source, encoding="latin-1")
    assert "voil\u00e0 u".encode() == bytes(load_bin(tmp_path / "out" / "train.bin").tolist())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_d5_wide_text(tmp_path: Path, run: Prepare, refused: Refused, encoding: str) -> None:
    """D5: the mark is named; with the encoding that the message names, it works."""
    source = file(tmp_path, "\ufeffsome words".encode(encoding))
    message = refused(SourceError, partial(run, source))
    assert f"{encoding[:6].upper()} byte order mark" in message
    meta = run(source, encoding=message.rsplit(maxsplit=1)[1])
    assert 10 == meta.train.tokens + meta.val.tokens
    assert (1, encoding[:6]) == (meta.text.boms_dropped, meta.text.encoding)


def test_d6_mark_and_line_ends(tmp_path: Path, run: Prepare) -> None:
    """D6: the mark goes and is counted; every line end stays, and meta.json says so."""
    text = b"one\r\ntwo\nthree\rfour"
    meta = run(file(tmp_path, b"\xef\xbb\xbf" + text))
    parts = [load_bin(tmp_path / "out" / f"{name}.bin").tolist() for name in ("train", "val")]
    assert text == bytes(parts[0] + parts[1])
    assert (1, "kept", "utf-8") == (
        meta.text.boms_dropped,
        meta.text.newlines,
        meta.text.encoding,
    )


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"ok \xc0\xaf ...", 3),  # an overlong form
        (b"ok \xed\xa0\x80 ...", 3),  # a surrogate
        (b"ok \xf4\x90\x80\x80 ...", 3),  # beyond U+10FFFF
        (b"some words \xe2\x82", 11),  # a character cut by the end
        ("\u20ac".encode() * 700_000 + b"\xff", 2_100_000),  # far behind, across blocks
    ],
)
def test_d7_broken_utf_8(
    tmp_path: Path, run: Prepare, refused: Refused, content: bytes, offset: int
) -> None:
    """D7: the first bad offset is named; on request it is replaced, and counted."""
    source = file(tmp_path, content)
    assert f"at byte {offset} (" in refused(DecodingError, partial(run, source))
    meta = run(source, errors="replace")
    expected = content.decode(errors="replace")
    parts = [load_bin(tmp_path / "out" / f"{name}.bin").tolist() for name in ("train", "val")]
    assert expected.encode() == bytes(parts[0] + parts[1])
    assert (expected.count("\ufffd"), "replace") == (meta.text.replaced, meta.text.errors)


def test_d8_control_characters(tmp_path: Path, run: Prepare) -> None:
    """D8: NUL, C0, DEL and ESC are accepted and counted; tab and line ends are no controls."""
    text = b"\x1b[31mred\x1b[0m \x00\x07\x7f\ttab\r\n\xc3\xa9\xc2\x9b"
    meta = run(file(tmp_path, text))
    assert 5 == meta.text.control_characters
    parts = [load_bin(tmp_path / "out" / f"{name}.bin").tolist() for name in ("train", "val")]
    assert text == bytes(parts[0] + parts[1])


# D9, a file that changes while it is read: test_data_texts.py and test_data_prepare.py.
# D10, the range of the validation share: test_data_prepare.py.
# D11, D12 and D17, what may be written where: test_data_outputs.py.


def test_d13_many_characters(tmp_path: Path, run: Prepare, code_point_tokenizer: Tokenizer) -> None:
    """D13: ids beyond 65,535 are stored in 32 bits and never wrap."""
    text = "".join(map(chr, range(0x10000, 0x20010)))
    meta = run(file(tmp_path, text.encode()), tokenizer=code_point_tokenizer)
    assert ("uint32", 0x2000F) == (meta.dtype.name, meta.val.max_id)
    ids = [*load_bin(tmp_path / "out" / "train.bin"), *load_bin(tmp_path / "out" / "val.bin")]
    assert list(range(0x10000, 0x20010)) == ids


@pytest.mark.parametrize("vocab_size", [0, -1, (1 << 32) + 1, 65.0, True, None, "65"])
def test_d14_vocabulary_out_of_range(
    tmp_path: Path, run: Prepare, refused: Refused, vocab_size: Any
) -> None:
    """D14: the range is named, and with it the largest possible size."""

    class Odd:
        def __init__(self) -> None:
            self.vocab_size = vocab_size

    message = refused(TokenizerUseError, partial(run, file(tmp_path, b"text"), tokenizer=Odd()))
    assert "vocab_size must be an integer from 1 to 4294967296" in message


# D15, D16 and D19, records: test_data_records.py.
# D18, a line of 200 MB: test_data_memory.py.


@pytest.mark.parametrize("compressed", [b"", b"no gzip", gzip.compress(b"x" * 9999, mtime=0)[:-9]])
def test_broken_gzip(tmp_path: Path, run: Prepare, refused: Refused, compressed: bytes) -> None:
    """A .gz that is no gzip, or is cut, is refused by name."""
    source = file(tmp_path, compressed, "a.txt.gz")
    message = refused(SourceError, partial(run, source))
    assert "a.txt.gz is" in message


def test_no_source_at_all(run: Prepare, refused: Refused) -> None:
    """An empty list is refused."""
    assert "no source" in refused(SourceError, partial(run, []))


def test_every_error_is_ours() -> None:
    """The errors of this table share one base, which is a ValueError."""
    for kind in (OptionError, OutputError, SourceError, ShortDataError, TokenizerUseError):
        assert issubclass(kind, DataError)
    assert issubclass(DataError, ValueError)
