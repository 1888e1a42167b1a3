"""yocto-prepare: a data directory and the next command, or one line and nothing written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from yocto_cli import prepare as preparing
from yocto_cli.prepare import in_flags, main
from yocto_data import DataMeta, load_bin
from yocto_tokenizers import CharTokenizer, load_tokenizer
from yocto_train.runs.opening import tokenizer_note


def everything_below(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


@pytest.mark.parametrize(("words", "file", "unit"), [
    ("char", "vocab.json", "characters"),
    ("word --vocab_size 12", "tokenizer.json", "words"),
    ("bpe --vocab_size 300", "tokenizer.model", "tokens"),
])  # fmt: skip
def test_each_way_makes_a_data_directory(
    words: str, file: str, unit: str, *, run: Any, poem: Path, tmp_path: Path
) -> None:
    """Four files; the tokens spell the text; the summary ends with the command that trains."""
    out = tmp_path / "my data"
    result = run(main, [*words.split(), "--text_path", str(poem), "--out_dir", str(out)])
    assert (0, "") == (result.code, result.err)
    assert {"train.bin", "val.bin", "meta.json", file} == {path.name for path in out.iterdir()}
    tokenizer = load_tokenizer(out)
    ids = np.concatenate([load_bin(out / "train.bin"), load_bin(out / "val.bin")])
    if file != "tokenizer.json":
        assert poem.read_text() == tokenizer.decode(ids)
    lines = result.out.splitlines()
    assert f"{tokenizer.vocab_size} {unit}" in lines[0]
    assert f"next: uv run yocto-train --data_dir '{out}'" == lines[-1]


def test_the_share_of_unknown_words_is_said(run: Any, poem: Path, tmp_path: Path) -> None:
    """It equals a plain count over both splits."""
    out = tmp_path / "out"
    words = ["word", "--vocab_size=12", f"--text_path={poem}", f"--out_dir={out}"]
    text = run(main, words).out
    ids = np.concatenate([load_bin(out / "train.bin"), load_bin(out / "val.bin")])
    assert f"note: {np.mean(ids == 0):.2%} of the tokens are words outside" in text


def test_what_happened_to_the_text_is_said_once(run: Any, tmp_path: Path) -> None:
    """A byte order mark, replaced bytes, controls: counted, each in a line."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"\xef\xbb\xbf" + b"wind and rain \x1b \xff and so on\n" * 20)
    words = [f"--text_path={text}", f"--out_dir={tmp_path / 'out'}", "--errors=replace"]
    out = run(main, ["char", *words]).out
    assert "note: 1 byte order mark dropped" in out
    assert "note: 20 places not in utf-8" in out
    assert "note: 20 control characters kept" in out


