"""A running batch: whatever comes and goes beside a text, it is the text that it is alone."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from yocto_model import (
    GPT,
    GPTConfig,
    InferenceKind,
    InputError,
    Job,
    KVCache,
    RunningBatch,
    SamplingError,
    SamplingOptions,
    TextGenerator,
    TextStream,
    Token,
    inference_copy,
)
from yocto_model.fast import running
from yocto_model.fast.decoding import OneToken

MakeModel = Callable[[GPTConfig, int], GPT]
# Two-byte characters come in halves, so that text is held back; the last id ends a text.
PIECES = [b"a", b"b", b"ab", b"\xc3", b"\xa9", b"c", b"\n", b""]
EOS = 7
IDS = st.integers(0, EOS - 1)
SEEDS = st.integers(0, 2**40)
SIZES = {"vocab_size": 11, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8}
GPT2 = GPTConfig.from_dict(SIZES)  # three ids more than the tokenizer
MODERN = GPTConfig.from_arch("modern", **{**SIZES, "n_kv_head": 1})
WIDE = GPT2.replace(block_size=1024)
GREEDY = SamplingOptions(temperature=0)
OPTIONS = st.sampled_from(
    [
        GREEDY,
        SamplingOptions(),
        SamplingOptions(temperature=0.7, top_k=3),
        SamplingOptions(top_p=0.8, repetition_penalty=1.5),
    ]
)


class Letters:
    """A tokenizer with an end token."""

    vocab_size = len(PIECES)
    eos_id = EOS

    def encode(self, text: str, /) -> list[int]:
        return [PIECES.index(character.encode()) for character in text]

    def decode_bytes(self, ids: Sequence[int], /) -> bytes:
        return b"".join(PIECES[token] for token in ids)


class Endless(Letters):
    """Texts go on to their length."""

    eos_id = None  # type: ignore[assignment] # as tokenizers without one say it


def joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def ids_of(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def run(batch: RunningBatch) -> dict[Job, list[Token]]:
    """What is shown of each text until all have ended."""
    shown: dict[Job, list[Token]] = {}
    while not batch.idle:
        for job, tokens in batch.step():
            shown.setdefault(job, []).extend(tokens)
    return shown


class Machine(RuleBasedStateMachine):
    """Texts that come, are cancelled and end, each beside what it is alone."""

    make: MakeModel
    kind: InferenceKind | None = None

    @initialize(
        config=st.sampled_from([GPT2, MODERN]) | st.from_type(GPTConfig),
        seed=SEEDS,
        max_rows=st.integers(1, 4),
        max_tokens=st.integers(1, 20) | st.integers(1, 120),
    )
    def start(self, config: GPTConfig, seed: int, max_rows: int, max_tokens: int) -> None:
        model = type(self).make(config.replace(vocab_size=11), seed)
        if self.kind is not None:
            model = inference_copy(model, self.kind)
        self.batch = RunningBatch(
            model, Letters(), end_ids={6}, max_rows=max_rows, max_tokens=max_tokens
        )
        self.model = model
        self.alone: dict[Job, tuple[TextStream, list[Token]]] = {}
        self.shown: dict[Job, list[Token]] = {}
        self.cancelled: set[Job] = set()

    @rule(
        prompt=st.lists(IDS, min_size=1, max_size=40),
        n=st.integers(0, 30),
        more=st.fixed_dictionaries(
            {
                "options": OPTIONS,
                "seed": SEEDS,
                "stop": st.sampled_from([(), "ba", ("é", "cc")]),
                "logprobs": st.booleans(),
                "alternatives": st.integers(0, 2),
            }
        ),
        data=st.data(),
    )
    def add(self, prompt: list[int], n: int, more: dict[str, Any], data: st.DataObject) -> None:
        begins_alike = data.draw(st.booleans()) if self.alone else False
        if begins_alike:  # as another, or goes on with it
            other = data.draw(st.sampled_from(list(self.alone)))
            text = other.prompt_ids + ids_of(other.tokens)
            prompt = text[: data.draw(st.integers(1, len(text)))] + prompt
        job = self.batch.add(prompt, n, **more)
        alone = TextGenerator(self.model, Letters(), end_ids={6}).stream(prompt, n, **more)
        self.alone[job] = alone, list(alone)
        self.shown[job] = []

    @rule(n=st.integers(1, 12))
    def step(self, n: int) -> None:
        for _ in range(n):
            for job, tokens in self.batch.step():
                assert job not in self.cancelled
                self.shown[job] += tokens

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.alone)))
        self.batch.cancel(job)
        if job.finish_reason is None or not job.tokens:
            self.cancelled.add(job)

    @invariant()
    def each_text_is_its_own(self) -> None:
        for job, (alone, tokens) in getattr(self, "alone", {}).items():
            shown = self.shown[job]
            if self.kind is None:
                assert alone.tokens[: len(job.tokens)] == self.plain(job.tokens, alone.tokens)
            assert ids_of(alone.tokens)[: len(job.tokens)] == ids_of(job.tokens)
            assert joined(tokens).startswith(joined(shown))
            if job.finish_reason is not None:
                assert alone.finish_reason == job.finish_reason
                assert len(alone.tokens) == len(job.tokens)
                if job not in self.cancelled:
                    assert joined(tokens) == joined(shown)

    @staticmethod
    def plain(tokens: list[Token], expected: list[Token]) -> list[Token]:
        """The tokens, with the expected probabilities where theirs are about the same."""
        same = []
        for token, other in zip(tokens, expected, strict=False):
            near = token.logprob == pytest.approx(other.logprob, abs=1e-5)
            near &= [p for _, p in token.alternatives] == pytest.approx(
                [p for _, p in other.alternatives], abs=1e-5
            )
            same.append(
                other if near and (token.id, token.text) == (other.id, other.text) else token
            )
        return same

    @invariant()
    def who_came_first_is_first(self) -> None:
        if hasattr(self, "batch"):
            places = {job: place for place, job in enumerate(self.alone)}
            queue = [places[job] for job in [*self.batch._rows, *self.batch._waiting]]
            assert sorted(queue) == queue

    @invariant()
    def memory_is_bounded(self) -> None:
        batch = getattr(self, "batch", None)
        if batch is not None:
            assert len(batch._rows) <= batch.max_rows
            held = [job.cache.capacity for job in batch._rows]
            held += [kept.cache.capacity for kept in batch._kept]
            one_alone = len(batch._rows) == 1 and not batch._kept
            assert sum(held) <= batch.max_tokens or one_alone

    def teardown(self) -> None:
        if hasattr(self, "batch"):
            for job, tokens in run(self.batch).items():
                self.shown[job] += tokens
            self.each_text_is_its_own()
            for job in self.alone:
                assert (job.finish_reason is None) <= (job in self.cancelled)


@pytest.mark.property
@pytest.mark.parametrize("kind", [None, "float32", "float16"])
def test_a_text_in_any_company_is_what_it_is_alone(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, kind: InferenceKind | None
) -> None:
    """Whatever joins, leaves, shares a beginning or is cancelled, and however little room there is.

    Ids, text, reason and probabilities; never more rows or tokens held than allowed.
    """
    for name, number in {"_WORK": 0, "_LEAST_READ": 3, "_SPARE": 1}.items():
        monkeypatch.setattr(running, name, number)  # prompts in parts, caches that grow

    class Ours(Machine):
        pass

    Ours.make, Ours.kind = staticmethod(make_model), kind
    run_state_machine_as_test(Ours, settings=settings(stateful_step_count=25))


@pytest.mark.property
@given(config=st.from_type(GPTConfig), seed=SEEDS, data=st.data())
@example(config=GPT2, seed=0, data=None)
@example(config=MODERN, seed=0, data=None)
def test_rows_of_several_caches_are_each_read_as_alone(
    make_model: MakeModel, config: GPTConfig, seed: int, data: st.DataObject | None
) -> None:
    """One token for each of several caches that hold different numbers of ids, perhaps none."""
    model = make_model(config, seed)
    lengths = [3, 0, 5]
    if data is not None:
        length = st.integers(0, config.block_size - 1)
        lengths = data.draw(st.lists(length, min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(config.vocab_size, (1, n + 1), generator=generator) for n in lengths]
    caches = [KVCache(config, dtype=torch.float64) for _ in rows]
    with torch.no_grad():
        for row, cache in zip(rows, caches, strict=True):
            if row.shape[1] > 1:
                model.hidden_states(row[:, :-1], cache=cache)
        got = OneToken(model)(torch.cat([row[:, -1:] for row in rows]), *caches)
        expected = torch.cat([model.hidden_states(row)[:, -1:] for row in rows])
    assert torch.allclose(expected, got, rtol=1e-9, atol=1e-9)
    assert [n + 1 for n in lengths] == [cache.length for cache in caches]


# --- who comes first, and who waits -----------------------------------------------------------


@pytest.mark.property
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), rows=st.integers(1, 3))
def test_a_free_row_is_the_next_texts_at_once(
    make_model: MakeModel, lengths: list[int], rows: int
) -> None:
    """First come, first served: no row stays free, and nobody is overtaken on the way in."""
    batch = RunningBatch(make_model(GPT2, 0), Endless(), max_rows=rows)
    jobs = [batch.add([1], n, options=GREEDY) for n in lengths]
    left = dict(zip(jobs, lengths, strict=True))
    while not batch.idle:
        expected = list(left)[:rows]
        assert sorted(map(jobs.index, expected)) == [jobs.index(job) for job, _ in batch.step()]
        left = {job: n for job in left if (n := left[job] - (job in expected))}
    assert not left


@pytest.fixture
def reads_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each step, as for a model of 125 million weights."""
    monkeypatch.setattr(running, "_WORK", 64 * WIDE.n_parameters)


