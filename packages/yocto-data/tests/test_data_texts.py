"""From what the user names, over bytes, to the stream of text."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataError, DecodingError, PrepareOptions, WorkError, iter_texts
from yocto_data.prep.documents import Corpus
from yocto_data.prep.files import foreign_format
from yocto_data.prep.sources import (
    SourceFile,
    TextDecoder,
    check_encoding,
    expand_sources,
    passed_over,
)

NewDirectory = Callable[[], Path]


def write(directory: Path, *files: str) -> None:
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"text of {name}\n")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        # A directory: sorted by path, below all visible folders, by the four endings.
        (("d",), ["d/a.TXT", "d/b.txt", "d/c/a.txt.gz", "d/c/d.jsonl", "d/c.jsonl.gz"]),
        # A glob: sorted, in the place where it was named; `**` crosses directories.
        (("z.txt", "m/**/*.txt"), ["z.txt", "m/a.txt", "m/b.txt", "m/n/c.txt"]),
        # What a glob matches is treated as if it had been named.
        (("[mn]*",), ["m/a.txt", "m/b.txt", "m/n/c.txt"]),
        # A file whose name looks like a glob wins over the glob.
        (("x[1].txt",), ["x[1].txt"]),
        (("x[1-9].txt",), ["x1.txt"]),
        # Any file may be named, whatever its ending.
        (("poem", "m/d.md"), ["poem", "m/d.md"]),
    ],
)
def test_what_is_named(tmp_path: Path, named: tuple[str, ...], expected: list[str]) -> None:
    """Files, directories and globs stand for these files, in this order."""
    write(tmp_path, "d/b.txt", "d/a.TXT", "d/c/d.jsonl", "d/c/a.txt.gz", "d/c.jsonl.gz")
    write(tmp_path, "d/note.md", "d/.hidden.txt", "d/.git/x.txt", "d/c/.x/y.txt", "d/a.json")
    write(tmp_path, "z.txt", "m/b.txt", "m/a.txt", "m/n/c.txt", "m/d.md")
    write(tmp_path, "x[1].txt", "x1.txt", "poem", "d/txt")
    found = expand_sources([str(tmp_path / name) for name in named])
    assert expected == [str(source.path.relative_to(tmp_path)) for source in found]
    assert [".jsonl" in name for name in expected] == [source.kind == "jsonl" for source in found]
    assert [".gz" * (".gz" in name) for name in expected] == [s.compression for s in found]


def test_linked_directories_are_read_once(tmp_path: Path) -> None:
    """Links to directories are followed, in circles too; files that are left out can be named."""
    write(tmp_path, "d/a.txt", "d/note.md", "d/.hidden", "real/b.txt", "real/b.csv")
    for link, to in (("d/linked", "../real"), ("d/again", "../real"), ("d/round", "../d")):
        (tmp_path / link).symlink_to(to)
    found = [source.path.name for source in expand_sources(tmp_path / "d")]
    assert ["a.txt", "b.txt"] == sorted(found)
    left = passed_over([tmp_path / "d", tmp_path / "real" / "b.txt"])
    assert {"b.csv", "note.md"} == {path.name for path in left}


@pytest.mark.parametrize("name", ["b.json", "c.json.gz"])
def test_json_is_not_a_text(tmp_path: Path, name: str) -> None:
    """One JSON value is refused, and the message says what to make of it."""
    write(tmp_path, name)
    with pytest.raises(DataError, match="jsonl"):
        expand_sources(tmp_path / name)


def test_a_source_counts_once(tmp_path: Path) -> None:
    """A file that several names lead to is read once, at its first: it would weigh double."""
    write(tmp_path, "a.txt", "b.txt")
    (tmp_path / "link.txt").symlink_to("a.txt")
    for twice in (
        [tmp_path / "link.txt", tmp_path / "a.txt", tmp_path / "b.txt"],
        [tmp_path, tmp_path / "a.txt"],
        str(tmp_path / "**"),
    ):
        texts = ["text of a.txt\n", "text of b.txt\n"]
        assert texts == list(iter_texts(twice, chunk_chars=1000))


@pytest.mark.property
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5), chunk_chars=st.integers(1, 50))
@example(texts=["\r\n", "a\u2028b\x85c", "\x00\x1b[0m"], chunk_chars=1)
def test_every_form_gives_the_same_text(
    new_directory: NewDirectory, texts: list[str], chunk_chars: int
) -> None:
    """Plain or compressed, files or records: iter_texts gives back what was written.

    Its lines end in LF or, with `keep_cr`, as they did.
    """
    texts = [text.encode("utf-8", "replace").decode().lstrip("\ufeff") or "x" for text in texts]
    folder = new_directory()
    records = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()
    raw = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    (folder / "a.jsonl").write_bytes(records)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(raw.encode().removesuffix(b"\r\n"), mtime=0))
    plain = []
    for number, text in enumerate(texts):
        plain += [folder / f"{number}.txt", folder / f"{number}.txt.gz"]
        plain[-2].write_bytes(text.encode())
        plain[-1].write_bytes(gzip.compress(text.encode(), mtime=0))
    unix = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    for sources in (folder / "a.jsonl", folder / "b.jsonl.gz", plain[::2], plain[1::2]):
        for keep_cr, expected in ((True, texts), (False, unix)):
            found = iter_texts(sources, chunk_chars=chunk_chars, keep_cr=keep_cr)
            assert "".join(expected) == "".join(found)


def test_another_field_holds_the_text(tmp_path: Path) -> None:
    """`text_field` names the key; other members of a record may be anything."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 5, "body": "one"}\n{"body": "two", "x": [{"a": null}]}\n')
    assert list(iter_texts(path, text_field="body")) == ["one", "two"]


