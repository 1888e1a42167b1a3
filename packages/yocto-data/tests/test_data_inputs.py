"""The table "Data preparation" of bad input: one line that says what and where, nothing written."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st
from yocto_data import (
    DataError,
    DataMeta,
    DecodingError,
    ShortDataError,
    Tokenizer,
    iter_texts,
    load_bin,
)
from yocto_data.errors import shorten
from yocto_data.prep.sources import TextDecoder

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
        (None, "no source is given"),
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
        (b"a", {}, "leaves a split without text"),
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


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (
            "he said \u201cvoil\u00e0\u201d \u2014 it\u2019s so\n".encode("cp1252"),
            "pass encoding=cp1252",
        ),
        ("\u5440\u548c\u4f60".encode("gbk") * 9, "pass encoding=NAME with its own"),
        ("\u0441\u043b\u043e\u0432\u043e ".encode("cp1251") * 9, "pass encoding=NAME with its own"),
        ("some \u543e\u8f29".encode()[:-1], "the file ends inside a character"),
        ("caf\u00e9, na\u00efve ".encode() * 9 + b"\x93 word", "damaged there; mend it"),
        (b"\x93 word " + "caf\u00e9, na\u00efve ".encode() * 9, "damaged there; mend it"),
    ],
)
def test_d4_another_encoding(
    tmp_path: Path, run: Prepare, refused: Refused, content: bytes, advice: str
) -> None:
    """D4: the byte is named, and another encoding only where the text looks like it.

    It is never named where it would damage this text, or the others that are read with it.
    """
    source = file(tmp_path, content)
    message = refused(DecodingError, partial(run, source))
    assert re.search(r"a\.txt is not UTF-8 at byte \d+ \(0x", message)
    assert advice in message
    assert ("cp1252" in advice) == ("cp1252" in message)
    assert "so leave encoding out" in refused(
        DecodingError, partial(run, file(tmp_path, "\u2a5a \U0001f60d".encode()), encoding="cp1252")
    )
    source = file(tmp_path, content)
    other = file(tmp_path, "caf\u00e9".encode(), "b.txt")
    assert "encoding=" not in refused(DecodingError, partial(run, [other, source]))


@pytest.mark.property
@given_by(
    text=st.text(st.characters(min_codepoint=32, max_codepoint=0xFF), min_size=20),
    kind=st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]),
)
def test_wide_text_without_a_mark(text: str, kind: str) -> None:
    """It is valid UTF-8, with NULs beside each letter: it is refused by the name of its kind."""
    decoder = TextDecoder("a.txt", "utf-8", "strict")
    with pytest.raises(DataError, match=f"encoding={kind}$"):
        decoder.push(text.encode(kind))


@pytest.mark.parametrize(
    ("head", "what"),
    [(gzip.compress(b"text", mtime=0), "gzip"), (b"PK\x03\x04\0\1", "zip"), (b"%PDF-1.7\n", "PDF"),
     (b"version https://git-lfs.github.com/spec/v1\n", "LFS"), (b"PAR1\0", "parquet")],
)  # fmt: skip
def test_a_file_that_is_no_text(
    tmp_path: Path, run: Prepare, refused: Refused, head: bytes, what: str
) -> None:
    """What a name hides is told, even where its bytes are valid UTF-8."""
    message = refused(DataError, partial(run, file(tmp_path, head + b"word " * 99)))
    assert re.search(f"a.txt is not a text: it looks like .*{what}", message)


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
    """D6: the mark goes and is counted; lines end in LF or as they did, and meta.json says so."""
    text = b"one\r\ntwo\nthree\rfour"
    for keep_cr, expected, said in ((False, b"one\ntwo\nthree\nfour", "lf"), (True, text, "kept")):
        meta = run(file(tmp_path, b"\xef\xbb\xbf" + text), keep_cr=keep_cr, force=True)
        assert expected == both(tmp_path)
        found = (meta.text.boms_dropped, meta.text.newlines, meta.text.encoding)
        assert (1, said, "utf-8") == found


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


# D8, control characters: test_data_prepare.py.
# D9, a file that changes while it is read: test_data_texts.py and test_data_prepare.py.
# D10 and D14, arguments out of range: test_data_prepare.py and test_data_meta.py.
# D13, ids beyond 65,535: test_data_prepare.py, by position; test_data_tokenizer.py.


@pytest.mark.parametrize("compressed", [b"", b"no gzip", gzip.compress(b"x" * 9999, mtime=0)[:-9]])
def test_broken_gzip(tmp_path: Path, run: Prepare, refused: Refused, compressed: bytes) -> None:
    """A .gz that is no gzip, or is cut, is refused by name."""
    source = file(tmp_path, compressed, "a.txt.gz")
    message = refused(DataError, partial(run, source))
    assert "a.txt.gz is" in message


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\x1b[2J\udcff", "a\nb\x1b[2J\udcff"),  # programs escape, once, where they print
        ("x" * 160, "x" * 160),
        ("a" * 200 + "z" * 200, "a" * 107 + "..." + "z" * 50),
    ],
)
def test_long_values_are_shortened(value: str, shown: str) -> None:
    """A message holds a value as it is; what is long keeps its two ends."""
    assert shown == shorten(value)


# Not ru_maxrss: a child inherits it from whoever started it, so that it would hide any growth.
MEMORY = """
import sys
import numpy as np
from yocto_data import prepare

