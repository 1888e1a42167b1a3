"""Tokenizer files: what was saved is read, and whatever is wrong with a file, one line says so."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_tokenizers import (
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
    TokenizerFileError,
    WordLevelTokenizer,
    load_tokenizer,
)
from yocto_tokenizers.formats.tokenizer_json import whole_tokens
from yocto_tokenizers.formats.vocabulary import canonical_sha256

CHAR = CharTokenizer("ab?", special_tokens=["<s>"])
WORD = WordLevelTokenizer(["a", " ", "b"], special_tokens=["<s>"])
BPE = SentencePieceTokenizer.train("a b ab", vocab_size=300, shrink=True).to_bytes()
VALID = [CHAR.to_bytes(), WORD.to_bytes(), BPE]


def written(document: dict[str, Any]) -> bytes:
    """JSON as our files spell it."""
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode(
        errors="surrogatepass"
    )


def edited(**changes: Any) -> bytes:
    """A vocab.json with some keys replaced, its sha256 left as it was."""
    return written({**json.loads(CHAR.to_bytes()), **changes})


def consistent(kind: str, itos: list[str], special_tokens: dict[str, int]) -> bytes:
    """A file that contradicts neither itself nor its sha256."""
    content = {"kind": kind, "itos": itos, "special_tokens": special_tokens}
    rest = {"special_tokens": special_tokens, "itos": itos}
    rest["stoi"] = {string: i for i, string in enumerate(itos)}
    head = {"format_version": 1, "kind": kind, "vocab_size": len(itos)}
    return written({**head, "sha256": canonical_sha256(content), **rest})


def words(itos: list[str], special_tokens: dict[str, int]) -> bytes:
    """A file of words that contradicts neither itself nor its sha256."""
    content = {"kind": "word", "itos": itos, "special_tokens": special_tokens}
    described = {"fingerprint": canonical_sha256(content), "pattern": "a|b"}
    marker = {"format_version": 1, "kind": "word", "sha256": canonical_sha256(described)}
    return whole_tokens(itos, special_tokens, pattern="a|b", unknown="<unk>", marker=marker)


def assert_refused(action: Callable[[], object], message: str) -> None:
    with pytest.raises(TokenizerFileError, match=message) as raised:
        action()
    line = str(raised.value)
    assert line.isprintable()
    assert len(line) <= 300


# Content of vocab.json, what the message says.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"not valid JSON .*line 1 column 1"),
    "second line": (b'{\n "a": ]', r"not valid JSON .*line 2 column 7"),
    "binary": (bytes(range(256)), "not valid JSON"),
    "not UTF-8": (b'{"kind": "\xff"}', "not valid JSON"),
    "BOM": (b"\xef\xbb\xbf" + VALID[0], "damaged|not valid JSON"),
    "UTF-16": (VALID[0].decode().encode("utf-16"), "damaged"),
    "list": (b'["a"]', "its JSON is not an object"),
    "null": (b"null", "its JSON is not an object"),
    "another object": (b'{"a": 1}', "known kind .*None"),
    "other kind": (edited(kind="words"), "known kind .*'words'"),
    "newer version": (edited(format_version=2), "format_version 2, .* reads up to 1; upgrade"),
    "no version": (edited(format_version=True), "damaged or was edited"),
    "missing key": (VALID[0].replace(b'"itos"', b'"otis"'), "damaged .*'itos'"),
    "unknown key": (edited(extra=1), "damaged or was edited"),
    "duplicate key": (VALID[0].replace(b"{", b'{\n "kind": "char",', 1), "damaged or was edited"),
    "NaN": (edited(vocab_size=float("nan")), "damaged or was edited"),
    "two with one id": (edited(stoi={**CHAR.stoi, "b": 0}), "damaged or was edited"),
    "1.0 for 1": (edited(stoi={**CHAR.stoi, "b": 1.0}), "damaged or was edited"),
    "true for 1": (edited(stoi={**CHAR.stoi, "b": True}), "damaged or was edited"),
    "wrong size": (edited(vocab_size=5), "damaged or was edited"),
    "wrong sha256": (edited(sha256="0" * 64), "damaged or was edited"),
    "blank more": (VALID[0] + b"\n", "damaged or was edited"),
    "itos null": (edited(itos=None), "damaged"),
    "itos empty": (edited(itos=[], stoi={}, special_tokens={}), "damaged .*empty"),
    "token doubled": (edited(itos=["a", "a", "?", "<s>"]), "entry 1 repeats U\\+0061"),
    "token not a string": (edited(itos=["a", 5, "?", "<s>"]), "entry 1 is 5, expected one char"),
    "token unhashable": (edited(itos=["a", [], "?", "<s>"]), "damaged"),
    "token of 10 MB": (edited(itos=["a", "b" * 10**7, "?", "<s>"]), "entry 1 is 'bbb.*bbb'"),
    "surrogate": (edited(itos=["a", "\ud800", "?", "<s>"]), "not valid JSON|lone surrogate"),
    "special collides": (edited(special_tokens={"a": 0}), "entry 2 is '<s>'"),
    "special out of range": (edited(special_tokens={"<s>": 4}), "damaged or was edited"),
    "special unknown": (edited(special_tokens={"<t>": 3}), "entry 3 is '<s>'"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "not valid JSON .*recursion"),
    "long number": (b'{"kind": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "special first": (consistent("char", ["<s>", "a"], {"<s>": 0}), "damaged or was edited"),
    "special not named": (consistent("char", ["a", "<s>"], {}), "entry 1 is '<s>'"),
    "special short": (consistent("char", ["a", "b"], {"b": 1}), "special token 'b' is not valid"),
    "unknown not first": (words(["a", "<unk>"], {}), "damaged or was edited"),
    "special is a word": (words(["<unk>", "abc"], {"abc": 1}), "'abc' is a word"),
    "no word": (words(["<unk>"], {}), "at least one word"),
    "words newer": (WORD.to_bytes().replace(b'version": 1', b'version": 2'), "reads up to 1"),
    "words by a surrogate": (
        WORD.to_bytes().replace(b'x": "[', b'x": "\\ud800['),
        "damaged .*surrog",
    ),
    "words of other pattern": (
        WORD.to_bytes().replace(b'x": "[', b'x": "[a-b'),
        "damaged or was edited",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_json(content: bytes, message: str, tmp_path: Path) -> None:
    """T1 to T9: refused in one line of at most 300 printable characters."""
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    assert_refused(lambda: load_tokenizer(path), message)
    assert [path] == list(tmp_path.iterdir())


def test_the_files_above_would_load_without_their_damage() -> None:
    """The helpers of the table spell files as we do."""
    assert VALID[0] == edited() == consistent("char", ["a", "b", "?", "<s>"], {"<s>": 3})
    # Words split by a pattern of another Python are still ours, and written by the pattern of this.
    old = WordLevelTokenizer.from_bytes(words(["<unk>", "<s>", "a", " ", "b"], {"<s>": 1}))
    assert WORD.to_bytes() == old.to_bytes()


@pytest.mark.parametrize("tokenizer", [CHAR, WORD])
def test_no_flip_and_no_cut_of_our_json_loads(tokenizer: Tokenizer) -> None:
    """T9: whichever bit of the file changes, and wherever it ends too early, it is refused."""
    content = tokenizer.to_bytes()
    some = range(0, len(content), 1 + len(content) // 1000)  # of a pattern of 20 kB, some
    flips = [(i, bit) for i in some for bit in range(8)]
    changed = [content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :] for i, bit in flips]
    for damaged in [*changed, *(content[:cut] for cut in some)]:
        with pytest.raises(TokenizerFileError):
            type(tokenizer).from_bytes(damaged)


@pytest.mark.property
@given(content=st.binary())
def test_random_bytes_never_load(content: bytes) -> None:
    """Any bytes give our error from every reader, and no other."""
    for cls in (CharTokenizer, WordLevelTokenizer, SentencePieceTokenizer):
        with pytest.raises(TokenizerFileError):
            cls.from_bytes(content)


@pytest.mark.property
@given(data=st.data(), which=st.integers(0, 2))
def test_mutated_files_load_or_raise_ours(data: st.DataObject, which: int) -> None:
    """A valid file with some bytes changed loads or raises our error; JSON never loads changed."""
    content = bytearray(VALID[which])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    cls = (CharTokenizer, WordLevelTokenizer, SentencePieceTokenizer)[which]
    try:
        loaded = cls.from_bytes(bytes(content))
    except TokenizerFileError:
        return
    assert which == 2 or bytes(content) == VALID[which]
    assert isinstance(loaded.decode(loaded.encode("a")), str)
    assert isinstance(loaded.decode(range(loaded.vocab_size)), str)
    assert len(loaded.fingerprint()) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pieces"),
        (b"<html><body>Not found</body></html>", "damaged"),
        (b"\0" * 100, "damaged"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "damaged"),
        (b"\x0a\xff\xff\xff\xff\x0f", "cut short"),
        (b"\x08\x80\x80\x80\x80\x80\x20", "no pieces"),
        (b"\x0a\x02\x08\x05", "cut short"),
        (b"\x0a\x02\x12\x00", "cut short"),
    ],
)
def test_damaged_models(content: bytes, message: str, tmp_path: Path) -> None:
    """T10: empty, cut, HTML, a pointer file, fields of other types: no sentencepiece model."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    assert_refused(lambda: load_tokenizer(path), f"not a sentencepiece model .*({message})")


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "tokenizer.model"])
def test_a_pointer_file_is_said_to_be_one(name: str, tmp_path: Path) -> None:
    """What git leaves in place of a large file, alone or in a folder, or beside a tokenizer."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    said = "is a Git LFS pointer; fetch the real file with `git lfs pull`$"
    (tmp_path / name).write_bytes(pointer)
    assert_refused(lambda: load_tokenizer(tmp_path), f"{name}' {said}")
    (tmp_path / name).unlink()
    document = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**document, "added_tokens": []}))
    (tmp_path / "tokenizer_config.json").write_bytes(pointer)
    assert_refused(lambda: load_tokenizer(tmp_path), rf"tokenizer_config\.json .*{said}")


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_link_to_nothing_is_not_passed_over(name: str, loops: bool, tmp_path: Path) -> None:
    """A folder whose tokenizer or config is a dangling or looping link is refused, and names it."""
    document = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**document, "added_tokens": []}))
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(name if loops else "nowhere")
    assert_refused(lambda: load_tokenizer(tmp_path), f"^cannot read '.*{name}'")


def test_cut_models() -> None:
    """T10: a model cut anywhere is refused, between two sound fields too."""
    fields = [i for i in range(len(BPE)) if BPE[i : i + 1] in (b"\x0a", b"\x12", b"\x1a")]
    for end in {*fields, BPE.rindex(b"<|assistant|>"), len(BPE) // 2, len(BPE) - 1}:
        assert_refused(lambda: SentencePieceTokenizer.from_bytes(BPE[:end]), "sentencepiece model")  # noqa: B023


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"<0x41>", b"<0x42>", "a piece twice"),
        (b"<0x41>", b"<0xZZ>", "lacks some of the 256 byte pieces"),
        (b"<0x41>", b"<0x4\xff>", "text that is not UTF-8|damaged"),
        (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\0\0\x18\x03", "exactly one unknown piece"),
        (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\xc0\x7f\x18\x02", "score that is not a num"),
        (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\0\0\x18\x09", "exactly one unknown piece"),
    ],
)
def test_models_that_contradict_themselves(old: bytes, new: bytes, message: str) -> None:
    """T3, T10: a doubled piece, a missing byte, a wrong type or score is named."""
    assert BPE.count(old) == 1
    damaged = BPE.replace(old, new)
    assert_refused(lambda: SentencePieceTokenizer.from_bytes(damaged), message)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.model"])
def test_missing_paths(name: str, tmp_path: Path) -> None:
    """T1, D1, D17: a path that is missing, dangling, looped or impossible is named with a reason.

    The name stands in the message as it is: whoever prints it escapes it.
    """
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (tmp_path / name, tmp_path / "loop", tmp_path / "dangling", tmp_path / name / "x"):
        assert_refused(lambda: load_tokenizer(path), "^cannot read '.*")  # noqa: B023
    assert_refused(lambda: load_tokenizer("x" * 300), r"cannot read 'x+\.\.\.x+'.*too long")
    for bad in ("a\0b", "a\x1b[2J\n"):
        with pytest.raises(TokenizerFileError) as raised:
            load_tokenizer(bad)
        assert f"'{bad}'" in str(raised.value)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """D2: a FIFO or device is refused and never blocks."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "vocab.json")
        assert_refused(lambda: load_tokenizer(tmp_path / "vocab.json"), "not a regular file")
        assert_refused(lambda: load_tokenizer(tmp_path), "not a regular file")
    said = f"^'{os.devnull}' is not a regular file; name a tokenizer file$"
    assert_refused(lambda: CharTokenizer.load(os.devnull), said)


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    """T8: a file of 100 MB is refused by its size, before it is read."""
    path = tmp_path / "vocab.json"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    said = r"vocab\.json' has 104857600 bytes, more than any .*; name a tokenizer file$"
    assert_refused(lambda: load_tokenizer(path), said)
    with path.open("r+b") as file:
        file.truncate(64 << 20)
    assert_refused(lambda: CharTokenizer.load(path), r"vocab\.json.* not valid JSON")


