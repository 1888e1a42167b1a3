"""Training BPE: the same every time, in bounded memory, and every refusal says what would do."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import (
    CHAT_TOKENS,
    SentencePieceTokenizer,
    TokenizerError,
)
from yocto_tokenizers.formats.sentence_piece_model import even_sample


def test_newline_modes(corpus: str) -> None:
    """Atomic: a newline is one token, always the same. Merged: pieces hold newlines."""
    text = ("so it is.\n\nand: so\n" * 50) + corpus
    atomic = SentencePieceTokenizer.train(text, vocab_size=420)
    merged = SentencePieceTokenizer.train(text, vocab_size=420, newline="merged")
    (newline,) = atomic.encode("\n")
    assert [newline, newline] == atomic.encode("\n\n")
    assert text.count("\n") == atomic.encode(text).count(newline)
    assert len(merged.encode(text)) < len(atomic.encode(text))
    assert text == merged.decode(merged.encode(text))


@pytest.mark.property
@given(data=st.data())
def test_training_is_deterministic(
    any_text: SearchStrategy[str], data: st.DataObject, corpus: str
) -> None:
    """T8: equal texts give equal models to the byte, as one text or from a generator."""
    text = corpus + data.draw(any_text)
    options = {"vocab_size": 400, "shrink": True}
    first = SentencePieceTokenizer.train(text, **options)  # type: ignore[arg-type]
    second = SentencePieceTokenizer.train(iter([text]), **options)  # type: ignore[arg-type]
    assert first.to_bytes() == second.to_bytes()
    assert first.fingerprint() == second.fingerprint()


def test_training_text_with_reserved_characters_is_learned(corpus: str) -> None:
    """U+2585, at which the library skips a whole sentence, does not hide a text from it."""
    plain = SentencePieceTokenizer.train(corpus, vocab_size=400)
    spoiled = SentencePieceTokenizer.train(
        corpus.replace("thing", "thing\u2585") + "\u2581", vocab_size=400
    )
    assert len(plain.encode(corpus)) * 1.1 > len(spoiled.encode(corpus))
    with pytest.raises(TokenizerError, match="holds no words"):
        SentencePieceTokenizer.train("\u2581", vocab_size=300)


def test_special_tokens_are_control_pieces(corpus: str) -> None:
    """`<s>` and `</s>` are in every model, further names follow; ids come from the model."""
    bare = SentencePieceTokenizer.train(corpus, vocab_size=400, special_tokens=())
    assert dict(bare.special_tokens) == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (bare.bos_id, bare.eos_id, bare.user_id, bare.assistant_id) == (1, 2, None, None)
    chat = SentencePieceTokenizer.train(corpus, vocab_size=400, special_tokens=CHAT_TOKENS)
    assert dict(item for item in chat.special_tokens.items() if "|" in item[0]) == {
        "<|user|>": 3,
        "<|assistant|>": 4,
    }
    assert (chat.unk_id, chat.lossless) == (0, True)


@pytest.mark.parametrize(
    "names",
    [["<s>"] * 2, ["<a>"] * 2, ["<unk>"], ["<0x41>"], ["<a,b>"], ['<"a">'], ["\u2581a"], "ab"],
)
def test_unfit_special_tokens_are_refused(names: list[str], corpus: str) -> None:
    """Doubled names, some of which the library lets pass, and names it misreads are refused."""
    with pytest.raises(TokenizerError):
        SentencePieceTokenizer.train(corpus, vocab_size=400, special_tokens=names)


def test_too_large_a_vocabulary_names_the_largest(corpus: str) -> None:
    """D14: the message has the largest size, that size works, and shrink takes it by itself."""
    with pytest.raises(TokenizerError, match=r"8000 is too large .* at most (\d+); pass") as raised:
        SentencePieceTokenizer.train(corpus, vocab_size=8000)
    largest = int(str(raised.value).split("at most ")[1].split(";")[0])
    assert largest == SentencePieceTokenizer.train(corpus, vocab_size=largest).vocab_size
    shrunk = SentencePieceTokenizer.train(corpus, vocab_size=8000, shrink=True)
    assert largest == shrunk.vocab_size
    with pytest.raises(TokenizerError):
        SentencePieceTokenizer.train(corpus, vocab_size=largest + 1)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_too_small_a_vocabulary_names_the_smallest(corpus: str) -> None:
    """D14: the message has the smallest size, that size works and one less does not."""
    with pytest.raises(TokenizerError, match=r"50 is too small.*at least (\d+)") as raised:
        SentencePieceTokenizer.train(corpus, vocab_size=50)
    smallest = int(str(raised.value).split("at least ")[1].split(" ")[0])
    assert smallest == SentencePieceTokenizer.train(corpus, vocab_size=smallest).vocab_size
    with pytest.raises(TokenizerError, match="too small"):
        SentencePieceTokenizer.train(corpus, vocab_size=smallest - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "expected 1 to"),
        ({"vocab_size": -5}, "expected 1 to"),
        ({"vocab_size": 1 << 31}, "expected 1 to"),
        ({"vocab_size": True}, "expected 1 to"),
        ({"vocab_size": 400.0}, "expected 1 to"),
        ({"character_coverage": 0.9}, r"0\.98 to 1"),
        ({"character_coverage": float("nan")}, r"0\.98 to 1"),
        ({"newline": "split"}, "'atomic' or 'merged'"),
        ({"sample_characters": 0}, "positive"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str, corpus: str) -> None:
    """D14: every option says what it accepts."""
    with pytest.raises(TokenizerError, match=message):
        SentencePieceTokenizer.train(corpus, **{"vocab_size": 400, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("coverage", [0.98, 1, 1.0])
def test_the_ends_of_a_range_are_in_it(coverage: float, corpus: str) -> None:
    """The smallest and the largest coverage are accepted."""
    tokenizer = SentencePieceTokenizer.train(corpus, vocab_size=400, character_coverage=coverage)
    assert tokenizer.vocab_size == 400


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), OSError("disk")])
def test_an_error_of_the_texts_arrives_as_itself(error: BaseException) -> None:
    """An exception of the iterator, Ctrl-C included, is not turned into a RuntimeError."""

    def texts() -> Iterator[str]:
        yield "some text"
        raise error

    with pytest.raises(type(error)) as raised:
        SentencePieceTokenizer.train(texts(), vocab_size=300)
    assert error is raised.value


def test_a_long_line_is_learned() -> None:
    """D18: a line far longer than the library's limit is cut, not skipped in silence."""
    line = "hello world " * 20_000 + "unbroken" * 200_000
    tokenizer = SentencePieceTokenizer.train(line, vocab_size=300, shrink=True)
    assert len(tokenizer.encode("hello")) == 1
    assert len(tokenizer.encode("unbroken")) < 8


