"""yocto-export: a GGUF file that is the model, and a Modelfile that asks as its template does."""

import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli.export import go_template, main
from yocto_model import GPT, GPTConfig, read_gguf
from yocto_tokenizers import CHATML, PLAIN, TURNS, CharTokenizer, ChatTemplate
from yocto_train import open_model

LETTERS = "abcdefghijklmnopqrstuvwxyzUAQ .:,?\n"
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>", "<|im_end|>")
TOKENIZER = CharTokenizer.train(LETTERS, special_tokens=SPECIAL)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["char", "bpe"])
def test_the_file_is_the_model(name: str, kind: str, run: Any, runs: Path, tmp_path: Path) -> None:
    """Weights, as far as the type holds them, and the tokenizer come back; so do the end ids."""
    out = tmp_path / "model.gguf"
    result = run(main, [str(runs / name), str(out), f"--type={kind}"])
    assert result.code == 0, result.err
    assert re.match(rf"{out}: {kind}, [\d.]+ MB; {out.parent}/model.Modelfile says how", result.out)
    expected, actual = open_model(runs / name), open_model(out)
    assert expected.tokenizer
    assert actual.tokenizer
    assert expected.tokenizer.fingerprint() == actual.tokenizer.fingerprint()
    n, ids = expected.tokenizer.vocab_size, torch.arange(9)[None]
    left, right = expected.model(ids), actual.model.float()(ids)[..., :n]
    assert torch.allclose(left, right, atol={"f32": 1e-6, "bf16": 2e-2}.get(kind, 2e-3))
    assert {*expected.end_ids} <= {*actual.end_ids}
    assert ("model", out, None) == (actual.name, actual.path, actual.checkpoint)


def test_what_is_written_for_ollama(run: Any, runs: Path, tmp_path: Path) -> None:
    """The file beside it, what ends a reply, and how much the model sees."""
    run(main, [str(runs / "bpe"), str(tmp_path / "my.gguf")])
    lines = (tmp_path / "my.Modelfile").read_text().splitlines()
    assert "FROM ./my.gguf" == lines[0]
    assert lines[1].startswith('TEMPLATE """{{- $last')
    stops = [json.loads(line[15:]) for line in lines if line.startswith("PARAMETER stop ")]
    assert ["</s>", "\n\n", "\nUser:", "\nAssistant:"] == stops
    assert ["PARAMETER num_ctx 16", "PARAMETER temperature 0.8"] == lines[-2:]


def test_a_template_of_its_own_goes_along(run: Any, tmp_path: Path) -> None:
    """It is a field of the file; the turn's end ends replies there, too; nothing is guessed."""
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size, n_layer=1, n_head=2, n_embd=8, block_size=16
    )
    end = TOKENIZER.special_tokens["<|im_end|>"]
    GPT(config).save(tmp_path / "mine", end_ids=[TOKENIZER.special_tokens["</s>"], end])
    TOKENIZER.save(tmp_path / "mine")
    out = tmp_path / "my.gguf"
    for template in (None, TURNS, "{{ raise_exception('no') }}"):
        if template is not None:
            (tmp_path / "mine" / "chat_template.jinja").write_text(template)
        assert run(main, [f"--ckpt={tmp_path}/mine", f"--out_path={out}", "--force"]).code == 0
        assert (
            template == open_model(out).template == read_gguf(out)[1].get("tokenizer.chat_template")
        )
        assert end in open_model(out).end_ids
        text = (tmp_path / "my.Modelfile").read_text()
        assert 'PARAMETER stop "<|im_end|>"' in text
        # What cannot be said in Go is left to ollama, which looks into the file.
        assert ("TEMPLATE" in text) is (template is None or "raise" not in template)


SKELETON = (
    '{{- $last := "" }}{{- range .Messages }}{{- if eq .Role "system" }}X'
    '{{- else if eq .Role "assistant" }}X{{- else if eq $last "" }}X'
    '{{- else if eq $last "system" }}X{{- else }}X{{- end }}'
    "{{ .Content }}{{- $last = .Role }}{{- end }}X"
)
SAID = st.text("abcdefgh ?", min_size=1).map(str.strip).filter(bool)


@pytest.mark.property
@pytest.mark.parametrize("source", [PLAIN, TURNS, CHATML], ids=["plain", "turns", "chatml"])
@given(system=st.none() | SAID, said=st.lists(SAID, min_size=1, max_size=7))
@example(system=None, said=["hi"])
@example(system="be brief", said=["a", "b", "c"])
def test_ollama_asks_as_the_template_does(source: str, system: str | None, said: list[str]) -> None:
    """The Modelfile's TEMPLATE, filled as Go would, is what the Jinja template writes."""
    said = said if len(said) % 2 else said[:-1]
    messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(said)]
    messages = ([] if system is None else [{"role": "system", "content": system}]) + messages
    template = ChatTemplate(source)
    text, literal = go_template(template, TOKENIZER, added=None), r'{{ ("(?:[^"\\]|\\.)*") }}'
    assert SKELETON == re.sub(literal, "X", text)
    begin_system, answer, begin, after_system, again, end = map(
        json.loads, re.findall(literal, text)
    )
    filled, last = "", ""
    for message in messages:
        role = message["role"]
        front = {"": begin, "system": after_system}.get(last, again)
        filled += {"system": begin_system, "assistant": answer}.get(role, front)
        filled, last = filled + message["content"], role
    parts = template.segments(messages, TOKENIZER, add_generation_prompt=True)
    assert "".join(part.text for part in parts) == filled + end