def test_a_directory_with_one_tokenizer(tmp_path: Path) -> None:
    """A directory stands for the one tokenizer file in it, whatever else it holds."""
    (tmp_path / "train.bin").write_bytes(b"\0\0")
    assert_refused(lambda: load_tokenizer(tmp_path), "holds no tokenizer; expected one of vocab")
    WORD.save(tmp_path)
    assert WORD.fingerprint() == load_tokenizer(tmp_path).fingerprint()
    assert WORD.fingerprint() == load_tokenizer(str(tmp_path)).fingerprint()


def test_merges_without_a_tokenizer_json(tmp_path: Path) -> None:
    """GPT-2's two files alone: what is missing is said; beside ours, merges.txt means nothing."""
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    said = "holds vocab.json and merges.txt, but no tokenizer.json; fetch it, or make it"
    assert_refused(lambda: load_tokenizer(tmp_path), said)
    CHAR.save(tmp_path)
    assert CHAR.fingerprint() == load_tokenizer(tmp_path).fingerprint()


def test_the_content_decides(tmp_path: Path) -> None:
    """Names do not matter: a renamed file is recognised, a wrong class says what it found."""
    for content in VALID:
        path = tmp_path / "renamed"
        path.write_bytes(content)
        assert content == load_tokenizer(path).save(tmp_path / "again").read_bytes()
    assert_refused(
        lambda: CharTokenizer.from_bytes(WORD.to_bytes()), "kind 'word', expected 'char'"
    )
    assert_refused(lambda: SentencePieceTokenizer.from_bytes(CHAR.to_bytes()), "not a sentence")


def test_saving_names_the_file_by_kind(tmp_path: Path) -> None:
    """Into a directory the kind's own name is used, else the name given; the path is returned."""
    assert tmp_path / "vocab.json" == CHAR.save(tmp_path)
    assert tmp_path / "tokenizer.json" == WORD.save(str(tmp_path))
    assert tmp_path / "tokenizer.model" == SentencePieceTokenizer(BPE).save(tmp_path)
    assert tmp_path / "mine" == CHAR.save(tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == CHAR.to_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_failed_save_is_the_systems_error(tmp_path: Path) -> None:
    """A path that cannot be written is an OSError with its name, and none of ours."""
    with pytest.raises(OSError, match="no/such/x") as raised:
        CHAR.save(tmp_path / "no" / "such" / "x")
    assert raised.value.errno == errno.ENOENT
    assert not isinstance(raised.value, TokenizerError)
    assert list(tmp_path.iterdir()) == []
