"""Text out of a model: whole characters, stop strings that never show, reasons for ending."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from yocto_model import (
    GPT,
    GPTConfig,
    InputError,
    SamplingError,
    SamplingOptions,
    StopFilter,
    TextGenerator,
    Token,
)

MakeModel = Callable[[GPTConfig, int], GPT]
# Bytes of ASCII, of two- and four-byte characters, of stop strings, and some that are no UTF-8.
PIECES = [b"a", b"b", b"ab", b"\n", "é".encode(), b"\xf0\x9f", b"\x99\x82", b"\xc3", b"\xa9", b""]
EOS = 9
SIZES = {"vocab_size": len(PIECES), "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 8}
GPT2 = GPTConfig.from_dict(SIZES)
SEEDS = st.integers(0, 2**40)
STOPS = st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3)
GREEDY = SamplingOptions(temperature=0)


class Bytes:
    """The least a tokenizer must have."""

    vocab_size = len(PIECES)

    def encode(self, text: str, /) -> list[int]:
        return [PIECES.index(character.encode()) for character in text]

    def decode_bytes(self, ids: Sequence[int], /) -> bytes:
        return b"".join(PIECES[token] for token in ids)


class WithEos(Bytes):
    """And one id that ends a text."""

    eos_id = EOS


def text_of(ids: Iterable[int]) -> str:
    return Bytes().decode_bytes(list(ids)).decode("utf-8", "replace")


def joined(tokens: Iterable[Token]) -> str:
    return "".join(token.text for token in tokens)


@pytest.fixture(scope="session")
def generator(make_model: MakeModel) -> TextGenerator:
    return TextGenerator(make_model(GPT2, 0), Bytes())


# Naive: up to the stop that is complete first; of those, the one that began first.
def before_first_stop(stops: Sequence[str], text: str) -> tuple[str, bool]:
    places = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return (text[: min(places)[1]], True) if places else (text, False)


# --- stop strings -----------------------------------------------------------------------------


def through(stops: Sequence[str], pieces: Iterable[str]) -> tuple[list[Token], list[Token], bool]:
    """What a filter lets out as tokens come, what at the end, and whether it stopped."""
    stop_filter, shown = StopFilter(stops), []
    for number, piece in enumerate(pieces):
        shown += stop_filter.push(Token(id=number, text=piece))
        if stop_filter.stopped:
            break
    return shown, stop_filter.finish(), stop_filter.stopped


@pytest.mark.property
@given(stops=STOPS, pieces=st.lists(st.text("ab\né", max_size=5), max_size=8))
@example(stops=["abc", "b"], pieces=["abc"])
@example(stops=["abc", "b"], pieces=["a", "b", "c"])
@example(stops=["b", "ab"], pieces=["a", "b"])
@example(stops=["aab"], pieces=["a", "a", "a", "b"])
@example(stops=["User:"], pieces=["Us", "er", ": Us"])
def test_how_a_text_is_cut_up_does_not_matter(stops: list[str], pieces: list[str]) -> None:
    """What comes out is the text up to the stop that is complete first, whatever the pieces."""
    expected, stopped = before_first_stop(stops, "".join(pieces))
    shown, rest, was_stopped = through(stops, pieces)
    assert (expected, stopped) == (joined(shown + rest), was_stopped)
    assert list(range(len(shown + rest))) == [token.id for token in shown + rest]


@pytest.mark.property
@given(stops=STOPS, pieces=st.lists(st.text("ab", max_size=3), max_size=6))
@example(stops=["ab"], pieces=["aa"])
def test_no_more_is_held_back_than_could_become_a_stop(stops: list[str], pieces: list[str]) -> None:
    """After each token, only those are inside that reach into a tail that begins a stop string."""
    text = "".join(pieces)
    assume(not before_first_stop(stops, text)[1])
    shown = through(stops, pieces)[0]
    tails = [text[-n:] for n in range(1, len(text) + 1)]
    held = [tail for tail in tails if any(stop.startswith(tail) for stop in stops)]
    ends = [len("".join(pieces[:n])) for n in range(len(pieces) + 1)]
    limit = len(text) - max(map(len, held), default=0)
    assert max(n for n, end in enumerate(ends) if end <= limit) == len(shown)


def test_a_text_that_is_cut_off_shows_no_torn_stop() -> None:
    """Where the length ends a text, the caller may leave out what began like a stop string."""
    for torn, expected in ((False, "aU"), (True, "a")):
        stop_filter = StopFilter(["User:"])
        out = stop_filter.push(Token(id=0, text="aU")) + stop_filter.finish(torn=torn)
        assert expected == joined(out)


def test_one_string_is_one_stop() -> None:
    """`stop="ab"` means "ab", not "a" or "b"."""
    shown, rest, _ = through("ab", ["baab"])
    assert joined(shown + rest) == "ba"
    for empty in ("", ["a", ""]):
        with pytest.raises(InputError, match="must not be empty"):
            StopFilter(empty)


# --- streams ---------------------------------------------------------------------------------


@pytest.mark.property
@given(seed=SEEDS, n=st.integers(0, 40), stops=STOPS)
@example(seed=0, n=40, stops=[])
@example(seed=0, n=40, stops=["b"])
def test_the_streamed_text_is_the_whole_text(
    generator: TextGenerator, seed: int, n: int, stops: list[str]
) -> None:
    """The tokens' texts joined are the decoded ids, up to the first stop string, never shown."""
    out = generator.stream("ab", n, stop=stops, seed=seed)
    shown = list(out)
    expected, stopped = before_first_stop(stops, text_of(token.id for token in out.tokens))
    assert expected == joined(shown) == generator.generate("ab", n, stop=stops, seed=seed)
    assert ("stop" if stopped else "length") == out.finish_reason
    assert out.prompt_ids == [0, 1]
    if not stopped:
        assert n == len(out.tokens)
        assert shown == out.tokens
    # What is shown is what was drawn, of the last token perhaps only a part.
    assert shown[:-1] == out.tokens[: len(shown)][:-1]
    ids = generator.model.generate([[0, 1]], n, seed=seed)[0, 2:].tolist()
    assert ids[: len(out.tokens)] == [token.id for token in out.tokens]


