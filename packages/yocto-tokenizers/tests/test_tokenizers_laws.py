"""The laws of section "The ladder and the protocol", each checked on every kind of tokenizer."""

import multiprocessing
import operator
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import StreamDecoder, Tokenizer, TokenizerError, load_tokenizer

RANDOM_LETTERS = "".join(random.Random(0).choices("etaoin", k=100_000))  # noqa: S311


def ids_of(tokenizer: Tokenizer) -> SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.vocab_size - 1))


@pytest.mark.property
@given(data=st.data())
def test_round_trip(
    tokenizer: Tokenizer, known_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """T1: a text the kind declares lossless comes back exactly, as text and as bytes."""
    text = data.draw(known_text)
    ids = tokenizer.encode(text)
    assert text == tokenizer.decode(ids)
    assert text.encode() == tokenizer.decode_bytes(ids)


@pytest.mark.property
@given(data=st.data())
def test_the_three_encoders_agree(
    tokenizer: Tokenizer, encodable_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """T2: a batch is a map, NumPy holds the same ids in the narrowest type of token files."""
    several = data.draw(st.lists(encodable_text, max_size=4))
    one_by_one = [tokenizer.encode(text) for text in several]
    assert one_by_one == tokenizer.encode_batch(several)
    for text, ids in zip(several, one_by_one, strict=True):
        array = tokenizer.encode_to_numpy(text)
        assert np.dtype(np.uint16) == array.dtype
        assert (len(ids),) == array.shape
        assert ids == array.tolist()


def test_the_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    """T2: nothing in, nothing out, in every form."""
    assert [] == tokenizer.encode("") == tokenizer.encode_to_numpy("").tolist()
    assert "" == tokenizer.decode([]) == tokenizer.decode(np.array([], dtype=np.uint16))
    assert tokenizer.encode_batch([]) == []


@pytest.mark.property
@given(data=st.data())
def test_ids_are_in_range(
    tokenizer: Tokenizer, encodable_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """T3: encoding gives ids in range(vocab_size), and every such id can be decoded."""
    ids = tokenizer.encode(data.draw(encodable_text))
    assert set(ids) <= set(range(tokenizer.vocab_size))
    tokenizer.decode(range(tokenizer.vocab_size))


@pytest.mark.property
@given(data=st.data(), outside=st.integers())
@example(data=None, outside=-1)
@example(data=None, outside=2**40)
@example(data=None, outside=2**70)
@example(data=None, outside=2**63)  # NumPy makes floats of [0, 2**63]
def test_other_ids_raise(tokenizer: Tokenizer, data: st.DataObject | None, outside: int) -> None:
    """T3: an id out of range raises wherever it stands; the message has the id and the limit."""
    size = tokenizer.vocab_size
    bad = size + outside if outside >= 0 else outside
    good = data.draw(ids_of(tokenizer)) if data else [0, 1]
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(TokenizerError, match=f"id {bad} at index {len(good)} .* {size - 1}$"):
            decode([*good, bad])
    with pytest.raises(TokenizerError, match=f"id {bad} .* {size - 1}$"):
        tokenizer.stream_decoder().push(bad)


@pytest.mark.parametrize("bad", [1.0, True, "1", None, np.float32(1), np.True_])
def test_ids_that_are_no_integers_raise(tokenizer: Tokenizer, bad: object) -> None:
    """T3: a float, a bool, a string or None is refused, alone or among ids."""
    for ids in ([bad], [1, bad], np.array([bad])):
        with pytest.raises(TokenizerError):
            tokenizer.decode(ids)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError):
        tokenizer.stream_decoder().push(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [5, "ab", [[1]], [[1], [2, 3]], {1: 2}, None, iter([1])])
def test_ids_that_are_no_sequence_raise(tokenizer: Tokenizer, ids: object) -> None:
    """T3: ids have one dimension."""
    with pytest.raises(TokenizerError):
        tokenizer.decode(ids)  # type: ignore[arg-type]


@pytest.mark.property
@given(data=st.data())
def test_ids_come_in_any_container(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Lists, tuples and integer arrays of any width decode alike."""
    ids = data.draw(ids_of(tokenizer))
    expected = tokenizer.decode(ids)
    assert expected == tokenizer.decode(tuple(ids))
    for dtype in (np.uint16, np.int32, np.int64, np.uint64, ">u4"):
        assert expected == tokenizer.decode(np.array(ids, dtype=dtype))


@pytest.mark.property
@given(data=st.data())
def test_decoding_is_concatenation(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """T4: the bytes of two sequences of ids are the bytes of each, joined."""
    left, right = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    whole = tokenizer.decode_bytes(left + right)
    assert whole == tokenizer.decode_bytes(left) + tokenizer.decode_bytes(right)
    assert whole.decode("utf-8", "replace") == tokenizer.decode(left + right)


@pytest.mark.property
@given(data=st.data())
def test_text_gives_no_special_id(
    tokenizer: Tokenizer, encodable_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """T6: no text gives a special id, not even one that spells its name."""
    special = set(tokenizer.special_tokens.values())
    assert len(special) >= 4
    for text in (data.draw(encodable_text), "".join(tokenizer.special_tokens)):
        assert not special & set(tokenizer.encode(text))


def test_special_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    """Special ids add nothing to text, bytes or stream; the four roles are found by name."""
    special = list(tokenizer.special_tokens.values())
    assert tokenizer.decode(special) == ""
    assert tokenizer.decode_bytes(special) == b""
    stream = tokenizer.stream_decoder()
    assert "".join(map(stream.push, special)) + stream.finish() == ""
    roles = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.user_id, tokenizer.assistant_id)
    names = ("<s>", "</s>", "<|user|>", "<|assistant|>")
    assert tuple(tokenizer.special_tokens[name] for name in names) == roles
    with pytest.raises(TypeError):  # a view that refuses writes
        tokenizer.special_tokens["<x>"] = 1  # type: ignore[index]


@pytest.mark.property
@given(data=st.data())
def test_copies_agree(
    tokenizer: Tokenizer,
    copies: list[Tokenizer],
    encodable_text: SearchStrategy[str],
    data: st.DataObject,
) -> None:
    """T7: saved and loaded, or pickled to a worker, it gives the same ids and the same text."""
    text = data.draw(encodable_text)
    ids = data.draw(ids_of(tokenizer))
    for copy in copies:
        assert tokenizer.encode(text) == copy.encode(text)
        assert tokenizer.decode_bytes(ids) == copy.decode_bytes(ids)


@pytest.fixture(scope="session")
def copies(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    directory: Path = tmp_path_factory.mktemp("copies")
    tokenizer.encode("a")  # tables made on first use must not change what is pickled or saved
    path = tokenizer.save(directory)
    return [
        type(tokenizer).load(path),
        type(tokenizer).load(directory),
        load_tokenizer(path),
        load_tokenizer(directory),
        pickle.loads(pickle.dumps(tokenizer)),  # noqa: S301 - our own bytes, as a worker gets them
    ]


def test_copies_are_the_same_tokenizer(tokenizer: Tokenizer, copies: list[Tokenizer]) -> None:
    """T7: copies agree in fingerprint, size, kind and special tokens."""
    for copy in copies:
        assert isinstance(copy, Tokenizer)
        assert type(tokenizer) is type(copy)
        assert tokenizer.fingerprint() == copy.fingerprint()
        assert tokenizer.vocab_size == copy.vocab_size
        assert tokenizer.kind == copy.kind
        assert f"{type(copy).__name__}(vocab_size={tokenizer.vocab_size})" == repr(copy)
        assert dict(tokenizer.special_tokens) == dict(copy.special_tokens)


@pytest.fixture(scope="session")
def worker() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_a_worker_gets_the_same_tokenizer(
    tokenizer: Tokenizer, worker: ProcessPoolExecutor, corpus: str
) -> None:
    """T7: in another process it gives the same ids, the same bytes and the same fingerprint."""
    ids = range(tokenizer.vocab_size)
    for call in (
        operator.methodcaller("encode", corpus),
        operator.methodcaller("decode_bytes", ids),
        operator.methodcaller("fingerprint"),
    ):
        assert call(tokenizer) == worker.submit(call, tokenizer).result()


def test_saving_twice_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A copy saves what the original saved, byte for byte."""
    first = tokenizer.save(tmp_path / "first")
    second = load_tokenizer(first).save(tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_training_is_deterministic(make: Callable[[], Tokenizer]) -> None:
    """T8: training twice on one text gives one fingerprint, a sha256 in hex."""
    fingerprint = make().fingerprint()
    assert fingerprint == make().fingerprint()
    assert len(bytes.fromhex(fingerprint)) * 2 == 64


@pytest.mark.property
@given(data=st.data())
def test_stream_equals_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """T9: pushed one by one, any ids give the text of decode, whether valid UTF-8 or not."""
    ids = data.draw(ids_of(tokenizer))
    stream = tokenizer.stream_decoder()
    for _ in range(2):  # finish leaves it as new
        pieces = [stream.push(i) for i in ids]
        assert tokenizer.decode(ids) == "".join(pieces) + stream.finish()


@pytest.mark.property
@given(data=st.data())
def test_stream_never_shows_half_a_character(
    tokenizer: Tokenizer, known_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """T9: every piece of a streamed text is a part of that text, with no replacement mark added."""
    text = data.draw(known_text)
    stream = tokenizer.stream_decoder()
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)
    assert text == shown + stream.finish()


@pytest.mark.parametrize(
    "text",
    ["a" * 1_000_000, "^" * 1_000_000, " " * 1_000_000, RANDOM_LETTERS],
    ids=["letters", "symbols", "spaces", "random"],
)
def test_repetition_is_not_quadratic(tokenizer: Tokenizer, text: str) -> None:
    """T10: a million equal characters come back; quadratic code would need hours."""
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded in (text, "<unk>")


@pytest.mark.property
@given(before=st.text(max_size=5), surrogate=st.characters(categories=["Cs"]))
@example(before="", surrogate="\ud800")
@example(before="a\U0001f600", surrogate="\udfff")
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, before: str, surrogate: str) -> None:
    """T11: a lone surrogate raises an error that has code point and index."""
    known = "".join("a" for _ in before)
    with pytest.raises(TokenizerError, match=f"U\\+{ord(surrogate):04X}.* index {len(known)}\\b"):
        tokenizer.encode(f"{known}{surrogate}b")


@pytest.mark.parametrize("text", [None, 5, b"a", ["a"], ("a",)])
def test_only_a_str_is_a_text(tokenizer: Tokenizer, text: object) -> None:
    """A list is an error in encode, a str is one in encode_batch."""
    with pytest.raises(TokenizerError, match="expected str"):
        tokenizer.encode(text)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="expected str"):
        tokenizer.encode_to_numpy(text)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError):
        tokenizer.encode_batch("abc")
    with pytest.raises(TokenizerError):
        tokenizer.encode_batch(["a", text])  # type: ignore[list-item]


# --- the stream decoder by itself ---


@pytest.mark.property
@given(parts=st.lists(st.binary(max_size=4)))
@example(parts=[b"\xf0", b"\x9f\x98", b"\x80"])
@example(parts=[b"a", b"\xf0\x9f\x98"])
@example(parts=[b"\xf0\x9f", b"a\xff", b"\xe2\x82"])
@example(parts=["\ufffd".encode()[:1], "\ufffd".encode()[1:]])
def test_any_bytes_cut_anywhere(parts: list[bytes]) -> None:
    """The text of a stream is the text of the bytes joined, with one mark per invalid part."""
    decoder = StreamDecoder(parts)
    for _ in range(2):  # X7: at the end, half a character is one mark, and the decoder is as new
        pieces = [decoder.push(i) for i in range(len(parts))]
        assert b"".join(parts).decode("utf-8", "replace") == "".join(pieces) + decoder.finish()


def test_a_character_appears_when_it_is_complete() -> None:
    """Each character is shown with its last byte and no later; a genuine U+FFFD does not stall."""
    text = "a\u00e9\U0001f600\ufffd"
    decoder = StreamDecoder([bytes([byte]) for byte in range(256)])
    shown = ["a", *["", "\u00e9"], *["", "", "", "\U0001f600"], *["", "", "\ufffd"]]
    assert shown == [decoder.push(byte) for byte in text.encode()]
    assert not decoder.finish()


@pytest.mark.parametrize("token_id", [np.int64(1), np.uint16(1), np.array(1)])
def test_a_stream_takes_any_integer(token_id: int) -> None:
    """NumPy integers, as a sampler gives them, are ids."""
    assert StreamDecoder([b"a", b"b"]).push(token_id) == "b"


@pytest.mark.parametrize("token_id", [-1, 2, 2**40, 2**70, True, np.True_, 1.0, "1", None, [1]])
def test_a_refused_id_leaves_the_stream_as_it_was(token_id: int) -> None:
    """T3: anything but an integer in range raises, and leaves the stream as it was."""
    decoder = StreamDecoder([b"\xc3", b"\xa9"])
    decoder.push(0)
    with pytest.raises(TokenizerError):
        decoder.push(token_id)
    assert decoder.push(1) == "\u00e9"


def test_importing_is_light(tmp_path: Path) -> None:
    """Importing loads no optional library, torch or protobuf, writes nothing, prints nothing."""
    code = (
        "import sys, yocto_tokenizers as y; y.CharTokenizer.train('ab').encode('ab');"
        "assert y.CharVocab is y.CharTokenizer and y.Tokenizer is y.BaseTokenizer;"
        "assert not {'tokenizers', 'torch', 'google.protobuf'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
