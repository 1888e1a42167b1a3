"""From what the user names to the stream of text."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import SourceChangedError, SourceError, iter_texts
from yocto_data.documents import Corpus, Tally
from yocto_data.sources import SourceFile, expand_sources

NewDirectory = Callable[[], Path]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def write(directory: Path, *files: str) -> None:
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"text of {name}\n")


def test_a_directory_stands_for_its_texts_in_order(tmp_path: Path) -> None:
    """Sorted by path, below all visible folders, by the four endings; nothing else."""
    write(tmp_path, "b.txt", "a.TXT", "c/d.jsonl", "c/a.txt.gz", "c.jsonl.gz")
    write(tmp_path, "note.md", ".hidden.txt", ".git/x.txt", "c/.x/y.txt", "a.json", "txt")
    found = expand_sources(tmp_path)
    expected = ["a.TXT", "b.txt", "c/a.txt.gz", "c/d.jsonl", "c.jsonl.gz"]
    assert expected == [str(source.path.relative_to(tmp_path)) for source in found]
    assert [source.compressed for source in found] == [False, False, True, False, True]
    assert [source.kind for source in found] == ["text", "text", "text", "jsonl", "jsonl"]


def test_globs_are_sorted_and_cross_directories(tmp_path: Path) -> None:
    """A glob's files come sorted, in the place where the glob was named."""
    write(tmp_path, "z.txt", "m/b.txt", "m/a.txt", "m/n/c.txt", "m/d.md")
    found = expand_sources([tmp_path / "z.txt", str(tmp_path / "m" / "**" / "*.txt")])
    expected = ["z.txt", "a.txt", "b.txt", "c.txt"]
    assert expected == names([source.path for source in found])


def test_a_file_wins_over_a_glob(tmp_path: Path) -> None:
    """A name with glob characters that is there is that file, and only it."""
    write(tmp_path, "a[1].txt", "a1.txt")
    assert names([s.path for s in expand_sources(tmp_path / "a[1].txt")]) == ["a[1].txt"]
    assert names([s.path for s in expand_sources(tmp_path / "a[1-9].txt")]) == ["a1.txt"]


def test_a_glob_of_directories_expands_them(tmp_path: Path) -> None:
    """What a glob matches is treated as if it had been named."""
    write(tmp_path, "one/a.txt", "two/b.txt", "two/c.md")
    found = expand_sources(str(tmp_path / "*"))
    assert names([source.path for source in found]) == ["a.txt", "b.txt"]


def test_any_other_name_is_a_text(tmp_path: Path) -> None:
    """A file named by the user is read as text whatever its ending, unless it is JSON."""
    write(tmp_path, "poem", "a.md", "b.json", "c.json.gz")
    assert [s.kind for s in expand_sources([tmp_path / "poem", tmp_path / "a.md"])] == [
        "text",
        "text",
    ]
    for name in ("b.json", "c.json.gz"):
        with pytest.raises(SourceError, match="jsonl"):
            expand_sources(tmp_path / name)


def test_a_source_counts_once(tmp_path: Path) -> None:
    """A file named twice, even by way of a link, is refused: it would weigh double in silence."""
    write(tmp_path, "a.txt")
    (tmp_path / "link.txt").symlink_to("a.txt")
    for twice in ([tmp_path / "a.txt", tmp_path / "link.txt"], [tmp_path, tmp_path / "a.txt"]):
        with pytest.raises(SourceError, match="named twice"):
            expand_sources(twice)


@pytest.mark.property
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5), chunk_chars=st.integers(1, 50))
@example(texts=["\r\n", "a\u2028b\x85c", "\x00\x1b[0m"], chunk_chars=1)
def test_every_form_gives_the_same_text(
    new_directory: NewDirectory, texts: list[str], chunk_chars: int
) -> None:
    """Plain or compressed, files or records: iter_texts gives back exactly what was written."""
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
    joined = "".join(texts)
    for sources in (folder / "a.jsonl", folder / "b.jsonl.gz", plain[::2], plain[1::2]):
        assert joined == "".join(iter_texts(sources, chunk_chars=chunk_chars))


def test_another_field_holds_the_text(tmp_path: Path) -> None:
    """``text_field`` names the key; other members of a record may be anything."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 5, "body": "one"}\n{"body": "two", "x": [{"a": null}]}\n')
    assert list(iter_texts(path, text_field="body")) == ["one", "two"]


def test_pieces_end_with_their_document(tmp_path: Path) -> None:
    """No piece spans two documents, however short they are."""
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    assert list(iter_texts(tmp_path, chunk_chars=1000)) == ["one", "two"]


def test_arguments_are_checked_at_the_call(tmp_path: Path) -> None:
    """A wrong argument shows before the first piece is asked for."""
    with pytest.raises(SourceError):
        iter_texts(tmp_path / "missing.txt")


def corpus_of(path: Path) -> Corpus:
    return Corpus(
        sources=expand_sources(path), encoding="utf-8", errors="strict", text_field="text"
    )


def test_a_pass_is_tallied(tmp_path: Path) -> None:
    """After a pass the tally holds each file's size and hash, and all bytes as they lie on disk."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"x" * 5000, mtime=0))
    tally = Tally()
    for document in corpus_of(tmp_path).documents(tally):
        assert list(document.blocks)
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert sizes == [source.bytes for source in tally.sources]
    assert sum(sizes) == tally.bytes_read
    assert tally.boms_dropped == 1
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(tmp_path.iterdir())]
    assert hashes == [source.sha256 for source in tally.sources]
    assert [source.name for source in tally.sources] == ["a.txt", "b.txt.gz"]


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_source_that_changes_is_noticed(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9: whatever happens to a file between its first and its last byte, the pass fails."""
    monkeypatch.setattr("yocto_data.sources.BLOCK_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789")
    file = SourceFile(expand_sources(path)[0])
    blocks = file.blocks()
    assert next(blocks) == b"0123"
    if change == "touch":
        os.utime(path, (1, 1))
    else:
        path.write_bytes(b"0123456789ab" if change == "grow" else b"01234")
    with pytest.raises(SourceChangedError, match=r"a\.txt changed"):
        list(blocks)


def test_a_file_that_grows_for_ever_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading stops at the first byte beyond the size at opening; an end may never come."""
    monkeypatch.setattr("yocto_data.sources.BLOCK_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123")
    blocks = SourceFile(expand_sources(path)[0]).blocks()
    seen: list[bytes] = []
    with path.open("ab", buffering=0) as log, pytest.raises(SourceChangedError):
        seen.extend(block for block in blocks if log.write(b"more"))
    assert seen == [b"0123"]