def test_a_pass_is_counted(tmp_path: Path) -> None:
    """After a pass the counts hold each file's size and hash, and all bytes as they lie on disk."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"x" * 5000, mtime=0))
    counts = Corpus(sources=expand_sources(tmp_path), options=PrepareOptions())
    for document in counts.documents():
        assert list(document.blocks)
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert sizes == [source.bytes for source in counts.read]
    assert sum(sizes) == counts.bytes_read
    assert counts.boms_dropped == 1
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(tmp_path.iterdir())]
    assert hashes == [source.sha256 for source in counts.read]
    assert [source.name for source in counts.read] == ["a.txt", "b.txt.gz"]


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_source_that_changes_is_noticed(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9: whatever happens to a file between its first and its last byte, the pass fails."""
    monkeypatch.setattr("yocto_data.prep.sources.BLOCK_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789")
    with SourceFile(expand_sources(path)[0]) as file:
        blocks = file.blocks()
        assert next(blocks) == b"0123"
        if change == "touch":
            os.utime(path, (1, 1))
        else:
            path.write_bytes(b"0123456789ab" if change == "grow" else b"01234")
        with pytest.raises(WorkError, match=r"a\.txt changed"):
            list(blocks)


def test_a_file_that_grows_for_ever_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading stops at the first byte beyond the size at opening; an end may never come."""
    monkeypatch.setattr("yocto_data.prep.sources.BLOCK_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123")
    seen: list[bytes] = []
    with (
        SourceFile(expand_sources(path)[0]) as file,
        path.open("ab", buffering=0) as log,
        pytest.raises(WorkError),
    ):
        seen.extend(block for block in file.blocks() if log.write(b"more"))
    assert seen == [b"0123"]


# --- bytes to text, block by block ---

# How the bytes are dealt out.
CUTS = st.lists(st.integers(0, 9), max_size=12)
MARKED = {"utf-16", "utf-32"}
ENCODINGS = st.sampled_from(
    ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "gb18030", "big5"]
)


def decode(
    data: bytes, cuts: list[int], encoding: str = "utf-8", errors: str = "strict"
) -> tuple[str, TextDecoder]:
    decoder = TextDecoder("a.txt", check_encoding(encoding), errors)
    text = ""
    for length in [*cuts, len(data)]:
        block, data = data[:length], data[length:]
        text += decoder.push(block) if block else ""
    return text + decoder.push(b"", final=True), decoder


@pytest.mark.property
@given(st.text(), CUTS, ENCODINGS)
@example("\r\n\n\r", [1, 1], "utf-8")
@example("a\u20ac\U0001f600", [2, 1, 1, 1], "utf-8")
def test_blocks_make_no_difference(text: str, cuts: list[int], encoding: str) -> None:
    """Decoding block by block equals decoding at once; line ends stay, one leading mark goes."""
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        return  # not a text of this encoding
    # The mark that Python writes is gone from what it reads; a second one is text.
    expected = data.decode(encoding).removeprefix("" if encoding in MARKED else "\ufeff")
    assert expected == decode(data, [4, *cuts], encoding)[0]


@pytest.mark.property
@given(st.binary(max_size=15), CUTS)  # of more, some look like UTF-16
@example(b"abc\xff", [1])
@example(b"ab\xe2\x82", [3])  # a character cut by the end
@example(b"\xc0\xaf", [])  # an overlong form
@example(b"\xed\xa0\x80", [2])  # a surrogate
def test_the_first_bad_byte_is_named(data: bytes, cuts: list[int]) -> None:
    """D7: where bytes are not UTF-8, the error names the offset that decoding at once finds."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or foreign_format(data):
        return
    try:
        expected = data.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(DecodingError) as caught:
            decode(data, [4, *cuts])
        offset = f"a.txt is not UTF-8 at byte {error.start} (0x{data[error.start]:02X}: "
        assert str(caught.value).startswith(offset)
    else:
        assert expected.removeprefix("\ufeff") == decode(data, [4, *cuts])[0]