@pytest.mark.property
@given(seed=SEEDS)
def test_only_whole_characters_are_shown(generator: TextGenerator, seed: int) -> None:
    """An unfinished character waits for its rest; what can never become one is U+FFFD, once."""
    shown, ids = "", []
    for token in generator.stream([0], 30, seed=seed):
        ids.append(token.id)
        shown += token.text
        assert text_of(ids).startswith(shown)
        assert len(text_of(ids)) - len(shown) <= 1


@pytest.mark.property
@given(seed=SEEDS, n=st.integers(0, 40), stops=STOPS)
def test_the_end_token_ends_the_text(
    make_model: MakeModel, seed: int, n: int, stops: list[str]
) -> None:
    """P5: the first end token is the last token; its reason is told apart from the others."""
    generator = TextGenerator(make_model(GPT2, 0), WithEos())
    unended = TextGenerator(generator.model, Bytes()).stream([0], n, seed=seed)
    drawn = [token.id for token in unended]
    out = generator.stream([0], n, stop=stops, seed=seed)
    shown = list(out)
    cut = drawn[: drawn.index(EOS) + 1] if EOS in drawn else drawn
    expected, stopped = before_first_stop(stops, text_of(cut))
    assert expected == joined(shown)
    if not stopped:
        assert cut == [token.id for token in out.tokens] == [token.id for token in shown]
        assert ("eos" if EOS in drawn else "length") == out.finish_reason


@pytest.mark.property
@given(seed=SEEDS, ends=st.sets(st.integers(0, 70), max_size=3), with_eos=st.booleans())
@example(seed=0, ends={1}, with_eos=True)
def test_several_ids_may_end_a_text(
    make_model: MakeModel, seed: int, ends: set[int], with_eos: bool
) -> None:
    """The first of them ends it and has no text; alone and in a batch; one never drawn is no harm.

    The tokenizer's own end token is one of them.
    """
    model = make_model(GPT2.replace(vocab_size=64), 0)
    tokenizer = WithEos() if with_eos else Bytes()
    drawn = [token.id for token in TextGenerator(model, Bytes()).stream([0], 30, seed=seed)]
    generator = TextGenerator(model, tokenizer, end_ids=ends)
    all_ends = ends | ({EOS} if with_eos else set())
    assert all_ends == generator.end_ids
    cut = next((n for n, token in enumerate(drawn) if token in all_ends), None)
    out = generator.stream([0], 30, seed=seed)
    assert text_of(drawn[:cut]) == joined(out)
    expected = drawn if cut is None else drawn[: cut + 1]
    assert expected == [token.id for token in out.tokens]
    assert ("length" if cut is None else "eos") == out.finish_reason
    [completion] = generator.batch([[0]], 30, seed=seed)
    assert (out.tokens, out.finish_reason) == (completion.tokens, completion.finish_reason)


