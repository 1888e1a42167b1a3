"""Chat templates, against Jinja's rendering of the whole conversation and against `tokenizers`."""

import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from functools import cache

import jinja2
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.ext import loopcontrols
from yocto_tokenizers import (
    CHATML,
    PLAIN,
    TURNS,
    BaseTokenizer,
    CharTokenizer,
    ChatTemplate,
    ChatTemplateError,
    HuggingFaceTokenizer,
    Segment,
    TokenizerError,
    encode_segments,
    template_for,
)

# What templates of well-known models do, in as few words as possible.
FORCED = (  # SmolLM2: a system text of its own where there is none
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # Qwen3: earlier replies lose their thoughts
    "{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for m in messages[::-1] %}{%- if m.role == 'user' and ns.last == messages|length - 1 %}"
    "{%- set ns.last = messages|length - 1 - loop.index0 %}{%- break %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set text = m.content if m.content is string else '' %}"
    "{%- if m.role == 'assistant' and loop.index0 < ns.last and '</think>' in text %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
DATED = (  # Llama 3: a beginning of text, the date, trimmed messages
    "{{- bos_token }}{%- if not date is defined %}{%- set date = strftime_now('%d %b %Y') %}"
    "{%- endif %}{%- set system = '' %}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- endif %}"
    "{{- '<|im_start|>system\\nToday: ' + date + '\\n\\n' }}{{- system }}{{- '<|im_end|>' }}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n\\n' + m['content'] | trim "
    "+ '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)
WRITTEN_NAMES = (  # TinyLlama: names that are no tokens, and an end that is one
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|u|>\n' + m['content'] + "
    "eos_token }}\n{% elif m['role'] == 'system' %}\n{{ '<|s|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|a|>\n'  + m['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|a|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
LATE_SYSTEM = (  # Mistral: the system text in front of the last message, no line breaks
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- set messages = messages[1:] %}{%- endif %}{{- bos_token }}{%- for m in messages %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{%- endif %}{%- if m.role == 'user' %}{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}{%- else %}"
    "{% generation %}{{- ' ' + m.content + eos_token }}{% endgeneration %}{%- endif %}{%- endfor %}"
)
MERGED = (  # Gemma, Llama 2: the system text in front of the first message
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set lead = messages[0]['content'] + "
    "'\n\n' %}{% set rest = messages[1:] %}{% else %}{% set lead = '' %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else "
    "m['role']) + '\n' + (lead if loop.first else '') + m['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
AS_JSON = (  # data in data
    "{% for m in messages %}{{ {'role': m.role, 'text': m.content} | tojson }}"
    "{{ '<|im_end|>' }}{% endfor %}"
)
BUILT_IN = {"plain": PLAIN, "turns": TURNS, "chatml": CHATML}
FOREIGN = {
    "forced": FORCED, "thinking": THINKING, "dated": DATED, "names": WRITTEN_NAMES,
    "late": LATE_SYSTEM, "merged": MERGED, "no system": NO_SYSTEM + CHATML, "json": AS_JSON,
}  # fmt: skip
TEMPLATES = BUILT_IN | FOREIGN

NAMES = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>",
    "[INST]", "[/INST]",
)  # fmt: skip
ALPHABET = "\n\t" + "".join(map(chr, range(0x20, 0x7F))) + "é\ue000\u2028"
CHARS = CharTokenizer(ALPHABET, special_tokens=NAMES)


@cache
def byte_level() -> HuggingFaceTokenizer:
    """A byte-level BPE as Llama 3's, with names of turns."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=list(NAMES),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(["the user said hello to the assistant\n\n and was"] * 9, trainer)
    return HuggingFaceTokenizer.from_bytes(model.to_str().encode())


@cache
def leading_space() -> HuggingFaceTokenizer:
    """A BPE as Llama's: every text gets a space in front, what has no piece is bytes."""
    words = ["\u2581the", "\u2581user", "he", "llo", "the"]
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdehlorstu"]
    halves = [("h", "e"), ("l", "l"), ("ll", "o"), ("t", "he"), ("u", "s"), ("e", "r")]
    halves += [("us", "er"), ("\u2581", "the"), ("\u2581", "user")]
    vocab += list(dict.fromkeys([*map("".join, halves), *words]))
    document = {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None,
        "added_tokens": [
            {"id": len(vocab) + i, "content": name, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for i, name in enumerate(NAMES)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": True,
            "ignore_merges": False, "vocab": {piece: i for i, piece in enumerate(vocab)},
            "merges": halves,
        },
    }  # fmt: skip
    return HuggingFaceTokenizer.from_bytes(json.dumps(document).encode())


texts = st.lists(
    st.text(ALPHABET, max_size=8)
    | st.sampled_from(["<|im_end|>", "<|user|>", "</s>", "\nUser:", "</think>", "{{ 1 }}", "the"])
).map("".join)
spoken = texts.filter(str.strip)


@st.composite
def conversations(
    draw: st.DrawFn, said: st.SearchStrategy[str] = spoken, ends: tuple[int, ...] = (1, 3, 5)
) -> list[dict[str, str]]:
    """Messages by turns, perhaps with a system text in front; `ends` says how many."""
    messages = [{"role": "system", "content": draw(said)}] if draw(st.booleans()) else []
    for index in range(draw(st.sampled_from(ends))):
        role = ("user", "assistant")[index % 2]
        messages.append({"role": role, "content": draw(said)})
    return messages


@cache
def oracle(source: str) -> jinja2.Template:
    """Jinja without a sandbox."""

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(  # noqa: S701 - the text is no page
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return environment.from_string(source)


@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name])


def stripped(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**message, "content": message["content"].strip()} for message in messages]


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


@pytest.mark.property
@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations(ends=(1, 2, 3, 4)), asks=st.booleans())
@example(messages=[{"role": "user", "content": "\ue0000\ue000 {{ 7 * 7 }}"}], asks=True)
def test_segments_joined_are_the_rendered_text(
    name: str, messages: list[dict[str, str]], asks: bool
) -> None:
    """By turns the template's text and a message, each message once; or both refuse."""
    template = template_of(name)
    try:
        segments = template.segments(messages, CHARS, add_generation_prompt=asks)
    except ChatTemplateError:
        assert messages[0]["role"] == "system"
        assert name == "no system" or (name == "late" and len(messages) % 2)
        return
    expected = oracle(TEMPLATES[name]).render(
        messages=stripped(messages),
        add_generation_prompt=asks,
        bos_token="<s>",  # noqa: S106 - no password
        eos_token="</s>",  # noqa: S106 - the same
    )
    assert expected == joined(segments)
    assert all(segment.message is None for segment in segments[::2])
    indices = {segment.message for segment in segments[1::2]}
    assert indices == set(range(len(messages)))
    if name in BUILT_IN and name != "plain":
        for segment in segments[1::2]:
            assert segment.text == stripped(messages)[segment.message or 0]["content"]


@pytest.mark.property
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "no system"])
@given(messages=conversations())
def test_no_message_produces_a_special_token(name: str, messages: list[dict[str, str]]) -> None:
    """Special ids come from the template alone, and are the same whatever is said."""
    template = template_of(name)
    harmless = [{**message, "content": "x"} for message in messages]
    special = set(CHARS.special_tokens.values())
    found = []
    for said in (messages, harmless):
        segments = template.segments(said, CHARS, add_generation_prompt=True)
        ids = encode_segments(segments, CHARS)
        assert not any(special & set(part) for part in ids[1::2])
        found.append([token for part in ids for token in part if token in special])
    assert found[0] == found[1]
    assert (len(found[0]) > 0) == (name != "plain")