@pytest.mark.property
@given(st.lists(st.sampled_from([b"a", b"\xff", "\ufffd".encode(), b"\xe2\x82", b"\x80"])), CUTS)
@example([b"\xff", "\ufffd".encode(), b"a"], [1, 2])
def test_replacements_are_counted(parts: list[bytes], cuts: list[int]) -> None:
    """`replace` and `ignore` agree with Python's, and both count errors, not U+FFFD itself."""
    data = b"ok:" + b"".join(parts)
    replaced, ignored = data.decode(errors="replace"), data.decode(errors="ignore")
    count = replaced.count("\ufffd") - ignored.count("\ufffd")
    for errors, expected in (("replace", replaced), ("ignore", ignored)):
        text, decoder = decode(data, cuts, errors=errors)
        assert expected == text
        assert count == decoder.replaced


WRITTEN = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8",
    "utf-16-le": "utf-16-le",
    "utf-16": "utf-16-be",
    "utf-32": "utf-32-le",
}


@pytest.mark.parametrize(
    ("stated", "marks"), [(s, n) for s in WRITTEN for n in range(3) if n or s not in MARKED]
)
def test_one_mark_is_dropped(stated: str, marks: int) -> None:
    """D6: of leading byte order marks exactly one goes, and it is said; another is text."""
    text, decoder = decode(("\ufeff" * marks + "\r\nab").encode(WRITTEN[stated]), [4], stated)
    assert "\ufeff" * (marks - 1) + "\r\nab" == text
    assert decoder.bom_dropped is (marks > 0)


def test_utf_16_without_a_mark_is_refused() -> None:
    """Without a mark the order of bytes is unknown, and is not guessed."""
    with pytest.raises(DecodingError, match="utf-16"):
        decode("abc".encode("utf-16-le"), [], "utf-16")


@pytest.mark.parametrize(
    "encoding", ["", "utf-9", "rot13", "hex", "unicode_escape", "idna", "a\0b", "x" * 999, "\udc80"]
)
def test_other_encodings_are_refused(encoding: str) -> None:
    """A name that stands for no encoding of text files is an error of the argument, in one line."""
    with pytest.raises(DataError) as caught:
        check_encoding(encoding)
    assert len(str(caught.value)) < 250


def test_an_encoding_has_one_name() -> None:
    """Spellings of one encoding are recorded alike."""
    assert [check_encoding(e) for e in ("UTF8", "u8", "utf_8", "utf-8")] == ["utf-8"] * 4