@pytest.mark.property
@given(seed=SEEDS, n=st.integers(0, 20), stops=STOPS, data=st.data())
@example(seed=0, n=20, stops=[], data=None)
def test_a_batch_is_its_prompts_one_by_one(
    make_model: MakeModel, seed: int, n: int, stops: list[str], data: st.DataObject | None
) -> None:
    """Prompts of any length, texts or ids, seeded seed + b: each as its own stream."""
    generator = TextGenerator(make_model(GPT2, 0), WithEos())
    prompts: Any = [[0, 1], "b", "ab" * 10]
    if data is not None:
        row = st.lists(st.integers(0, 8), min_size=1, max_size=20)
        prompts = data.draw(st.lists(row | st.text("ab", min_size=1), min_size=1, max_size=4))
    done = generator.batch(prompts, n, stop=stops, seed=seed)
    assert len(prompts) == len(done)
    for b, (prompt, completion) in enumerate(zip(prompts, done, strict=True)):
        alone = generator.stream(prompt, n, stop=stops, seed=seed + b)
        assert joined(alone) == completion.text
        assert alone.tokens == completion.tokens
        assert alone.finish_reason == completion.finish_reason
        assert alone.prompt_ids == completion.prompt_ids


def test_a_running_stream_has_no_reason_yet(generator: TextGenerator) -> None:
    """`finish_reason` is None until the text has ended; without stops, no token is held back."""
    out = generator.stream("a", 30, seed=1)
    for count, _ in enumerate(out, start=1):
        assert count == len(out.tokens)
        assert (None if count < 30 else "length") == out.finish_reason


class Counting(Bytes):
    """A tokenizer with its own stream decoder."""

    def stream_decoder(self) -> "Counting":
        self.seen: list[int] = []
        return self

    def push(self, token: int, /) -> str:
        self.seen.append(token)
        return "x"

    def finish(self) -> str:
        return "." * len(self.seen)


def test_the_tokenizers_own_decoder_is_used(make_model: MakeModel) -> None:
    """Where there is a `stream_decoder`, each text has a fresh one, and its rest is text too."""
    tokenizer = Counting()
    generator = TextGenerator(make_model(GPT2, 0), tokenizer)
    assert generator.generate("a", 3) == "xxx..."
    assert generator.generate("a", 4, stop="..") == "xxxx"
    assert len(tokenizer.seen) == 4


# --- probabilities ---------------------------------------------------------------------------


@pytest.mark.property
@given(seed=SEEDS, n=st.integers(1, 20), k=st.integers(0, 12))
def test_probabilities_are_the_models_own(
    generator: TextGenerator, seed: int, n: int, k: int
) -> None:
    """Before any filter, in natural logarithms, the likeliest first; and only if asked for."""
    out = generator.stream(
        [0], n, seed=seed, options=SamplingOptions(top_k=2), alternatives=k, logprobs=True
    )
    list(out)
    ids = [0]
    for token in out.tokens:
        logits = generator.model(torch.tensor([ids[-16:]]))[0, -1].detach()
        if len(ids) <= 16:  # beyond, the window differs from the last 16
            table = logits.log_softmax(dim=-1)
            assert float(table[token.id]) == pytest.approx(token.logprob, abs=1e-5)
            best = table.sort(descending=True).values[:k].tolist()
            assert best == pytest.approx([logprob for _, logprob in token.alternatives], abs=1e-5)
        assert min(k, len(PIECES)) == len(token.alternatives)
        ids.append(token.id)
    quiet = generator.stream([0], n, seed=seed, options=SamplingOptions(top_k=2))
    list(quiet)
    assert {(None, ())} == {(token.logprob, token.alternatives) for token in quiet.tokens}


# --- many streams of one generator -----------------------------------------------------------


