"""Tokenizer files: whatever is wrong with one, one line says so, and saving never tears."""

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
    TokenizerFileError,
    WordLevelTokenizer,
    load_tokenizer,
)

CHAR = CharTokenizer("ab?", special_tokens=["<s>"])
WORD = WordLevelTokenizer(["a", " ", "b"], special_tokens=["<s>"])
BPE = SentencePieceTokenizer.train("a b ab", vocab_size=300, shrink=True).to_bytes()


def edited(tokenizer: Tokenizer = CHAR, **changes: Any) -> bytes:
    """The JSON of a tokenizer with some keys replaced, its sha256 left as it was."""
    assert isinstance(tokenizer, CharTokenizer | WordLevelTokenizer)
    return json.dumps({**json.loads(tokenizer.to_bytes()), **changes}).encode()


def stoi(**changes: Any) -> bytes:
    return edited(stoi={**CHAR.stoi, **changes})


# Row of the table, content of vocab.json, what the message says.
JSON_ROWS: list[tuple[str, bytes, str]] = [
    ("T1 empty", b"", r"not valid JSON \(line 1, column 1\)"),
    ("T1 brace", b"{", r"not valid JSON \(line 1, column 2\)"),
    ("T1 second line", b'{\n "a": ]', r"not valid JSON \(line 2, column 7\)"),
    ("T1 binary", bytes(range(256)), "not valid JSON"),
    ("T1 not UTF-8", b'{"kind": "\xff"}', "not valid JSON: byte 10 is not UTF-8"),
    ("T1 BOM", b"\xef\xbb\xbf" + CHAR.to_bytes(), r"not valid JSON \(line 1, .*byte order mark"),
    ("T1 UTF-16", CHAR.to_bytes().decode().encode("utf-16"), "byte order mark"),
    ("T1 list", b'["a"]', "a JSON list, expected an object"),
    ("T1 null", b"null", "a JSON null, expected an object"),
    ("T1 number", b"5", "a JSON number, expected an object"),
    ("T1 NaN", b'{"kind": NaN}', "NaN"),
    ("T1 infinity", b'{"kind": -Infinity}', "-Infinity"),
    ("T1 another object", b'{"a": 1}', "no kind and format_version"),
    ("T1 missing key", edited(itos=None).replace(b'"itos"', b'"otis"'), "lacks itos"),
    ("T1 unknown key", edited(extra=1), "unknown key 'extra'"),
    ("T1 other kind", edited(kind="words"), "unknown kind 'words'"),
    ("T1 newer version", edited(format_version=2), "format_version 2, .* reads up to 1; upgrade"),
    ("T1 no version", edited(format_version=True), "format_version True is no version"),
    ("T1 version zero", edited(format_version=0), "format_version 0 is no version"),
    ("T2 duplicate key", b'{"kind": "char", "kind": "char"}', "the key 'kind' twice"),
    ("T2 duplicate token", edited().replace(b'"b": 1', b'"a": 1'), "the key 'a' twice"),
    ("T3 two with one id", stoi(b=0), "'b' the id 0, which itos gives 'a'"),
    ("T3 hole", edited(stoi={"a": 0, "b": 1, "<s>": 3}), "stoi lacks the token '\\?'"),
    ("T3 beyond", stoi(b=4), "'b' the id 4, expected an integer from 0 to 3"),
    ("T3 -1", stoi(b=-1), "'b' the id -1"),
    ("T3 1.0", stoi(b=1.0), "'b' the id 1.0"),
    ("T3 true", stoi(b=True), "'b' the id True"),
    ("T3 string", stoi(b="1"), "'b' the id '1'"),
    ("T3 null", stoi(b=None), "'b' the id None"),
    ("T3 2^63", stoi(b=2**63), f"'b' the id {2**63}"),
    ("T3 no object", edited(stoi=[]), "stoi is no object"),
    ("T3 same token twice", edited(itos=["a", "a", "?", "<s>"]), "ids 0 and 1 are both .*'a'"),
    ("T3 token no string", edited(itos=["a", 5, "?", "<s>"]), "id 1 is 5, no string"),
    ("T3 no list", edited(itos={}), "itos is no list"),
    ("T3 no tokens", edited(itos=[], stoi={}, special_tokens={}, vocab_size=0), "itos is no list"),
    ("T4 size", edited(vocab_size=5), "vocab_size 5 but lists 4"),
    ("T4 size no integer", edited(vocab_size=4.0), "vocab_size 4.0 but lists 4"),
    ("T5 empty token", edited(itos=["a", "", "?", "<s>"]), "id 1 is empty"),
    ("T5 long entry", edited(itos=["a", "bc", "?", "<s>"], stoi={"a": 0, "bc": 1, "?": 2, "<s>": 3},
                             sha256=""), "sha256"),
    ("T5 10 MB token", edited(itos=["a", "b" * 10**7, "?", "<s>"]), "id 1 has 10000000 characters"),
    ("T6 surrogate", edited(itos=["a", "\ud800", "?", "<s>"]), "id 1 .*lone surrogate"),
    ("T7 collides", edited(special_tokens={"<s>": 0}), "'<s>' the id 0, which itos gives 'a'"),
    ("T7 out of range", edited(special_tokens={"<s>": 4}), "'<s>' the id 4, expected"),
    ("T7 unknown name", edited(special_tokens={"<t>": 3}), "'<t>' the id 3, which itos"),
    ("T8 deep", b'{"kind":' * 100_000, "nested too deeply|not valid JSON"),
    ("T8 deep lists", b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    ("T8 long number", b'{"kind": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    ("T9 swapped", edited(itos=["b", "a", "?", "<s>"], stoi={"b": 0, "a": 1, "?": 2, "<s>": 3}),
     "does not match its sha256"),
    ("T9 sha256", edited(sha256="0" * 64), "does not match its sha256"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"), [row[1:] for row in JSON_ROWS], ids=[row[0] for row in JSON_ROWS]
)
def test_damaged_json(content: bytes, message: str, tmp_path: Path) -> None:
    """T1 to T9: refused by name, in one line of at most 300 printable characters."""
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    assert_refused(lambda: load_tokenizer(path), message)
    assert [path] == list(tmp_path.iterdir())


def assert_refused(action: Callable[[], object], message: str) -> None:
    with pytest.raises(TokenizerFileError, match=message) as raised:
        action()
    line = str(raised.value)
    assert line.isprintable()
    assert len(line) <= 300


@pytest.mark.parametrize(
    ("itos", "special_tokens", "message"),
    [
        (["a", "bc", "<s>"], {"<s>": 2}, "entry 1 is 'bc', expected one character"),
        (["<s>", "a"], {"<s>": 0}, "entry 0 is '<s>', expected one character"),
        (["a", "<s>"], {}, "entry 1 is '<s>', expected one character"),
        (["<s>"], {"<s>": 0}, "no character"),
        (["a", "b"], {"b": 1}, "special token 'b' is unfit"),
    ],
)
def test_a_consistent_file_of_another_shape(
    itos: list[str], special_tokens: dict[str, int], message: str
) -> None:
    """T5, T7: with sums that fit, an entry that is neither character nor special is refused."""
    from yocto_tokenizers.vocabulary import Vocabulary

    vocabulary = Vocabulary(
        kind="char", itos=tuple(itos), special_tokens=special_tokens, settings={}
    )
    assert_refused(lambda: CharTokenizer.from_bytes(vocabulary.to_json()), message)


@pytest.mark.parametrize(
    ("itos", "special_tokens", "pattern", "message"),
    [
        (["<unk>", "a"], {}, "new-pattern", "needs the pattern 'new-pattern'"),
        (["a", "<unk>"], {}, "space-word-symbol", "'<unk>' again|do not come first"),
        (["<unk>", "a", "<s>"], {"<s>": 2}, "space-word-symbol", "special token 'a' is unfit"),
        (["<unk>"], {}, "space-word-symbol", "no word"),
    ],
)
def test_a_consistent_word_file_of_another_shape(
    itos: list[str], special_tokens: dict[str, int], pattern: str, message: str
) -> None:
    """T7: the layout of a word vocabulary, and a pattern that is a name and never an expression."""
    from yocto_tokenizers.vocabulary import Vocabulary

    vocabulary = Vocabulary(
        kind="word",
        itos=tuple(itos),
        special_tokens=special_tokens,
        settings={"pattern": pattern},
    )
    assert_refused(lambda: WordLevelTokenizer.from_bytes(vocabulary.to_json()), message)


def test_word_settings_are_strings() -> None:
    """T1: a setting of another type is refused."""
    assert_refused(lambda: WordLevelTokenizer.from_bytes(edited(WORD, pattern=5)), "no.* string")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pieces"),
        (b"<html><body>Not found</body></html>", "damaged|cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "damaged|cut short"),
        (b"\0" * 100, "damaged|holds no pieces"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "damaged"),
        (b"\x0a\xff\xff\xff\xff\x0f", "cut short"),
        (b"\x08\x80\x80\x80\x80\x80\x20", "damaged"),
        (b"\x0a\x02\x08\x05", "damaged"),
        (b"\x0a\x03\x0a\x01\xff", "damaged"),
        (b"\x0a\x02\x12\x00", "damaged|empty piece"),
    ],
)
def test_damaged_models(content: bytes, message: str, tmp_path: Path) -> None:
    """T10: empty, cut, HTML, a pointer file, fields of other types: no sentencepiece model."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    assert_refused(lambda: load_tokenizer(path), f"not a sentencepiece model .*({message})")


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.9, 0.999])
def test_cut_models(share: float) -> None:
    """T10: a model cut anywhere is refused."""
    for cut in {int(len(BPE) * share), len(BPE) - 1}:
        assert_refused(lambda: SentencePieceTokenizer.from_bytes(BPE[:cut]), "sentencepiece model")  # noqa: B023


def test_models_cut_between_fields() -> None:
    """T10: a model that ends at a whole field is refused, although every field in it is sound."""
    trainer = BPE.rindex(b"<|assistant|>")
    ends = [i for i in range(len(BPE)) if BPE.startswith(b"\x0a", i)]
    for end in [*ends, trainer, BPE.rindex(b"\x1a"), BPE.rindex(b"\x12")]:
        if end:
            with pytest.raises(TokenizerFileError):
                SentencePieceTokenizer.from_bytes(BPE[:end])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"<0x41>", b"<0x42>", "a piece twice"),
        (b"<0x41>", b"<0xZZ>", "lacks some of the 256 byte pieces"),
        (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\0\0\x18\x03", "exactly one unknown piece"),
        (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\xc0\x7f\x18\x02", "score that is no number"),
        (b"<unk>\x15\0\0\0\0\x18\x02", b"<unk>\x15\0\0\0\0\x18\x09", "damaged"),
    ],
)
def test_models_that_contradict_themselves(old: bytes, new: bytes, message: str) -> None:
    """T3, T10: a doubled piece, a missing byte, a wrong type or score is named."""
    assert BPE.count(old) == 1
    damaged = BPE.replace(old, new)
    assert_refused(lambda: SentencePieceTokenizer.from_bytes(damaged), message)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.model"])
def test_missing_paths(name: str, tmp_path: Path) -> None:
    """T1, D1, D17: what is missing, dangling, looped or no path gives the system's reason."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (tmp_path / name, tmp_path / "loop", tmp_path / "dangling", tmp_path / name / "x"):
        assert_refused(lambda: load_tokenizer(path), "^cannot read '.*")  # noqa: B023
    assert_refused(lambda: load_tokenizer("a\0b"), r"cannot read 'a\\x00b': it is no valid path")
    assert_refused(lambda: load_tokenizer("x" * 300), "cannot read 'xxx.*too long")
    assert_refused(lambda: load_tokenizer("a\x1b[2J\n"), r"cannot read 'a\\x1b\[2J\\n'")
    assert_refused(lambda: load_tokenizer(5), "5 is no path")  # type: ignore[arg-type]


def test_no_regular_file_is_opened(tmp_path: Path) -> None:
    """D2: a FIFO or device is refused and never blocks."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "vocab.json")
        assert_refused(lambda: load_tokenizer(tmp_path / "vocab.json"), "not a regular file")
        assert_refused(lambda: load_tokenizer(tmp_path), "not a regular file")
    assert_refused(lambda: CharTokenizer.load(os.devnull), "not a regular file")


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    """T8: a file of 100 MB is refused by its size, before it is read."""
    path = tmp_path / "vocab.json"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    assert_refused(lambda: load_tokenizer(path), "104857600 bytes, more than any tokenizer")


def test_a_directory_with_one_tokenizer(tmp_path: Path) -> None:
    """A directory stands for the one tokenizer file in it, whatever else it holds."""
    (tmp_path / "train.bin").write_bytes(b"\0\0")
    assert_refused(lambda: load_tokenizer(tmp_path), "holds no tokenizer; expected one of vocab")
    WORD.save(tmp_path)
    assert WORD.fingerprint() == load_tokenizer(tmp_path).fingerprint()
    assert WORD.fingerprint() == load_tokenizer(str(tmp_path)).fingerprint()
    CHAR.save(tmp_path)
    assert_refused(
        lambda: load_tokenizer(tmp_path), "several tokenizers, vocab.json and tokenizer.json; name"
    )


def test_the_content_decides(tmp_path: Path) -> None:
    """Names do not matter: a renamed file is recognised, a wrong class says what it found."""
    for content in (CHAR.to_bytes(), WORD.to_bytes(), BPE):
        path = tmp_path / "renamed"
        path.write_bytes(content)
        assert content == load_tokenizer(path).save(tmp_path / "again").read_bytes()
    assert_refused(
        lambda: CharTokenizer.from_bytes(WORD.to_bytes()), "kind 'word', expected 'char'"
    )
    assert_refused(lambda: SentencePieceTokenizer.from_bytes(CHAR.to_bytes()), "not a sentence")


VALID = [CHAR.to_bytes(), WORD.to_bytes(), BPE]


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
    if which < 2:
        assert loaded.fingerprint() == cls.from_bytes(VALID[which]).fingerprint()
    assert isinstance(loaded.decode(loaded.encode("a")), str)
