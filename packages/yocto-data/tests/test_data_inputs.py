"""The table "Data preparation" of bad input: one line that says what and where, nothing written."""

import gzip
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from yocto_data import DataError, DecodingError, ShortDataError, Tokenizer, iter_texts, load_bin

Refused = Callable[..., str]
Prepare = Callable[..., Any]


def file(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def both(folder: Path) -> bytes:
    """The tokens of both splits, as the bytes that they stand for."""
    ids = [load_bin(folder / "out" / f"{name}.bin").tolist() for name in ("train", "val")]
    return bytes(ids[0] + ids[1])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no.txt", "no.txt: No such file"),
        ("dangling", "No such file"),
        ("loop", "symbolic links"),
        ("a.txt/b.txt", "Not a directory"),
        ("*.md", "matches no file"),
        ("", "the name of a source is empty"),
        (None, "there is no source"),
    ],
)
def test_d1_missing(
    tmp_path: Path, run: Prepare, refused: Refused, name: str | None, says: str
) -> None:
    """D1: what is not there is refused with the system's reason."""
    file(tmp_path, b"text")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    source: Any = [] if name is None else str(tmp_path / name) if name else ""
    for call in (partial(run, source), partial(iter_texts, source)):
        assert says in refused(DataError, call)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root reads everything")
def test_d1_unreadable(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D1: a file without permission is refused with the system's reason."""
    source = file(tmp_path, b"text")
    source.chmod(0)
    assert "Permission denied" in refused(DataError, partial(run, source))


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
        for call in (partial(run, source), lambda source=source: list(iter_texts(source))):
            message = refused(DataError, call)
            assert "not a regular file" in message or "No such device" in message
    (tmp_path / "empty").mkdir()
    assert "holds no .txt" in refused(DataError, partial(run, tmp_path / "empty"))
    outside = tmp_path.parent / "never"
    assert "not a regular file" in refused(DataError, partial(run, tmp_path, out=outside))


def test_d3_short(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D3: a split shorter than the context and one is refused, naming the tokens needed."""
    options: Any
    for content, options, says in (
        (b"a", {}, "leave a split without text"),
        (b"ab", {}, "in the training split: 1, but at least 2 are needed"),
        (b"abcdefghij", {"block_size": 5}, "5, but at least 6 are needed for a block_size"),
        (b"abcdefghij", {"block_size": 4, "val_ratio": 0.4}, "in the validation split: 4, but"),
    ):
        source = file(tmp_path, content)
        assert says in refused(ShortDataError, partial(run, source, **options))


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
    """D3: an empty source is refused by name; beside others it is passed over, and counted."""
    source = file(tmp_path, content, name)
    assert f"{name} is empty" in refused(DataError, partial(run, source))
    twin = file(tmp_path, content, f"2{name}")
    assert "all sources are empty" in refused(DataError, partial(run, [source, twin]))
    meta = run([file(tmp_path, b"words enough", "b.txt"), source])
    assert (1, "jsonl" not in name) == (meta.text.documents, meta.text.empty_documents)
    assert 2 == len(meta.sources)


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
    message = refused(DataError, partial(run, source))
    assert f"{encoding[:6].upper()} byte order mark" in message
    meta = run(source, encoding=message.rsplit("=", maxsplit=1)[1])
    assert 10 == meta.train.tokens + meta.val.tokens
    assert (1, encoding[:6]) == (meta.text.boms_dropped, meta.text.encoding)


def test_d6_mark_and_line_ends(tmp_path: Path, run: Prepare) -> None:
    """D6: the mark goes and is counted; every line end stays, and meta.json says so."""
    text = b"one\r\ntwo\nthree\rfour"
    meta = run(file(tmp_path, b"\xef\xbb\xbf" + text))
    assert text == both(tmp_path)
    found = (meta.text.boms_dropped, meta.text.newlines, meta.text.encoding)
    assert (1, "kept", "utf-8") == found


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
    assert expected.encode() == both(tmp_path)
    assert (expected.count("\ufffd"), "replace") == (meta.text.replaced, meta.text.errors)


def test_d8_control_characters(tmp_path: Path, run: Prepare) -> None:
    """D8: NUL, C0, DEL and ESC are accepted and counted; tab and line ends are no controls."""
    text = b"\x1b[31mred\x1b[0m \x00\x07\x7f\ttab\r\n\xc3\xa9\xc2\x9b"
    meta = run(file(tmp_path, text))
    assert 5 == meta.text.control_characters
    assert text == both(tmp_path)


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
    odd = SimpleNamespace(vocab_size=vocab_size)
    message = refused(DataError, partial(run, file(tmp_path, b"text"), tokenizer=odd))
    assert "vocab_size must be an integer from 1 to 4294967296" in message


# D15, D16 and D19, records: test_data_records.py.
# D18, a line of 200 MB: test_data_memory.py.


@pytest.mark.parametrize("compressed", [b"", b"no gzip", gzip.compress(b"x" * 9999, mtime=0)[:-9]])
def test_broken_gzip(tmp_path: Path, run: Prepare, refused: Refused, compressed: bytes) -> None:
    """A .gz that is no gzip, or is cut, is refused by name."""
    source = file(tmp_path, compressed, "a.txt.gz")
    message = refused(DataError, partial(run, source))
    assert "a.txt.gz is" in message