@pytest.mark.property
@given(data=st.data())
def test_streams_read_in_turns_do_not_mix(make_model: MakeModel, data: st.DataObject) -> None:
    """Two streams of one generator, read in any order or left, are what each would be alone."""
    model = make_model(GPT2, 0)
    shared = TextGenerator(model, Bytes())
    prompts = data.draw(
        st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=20), min_size=2, max_size=3)
    )
    streams = [shared.stream(prompt, 12, seed=b) for b, prompt in enumerate(prompts)]
    for turn in data.draw(st.lists(st.integers(0, len(prompts) - 1), max_size=30)):
        next(streams[turn], None)
    left = data.draw(st.integers(0, len(prompts) - 1))
    for b, out in enumerate(streams):
        if b != left:
            list(out)
        alone = TextGenerator(model, Bytes()).stream(prompts[b], 12, seed=b)
        list(alone)
        drawn = [token.id for token in out.tokens]
        assert drawn == [token.id for token in alone.tokens][: len(drawn)]
        assert b == left or len(drawn) == 12


def test_a_second_turn_reads_only_what_is_new(
    make_model: MakeModel, counting: Callable[[GPT], list[int]]
) -> None:
    """A conversation's common beginning is not read again; the text is as if it were."""
    model = make_model(GPT2.replace(block_size=64), 0)
    generator = TextGenerator(model, Bytes())
    first = generator.stream("abab", 5, options=GREEDY)
    list(first)
    second = [*first.prompt_ids, *(token.id for token in first.tokens), 0, 1]
    expected = TextGenerator(model, Bytes()).generate(second, 5, options=GREEDY)
    read = counting(model)
    assert expected == generator.generate(second, 5, options=GREEDY)
    assert [3, 1, 1, 1, 1] == read


def test_a_failed_stream_spoils_no_other(make_model: MakeModel) -> None:
    """P6: after damaged logits the same generator goes on, once the model is whole."""
    model = make_model(GPT2, 0)
    generator = TextGenerator(model, Bytes())
    expected = generator.generate("ab", 6, seed=1)
    gain = model.ln_f.get_parameter("weight")
    good = gain.detach().clone()
    with torch.no_grad():
        gain.fill_(torch.nan)
    with pytest.raises(SamplingError, match="not finite"):
        generator.generate("abb", 6)
    with torch.no_grad():
        gain.copy_(good)
    assert expected == generator.generate("ab", 6, seed=1)


# --- what is refused -------------------------------------------------------------------------


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(make_model: MakeModel) -> None:
    """They do not belong together, and both sizes are said."""
    with pytest.raises(InputError, match="tokenizer has 10 ids, the model only 9"):
        TextGenerator(make_model(GPT2.replace(vocab_size=9), 0), Bytes())


@pytest.mark.property
@given(seed=SEEDS)
def test_ids_that_the_tokenizer_has_not_are_never_drawn(make_model: MakeModel, seed: int) -> None:
    """A vocabulary padded to a round number, as GPT-2's often is, does no harm."""
    generator = TextGenerator(make_model(GPT2.replace(vocab_size=64), 0), Bytes())
    out = generator.stream("a", 20, seed=seed, alternatives=99)
    list(out)
    assert all(token.id < len(PIECES) for token in out.tokens)
    for token in out.tokens:  # nor are they alternatives, or part of the probability
        assert list(range(len(PIECES))) == sorted(i for i, _ in token.alternatives)
        assert math.fsum(math.exp(p) for _, p in token.alternatives) == pytest.approx(1)
    with pytest.raises(InputError, match=r"outside 0\.\.9"):
        generator.stream([10], 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": [99]}, "outside"),
        ({"prompt": [1.5]}, "whole numbers"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"stop": [""]}, "stop string"),
        ({"seed": 2**64}, "seed"),
        ({"alternatives": -1}, "alternatives"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    generator: TextGenerator, arguments: dict[str, Any], said: str
) -> None:
    """P1: at the call, not at the first piece; and the generator still works."""
    everything: dict[str, Any] = {"prompt": "a", "max_new_tokens": 3} | arguments
    with pytest.raises(InputError, match=said):
        generator.stream(**everything)
    if "alternatives" not in arguments:
        prompt = everything.pop("prompt")
        with pytest.raises(InputError, match=said):
            generator.batch(["a", prompt], **everything)
    assert generator.generate("a", 1, options=GREEDY) == generator.generate("a", 1, options=GREEDY)