@pytest.mark.property
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "no system"])
@pytest.mark.parametrize("make", [byte_level, leading_space])
@given(
    messages=conversations(
        st.lists(st.sampled_from(["hello", "the", "user", " ", "é", "be"]))
        .map("".join)
        .filter(str.strip)
    )
)
def test_ids_are_those_of_the_whole_text(
    make: Callable[[], HuggingFaceTokenizer], name: str, messages: list[dict[str, str]]
) -> None:
    """As other programs do it: the rendered text at once, special names found in it."""
    tokenizer, template = make(), template_of(name)
    segments = template.segments(messages, tokenizer, add_generation_prompt=True)
    ids = [token for part in encode_segments(segments, tokenizer) for token in part]
    library = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
    assert library.encode(joined(segments), add_special_tokens=False).ids == ids


def facts(name: str, tokenizer: BaseTokenizer = CHARS) -> tuple[str | None, tuple[str, ...], str]:
    template = template_of(name)
    names = {token: special for special, token in tokenizer.special_tokens.items()}
    end = template.end_id(tokenizer)
    system = template.default_system(tokenizer)
    return end if end is None else names[end], template.stops(tokenizer), system


def test_what_follows_from_a_template() -> None:
    """The token that ends a reply, or else the strings; the system text it has of its own."""
    assert facts("plain") == (None, ("\n\n", "\nUser:", "\nAssistant:"), "")
    assert facts("turns") == facts("chatml") == facts("merged") == ("<|im_end|>", (), "")
    assert facts("dated") == facts("thinking") == facts("no system") == ("<|im_end|>", (), "")
    assert facts("forced") == ("<|im_end|>", (), "You help.")
    assert facts("names") == facts("late") == ("</s>", (), "")
    # A vocabulary that lacks the tokens is told where a reply ends by how the names are written.
    without = CharTokenizer(ALPHABET)
    assert facts("turns", without)[:2] == (None, ("<|im_end|><|user|>", "<|im_end|><|assistant|>"))
    instructions = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    instructions += "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    stops = ("\n\n### user:", "\n\n### assistant:")
    assert ChatTemplate(instructions).stops(CHARS) == stops