@pytest.mark.usefixtures("reads_64")
def test_a_long_prompt_holds_nobody_up(make_model: MakeModel, counting: Any) -> None:
    """Running texts get their token in each step; a short prompt is not behind all of a long one.

    Without others, more of it is read at a time.
    """
    model = make_model(WIDE, 0)
    batch = RunningBatch(model, Endless())
    read = counting(model)
    long = batch.add([1, 2] * 300, 2)
    batch.step()
    assert [256] == read
    short = batch.add([3] * 5, 100, seed=1)
    while not short.tokens:
        batch.step()
    assert not long.tokens
    n_steps = 0
    while not long.tokens:
        before = len(read), len(short.tokens)
        batch.step()
        n_steps += 1
        assert sum(read[before[0] :]) <= 64
        assert before[1] + 1 == len(short.tokens)
    assert n_steps <= 600 / 64


# --- what is not read again -------------------------------------------------------------------


def test_a_second_turn_reads_only_what_is_new(make_model: MakeModel, counting: Any) -> None:
    """After other texts, too; of a beginning that is shared only in part, that part."""
    model = make_model(WIDE, 0)
    batch = RunningBatch(model, Letters())
    first, other = (batch.add([n] * 30, 5, options=GREEDY) for n in (1, 2))
    run(batch)
    text = first.prompt_ids + ids_of(first.tokens)
    read = counting(model)
    second = batch.add([*text, 3, 4], 2, options=GREEDY)
    batch.step()
    assert [3] == read  # the last token that was drawn was not read
    assert [other.prompt_ids] == [kept.ids[:30] for kept in batch._kept]  # and no copy was made
    batch.cancel(second)
    for n_shared in (20, 30):
        read.clear()
        batch.add([*other.prompt_ids[:n_shared], 5, 5], 1)
        batch.step()
        assert [2] == read
    assert batch.idle