def test_a_beginning_that_llama_cpp_adds_is_left_out() -> None:
    """Else the model would see it twice."""
    template = ChatTemplate("{{ bos_token }}" + TURNS)
    with_it, without = (go_template(template, TOKENIZER, added=x) for x in (None, "<s>"))
    assert '"<s><|user|>"' in with_it
    assert with_it.replace("<s>", "") == without


@pytest.mark.parametrize(("words", "what"), [
    ("", "missing MODEL and OUT.gguf"),
    ("{runs}/char", "missing OUT.gguf; see yocto-export --help"),
    ("{runs}/char {tmp}/a.gguf {tmp}/b.gguf", "unexpected argument"),
    ("--type=f16 {runs}/char {tmp}/a.gguf --kind=2", "unknown flag --kind"),
    ("{runs}/char {tmp}/a.bin", "must end in .gguf, as my.gguf does, not '{tmp}/a.bin'"),
    ("{runs}/char {tmp}/none/a.gguf", "none is not a directory; make it first"),
    ("{runs}/char {tmp}/old.gguf", "old.gguf already exists; give --force"),
    ("{runs}/char --out_path=", "must end in .gguf, as my.gguf does, not ''"),
    ("{runs}/char .gguf", "must end in .gguf, as my.gguf does, not '.gguf'"),
    ("{runs}/char {tmp}/a\0.gguf", "holds a line break or a control character"),
    ("{runs}/char {tmp}/a\x85.gguf", "holds a line break or a control character"),
    ("{runs}/char {tmp}\0/a.gguf", "holds a line break or a control character"),
    ("{runs}/char {tmp}/folder.gguf --force", "folder.gguf is a directory; give another name"),
    ("{runs}/char {tmp}/my.gguf --force", "my.Modelfile is a directory; give another name"),
    ("{runs}/none {tmp}/a.gguf", "does not exist"),
    ("{runs}/char {tmp}/a.gguf --type=q4_0", "type must be one of f32, f16, bf16, q8_0"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused(
    words: str, what: str, refused: Any, runs: Path, tmp_path: Path
) -> None:
    """Exit code 2, one line, and nothing is written."""
    (tmp_path / "old.gguf").write_bytes(b"old")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "my.Modelfile").mkdir()
    given = words.format(runs=runs, tmp=tmp_path).split(" ")
    assert what.format(tmp=tmp_path) in refused(main, [word for word in given if word])
    assert {"old.gguf", "folder.gguf", "my.Modelfile"} == {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "old.gguf").read_bytes() == b"old"


def test_without_the_extra(
    refused: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what to install; nothing is written."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "yocto-model[gguf]" in refused(main, [str(runs / "char"), str(tmp_path / "a.gguf")])
    assert [] == list(tmp_path.iterdir())


def test_two_exports_live_together_and_what_comes_next_can_be_copied(
    run: Any, runs: Path, tmp_path: Path
) -> None:
    """Each has its Modelfile, under its own name; a name with a space is quoted."""
    for name in ("char", "bpe"):
        result = run(main, [str(runs / name), f"{tmp_path}/My {name}.gguf"])
        model, modelfile = (f"'{tmp_path}/My {name}.{kind}'" for kind in ("gguf", "Modelfile"))
        ways = f"llama-cli -m {model}, or: ollama create my-{name} -f {modelfile}"
        assert f"next: {ways}" == result.out.splitlines()[-1]
        assert f"FROM ./My {name}.gguf\n" in (tmp_path / f"My {name}.Modelfile").read_text()


@pytest.mark.parametrize("room", [0, 100, 3_000, 5_000, 9_000])
def test_without_room_the_target_is_named(room: int, run: Any, runs: Path, tmp_path: Path) -> None:
    """As when a disk is full: one line with the target, not a temporary file, and no part of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        result = run(main, [str(runs / "bpe"), str(tmp_path / "a.gguf"), "--type=f32"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (1, "") == (result.code, result.out)
    why = r"(File too large|no room for the whole file; make room and run it again)"
    assert re.fullmatch(
        rf"yocto-export: error: cannot write {tmp_path}/a.gguf: {why}\n", result.err
    )
    assert [] == list(tmp_path.iterdir())
