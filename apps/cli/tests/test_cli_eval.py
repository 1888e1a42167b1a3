"""yocto-eval: figures of several models of one text, and what they may be compared by."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from yocto_cli import models
from yocto_cli.eval import main
from yocto_cli.model_arguments import ModelArguments
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import WordLevelTokenizer
from yocto_train import evaluate_ids, open_model

ROW = re.compile(r" *([\d.]+) +([\d.]+)([ *]) +([\d,]+) +(\d+) +([\d.]+)  (.+)")


def rows(out: str) -> list[tuple[str, ...]]:
    """The fields of each line below the table's head."""
    found = [ROW.fullmatch(line) for line in out.splitlines()[2:]]
    return [match.groups() for match in found if match]


def test_a_table_of_models(run: Any, runs: Path, poem: Path) -> None:
    """Loss per token and bits per byte of the text, for each model in the order it was named."""
    named, text = [str(runs / "char"), str(runs / "bpe" / "latest.pt")], poem.read_text()
    result = run(main, ["--ckpt", *named, f"--text_path={poem}"])
    assert result.code == 0
    assert result.out.startswith(f"{poem}: consecutive windows\n     loss  bits/byte")
    table = rows(result.out)
    assert 2 == len(table)
    for name, (loss, bits, mark, tokens, window, _, where) in zip(named, table, strict=True):
        opened = open_model(name)
        assert opened.tokenizer
        ids = opened.tokenizer.encode(poem.read_text())
        assert (f"{len(ids) - 1:,}", "16", " ", str(opened.path)) == (tokens, window, mark, where)
        found = evaluate_ids(opened.model, torch.tensor(ids), window=16)
        assert float(loss) == pytest.approx(found.loss, abs=2e-4)
        n_bytes = len(text) - len(opened.tokenizer.decode_bytes(ids[:1]))
        assert float(bits) == pytest.approx(
            found.loss * (len(ids) - 1) / math.log(2) / n_bytes, abs=2e-4
        )


def test_the_kind_of_evaluation_is_printed(run: Any, runs: Path, poem: Path) -> None:
    """A stride and a window change the figures, and both are said."""
    words = [f"--ckpt={runs / 'char'}", f"--text_path={poem}"]
    result = run(main, [*words, "--stride=4", "--max_ctx_tokens=8"])
    assert "windows that begin every 4 tokens, scored where they are new\n" in result.out
    ((loss, *_, window, _, _),) = rows(result.out)
    assert "8" == window
    opened = open_model(runs / "char")
    assert opened.tokenizer
    ids = torch.tensor(opened.tokenizer.encode(poem.read_text()))
    expected = evaluate_ids(opened.model, ids, window=8, stride=4).loss
    assert float(loss) == pytest.approx(expected, abs=2e-4)


def test_bits_per_byte_of_a_lossy_tokenizer_are_marked(
    run: Any, poem: Path, tmp_path: Path
) -> None:
    """Words that it lacks are lost: a star and a note say that the figure compares to nothing."""
    tokenizer = WordLevelTokenizer.train(poem.read_text(), vocab_size=12)
    config = GPTConfig(vocab_size=12, n_layer=1, n_head=2, n_embd=8, block_size=16)
    GPT(config).save(tmp_path / "words")
    tokenizer.save(tmp_path / "words")
    result = run(main, [f"--ckpt={tmp_path / 'words'}", f"--text_path={poem}"])
    assert "*" == rows(result.out)[0][2]
    assert "note: * its tokenizer loses a part of the text" in result.err


@pytest.mark.parametrize(("words", "what"), [
    ("--text_path={runs}/none", "none: No such file or directory"),
    ("--text_path={poem} --ckpt {runs}/char {runs}/none", "does not exist"),
    ("--ckpt={runs}/char", "missing --text_path"),
    ("--text_path={poem} --ckpt={runs}/char --stride=-1", "--stride must not be negative"),
    ("--text_path={poem} --ckpt={runs}/char --stride=17", "longer than the windows of 16 tokens"),
    ("--text_path={poem} --ckpt={runs}/char --max_ctx_tokens=17", "--max_ctx_tokens 17 is"),
    ("--text_path={poem} --ckpt={runs}/char --max_ctx_tokens=1", "at least 2"),
    ("--text_path={poem} --ckpt={runs}/char --max_ctx_tokens=0", "at least 2"),
    ("--text_path={poem}/../latin --ckpt={runs}/char", "start byte); convert it to UTF-8"),
    ("--text_path={poem}/../wide --ckpt={runs}/char", "so it is not utf-8; convert it to UTF-8"),
    ("--text_path={poem} --ckpt={runs}/char --mode=token", "--mode token, but"),
    ("--text_path={poem}/../one --ckpt={runs}/char", "fewer than two tokens"),
    ("--text_path={poem}/../other --ckpt={runs}/char", "is not among the model's 23 characters"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    words: str, what: str, run: Any, runs: Path, poem: Path
) -> None:
    """Exit code 2 and one line, before any model is measured."""
    (poem.parent / "one").write_text("w")
    (poem.parent / "other").write_text("wé")
    (poem.parent / "latin").write_bytes(b"wir k\xf6nnen")
    (poem.parent / "wide").write_bytes("wir können".encode("utf-16"))
    result = run(main, words.format(runs=runs, poem=poem).replace("poem.txt/../", "").split())
    assert (2, "") == (result.code, result.out)
    assert what in result.err.splitlines()[-1]
    assert 1 == result.err.count("\n")


def test_output_that_is_not_finite_is_failed_work(run: Any, runs: Path, poem: Path) -> None:
    """Weights that are finite, but overflow: no figure, and exit code 1."""
    opened = open_model(runs / "char")
    assert opened.tokenizer
    with torch.no_grad():
        opened.model.token_emb.weight.fill_(3e38)
    opened.model.save(poem.parent / "huge")
    opened.tokenizer.save(poem.parent / "huge")
    result = run(main, [f"--ckpt={poem.parent / 'huge'}", f"--text_path={poem}"])
    assert (1, "") == (result.code, result.out)
    assert "the model's output is not finite" in result.err
    assert 1 == result.err.count("\n")


@pytest.mark.parametrize("adds", [False, True])
def test_a_begin_token_of_the_tokenizer_is_before_every_text(
    adds: bool, run: Any, poem: Path
) -> None:
    """As the library puts it; where it does, every token of the text is a target."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {"<s>": 0} | {letter: i for i, letter in enumerate(sorted(alphabet), start=1)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    library.add_special_tokens(["<s>"])
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    if adds:
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    config = GPTConfig(vocab_size=len(vocab), n_layer=1, n_head=2, n_embd=8, block_size=16)
    folder = poem.parent / "begins"
    GPT(config).save(folder)
    library.save(str(folder / "tokenizer.json"))
    opened, generator = models.load_generator(ModelArguments(ckpt=str(folder)))
    assert library.encode("The soul").ids == models.prompt_ids(generator, "The soul")
    if adds:
        assert [0] == library.encode("").ids == models.prompt_ids(generator, "")
    text = poem.read_text()
    ((loss, bits, mark, tokens, *_),) = rows(
        run(main, [f"--ckpt={folder}", f"--text_path={poem}"]).out
    )
    found = evaluate_ids(opened.model, torch.tensor(library.encode(text).ids), window=16)
    n_targets = len(text.encode()) - (not adds)
    assert (" ", f"{n_targets:,}") == (mark, tokens)
    assert float(loss) == pytest.approx(found.loss, abs=2e-4)
    assert float(bits) == pytest.approx(found.loss / math.log(2), abs=2e-4)