@pytest.mark.usefixtures("reads_64")
def test_one_prompt_of_many_texts_is_read_once(make_model: MakeModel, counting: Any) -> None:
    """All but its last id: several answers to one question cost one reading."""
    model = make_model(WIDE, 0)
    batch = RunningBatch(model, Letters())
    read = counting(model)
    jobs = [batch.add([1, 2, 3] * 100, 3, seed=seed) for seed in range(8)]
    while not all(job.tokens for job in jobs):
        batch.step()
    assert sum(read) <= 300 + 8


@pytest.mark.usefixtures("reads_64")
def test_who_loses_its_room_in_the_step_that_read_it_waits(make_model: MakeModel) -> None:
    """The text before it grows beyond what is allowed; the other is read again, and is the same."""
    model = make_model(WIDE, 0)
    batch = RunningBatch(model, Endless(), max_tokens=220)
    grows = batch.add([1], 80, seed=0)
    while not grows.tokens or len(grows.window) < grows.cache.capacity:
        batch.step()
    waits = batch.add([2] * 70, 1, seed=1)
    for _ in range(2):
        assert [grows] == [job for job, _ in batch.step()]
        assert [] == waits.tokens
    shown = run(batch)
    assert list(TextGenerator(model, Endless()).stream([2] * 70, 1, seed=1)) == shown[waits]


def test_where_room_is_scarce_who_came_first_is_first(make_model: MakeModel) -> None:
    """Who gives up its room is before those who never had any; and who waits costs nobody his."""
    batch = RunningBatch(make_model(WIDE, 0), Endless(), max_tokens=220)
    batch.add([5] * 20, 1)
    run(batch)
    jobs = [batch.add([n], 100, options=GREEDY) for n in (1, 2)]
    batch.step()
    jobs.append(batch.add([3] * 40, 100, options=GREEDY))  # would need more than half
    while len(jobs[0].tokens) < 60:
        batch.step()
        assert jobs[:2] == batch._rows
        assert [[5] * 20] == [kept.ids for kept in batch._kept]
    ended = []
    while not batch.idle:
        ended += [job for job, _ in batch.step() if job.finish_reason]
    assert jobs == ended


def test_what_is_kept_is_no_more_than_allowed(make_model: MakeModel, counting: Any) -> None:
    """The oldest is given up first; what is too large alone is not kept at all."""
    model = make_model(WIDE, 0)
    batch = RunningBatch(model, Letters(), max_tokens=500)
    for n in range(6):
        batch.add([n] * 100, 1)
        run(batch)
    assert [[n] * 100 for n in (4, 5)] == [kept.ids for kept in batch._kept]
    batch.add([1] * 501, 1)
    run(batch)
    assert [] == batch._kept


