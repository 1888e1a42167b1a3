"""The thread that draws: many texts at once, and every way in which they can end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_model import SamplingError, SamplingOptions
from yocto_serve.engine import MOST_TEXTS_AT_ONCE, Engine, Reply, Row
from yocto_serve.protocol import ApiError

FOREVER = 10**6


def row(served: Any, prompt: str = "The", n: int = FOREVER, seed: int = 0, **more: Any) -> Row:
    ids = served.model.tokenizer.encode(prompt)
    return Row(
        prompt=ids, max_new_tokens=n, options=SamplingOptions(temperature=1), seed=seed, **more
    )


def run(engine: Engine, work: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(60):
            return await work()

    return asyncio.run(within())


async def texts_of(engine: Engine, reply: Reply) -> list[str]:
    texts = [""] * len(reply.rows)
    engine.begin(reply)
    try:
        async for drawn in reply:
            for each in drawn:
                texts[each.index] += "".join(token.text for token in each.tokens)
    finally:
        engine.end(reply)
    return texts


@pytest.fixture
def engine() -> Any:
    engine = Engine()
    yield engine
    engine.close()


@pytest.mark.property
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(
                    st.sampled_from(["The", "The soul", "a", "What is"]),
                    st.integers(0, 30),
                    st.integers(0, 5),
                    st.sampled_from([(), ("e",), ("th", "qu")]),
                ),
                min_size=1,
                max_size=4,
            ),
            st.sampled_from([None, 0, 3]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_together_as_alone(served: Any, asked: list[Any]) -> None:
    """Each text is what it would be alone, whoever else joins, ends, or goes away early."""
    engine = served.engine

    async def one(rows: list[Any], leaves_after: int | None) -> None:
        given = [row(served, p, n, seed, stop=stop) for p, n, seed, stop in rows]
        reply = Reply(served.model, given, seconds=60)
        expected = [served.alone(p, n, seed=seed, stop=stop) for p, n, seed, stop in rows]
        texts = [""] * len(rows)
        engine.begin(reply)
        try:
            n_news = 0
            async for drawn in reply:
                for each in drawn:
                    texts[each.index] += "".join(token.text for token in each.tokens)
                n_news += 1
                if n_news == leaves_after:
                    break
            else:
                assert texts == expected
        finally:
            engine.end(reply)
        assert all(e.startswith(t) for e, t in zip(expected, texts, strict=True))

    async def together() -> None:
        await asyncio.gather(*(one(rows, leaves) for rows, leaves in asked))

    run(engine, together)
    run(engine, lambda: engine.call(lambda: None))
    assert served.model.batch.idle
    assert engine.n_texts == 0


def test_what_takes_too_long_is_cut(served: Any, engine: Engine) -> None:
    """A text that would never end ends with its time; what was drawn is kept."""

    async def work() -> list[Any]:
        reply = Reply(served.model, [row(served), row(served, n=1)], seconds=0.3)
        engine.begin(reply)
        news = [each async for drawn in reply for each in drawn]
        engine.end(reply)
        return news

    news = run(engine, work)
    assert {each.index: each.finish for each in news if each.finish} == {0: "length", 1: "length"}
    assert any(each.tokens for each in news if each.index == 0)


def test_a_broken_model_ends_its_texts_only(
    served: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get an error; the next request is served."""

    def broken() -> None:
        raise SamplingError("the model's output is not finite")

    async def work() -> None:
        monkeypatch.setattr(served.model.batch, "step", broken)
        with pytest.raises(ApiError, match="could not go on: the model's output is not finite"):
            await texts_of(engine, Reply(served.model, [row(served)], seconds=60))
        [text] = await texts_of(engine, Reply(served.model, [row(served, n=4)], seconds=60))
        assert text == served.alone("The", 4, seed=0)

    run(engine, work)


def test_too_many_are_turned_away(served: Any, engine: Engine) -> None:
    """With an error that says so; nothing of those who wait is lost."""

    async def work() -> None:
        many = Reply(served.model, [row(served, n=1)] * MOST_TEXTS_AT_ONCE, seconds=60)
        engine.begin(many)
        with pytest.raises(ApiError, match="try again later") as refused:
            engine.begin(Reply(served.model, [row(served)], seconds=60))
        assert refused.value.status == 503
        assert MOST_TEXTS_AT_ONCE == sum([len(drawn) async for drawn in many])
        engine.end(many)

    run(engine, work)


def test_stopping(served: Any) -> None:
    """No new texts; those that run are cut when their time is over, and say why."""
    engine = Engine()

    async def work() -> None:
        reply = Reply(served.model, [row(served)], seconds=60)
        short = Reply(served.model, [row(served, n=3)], seconds=60)
        engine.begin(reply)
        engine.begin(short)
        engine.stop(0.3)
        with pytest.raises(ApiError, match="stopping"):
            engine.begin(Reply(served.model, [row(served)], seconds=60))
        assert [each async for drawn in short for each in drawn][-1].finish == "length"
        with pytest.raises(ApiError, match="stopping"):
            async for _ in reply:
                pass

    started = time.monotonic()
    run(engine, work)
    engine.close()
    assert time.monotonic() - started < 30


def test_a_client_that_goes_away_ends_its_text(served: Any, engine: Engine) -> None:
    """Nothing is drawn for nobody."""

    async def work() -> None:
        reply = Reply(served.model, [row(served)], seconds=60)
        engine.begin(reply)
        async for _ in reply:
            break
        engine.end(reply)
        await engine.call(lambda: None)
        assert served.model.batch.idle

    run(engine, work)