class Bytes:
    vocab_size = 256
    def encode(self, text): return list(text.encode())
    def encode_to_numpy(self, text): return np.frombuffer(text.encode(), dtype=np.uint8)
    def decode(self, ids): return bytes(ids).decode()

meta = prepare(sys.argv[1], sys.argv[2], tokenizer=Bytes(), chunk_chars=1 << 18)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print(meta.train.tokens + meta.val.tokens, peak)
assert "torch" not in sys.modules
"""


def peak_kib(source: Path) -> int:
    """The most memory a process held that prepared `source`."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(source), str(source.with_suffix(".out"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens, peak = map(int, done.stdout.split())
    assert tokens > 0
    return peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the kernel's own count")
@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("words.txt", b"some words of a line\n" * 50_000),
        ("one_line.txt", b"x" * (1 << 20)),  # D18: no place to cut, safe or not
        ("records.jsonl", b'{"text": "%s"}\n' % (b"a record of some words " * 40) * 1100),
    ],
    ids=["words", "one line", "records"],  # a megabyte is no name
)
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, name: str, unit: bytes) -> None:
    """Six times the text takes no more memory, within a few megabytes; torch is not even loaded."""
    peaks = []
    for size in (4, 24):
        folder = tmp_path / str(size)
        folder.mkdir()
        with (folder / name).open("wb") as file:
            for _ in range(size):
                file.write(unit)
        peaks.append(peak_kib(folder / name))
    assert peaks[1] - peaks[0] < 8 << 10


# --- where data may be put ---


