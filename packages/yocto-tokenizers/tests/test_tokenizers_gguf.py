"""GGUF: llama.cpp's rules, spelled out here, give our ids; fields that contradict are refused."""

import io
import json
from base64 import b64encode
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yocto_tokenizers import (
    CHAT_TOKENS,
    CharTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
    TokenizerFileError,
    WordLevelTokenizer,
    gguf_fields,
    tokenizer_from_gguf,
)

GGML = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4


def by_merging(fields: dict[str, Any], text: str) -> list[int]:
    """Kind `llama`: of the neighbours that make a token, the best score merges, leftmost first."""
    ids = {token: i for i, token in enumerate(fields[f"{GGML}tokens"])}
    scores = fields[f"{GGML}scores"]
    kinds = fields[f"{GGML}token_type"]
    out: list[int] = []
    for part in _around_user_defined(fields, text):
        if part in ids and kinds[ids[part]] == USER_DEFINED:
            out.append(ids[part])
            continue
        symbols = list(part.replace(" ", "\u2581"))
        while pairs := [
            (-scores[ids[a + b]], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in ids
        ]:
            at = min(pairs)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        for symbol in symbols:
            in_bytes = [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
            out += [ids[symbol]] if symbol in ids else in_bytes
    return out


def _around_user_defined(fields: dict[str, Any], text: str) -> list[str]:
    parts = [text]
    for token, kind in zip(fields[f"{GGML}tokens"], fields[f"{GGML}token_type"], strict=True):
        if kind == USER_DEFINED:
            split = [part.split(token) for part in parts]
            parts = [p for run in split for piece in run for p in (piece, token)][:-1]
    return [part for part in parts if part]


def by_longest_match(fields: dict[str, Any], text: str) -> list[int]:
    """Kind `rwkv`: always the longest token that fits; of equal ones, the last."""
    ids: dict[bytes, int] = {}
    for i, token in enumerate(fields[f"{GGML}tokens"]):
        ids[token.encode().decode("unicode_escape").encode("latin-1")] = i
    content, out = text.encode(), []
    longest = max(map(len, ids))
    while content:
        length = next(n for n in range(longest, 0, -1) if content[:n] in ids)
        out.append(ids[content[:length]])
        content = content[length:]
    return out


def by_rank(fields: dict[str, Any], text: str) -> list[int]:
    """Kind `gpt2` where no merge crosses characters: first merges first, and only tokens stay."""
    ids = {token: i for i, token in enumerate(fields[f"{GGML}tokens"])}
    rank = {tuple(pair.split(" ")): i for i, pair in enumerate(fields[f"{GGML}merges"])}
    in_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = list("".join(part for part, _ in in_bytes.pre_tokenize_str(text)))
    while pairs := [(rank[p], at) for at, p in enumerate(pairwise(symbols)) if p in rank]:
        at = min(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [ids[symbol] for symbol in symbols if symbol in ids]


RULES: dict[str, Callable[[dict[str, Any], str], list[int]]] = {
    "gpt2": by_rank,
    "llama": by_merging,
    "rwkv": by_longest_match,
}


@pytest.fixture(scope="session")
def fields(tokenizer: Tokenizer) -> dict[str, Any]:
    return gguf_fields(tokenizer)


@pytest.mark.property
@given(data=st.data())
def test_llama_cpps_rules_give_our_ids(
    tokenizer: Tokenizer,
    fields: dict[str, Any],
    known_text: SearchStrategy[str],
    data: st.DataObject,
) -> None:
    """Each text of the vocabulary, without what llama.cpp takes for a space or a name."""
    if tokenizer.kind == "huggingface" and fields[f"{GGML}model"] == "gpt2":
        pytest.skip("byte-level BPE has a test of its own")
    rule = RULES[fields[f"{GGML}model"]]
    text = data.draw(known_text)
    if rule is by_merging:
        text = text.replace("\u2581", "")
    assume(rule is not by_longest_match or not any(n in text for n in ("<unk>", *CHAT_TOKENS)))
    assert tokenizer.encode(text) == rule(fields, text)


def test_ours_comes_back_as_it_was(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """To the bit, if it is ours; else with its ids, its ends and what it puts around a text."""
    again = tokenizer_from_gguf(fields)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        assert type(tokenizer) is type(again)
        assert tokenizer.to_bytes() == again.to_bytes()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (again.bos_id, again.eos_id)
    assert dict(tokenizer.special_tokens) == dict(again.special_tokens)


def test_fields_are_what_llama_cpp_expects(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Lists of one length, no token twice, the tokenizer's ids first; ends and switches given."""
    tokens, kinds = fields[f"{GGML}tokens"], fields[f"{GGML}token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) >= tokenizer.vocab_size
    if fields[f"{GGML}model"] == "llama":
        assert len(tokens) == len(fields[f"{GGML}scores"])
        assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens)
    assert set(range(1, 7)) >= set(kinds)
    assert tokenizer.bos_id == fields[f"{GGML}bos_token_id"]
    assert tokenizer.eos_id == fields[f"{GGML}eos_token_id"]
    for name, i in tokenizer.special_tokens.items():
        assert (name, True) == (tokens[i], kinds[i] in (2, CONTROL))
    for switch in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        assert fields[GGML + switch] is False


@pytest.mark.property
@given(text=st.text(), vocabulary=st.text(min_size=1))
@example(text="\u2581 \0</s>", vocabulary=" \u2581\0\\x")
@example(text="\u00e9\u2014\u2019\U0001f469\U0001f680", vocabulary="\u2014\U0001f680\u00c3\u00a9")
def test_characters_become_ids_or_nothing(text: str, vocabulary: str) -> None:
    """A character outside the vocabulary is left out, and every row but the end's has a meaning."""
    ours = CharTokenizer.train(vocabulary)
    fields = gguf_fields(ours)
    assert ours.encode(text, errors="ignore") == by_rank(fields, text)
    # Without an end of its own, one that is never drawn: any other id would end the text.
    assert [ours.vocab_size, "</s>"] == [fields[f"{GGML}eos_token_id"], fields[f"{GGML}tokens"][-1]]
    assert ours.vocab_size + 1 == len(fields[f"{GGML}tokens"])
    with_end = CharTokenizer.train(vocabulary, special_tokens=["</s>"])
    assert with_end.vocab_size == len(gguf_fields(with_end)[f"{GGML}tokens"])


def test_no_text_forges_a_name() -> None:
    """Where the longest match would find a name, it finds a row that means nothing."""
    ours = WordLevelTokenizer.train("a user", special_tokens=CHAT_TOKENS)
    fields = gguf_fields(ours)
    for name in ("<unk>", *CHAT_TOKENS):
        (found,) = by_longest_match(fields, name)
        assert found >= ours.vocab_size


def byte_level_bpe(corpus: str, *before: Any, eos: str = "</s>") -> HuggingFaceTokenizer:
    """A byte-level BPE with more in front of its bytes, trained by the library."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    in_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not before)
    if before and isinstance(before[0], tokenizers.pre_tokenizers.Digits):
        in_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*before, in_bytes])
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=["<s>", eos],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator([corpus], trainer)
    model.add_tokens(["<tool>"])
    return HuggingFaceTokenizer.from_bytes(model.to_str().encode())


def split(digits: str) -> Any:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")


@pytest.mark.parametrize(
    ("pre", "before"),
    [
        ("gpt-2", []),
        ("smollm", [tokenizers.pre_tokenizers.Digits(individual_digits=True)]),
        ("qwen2", [split(r"\p{N}")]),
        ("llama-bpe", [split(r"\p{N}{1,3}")]),
    ],
)
def test_byte_level_bpe_by_the_name_of_its_pre_tokenizer(
    pre: str, before: list[Any], corpus: str
) -> None:
    """The name is found, and out of it the same tokenizer is built, ends and added tokens too."""
    ours = byte_level_bpe(corpus, *before)
    fields = gguf_fields(ours)
    assert ("gpt2", pre) == (fields[f"{GGML}model"], fields[f"{GGML}pre"])
    assert USER_DEFINED == fields[f"{GGML}token_type"][ours.encode("<tool>")[0]]
    again = tokenizer_from_gguf(fields)
    assert fields == gguf_fields(again)
    for text in (corpus, "12345 I'LL\u2581  \r\n\n\t<tool><s> e\u0301\U0001f600\0\x85"):
        assert ours.encode(text) == again.encode(text)
        assert text == again.decode(again.encode(text))


def test_what_is_put_in_front_of_a_text_is_kept(corpus: str) -> None:
    """Whether llama.cpp begins a text by bos is what the library would do."""
    document = json.loads(byte_level_bpe(corpus).to_bytes())
    token = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [token, sequence[0]],
        "pair": [token, *sequence],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    tokenizer = HuggingFaceTokenizer.from_bytes(json.dumps(document).encode())
    assert (True, False) == (tokenizer.adds_bos, byte_level_bpe(corpus).adds_bos)
    fields = gguf_fields(tokenizer)
    assert (True, False) == (fields[f"{GGML}add_bos_token"], fields[f"{GGML}add_eos_token"])
    assert gguf_fields(tokenizer_from_gguf(fields))[f"{GGML}add_bos_token"] is True


@pytest.fixture(scope="module")
def pieces(corpus: str) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(corpus, vocab_size=420)


def as_llama(pieces: SentencePieceTokenizer, **changes: Any) -> HuggingFaceTokenizer:
    """Our pieces in the layout of Llama's tokenizer.json: U+2581 for spaces, one put in front."""
    document = json.loads(pieces.folder_files()["tokenizer.json"])
    model = document["model"]
    model["vocab"] = {token.replace(" ", "\u2581"): i for token, i in model["vocab"].items()}
    model["merges"] = [[half.replace(" ", "\u2581") for half in pair] for pair in model["merges"]]
    document["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    document |= {key: {**document[key], **value} for key, value in changes.items()}
    return HuggingFaceTokenizer.from_bytes(json.dumps(document).encode())


@pytest.mark.property
@given(data=st.data())
def test_merges_become_scores(
    pieces: SentencePieceTokenizer, any_text: SearchStrategy[str], data: st.DataObject
) -> None:
    """A BPE with byte fallback, as Llama's and TinyLlama's, is pieces by score, in and out."""
    theirs = as_llama(pieces)
    fields = gguf_fields(theirs)
    assert ("llama", True) == (fields[f"{GGML}model"], fields[f"{GGML}add_space_prefix"])
    again = tokenizer_from_gguf(fields)
    assert isinstance(again, SentencePieceTokenizer)
    assert (theirs.bos_id, theirs.eos_id, 0) == (again.bos_id, again.eos_id, again.unk_id)
    text = data.draw(any_text).replace(
        "\n", ""
    )  # a token of its own, in front of which Prepend acts
    assert again.encode(text) == theirs.encode(text)
    assert text == again.decode(again.encode(text))[1:].replace("\u2581", " ") or "\u2581" in text
    assert again.encode(text) == (by_merging(fields, f" {text}") if text else [])


def test_the_config_may_name_the_unknown_token(pieces: SentencePieceTokenizer) -> None:
    """Newer files of Llama's leave it out of the model; one token is unknown all the same."""
    content = as_llama(pieces, model={"unk_token": None}).to_bytes()
    theirs = HuggingFaceTokenizer(content, b'{"unk_token": "<unk>"}')
    fields = gguf_fields(theirs)
    assert (0, 2) == (fields[f"{GGML}unknown_token_id"], fields[f"{GGML}token_type"][0])
    assert fields[f"{GGML}token_type"].count(2) == 1


NFC = {"type": "NFC"}


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda p, _: as_llama(p, model={"merges": [["t", "h"]]}), "merges are in an order"),
        (lambda p, _: without_unknown(p), "bytes but no unknown token"),
        (lambda p, _: as_llama(p, normalizer={"normalizers": [NFC]}), "changes text by .*NFC"),
        (lambda _, text: byte_level_bpe(text, split("[0-9]")), "splits text by"),
        (lambda p, _: as_words(p), "its model is 'WordLevel'"),
        (lambda _, text: foreign_model(text, byte_fallback=False), "byte fallback"),
        (lambda _, text: foreign_model(text, model_type="unigram"), "byte fallback"),
        (lambda _, text: foreign_model(text, normalization_rule_name="nfkc"), "normalizer"),
        (lambda *_: CharTokenizer("\u00e9", special_tokens=["\u00c3\u00a9"]), "would be .* twice"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(
    tokenizer: Callable[..., Tokenizer],
    message: str,
    *,
    pieces: SentencePieceTokenizer,
    corpus: str,
) -> None:
    """Rather than written with other ids, by the name of what it lacks, in one line."""
    with pytest.raises(TokenizerError, match=message) as raised:
        gguf_fields(tokenizer(pieces, corpus))
    assert str(raised.value).isprintable()


def without_unknown(pieces: SentencePieceTokenizer) -> HuggingFaceTokenizer:
    content = as_llama(pieces, model={"unk_token": None}).to_bytes()
    return HuggingFaceTokenizer.from_bytes(content.replace(b'"<unk>"', b'"<none>"'))


def as_words(_: object) -> HuggingFaceTokenizer:
    files = CharTokenizer("ab").folder_files()
    return HuggingFaceTokenizer.from_bytes(files["tokenizer.json"])


def foreign_model(corpus: str, **options: Any) -> SentencePieceTokenizer:
    model = io.BytesIO()
    settings = {"model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()), model_writer=model, vocab_size=330,
        minloglevel=2, **settings,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def without_own(tokenizer: Tokenizer) -> dict[str, Any]:
    return {key: v for key, v in gguf_fields(tokenizer).items() if not key.startswith("yocto.")}


def test_a_sentencepiece_model_of_others(corpus: str) -> None:
    """Pieces, scores and ends make the model again; ids out of range are as if not there."""
    ours = SentencePieceTokenizer.train(corpus, vocab_size=400)
    fields = {**without_own(ours), f"{GGML}eos_token_id": 10**6, f"{GGML}unknown": "passed over"}
    again = tokenizer_from_gguf(fields)
    assert (1, 2, 0) == (again.bos_id, again.eos_id, again.unk_id)
    assert ours.fingerprint() == again.fingerprint()
    fields |= {f"{GGML}tokens": [*fields[f"{GGML}tokens"][:-1], ""]}
    assert tokenizer_from_gguf(fields).vocab_size == 400


OURS = b64encode(CharTokenizer("ab").to_bytes()).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "of kind None, expected one of llama, gpt2"),
        ({"model": "rwkv"}, "of kind 'rwkv'"),
        ({"model": ["llama"]}, r"of kind \['llama'\]"),
        ({"tokens": None}, "list of str under tokenizer.ggml.tokens"),
        ({"tokens": []}, "do not belong together"),
        ({"tokens": ["a", 5]}, "list of str"),
        ({"tokens": ["a"] * 400}, "a piece twice"),
        ({"token_type": [1]}, "do not belong together"),
        ({"token_type": [0] * 400}, "do not belong together"),
        ({"token_type": [1] * 400}, "exactly one unknown piece|bytes"),
        ({"token_type": [True] * 400}, "list of int"),
        ({"scores": [0.0]}, "scores do not belong together"),
        ({"scores": [float("nan")] * 400}, "score that is not a number"),
        ({"model": "gpt2", "pre": "default"}, "splits text by 'default', expected one of gpt-2,"),
        ({"model": "gpt2", "pre": "gpt-2"}, "list of str under tokenizer.ggml.merges"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["ab"]}, "not a tokenizer.json|two"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["no such"]}, "not a tokenizer.json"),
        ({"yocto.tokenizer.content": "?"}, "not base64"),
        ({"yocto.tokenizer.content": 5}, "not base64"),
        ({"yocto.tokenizer.file": "vocab.json", "yocto.tokenizer.content": OURS[4:]}, "not valid"),
        ({"yocto.tokenizer.file": "a.model", "yocto.tokenizer.content": OURS}, "sentencepiece"),
    ],
)
def test_fields_that_contradict_are_refused(
    changes: dict[str, Any], message: str, corpus: str
) -> None:
    """Missing, of another type, of another length, of an unknown kind: one line says which."""
    ours = SentencePieceTokenizer.train(corpus, vocab_size=400)
    changed = {key if "." in key else GGML + key: value for key, value in changes.items()}
    fields = {**without_own(ours), **changed}
    with pytest.raises(TokenizerFileError, match=message) as raised:
        tokenizer_from_gguf({key: value for key, value in fields.items() if value is not None})
    assert "\n" not in str(raised.value)
