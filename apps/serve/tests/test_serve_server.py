"""The endpoints, as programs see them."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yocto_serve import server as endpoints

RE_LINE = re.compile(
    r"[\d:]{8} POST /v1/chat/completions 200 tiny@5 read \d+ drew \d+ \w+ \d+ tok/s [\d.]+ s"
)
HELLO = "User: Hello\nAssistant:"


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)


# --- chats ---------------------------------------------------------------------------------------


def test_a_chat(served: Any) -> None:
    """The reply is what the model says to the conversation in its own layout, and is counted."""
    body = served.chat("Hello", max_tokens=9, seed=4, temperature=1, model="tiny").json()
    said = served.alone(HELLO, 9, seed=4).lstrip()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": said, "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert (body["object"], body["model"]) == ("chat.completion", "tiny@5")
    n = len(HELLO)
    assert body["usage"] == {"prompt_tokens": n, "completion_tokens": 9, "total_tokens": n + 9}
    assert body["yocto"] == {"seed": 4, "hidden": 0, "unknown": ""}


@pytest.mark.property
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip),
    st.integers(1, 3),
    st.booleans(),
    st.lists(st.sampled_from(["e", "th", " a", "Q", "zz9"]), max_size=3),
)
def test_streamed_or_whole(served: Any, message: str, n: int, usage: bool, stop: list[str]) -> None:
    """A stream says what the whole reply says: a role, texts and one end for each, in order."""
    body = {
        "messages": [{"role": "user", "content": message}],
        "max_tokens": 12, "seed": 9, "n": n, "stop": stop,
    }  # fmt: skip
    whole = served.post("chat/completions", body).json()
    options = {"include_usage": usage}
    chunks = served.stream("chat/completions", {**body, "stream_options": options})
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    if usage:
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        last = chunks.pop()
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for index in range(n):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        begin, *middle, end = choices
        assert begin["delta"] == {"role": "assistant", "content": ""}
        assert all(c["finish_reason"] is None and c["delta"]["content"] for c in [*middle])
        assert end["delta"] == {}
        expected = whole["choices"][index]
        assert end["finish_reason"] == expected["finish_reason"] in ("stop", "length")
        text = text_of(chunks, index)
        assert text == expected["message"]["content"]
        assert not any(word in text for word in stop)


def test_several_texts_have_seeds_of_their_own(served: Any) -> None:
    """Text b is what seed + b gives alone."""
    body = served.chat("Hello", max_tokens=8, seed=4, n=3, temperature=1).json()
    expected = [served.alone(HELLO, 8, seed=4 + b).lstrip() for b in range(3)]
    assert [choice["message"]["content"] for choice in body["choices"]] == expected


def test_without_a_seed_one_is_drawn_and_said(served: Any) -> None:
    """So that any reply can be had again."""
    first = served.chat("Hello", max_tokens=8).json()
    again = served.chat("Hello", max_tokens=8, seed=first["yocto"]["seed"]).json()
    assert first["choices"] == again["choices"]


def test_a_reply_ends_where_the_window_does(served: Any) -> None:
    """Without a limit a reply may take all of the window that the prompt leaves."""
    body = served.chat("Hello", stop=["\0"]).json()
    room = served.model.window - len(HELLO)
    assert body["usage"]["completion_tokens"] <= room
    assert body["choices"][0]["finish_reason"] in ("length", "stop")


def test_a_last_message_of_the_assistant_is_continued(served: Any) -> None:
    """The reply goes on where it stops, with its own spaces."""
    body = served.chat("Hello", "Well,", max_tokens=8, seed=2, temperature=1).json()
    said = served.alone(f"{HELLO} Well,", 8, seed=2)
    assert body["choices"][0]["message"]["content"] == said


def test_old_turns_leave_when_asked(served: Any) -> None:
    """Whole turns, the oldest; the system text stays. Without being asked, it is an error."""
    system = {"role": "system", "content": "Short."}
    said = [{"role": r, "content": r[0] * 20} for r in ("user", "assistant") * 3]
    messages = [system, *said, {"role": "user", "content": "Hi"}]
    body = {"messages": messages, "max_tokens": 4}
    error = served.refusal(served.post("chat/completions", body))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    found = served.post("chat/completions", {**body, "truncation": "auto"}).json()
    hidden = found["yocto"]["hidden"]
    assert 0 < hidden < 6
    assert hidden % 2 == 0
    turns = "".join(f"{m['role'].title()}: {m['content']}\n" for m in said[hidden:])
    prompt = f"Short.\n\n{turns}User: Hi\nAssistant:"
    assert found["usage"]["prompt_tokens"] == len(prompt) <= served.model.window - 4
    messages[-1] = {"role": "user", "content": "x" * 200}
    error = served.refusal(served.post("chat/completions", {**body, "truncation": "auto"}))
    assert error["code"] == "context_length_exceeded"


def test_what_the_model_does_not_know_is_left_out_and_said(served: Any) -> None:
    """As yocto-chat does it."""
    body = served.chat("Hel\u00e9lo\U0001f600", max_tokens=1).json()
    assert body["yocto"]["unknown"] == "\u00e9\U0001f600"
    assert body["usage"]["prompt_tokens"] == len(HELLO)


def test_log_probabilities(served: Any) -> None:
    """Each token has its bytes and its likeliest others, which are ordered; tokens are the text."""
    fields = {"max_tokens": 6, "seed": 1, "logprobs": True, "top_logprobs": 97}
    assert served.refusal(served.chat("Hello", **fields))["param"] == "top_logprobs"
    fields["top_logprobs"] = 20
    choice = served.chat("Hello", **fields).json()["choices"][0]
    content = choice["logprobs"]["content"]
    text = b"".join(bytes(each["bytes"]) for each in content).decode()
    assert text.lstrip() == choice["message"]["content"]
    for each in content:
        likely = [other["logprob"] for other in each["top_logprobs"]]
        assert likely == sorted(likely, reverse=True)
        assert len(likely) == 20
        assert each["logprob"] <= likely[0]
        assert math.fsum(map(math.exp, likely)) <= 1 + 1e-5
    body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    streamed = [
        each
        for chunk in served.stream("chat/completions", body)
        for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


# --- completions ---------------------------------------------------------------------------------


def test_a_completion(served: Any) -> None:
    """What yocto-sample prints for this prompt, seed and temperature."""
    body = served.complete("The soul", max_tokens=9, seed=4).json()
    assert body["choices"][0]["text"] == served.alone("The soul", 9, seed=4, temperature=0.8)
    chunks = served.stream("completions", {"prompt": "The soul", "max_tokens": 9, "seed": 4})
    assert "".join(c["choices"][0]["text"] for c in chunks) == body["choices"][0]["text"]
    assert served.complete("", max_tokens=1).status_code == 200
    assert served.complete("The").json()["usage"]["completion_tokens"] == 16


def test_prompts_are_texts_or_ids(served: Any) -> None:
    """One or several, and the same for both."""
    encode = served.model.tokenizer.encode
    several = served.complete(["ab", "The"], max_tokens=5, seed=1).json()["choices"]
    ids = served.complete([encode("ab"), encode("The")], max_tokens=5, seed=1).json()["choices"]
    assert several == ids
    one = served.complete(encode("ab"), max_tokens=5, seed=1).json()["choices"]
    assert one == several[:1]


def test_a_text_is_scored_by_its_echo(served: Any) -> None:
    """The log-probabilities of a prompt are those that drawing it would have had."""
    fields = {"max_tokens": 12, "seed": 3, "logprobs": 2, "temperature": 0}
    drawn = served.complete("The", **fields).json()["choices"][0]
    again = served.complete(f"The{drawn['text']}", echo=True, **{**fields, "max_tokens": 0}).json()[
        "choices"
    ][0]
    assert again["text"] == f"The{drawn['text']}"
    likely, begun = again["logprobs"], len("The")
    assert likely["token_logprobs"][0] is likely["top_logprobs"][0] is None
    assert likely["token_logprobs"][begun:] == pytest.approx(
        drawn["logprobs"]["token_logprobs"], abs=1e-4
    )
    assert "".join(likely["tokens"]) == again["text"]
    assert likely["text_offset"] == [*range(len(again["text"]))]
    streamed = served.stream("completions", {"prompt": "ab", "max_tokens": 2, "echo": True})
    assert streamed[0]["choices"][0]["text"] == "ab"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"model": "gpt-4"}, "model", "this server has tiny@latest"),
        ({"model": "tiny@4"}, "model", "tiny@4"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": "9"}, "max_tokens", "`int | null`"),
        ({"max_tokens": -1}, "max_tokens", ">= 1"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"top_p": 0}, "top_p", "top_p"),
        ({"n": 17}, "n", "<= 16"),
        ({"seed": 1 << 63}, "seed", "at `seed`"),
        ({"seed": 10**40}, "seed", "at `seed`"),
        ({"stop": ["a"] * 5}, "stop", "length"),
        ({"stop": "a" * 2000}, "stop", "length <= 1000"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tools": [{}]}, "tools", "not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not offered"),
        ({"frequency_penalty": 1}, "frequency_penalty", "use repetition_penalty"),
        ({"messages": []}, "messages", "length"),
        ({"messages": "Hi"}, "messages", "array"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages", "is empty"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages", "'tool'"),
        ({"messages": [{"role": "wizard", "content": "1"}]}, "messages", "wizard"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "'image_url'",
        ),
    ],
)
def test_bad_chats(served: Any, fields: dict[str, Any], param: str, said: str) -> None:
    """One sentence that says what is wrong with which field, before a stream begins."""
    messages = [{"role": "user", "content": "Hello"}]
    for stream in (False, True):
        body = {"messages": messages, "stream": stream, **fields}
        response = served.post("chat/completions", body)
        error = served.refusal(response, 404 if "model" in fields else 400)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert said in error["message"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "must be a text"),
        ([1, "a"], "must be a text"),
        ([[]], "has 0 tokens"),
        ([10**6], "not an id"),
        ([-1], "not an id"),
        ("\u00e9", "(U+00E9) is not among"),
        ("x" * 200, "takes 1 to 128"),
        (["a"] * 17, "at most 16"),
    ],
)
def test_bad_completions(served: Any, prompt: Any, said: str) -> None:
    error = served.refusal(served.complete(prompt))
    assert error["param"] == "prompt"
    assert said in error["message"]


def test_what_changes_nothing_is_accepted(served: Any) -> None:
    """Programs send fields with neutral values, null, or their own."""
    neutral = {
        "tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0,
        "stop": None, "temperature": None, "user": "me", "metadata": {"a": 1}, "top_k": -1,
    }  # fmt: skip
    assert served.chat("Hello", max_tokens=1, **neutral).status_code == 200
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "Be."}, {"role": "user", "content": parts}]
    body = served.post("chat/completions", {"messages": messages, "max_tokens": 1}).json()
    assert body["usage"]["prompt_tokens"] == len("Be.\n\nUser: Hel lo\nAssistant:")


@pytest.mark.property
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["messages", "prompt", "role", "content", "n", "stop", "seed"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.sampled_from(["chat/completions", "completions"]),
)
def test_no_body_is_too_strange(served: Any, body: bytes, path: str) -> None:
    """Whatever is sent, the answer is a reply or an error of the protocol."""
    response = served.client.post(f"/v1/{path}", content=body)
    assert response.status_code == 200 or served.refusal(response)


def test_strange_bodies(served: Any) -> None:
    """Deep nesting, half surrogates, numbers beyond all range, more than the limit."""
    for body in (b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"prompt": "a", "top_p": 1e999}', b""):
        served.refusal(served.client.post("/v1/completions", content=body))
    large = b" " * (endpoints.LARGEST_BODY_BYTES + 1)
    served.refusal(served.client.post("/v1/completions", content=large), 413)


# --- models, health, who may ask -----------------------------------------------------------------


def test_models(served: Any) -> None:
    """A run has its pointers and its steps; each can be asked for and is what replies."""
    listed = served.client.get("/v1/models").json()
    names = [model["id"] for model in listed["data"]]
    assert names == ["tiny@latest", "tiny@best", "tiny@5", "tiny@3"]
    for name, found in zip(names, ["tiny@5", "tiny@3", "tiny@5", "tiny@3"], strict=True):
        assert served.client.get(f"/v1/models/{name}").json()["id"] == name
        assert served.chat("Hello", model=name, max_tokens=1).json()["model"] == found
    served.refusal(served.client.get("/v1/models/../../etc"), 404)


def test_other_endpoints(served: Any) -> None:
    get = served.client.get
    assert get("/health").json() == {"status": "ok"}
    assert get("/status").json()["model"] == "tiny@5"
    assert served.client.options("/v1/chat/completions").headers["allow"] == "GET, POST, OPTIONS"
    served.refusal(get("/v1/nothing"), 404)
    served.refusal(get("/v1/chat/completions"), 405)


def test_a_key(serve: Any) -> None:
    """With a key, all but the page and the health ask for it; without one, any will do."""
    locked = serve(api_key="s3cret")
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cre"}):
        response = locked.client.get("/v1/models", headers=header)
        assert locked.refusal(response, 401)["code"] == "invalid_api_key"
    right = {"authorization": "Bearer s3cret"}
    assert locked.client.get("/v1/models", headers=right).status_code == 200
    assert locked.client.get("/").status_code == locked.client.get("/health").status_code == 200
    assert "s3cret" not in "".join(locked.log)


def test_pages_from_elsewhere(serve: Any, served: Any) -> None:
    """A page of another origin may ask only if it is named, a name of another host never."""
    page = "https://example.org"
    response = served.client.get("/v1/models", headers={"origin": page})
    assert "--allow_origin" in served.refusal(response, 403)["message"]
    ours = served.client.get("/v1/models", headers={"origin": "http://localhost:8000"})
    assert "access-control-allow-origin" not in ours.headers
    served.refusal(served.client.get("/v1/models", headers={"host": "evil.example:8000"}), 403)
    for host in ("127.0.0.1:1", "localhost", "[::1]:80", "[::1]"):
        assert served.client.get("/v1/models", headers={"host": host}).status_code == 200
    open_to = serve(allow_origin=(page,))
    response = open_to.client.get("/v1/models", headers={"origin": page})
    assert response.headers["access-control-allow-origin"] == page
    asks = {"origin": page, "access-control-request-method": "POST"}
    assert open_to.client.options("/v1/models", headers=asks).status_code == 200
    other = open_to.client.get("/v1/models", headers={"origin": "https://other.example"})
    assert other.status_code == 403


def test_the_log_holds_no_texts(serve: Any) -> None:
    """One line a request: what was asked of which model, and how it ended."""
    served = serve()
    served.chat("a secret", max_tokens=3)
    served.chat("a secret", tools=[{"name": "secret"}])
    served.client.get("/v1/models/secret%0a%1b[2J?secret=1")
    served.client.get("/health")
    assert len(served.log) == 3
    assert RE_LINE.fullmatch(served.log[0]), served.log[0]
    assert not any("secret" in line for line in served.log[:2])
    assert " 400 " in served.log[1]