@pytest.mark.property
@given(lengths=st.lists(st.integers(1, 50), min_size=1), limit=st.integers(1, 500))
@example(lengths=[10] * 100, limit=100)
def test_samples_are_even_and_bounded(lengths: list[int], limit: int) -> None:
    """All parts if they fit; else every n-th, within the limit unless one part exceeds it."""
    parts = [f"{i:02d}" * length for i, length in enumerate(lengths)]
    sample = even_sample(iter(parts), limit)
    assert any(parts[:: 2**power] == sample for power in range(8))
    assert sum(map(len, sample)) <= limit or len(sample) == 1
    if sum(map(len, parts)) <= limit:
        assert parts == sample


def test_sampling_reaches_training(corpus: str) -> None:
    """sample_characters limits what is learned from: later words stay unlearned."""
    text = "aaaa bbbb " * 1000 + "zyzzyva " * 500
    whole = SentencePieceTokenizer.train(text, vocab_size=290, shrink=True)
    part = SentencePieceTokenizer.train(text, vocab_size=290, shrink=True, sample_characters=5000)
    assert len(whole.encode("zyzzyva")) < len(part.encode("zyzzyva"))


def test_the_librarys_own_example() -> None:
    """Golden: the merges, then characters, of the library's trainer test for "abracadabra"."""
    golden = ["ab", "ra", "abra", "ad", "cad", "abracad", "abracadabra", "ac", "br", *"abrcd"]
    reserved = 1 + len(CHAT_TOKENS) + 1 + 256
    tokenizer = SentencePieceTokenizer.train("abracadabra", vocab_size=reserved + len(golden))
    pieces = [tokenizer.decode([i]) for i in range(reserved, tokenizer.vocab_size)]
    assert golden == pieces


def test_minbpes_example() -> None:
    """Golden: minbpe's "aaabdaaabac" with three merges is 258 100 258 97 99: aaab d aaab a c."""
    merges_and_characters = 3 + len("abcd")
    tokenizer = SentencePieceTokenizer.train(
        "aaabdaaabac", vocab_size=1 + len(CHAT_TOKENS) + 1 + 256 + merges_and_characters
    )
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("aaabdaaabac")]
    assert ["aaab", "d", "aaab", "a", "c"] == pieces
