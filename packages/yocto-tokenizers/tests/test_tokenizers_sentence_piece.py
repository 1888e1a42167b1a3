"""BPE: lossless on all of Unicode, equal to one call of the library, trained alike every time."""

import importlib.util
import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import SentencePieceTokenizer

WORD_LIKE = [
    " the",
    "thing",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    ".",
    ": ",
    "a",
    "\u00e9",
    "is named",
    "\r\n",
]
WORDS = st.lists(st.sampled_from(WORD_LIKE)).map("".join)


@pytest.fixture(scope="module", params=["atomic", "merged"])
def trained(request: pytest.FixtureRequest, corpus: str) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(corpus, vocab_size=420, newline=request.param)


def raw(tokenizer: SentencePieceTokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())


def foreign_model(corpus: str, **options: object) -> bytes:
    """A model as somebody else trains it: the library's default options, unless said otherwise."""
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 60,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()), model_writer=model, **settings
    )
    return model.getvalue()


@pytest.mark.property
@given(data=st.data())
def test_ids_are_the_librarys(
    trained: SentencePieceTokenizer, any_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """Without U+2581, the ids are those of one plain call, and so is the decoded text."""
    text = data.draw(any_text).replace("\u2581", "")
    ids = trained.encode(text)
    assert raw(trained).encode(text) == ids
    assert raw(trained).decode(ids) == trained.decode(ids) == text


@pytest.mark.property
@given(data=st.data(), repeats=st.integers(1, 4000))
def test_long_texts_are_cut_where_it_changes_nothing(
    trained: SentencePieceTokenizer, data: st.DataObject, repeats: int
) -> None:
    """However long, and wherever it is cut, a text has the ids of one plain call."""
    unit = data.draw(WORDS)
    text = (unit * repeats)[:6000] + data.draw(WORDS) + unit * 5
    assert raw(trained).encode(text) == trained.encode(text)


@pytest.mark.property
@given(data=st.data())
def test_atomic_newlines_make_encoding_additive(
    any_text: SearchStrategy[str], corpus: str, data: st.DataObject
) -> None:
    """With newline="atomic", text after a newline has the ids it has alone."""
    tokenizer = SentencePieceTokenizer.train(corpus, vocab_size=400)
    left, right = data.draw(any_text) + "\n", data.draw(any_text)
    assert tokenizer.encode(left + right) == tokenizer.encode(left) + tokenizer.encode(right)


def test_every_scalar_value(trained: SentencePieceTokenizer) -> None:
    """Every Unicode scalar value in one string comes back, U+2581 and U+0000 included."""
    text = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))))
    assert text == trained.decode(trained.encode(text))


@pytest.mark.parametrize(
    "text", ["\u2581", "a\u2581b", "\u2581\u2581 a \u2581", " \u2581\n", "\u2585"]
)
def test_the_space_mark_is_a_character(trained: SentencePieceTokenizer, text: str) -> None:
    """T12 of the bad input: U+2581 comes back; the bare library would return a space."""
    assert text == trained.decode(trained.encode(text))
    ids = trained.encode(text)
    mark = [raw(trained).piece_to_id(f"<0x{byte:02X}>") for byte in "\u2581".encode()]
    marks = sum(ids[i : i + 3] == mark for i in range(len(ids)))
    assert text.count("\u2581") == marks


def test_the_fingerprint_is_of_the_pieces(corpus: str) -> None:
    """T8: options that leave the pieces alone leave the fingerprint alone, others do not."""
    options = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 320}
    models = [foreign_model(corpus, num_threads=threads, **options) for threads in (1, 2)]
    one, two = map(SentencePieceTokenizer, models)
    assert one.to_bytes() != two.to_bytes()
    assert one.fingerprint() == two.fingerprint()
    for change in ({"vocab_size": 321}, {"add_dummy_prefix": False}, {"control_symbols": ["<x>"]}):
        other = SentencePieceTokenizer(foreign_model(corpus, **{**options, **change}))
        assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("model_type", "byte_fallback"),
    [("unigram", False), ("unigram", True), ("bpe", False), ("bpe", True), ("char", False)],
)
def test_foreign_models_encode_as_the_library(
    model_type: str, byte_fallback: bool, corpus: str
) -> None:
    """A model with default options has the library's ids, for long texts too.

    The space it puts in front of a text is shown and not guessed away.
    """
    size = 360 if byte_fallback else 60
    model = foreign_model(
        corpus, model_type=model_type, byte_fallback=byte_fallback, vocab_size=size
    )
    tokenizer = SentencePieceTokenizer(model)
    for text in ("What is a word?", "\u2581a\u2581", corpus * 10, "\U0001f600"):
        assert raw(tokenizer).encode(text) == tokenizer.encode(text)
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("What is")) == " What is"
    assert byte_fallback == ("<unk>" in tokenizer.special_tokens)
    if not byte_fallback:
        assert "\u2047" in tokenizer.decode([tokenizer.unk_id])
    assert {"tokenizer.model", "tokenizer_config.json"} == set(tokenizer.folder_files())