def test_d11_other_data(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D11: an empty directory is used; data in it is refused without force, replaced with it."""
    source = file(tmp_path, b"some words")
    (tmp_path / "out").mkdir()
    run(source)
    assert "already holds data; use force" in refused(DataError, partial(run, source))
    old = (tmp_path / "out" / "meta.json").read_bytes()
    run(source, val_ratio=0.3, force=True)
    assert old != (tmp_path / "out" / "meta.json").read_bytes()
    assert ["a.txt", "out"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.txt", "input.txt", "meta.pkl", ".git"])
@pytest.mark.parametrize("force", [False, True])
def test_d11_foreign_files(
    tmp_path: Path, run: Prepare, refused: Refused, name: str, force: bool
) -> None:
    """D11: a directory that holds anything of the user's is never replaced, forced or not."""
    (tmp_path / "out").mkdir()
    file(tmp_path / "out", b"mine", name)
    file(tmp_path / "out", b"mine", "train.bin")
    message = refused(DataError, partial(run, file(tmp_path, b"some words"), force=force))
    assert name in message


def test_d11_a_file_in_the_way(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """A file of that name, or above it, is refused."""
    source = file(tmp_path, b"some words")
    file(tmp_path, b"mine", "out")
    assert "not a directory" in refused(DataError, partial(run, source, force=True))
    message = refused(DataError, partial(run, source, out=tmp_path / "out" / "deeper"))
    assert "Not a directory" in message


def test_d12_output_in_the_input(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """D12: an output that equals the input, lies in it, or holds it, is refused."""
    (tmp_path / "texts").mkdir()
    source = file(tmp_path / "texts", b"some words")
    (tmp_path / "link").symlink_to("texts")
    for given, out in (
        (tmp_path / "texts", tmp_path / "texts"),
        (tmp_path / "texts", tmp_path / "texts" / "data"),
        (tmp_path / "link", tmp_path / "texts" / "data"),
        (tmp_path / "texts", tmp_path / "link" / "data"),
        (source, tmp_path / "texts"),
        (source, tmp_path),
        (str(tmp_path / "texts" / "*"), tmp_path / "texts"),
    ):
        refused(DataError, partial(run, given, out=out, force=True))
    refused(DataError, partial(run, source, out=source, force=True))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow fewer names")
@pytest.mark.parametrize("name", ["with space", "a\nb", "\x1b[2J", "\udcff", "\u202e", "\u00e9"])
def test_d17_odd_names_work(tmp_path: Path, run: Prepare, refused: Refused, name: str) -> None:
    """D17: any name that the system accepts works, as source and as output."""
    source = file(tmp_path, b"some words", f"{name}.txt")
    meta = run(source, out=tmp_path / name / name)
    assert (
        source.name == meta.sources[0].name == DataMeta.load(tmp_path / name / name).sources[0].name
    )
    refused(DataError, partial(run, source, out=tmp_path / name / name))
    refused(
        DecodingError, partial(run, file(tmp_path, b"a\xff", f"{name}.txt"), out=tmp_path / "o")
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\0"])
def test_d17_impossible_names(tmp_path: Path, run: Prepare, refused: Refused, name: str) -> None:
    """D17: a name that no system accepts is refused, as source and as output; so is no name."""
    refused(DataError, partial(run, tmp_path / name))
    for out in (tmp_path / name, "/", ""):
        refused(DataError, partial(run, file(tmp_path, b"some words"), out=out))


def test_k16_two_at_once(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """K16, K18: a second writer is told who holds the directory; what a dead one left is free."""
    source = file(tmp_path, b"some words")
    (tmp_path / ".out.lock.owner").write_text("pid 1 on nowhere since ever")
    others: list[str] = []

    def progress(done: int, total: int, tokens: int) -> None:
        if done:
            others.append(refused(DataError, partial(run, source)))

    run(source, progress=progress)
    assert others
    assert all(f"out is in use by pid {os.getpid()} on " in message for message in others)
    assert all(" since 2" in message for message in others)
    assert ["a.txt", "out"] == sorted(path.name for path in tmp_path.iterdir())


# --- records, and what texts may spell ---


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "cut', "not valid JSON"),
        ('["a", "list"]', "must be an object with a field 'text'"),
        ('"text"', "must be an object"),
        ('{"txt": "a"}', "has no field 'text', but txt; pass text_field=txt"),
        ('{"text": 5}', "must hold text, found a number"),
        ('{"text": true}', "found true or false"),
        ('{"text": ["a"]}', "found a list"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('\ufeff{"text": "a"}', "not valid JSON"),
        ('{"text": "a\\ud800b"}', "lone surrogate (U+D800) at character 1"),  # D19
        ('{"text": "\\udc00\\ud800"}', "lone surrogate (U+DC00) at character 0"),  # D19
        ('{"text": "a"} {"text": "b"}', "not valid JSON"),
    ],
)
def test_d15_and_d19_records(
    tmp_path: Path, run: Prepare, refused: Refused, line: str, says: str
) -> None:
    """D15, D19: whatever a record lacks, the error names file, line and field."""
    content = "\n".join(['{"text": "good"}', line, '{"text": "good"}', ""]).encode()
    for source in (
        file(tmp_path, content, "a.jsonl"),
        file(tmp_path, gzip.compress(content, mtime=0), "a.jsonl.gz"),
    ):
        message = refused(DataError, partial(run, source))
        assert f"{source.name}, line 2: " in message
        assert says in message


@pytest.mark.parametrize(
    ("line", "empty"),
    [
        ("", 0),
        (" \t\r", 0),
        ('{"text": "more", "score": NaN, "best": -Infinity}', 0),
        ('{"text": "a", "text": "more"}', 0),
        ('{"id": 1, "text": "more", "id": 2}', 0),
        ('{"text": "more", "n": ' + "9" * 5000 + "}", 0),
        ('{"text": ""}', 1),
        ('{"text": null}', 1),
        ('{"text": null, "n": [{"text": 5}]}', 1),
    ],
)
def test_only_the_text_of_a_record_matters(
    tmp_path: Path, run: Prepare, line: str, empty: int
) -> None:
    """Other people's records: blank lines and odd members pass, empty texts are counted."""
    lines = ['{"text": "good"}', line, '{"text": "good"}', ""]
    meta = run(file(tmp_path, "\n".join(lines).encode(), "a.jsonl"))
    assert (2 + ("more" in line), empty) == (meta.text.documents, meta.text.empty_documents)
    assert 5 * meta.text.documents == meta.train.tokens + meta.val.tokens


def test_d15_a_mark_before_the_first_record(tmp_path: Path, run: Prepare) -> None:
    """A file of records may begin with a mark, and may lack the last line end."""
    source = file(tmp_path, b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}', "a.jsonl")
    assert (2, 1) == (run(source).text.documents, run(source, force=True).text.boms_dropped)


def test_d15_a_record_too_long(
    tmp_path: Path, run: Prepare, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line without end is refused before it fills the memory."""
    monkeypatch.setattr("yocto_data.prep.documents.MAX_RECORD_CHARS", 3000)
    record = json.dumps({"text": "x" * (3 << 20)})
    source = file(tmp_path, f'{{"text": "a"}}\n{record}\n'.encode(), "a.jsonl")
    assert "line 2: longer than 3000" in refused(DataError, partial(run, source))


def test_d16_special_tokens_are_plain_text(
    prepared: Callable[..., Any], code_point_tokenizer: Tokenizer
) -> None:
    """D16: text that spells a special token stays text; only we place the separator's id."""
    text = "a <|endoftext|> </s>"
    _, train, val = prepared([text, "b"], tokenizer=code_point_tokenizer, separator=299)
    assert sorted([*text.encode(), *b"b", 299, 299]) == sorted(train + val)