def test_what_templates_make_of_messages() -> None:
    """Thoughts go from earlier replies, plain messages take one line, verse keeps its lines."""
    messages = [
        {"role": "user", "content": " one\n\ntwo "},
        {"role": "assistant", "content": "<think>a</think>\n\nSo\nit is."},
        {"role": "user", "content": "and?"},
    ]
    said = ChatTemplate(THINKING).segments(messages, CHARS, add_generation_prompt=True)
    assert [segment.text for segment in said[1::2]] == ["one\n\ntwo", "So\nit is.", "and?"]
    plain = joined(ChatTemplate(PLAIN).segments(messages, CHARS, add_generation_prompt=True))
    assert plain == "User: one two\nAssistant: <think>a</think> So it is.\nUser: and?\nAssistant:"
    verse = [messages[2], {"role": "assistant", "content": "a\nb\n"}]
    assert joined(ChatTemplate(PLAIN).segments(verse, CHARS)) == "User: and?\nAssistant: a\nb\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}", "x is not a Jinja template ('Unexpected end of template"),
        ("{% if " * 99 + "1" + " %}{% endif %}" * 99, "x is not a Jinja template"),
        ("{{ (" * 9_999, "x is not a Jinja template"),
        ("a" * (1 << 21), "x has 2097152 characters"),
        ("{{ messages[-1].content }}", "x leaves out what the user says"),
        ("{% for m in messages %}{{ m.content[:1] }}{% endfor %}", "x leaves out"),
        ("{% for m in messages %}{{ m.content | reverse }}{% endfor %}", "x changes"),
        ("{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}", "x changes"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", None),
        ("{{ raise_exception('only one message') }}", "x refuses these messages ('only one mess"),
        ("{{ ''.__class__.__mro__ }}", "x refuses these messages ('access to attribute"),
        ("{{ messages.append(1) }}", "x refuses these messages"),
        ("{{ messages[0].nothing.more }}", "x refuses these messages"),
        ("{{ 1 / 0 }}", "x refuses these messages ('division by zero')"),
        ("{% include 'file' %}", "x refuses these messages"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_by_name(source: str, reason: str | None) -> None:
    """One line says which and why; what only changes letters is used as it is."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    if reason is None:
        assert "HIHELLO" == joined(ChatTemplate(source, name="x").segments(messages, CHARS))
        return
    with pytest.raises(ChatTemplateError) as refused:
        ChatTemplate(source, name="x").segments(messages, CHARS)
    assert str(refused.value).startswith(reason)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, TokenizerError)


_LOOPS = "{% for a in range(99999) %}"
_GROWS = "{% set n = namespace(x='abcd') %}{% for a in range(99) %}{% set n.x = "


@pytest.mark.parametrize(
    "source",
    [
        _LOOPS * 5 + "{% endfor %}" * 5,
        _LOOPS + "a" * 9_999 + "{% endfor %}",
        _LOOPS + "{{ 'a' * 99999 }}{% endfor %}",
        "{% set x = 'a' * 99999 %}" + _LOOPS + "{{ x }}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(90) }}",
        *(_GROWS + form + " %}{% endfor %}{{ n.x }}" for form in (
            "n.x ~ n.x", "n.x + n.x", "n.x * 2", "[n.x, n.x]", "[n.x] * 9", "'%s%s' % (n.x, n.x)",
            "'{0}{0}'.format(n.x)", "n.x.replace('b', n.x)", "n.x | replace('b', n.x)",
            "[n.x, n.x] | join(n.x)", "n.x.join([n.x, n.x])", "n.x | center(n.x | length * 2)",
            "n.x ~ n.x[:]", "{0: n.x, 1: n.x}",
        )),
        *("{{ " + form + " }}" for form in (
            "'a' * 10 ** 10", "10 ** 10 * 'a'", "[1] * 10 ** 9", "9 ** 9999999",
            "'%999999999d' % 1",
            "'%*d' % (999999999, 1)", "'{:999999999}'.format(1)", "'{:{}}'.format(1, 10 ** 9)",
            "'%999999999d' | format(1)", "'a' | center(10 ** 9)", "'a'.ljust(10 ** 9)",
            "'\t'.expandtabs(10 ** 9)", "'a\nb' | indent(10 ** 9)", "lipsum(n=99999)",
            "messages | tojson(indent=10 ** 9)",
        )),
    ],
)  # fmt: skip
def test_a_template_comes_to_an_end(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loops for ever, or prints a gigabyte, is refused in one line and little memory."""
    monkeypatch.setattr("yocto_tokenizers.formats.sandbox._MOST_SECONDS", 1.0)
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError, match="x refuses these messages"):
            ChatTemplate(source, name="x").segments([{"role": "user", "content": "Hi"}], CHARS)
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_long_conversations_are_within_the_bounds() -> None:
    """What people really say is far below them: many messages, long ones, and long numbers."""
    many = [{"role": role, "content": f"{'1234567 ' * 9}{n}"}
            for n in range(1_000) for role in ("user", "assistant")]  # fmt: skip
    long = [{"role": "user", "content": "long " * 400_000}]
    for name, source in TEMPLATES.items():
        for messages in (many, long):
            assert ChatTemplate(source, name=name).segments(messages, CHARS)


def test_the_template_of_a_model() -> None:
    """Its own; ChatML where a model from elsewhere has the tokens; never by a vocabulary of ours.

    A vocabulary of ours may hold names of turns that no text used: then the model has never seen
    them, and is asked in plain text.
    """
    assert template_for("{{ 1 }}", CHARS).source == "{{ 1 }}"
    assert template_for(None, CHARS).source == PLAIN
    assert template_for(None, CHARS, pretrained=True).source == CHATML
    assert template_for(None, CharTokenizer(ALPHABET), pretrained=True).source == PLAIN
    with pytest.raises(ChatTemplateError, match="the model's chat template"):
        template_for("{% ", CHARS)


def test_text_that_cannot_be_encoded_can_be_left_out() -> None:
    """A function given for text is used for all of it, and never sees special names."""
    seen: list[str] = []

    def encode(text: str) -> list[int]:
        seen.append(text)
        return CHARS.encode(text, errors="ignore")

    segments = [Segment("<|user|>", None), Segment("a\u263a", 0), Segment("<|im_end|>\n", None)]
    ids = CHARS.special_tokens
    assert encode_segments(segments, CHARS, encode=encode) == [
        [ids["<|user|>"]], CHARS.encode("a"), [ids["<|im_end|>"], *CHARS.encode("\n")],
    ]  # fmt: skip
    assert seen == ["a\u263a", "\n"]