def test_the_unknown_piece_looks_as_the_model_says(corpus: str) -> None:
    """Without byte fallback, the unknown id decodes to the surface that the model states."""
    tokenizer = SentencePieceTokenizer(foreign_model(corpus, unk_surface="<?>"))
    ids = tokenizer.encode("\U0001f600")
    assert tokenizer.unk_id in ids
    assert raw(tokenizer).decode(ids) == "<?>"
    assert tokenizer.decode(ids) == " <?>"


def test_foreign_ids_of_begin_and_end(corpus: str) -> None:
    """Ids come from the model whatever the spelling; a missing one is None, never -1."""
    model = foreign_model(corpus, bos_piece="<bos>", eos_id=-1)
    tokenizer = SentencePieceTokenizer(model)
    assert (tokenizer.special_tokens["<bos>"], None) == (tokenizer.bos_id, tokenizer.eos_id)


def test_symbols_that_hold_a_space_or_newline_forbid_cutting(corpus: str) -> None:
    """A lossless foreign model whose pieces lie across a cut still has the library's ids."""
    model = foreign_model(
        corpus,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=400,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["thing\u2581is", ".\nIt", "\n\n"],
    )
    tokenizer = SentencePieceTokenizer(model)
    for unit, symbol in (("the thing is ", "thing is"), ("a.\nIt", ".\nIt"), ("\n\n\n", "\n\n")):
        ids = tokenizer.encode(unit * 1000)
        assert raw(tokenizer).encode(unit * 1000) == ids
        assert symbol in [tokenizer.decode([i]) for i in set(ids)]


def test_every_pair_of_bytes() -> None:
    """All 65,536 pairs of byte tokens give their bytes, and the text Python reads in them."""
    tokenizer = SentencePieceTokenizer.train("ab", vocab_size=300, shrink=True)
    first = raw(tokenizer).piece_to_id("<0x00>")
    pairs = bytes(itertools.chain.from_iterable(itertools.product(range(256), repeat=2)))
    ids = np.frombuffer(pairs, dtype=np.uint8).astype(np.int64) + first
    assert pairs == tokenizer.decode_bytes(ids)
    for one, other in ids.reshape(-1, 2).tolist():
        expected = bytes([one - first, other - first]).decode("utf-8", "replace")
        stream = tokenizer.stream_decoder()
        assert expected == stream.push(one) + stream.push(other) + stream.finish()


def test_threads_share_a_tokenizer(trained: SentencePieceTokenizer, corpus: str) -> None:
    """Several threads encode and decode with one object, each as if alone."""
    texts = [corpus[i:] for i in range(64)]
    expected = [trained.encode(text) for text in texts]
    barrier = threading.Barrier(4)

    def work(part: int) -> list[list[int]]:
        barrier.wait()
        return [trained.encode(text) for text in texts[part::4]]

    with ThreadPoolExecutor(4) as pool:
        for part, got in enumerate(pool.map(work, range(4))):
            assert expected[part::4] == got


def test_a_model_in_use_elsewhere() -> None:
    """Golden: ids of Mistral's first model, which comes with the package mistral-common."""
    package = importlib.util.find_spec("mistral_common")
    if package is None or package.origin is None:
        pytest.skip("mistral-common is not installed")
    model = Path(package.origin).parent / "data" / "tokenizer.model.v1"
    tokenizer = SentencePieceTokenizer.load(model)
    golden = [733, 16289, 28793, 1824, 28742, 28713, 272, 1204, 302, 28705, 28782, 648, 28705]
    golden += [28782, 28804, 733, 28748, 16289, 28793]
    text = "[INST] What's the result of 5 + 5? [/INST]"
    assert golden == tokenizer.encode(text)
    assert f" {text}" == tokenizer.decode(golden)