def test_what_is_passed_over_or_changed_is_said(run: Any, tmp_path: Path) -> None:
    """Other files, empty ones, line ends; how documents are told apart and shared out."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, content in (
        ("a.txt", "wind\r\n" * 50), ("b.txt", ""), ("c.md", "# x"), ("d.jsonl", '{"text": null}\n'),
    ):  # fmt: skip
        (texts / name).write_bytes(content.encode())
    words = ["char", f"--text_path={texts}", f"--out_dir={tmp_path / 'out'}"]
    out = run(main, words).out
    assert f"note: 1 file of another kind left out, such as {texts / 'c.md'}\n" in out
    assert "note: 2 empty texts passed over\n" in out
    assert "note: line ends of Windows or old Macs became LF; --keep_cr keeps them\n" in out
    assert r"\r" not in (tmp_path / "out" / "vocab.json").read_text()
    assert "LF" not in (kept := run(main, [*words, "--force", "--keep_cr"]).out)
    assert "documents" not in kept
    assert r"\r" in (tmp_path / "out" / "vocab.json").read_text()
    (texts / "b.txt").write_text("rain and snow")
    out = run(main, [*words, "--force"]).out
    assert "note: 2 documents, a line end after each\n" in out
    assert "note: whole ones would not make the share for validation: one is cut\n" in out
    poems = tmp_path / "poems.jsonl"
    poems.write_text("".join(f'{{"text": "Poem {n} ends here"}}\n' for n in range(40)))
    assert run(main, ["char", f"--text_path={poems}", f"--out_dir={tmp_path / 'p'}"]).code == 0
    tokenizer, ids = load_tokenizer(tmp_path / "p"), load_bin(tmp_path / "p" / "train.bin")
    assert re.fullmatch(r"(Poem \d+ ends here\n)+", tokenizer.decode(ids.tolist()))


def test_several_sources_a_tokenizer_and_a_toml_file(run: Any, poem: Path, tmp_path: Path) -> None:
    """Flags may come from a file; a tokenizer that is named is used, not learned."""
    first = tmp_path / "first"
    assert run(main, ["char", f"--text_path={poem}", f"--out_dir={first}"]).code == 0
    other = tmp_path / "other.txt"
    other.write_text("we are the soul\n" * 20)
    config = tmp_path / "c.toml"
    config.write_text(f'text_path = ["{poem}", "{other}"]\nval_ratio = 0.4\n')
    second = tmp_path / "second"
    words = ["char", f"--config={config}", f"--out_dir={second}", f"--vocab_path={first}"]
    assert run(main, words).code == 0
    meta = DataMeta.load(second)
    assert load_tokenizer(first).fingerprint() == meta.tokenizer.fingerprint
    assert ["poem.txt", "other.txt"] == [source.name for source in meta.sources]


@pytest.mark.parametrize(("words", "what"), [
    ("char --out_dir={tmp}/o --text_path={tmp}/none.txt", "No such file or directory"),
    ("char --out_dir={tmp}/o --text_path={tmp}/*.nix", "matches no file"),
    ("char --out_dir={tmp}/o --text_path={tmp}/empty.txt", "empty.txt"),
    ("char --out_dir={tmp}/o --text_path={tmp}/latin.txt", "at byte 3"),
    ("char --out_dir={tmp}/o --text_path={tmp}/latin.txt", "pass --encoding=cp1252"),
    ("word --out_dir={tmp}/o --text_path={tmp}/dna.txt", "suits characters or pieces"),
    (
        "char --out_dir={tmp}/o --text_path={tmp}/bad.jsonl --text_field=x",
        "no field 'x', but text; pass --text_field=text",
    ),
    ("char --out_dir={tmp}/o --text_path={tmp}/utf16.txt", "byte order mark"),
    ("char --out_dir={tmp}/o --text_path={tmp}/tiny.txt", "split"),
    ("char --out_dir={tmp}/o --text_path={tmp}/a.json", ".jsonl"),
    ("char --out_dir={tmp}/o --text_path={tmp}/bad.jsonl", "line 2"),
    ("char --out_dir={tmp}/full --text_path={tmp}/poem.txt", "is never replaced"),
    ("char --out_dir={tmp}/poem.txt --text_path={tmp}/poem.txt", "poem.txt"),
    ("char --out_dir={tmp}/poem.txt/x --text_path={tmp}/poem.txt", "poem.txt"),
    ("char --out_dir=/ --text_path={tmp}/poem.txt", "/"),
    ("char --out_dir= --text_path={tmp}/poem.txt", "name a new directory"),
    ("char --out_dir=~/o --text_path={tmp}/poem.txt", "$HOME instead of ~"),
    ("char --out_dir={tmp}/o --text_path={tmp}/poem.txt --val_ratio=0", "--val_ratio"),
    ("char --out_dir={tmp}/o --text_path={tmp}/poem.txt --val_ratio=nan", "--val_ratio"),
    ("char --out_dir={tmp}/o --text_path={tmp}/poem.txt --seed=-1", "seed"),
    ("char --out_dir={tmp}/o --text_path={tmp}/poem.txt --workers=-1", "--workers"),
    ("char --out_dir={tmp}/o --text_path={tmp}/poem.txt --encoding=klingon", "klingon"),
    ("char --out_dir={tmp}/o --text_path={tmp}/poem.txt --vocab_path={tmp}", "no tokenizer"),
    ("word --out_dir={tmp}/o --text_path={tmp}/poem.txt --vocab_size=1", "at least 2"),
    ("bpe --out_dir={tmp}/o --text_path={tmp}/poem.txt --vocab_size=0", "vocab_size is 0"),
    ("bpe --out_dir={tmp}/o --text_path={tmp}/poem.txt --vocab_size=9", "too small"),
    ("bpe --out_dir={tmp}/o --text_path={tmp}/poem.txt", "or --shrink"),
    ("bpe --out_dir={tmp}/o --text_path={tmp}/poem.txt --character_coverage=2", "0.98 to 1"),
])  # fmt: skip
def test_bad_input_is_refused_and_nothing_is_written(
    words: str, what: str, refused: Any, poem: Path, tmp_path: Path
) -> None:
    """One line that names it, exit code 2, and the directory is byte for byte as before."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "tiny.txt").write_text("a")
    (tmp_path / "dna.txt").write_text("acgt" * 100)
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (tmp_path / "utf16.txt").write_bytes("wind".encode("utf-16"))
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "bad.jsonl").write_text('{"text": "wind"}\n{"txt": "rain"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("dear")
    before = everything_below(tmp_path)
    assert what in refused(main, words.format(tmp=tmp_path).split())
    assert before == everything_below(tmp_path)


def test_a_path_of_escapes_is_shown_and_not_obeyed(refused: Any, tmp_path: Path) -> None:
    """A newline, ESC or bytes that are not UTF-8 in a name stay in one line."""
    for name in ("a\nb\x1b[2J", "\udcff", "x" * 300, "a\0b"):
        refused(main, ["char", f"--text_path={tmp_path / name}", f"--out_dir={tmp_path / 'o'}"])
        refused(main, ["char", f"--text_path={tmp_path}", f"--out_dir={tmp_path / name}"])


def test_force_replaces_data_and_nothing_else(run: Any, poem: Path, tmp_path: Path) -> None:
    """A second preparation is refused without --force, and a foreign file always stays."""
    out = tmp_path / "out"
    words = ["char", f"--text_path={poem}", f"--out_dir={out}"]
    assert [0, 2] == [run(main, words).code for _ in range(2)]
    assert run(main, [*words, "--force", "--val_ratio=0.5"]).code == 0
    meta = DataMeta.load(out)
    assert meta.train.tokens == meta.val.tokens
    (out / "diary.txt").write_text("dear")
    assert run(main, [*words, "--force"]).code == 2
    assert (out / "diary.txt").read_text() == "dear"


@pytest.fixture
def bpe(run: Any, poem: Path) -> Path:
    """Data whose tokenizer has 300 ids."""
    out = poem.parent / "bpe"
    run(main, ["bpe", f"--text_path={poem}", f"--out_dir={out}", "--vocab_size=300"])
    return out


def test_a_tokenizer_of_another_kind_is_refused(refused: Any, bpe: Path, poem: Path) -> None:
    """The message names the right first word."""
    words = [f"--text_path={poem}", f"--out_dir={poem.parent / 'o'}"]
    line = refused(main, ["char", *words, f"--tokenizer_path={bpe}"])
    assert "sentencepiece; use yocto-prepare bpe" in line
    assert "give it as --tokenizer_path" in refused(main, ["bpe", *words, f"--vocab_path={bpe}"])


def test_what_a_named_tokenizer_loses_is_said(run: Any, poem: Path, tmp_path: Path) -> None:
    """In numbers, when data is prepared with it, and again before training; data is made anyway."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [poem.read_text()],
        tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet),
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    out = tmp_path / "out"
    words = [f"--text_path={poem}", f"--out_dir={out}", "--tokenizer_path"]
    result = run(main, ["bpe", *words, str(tmp_path / "tokenizer.json")])
    assert result.code == 0
    assert re.search(r"note: the tokenizer loses .* 60 letters change case", result.out)
    assert "do not compare bits per byte" in result.out
    opened, lost = load_tokenizer(out), tokenizer_note(load_tokenizer(out))
    assert ("huggingface", True) == (opened.kind, "change case" in (lost or ""))


def test_flags_of_learning_contradict_a_tokenizer(
    refused: Any, run: Any, bpe: Path, poem: Path
) -> None:
    """They are named, with what was found; its own size is no contradiction."""
    words = ["bpe", f"--text_path={poem}", f"--out_dir={poem.parent / 'o'}"]
    words.append(f"--tokenizer_path={bpe}")
    for flags in ("--vocab_size=299", "--vocab_size=8000", "--newline=merged", "--shrink"):
        line = refused(main, [*words, "--vocab_size=300", flags])
        assert "already has its 300 ids" in line
        assert f"leave {flags.partition('=')[0]} out" in line
    assert run(main, [*words, "--vocab_size=300"]).code == 0


def test_a_vocabulary_that_lacks_characters_is_refused(
    refused: Any, run: Any, poem: Path, tmp_path: Path
) -> None:
    """The character is named, and no flag is advised that would not help."""
    run(main, ["char", f"--text_path={poem}", f"--out_dir={tmp_path / 'first'}"])
    other = tmp_path / "other.txt"
    other.write_text("na\u00efve \U0001f600 " * 50, encoding="utf-8")
    words = ["char", f"--text_path={other}", f"--vocab_path={tmp_path / 'first'}"]
    line = refused(main, [*words, f"--out_dir={tmp_path / 'o'}"])
    assert "U+1F600 GRINNING FACE at index 6" in line
    assert line.endswith("; add them to the training text\n")


def test_nanogpts_files_are_imported(run: Any, refused: Any, poem: Path, tmp_path: Path) -> None:
    """Type and vocabulary are the caller's to say; the tokens stay, a meta.pkl is never opened."""
    made, theirs = tmp_path / "made", tmp_path / "theirs"
    run(main, ["char", f"--text_path={poem}", f"--out_dir={made}"])
    theirs.mkdir()
    for name in ("train.bin", "val.bin"):
        (theirs / name).write_bytes((made / name).read_bytes())
    (theirs / "meta.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    words = ["import", f"--data_dir={theirs}", "--dtype=uint16"]
    size = load_tokenizer(made).vocab_size

    result = run(main, [*words, f"--out_dir={tmp_path / 'a'}", f"--vocab_path={made}"])
    assert (0, "") == (result.code, result.err)
    assert f"next: uv run yocto-train --data_dir {tmp_path / 'a'}" == result.out.splitlines()[-1]
    assert (made / "val.bin").read_bytes() == (tmp_path / "a" / "val.bin").read_bytes()
    assert load_tokenizer(made).fingerprint() == load_tokenizer(tmp_path / "a").fingerprint()

    result = run(main, [*words, f"--out_dir={tmp_path / 'b'}", f"--vocab_size={size}"])
    assert "note: the files do not include the tokenizer of these ids" in result.out
    assert result.out.endswith("--tokenizer_path TOKENIZER\n")
    assert size == DataMeta.load(tmp_path / "b").vocab_size

    words.append(f"--out_dir={tmp_path / 'c'}")
    assert "give --vocab_size" in refused(main, words)
    assert f"holds id {size - 1}" in refused(main, [*words, f"--vocab_size={size - 1}"])
    assert "the tokenizer's is" in refused(main, [*words, "--vocab_size=9", f"--vocab_path={made}"])
    assert "missing --dtype" in refused(main, [w for w in words if "dtype" not in w])
    assert not (tmp_path / "c").exists()


def test_progress_of_learning_and_encoding_is_told(poem: Path, tmp_path: Path) -> None:
    """In bytes, each up to the size of the text; another command may prepare texts, too."""
    seen: list[tuple[str, int, int]] = []
    meta, tokenizer = preparing.prepare_texts(
        str(poem), tmp_path / "a", learn=CharTokenizer.train, val_ratio=0.2,
        progress=lambda *all_: seen.append(all_),
    )  # fmt: skip
    assert DataMeta.load(tmp_path / "a") == meta
    assert load_tokenizer(tmp_path / "a").fingerprint() == tokenizer.fingerprint()
    size = poem.stat().st_size
    assert (preparing.LEARNING, size, size) in seen
    assert (preparing.ENCODING, size, size) == seen[-1]


@pytest.mark.parametrize(("message", "expected"), [
    ("pass 35, more text, or shrink=True", "pass 35, more text, or --shrink"),
    ("use force to replace it", "use --force to replace it"),
    ("pass encoding utf-16", "pass --encoding utf-16"),
    ("use errors=replace", "use --errors=replace"),
    ("--val_ratio must be", "--val_ratio must be"),
    ("many errors in the encoding", "many errors in the encoding"),
])  # fmt: skip
def test_advice_speaks_of_flags(message: str, expected: str) -> None:
    """What a package calls an argument is a flag here; other words stay."""
    assert expected == in_flags(message)