# --- what goes wrong --------------------------------------------------------------------------


def test_a_text_that_fails_takes_no_other_with_it(make_model: MakeModel) -> None:
    """Logits that are not finite end one text, with an error; its neighbours never notice."""
    model = make_model(GPT2, 0)
    with torch.no_grad():
        model.token_emb.weight[5] = torch.nan
    model.head.weight = copy.deepcopy(model.head.weight)  # untied, or all logits would be damaged
    with torch.no_grad():
        model.head.weight[5] = 0
    batch = RunningBatch(model, Letters())
    jobs = [batch.add([1, n], 9, options=SamplingOptions(top_k=1), seed=n) for n in (1, 5, 2)]
    shown = run(batch)
    alone = TextGenerator(model, Letters())
    for job in jobs[::2]:
        expected = list(alone.stream(job.prompt_ids, 9, options=job.options))
        assert expected == shown[job] == job.tokens
    assert (None, [], []) == (jobs[1].finish_reason, jobs[1].tokens, shown[jobs[1]])
    assert isinstance(jobs[1].error, SamplingError)
    assert not any(kept.ids[:2] == [1, 5] for kept in batch._kept)


@pytest.mark.parametrize("place", ["hidden_states", "logits"])
@pytest.mark.parametrize("fails_at", range(3))
def test_a_step_that_failed_can_be_taken_again(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, place: str, fails_at: int
) -> None:
    """Out of memory, say, while reading or continuing: nothing is lost, and no draw repeated."""
    model = make_model(GPT2, 0)
    expected = [list(TextGenerator(model, Letters()).stream([1, n], 9, seed=n)) for n in (2, 3)]
    batch = RunningBatch(model, Letters(), max_rows=2)
    calls, whole = [0], getattr(model, place)

    def failing(*arguments: Any, **more: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 1 + fails_at:
            raise MemoryError
        return whole(*arguments, **more)

    monkeypatch.setattr(model, place, failing)
    jobs = [batch.add([1, n], 9, seed=n) for n in (2, 3)]
    shown: dict[Job, list[Token]] = {job: [] for job in jobs}
    n_failed = 0
    while not batch.idle:
        try:
            for job, tokens in batch.step():
                shown[job] += tokens
        except MemoryError:
            n_failed += 1
    assert expected == [shown[job] for job in jobs]
    assert n_failed == (calls[0] > fails_at)


def test_a_cancelled_text_is_gone(make_model: MakeModel) -> None:
    """Running, waiting or ended; its row is free, and it can be cancelled again."""
    batch = RunningBatch(make_model(WIDE, 0), Endless(), max_rows=1)
    runs, waits, last = (batch.add([n], 5, seed=n) for n in range(3))
    assert [runs] == [job for job, _ in batch.step()]
    for job in (runs, waits, waits):
        batch.cancel(job)
        assert job.finish_reason is None
    assert [last] == list(run(batch))
    batch.cancel(last)
    assert ("length", 5) == (last.finish_reason, len(last.tokens))
    assert batch.idle


def test_a_text_of_no_tokens_ends_in_the_next_step(make_model: MakeModel) -> None:
    """It needs no row, and waits for none."""
    batch = RunningBatch(make_model(GPT2, 0), Letters(), max_rows=1)
    batch.add([1], 5)
    nothing = batch.add("ab", 0)
    assert not batch.idle
    assert (nothing, []) in batch.step()
    assert ("length", [0, 1]) == (nothing.finish_reason, nothing.prompt_ids)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [8]}, "outside"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"stop": [""]}, "stop string"),
        ({"seed": 2**64}, "seed"),
        ({"alternatives": -1}, "alternatives"),
    ],
)
def test_bad_arguments_are_refused_before_anything_waits(
    make_model: MakeModel, arguments: dict[str, Any], said: str
) -> None:
    """At the call, as by `TextGenerator.stream`."""
    batch = RunningBatch(make_model(GPT2, 0), Letters())
    everything: dict[str, Any] = {"prompt": [1], "max_new_tokens": 3} | arguments
    with pytest.raises(InputError, match=said):
        batch.add(**everything)
    assert batch.idle
    assert [] == batch.step()


def test_a_batch_needs_rows_tokens_and_the_models_tokenizer(make_model: MakeModel) -> None:
    """Each is named; the model is put in evaluation mode."""
    model = make_model(GPT2, 0).train()
    for name in ("max_rows", "max_tokens"):
        for bad in (0, -1, 1.5):
            with pytest.raises(InputError, match=name):
                RunningBatch(model, Letters(), **{name: bad})  # type: ignore[arg-type] # a bad one
    RunningBatch(model, Letters())
    assert not model.training
    with pytest.raises(InputError, match="tokenizer has 8 ids"):
        RunningBatch(make_model(GPT2.replace(vocab_size=7), 0), Letters())
