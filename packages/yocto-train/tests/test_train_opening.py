"""Models from elsewhere: Hugging Face folders, single files, the hub; what comes with a model."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from yocto_model import GPT, write_gguf
from yocto_tokenizers import TURNS, CharTokenizer, gguf_fields
from yocto_train import CheckpointError, open_model, save_checkpoint

COMMIT = "c0ffee" * 6 + "c0ff"  # 40 digits, as git has


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., GPT], tokenizer: CharTokenizer) -> Path:
    """A model folder without a manifest, as other programs write and read them."""
    make_model("modern").save(tmp_path / "their model", end_ids=[3, 5])
    tokenizer.save(tmp_path / "their model")
    return tmp_path / "their model"


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "vocab.json", "model.pt"])
def test_a_folder_or_a_file_in_it_is_the_model(
    name: str, folder: Path, make_model: Callable[..., GPT], tokenizer: CharTokenizer
) -> None:
    """Weights, tokenizer and end ids are those in the folder; it belongs to no run."""
    opened = open_model(folder / name)
    assert (folder, "their model", None) == (opened.path, opened.name, opened.checkpoint)
    assert (3, 5) == opened.end_ids
    assert opened.tokenizer
    assert tokenizer.fingerprint() == opened.tokenizer.fingerprint()
    ids = torch.arange(6)[None]
    assert torch.equal(make_model("modern").eval()(ids), opened.model(ids))
    half = open_model(folder / name, dtype=torch.bfloat16).model
    assert torch.bfloat16 == half.token_emb.weight.dtype


def test_a_step_without_its_manifest_is_a_folder(copied: Path) -> None:
    """What a checkpoint gives away opens elsewhere; but a step of that name must be sound."""
    step = copied / "step-00000006"
    (step / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        open_model(step)
    (step / "opt.safetensors").unlink()
    step.rename(copied.parent / "given away")
    assert open_model(copied.parent / "given away").checkpoint is None


CONFIGS: list[tuple[object, str | None]] = [
    ({"chat_template": "{{ x }}"}, "{{ x }}"),
    ({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]},
     "d"),
    ({"chat_template": [{"name": "tools", "template": "t"}]}, None),
    ({"chat_template": 3}, None),
    ({"chat_template": [3]}, None),
    ({"chat_template": None}, None),
    ({}, None),
    ([], None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "template"), CONFIGS)
def test_a_template_comes_from_its_file_or_the_settings(
    config: object, template: str | None, folder: Path
) -> None:
    """chat_template.jinja counts; else tokenizer_config.json, a text or the one named default."""
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert template == open_model(folder).template
    (folder / "chat_template.jinja").write_text("{# ours #}\n")
    assert open_model(folder).template == "{# ours #}\n"


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"\xff", b"x" * (9 << 20)], ids=["binary", "huge"])
def test_a_damaged_template_is_refused(name: str, content: bytes, folder: Path) -> None:
    """In one line that names the file."""
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_model(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_pointer_for_a_template_is_said_to_be_one(name: str, folder: Path) -> None:
    """What git leaves in place of a file is no template."""
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer; fetch .* `git lfs"):
        open_model(folder)


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("name", [
    "generation_config.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.json",
])  # fmt: skip
def test_a_link_to_nothing_is_refused(name: str, loops: bool, folder: Path) -> None:
    """It counts as damage, not as a file that is not there."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(name if loops else "nowhere")
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads nowhere; restore"):
        open_model(folder)


@pytest.mark.parametrize(("kept", "missing"), [
    ("model.safetensors", "config.json should"),
    ("config.json", "model.safetensors should"),
    ("vocab.json", "config.json and model.safetensors should"),
    ("opt.safetensors", "config.json and model.safetensors and manifest.json should"),
])  # fmt: skip
def test_a_lone_file_says_what_it_misses(
    kept: str, missing: str, copied: Path, tmp_path: Path
) -> None:
    """A file that was copied alone: its neighbours are named."""
    shutil.copy(copied / "step-00000006" / kept, tmp_path)
    with pytest.raises(CheckpointError, match=f"{kept} is one file of a model, and {missing}"):
        open_model(tmp_path / kept)


def test_parts_without_their_index(folder: Path) -> None:
    """Several files of weights, and not the one that says what is in them: it is named."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    said = r"no model\.safetensors\.index\.json, which says what is in them; copy that file, too$"
    with pytest.raises(CheckpointError, match=said):
        open_model(folder)


# --- tokenizers ----------------------------------------------------------------------------------


def test_a_named_tokenizer_must_be_the_models(folder: Path, tokenizer: CharTokenizer) -> None:
    """It stands in for one that is missing; another than the model's own is refused."""
    other = CharTokenizer.train("abc")
    with pytest.raises(CheckpointError, match=r"char tokenizer \(3 ids\) does not belong to"):
        open_model(folder, tokenizer=other)
    assert open_model(folder, tokenizer=tokenizer).tokenizer
    (folder / "vocab.json").unlink()
    assert open_model(folder).tokenizer is None
    assert other is open_model(folder, tokenizer=other).tokenizer


def test_a_tokenizer_with_more_ids_than_rows_is_refused(
    folder: Path, tokenizer: CharTokenizer
) -> None:
    """Its own or a named one: some of its ids have no row, and nothing could be said about them."""
    larger = CharTokenizer.train("".join(map(chr, range(32, 200))))
    larger.save(folder)
    with pytest.raises(CheckpointError, match=rf"has {tokenizer.vocab_size} rows for ids, its"):
        open_model(folder)


def test_what_a_foreign_tokenizer_loses_is_noted(
    tmp_path: Path, make_model: Callable[..., GPT]
) -> None:
    """In numbers, as a note; one that keeps every text has none."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - no password
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<unk>"])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.train_from_iterator(["the sea"], trainer)
    make_model(vocab_size=inner.get_vocab_size()).save(tmp_path / "theirs")
    for normalizer, n_notes in ((None, 0), (normalizers.Lowercase(), 1)):
        if normalizer is not None:
            inner.normalizer = normalizer
        inner.save(str(tmp_path / "theirs" / "tokenizer.json"))
        notes = open_model(tmp_path / "theirs").notes
        assert n_notes == len(notes)
    assert re.search(r"does not keep all of a text: .* [0-9]+ letters change case", notes[0])


# --- single files --------------------------------------------------------------------------------


def test_a_gguf_file(tmp_path: Path, make_model: Callable[..., GPT]) -> None:
    """Model, tokenizer and template are in the one file; tokens that end a turn are known."""
    names = ["<s>", "</s>", "<|im_end|>", "<|start|>"]
    tokenizer = CharTokenizer.train("a text", special_tokens=names)
    model = make_model("modern", vocab_size=tokenizer.vocab_size)
    fields = gguf_fields(tokenizer) | {"tokenizer.chat_template": "{{ x }}"}
    path = tmp_path / "some model.Q8.gguf"
    write_gguf(path, model, kind="f32", fields=fields, name="x")
    opened = open_model(path)
    assert ("some model.Q8", path, "{{ x }}") == (opened.name, opened.path, opened.template)
    assert opened.tokenizer
    assert tokenizer.fingerprint() == opened.tokenizer.fingerprint()
    assert [tokenizer.special_tokens[name] for name in names[1:3]] == [*opened.end_ids]
    ids = torch.arange(6)[None]
    ours = opened.model(ids)[..., : tokenizer.vocab_size]
    assert torch.allclose(model.eval()(ids), ours, atol=1e-6)
    write_gguf(path, model, kind="f32", fields={}, name="x")
    assert open_model(path).tokenizer is None
    strange = fields | {"tokenizer.ggml.model": "rwkv"}
    strange = {key: strange[key] for key in strange if not key.startswith("yocto.")}
    write_gguf(path, model, kind="f32", fields=strange, name="x")
    with pytest.raises(CheckpointError, match=r"some model\.Q8\.gguf: the GGUF .* kind 'rwkv'"):
        open_model(path)
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(CheckpointError, match=r"some model\.Q8\.gguf is damaged"):
        open_model(path)


def test_a_checkpoint_of_nanogpt(
    tmp_path: Path, make_model: Callable[..., GPT], tokenizer: CharTokenizer
) -> None:
    """Its vocabulary is named with it; it goes by the name of its directory."""
    model = make_model(activation="gelu").eval()
    config = model.config.to_dict()
    args = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "bias")}
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    (tmp_path / "folder").mkdir()
    model.save(tmp_path / "folder")
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    weights = {n: w.t() if n.endswith(transposed) else w for n, w in weights.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    content = {"model": weights, "model_args": {**args, "vocab_size": tokenizer.vocab_size}}
    (tmp_path / "out-mine").mkdir()
    torch.save(content, tmp_path / "out-mine" / "ckpt.pt")
    opened = open_model(tmp_path / "out-mine" / "ckpt.pt", tokenizer=tokenizer)
    assert ("out-mine", tokenizer, None) == (opened.name, opened.tokenizer, opened.checkpoint)
    ids = torch.arange(6)[None]
    assert torch.allclose(model(ids), opened.model(ids), atol=1e-6)
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.pt is no checkpoint of nanoGPT"):
        open_model(tmp_path / "model.pt")


# --- a step as others see it ---------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_transformers_opens_a_step(
    arch: str, dtype: torch.dtype | None, tmp_path: Path, make_model: Callable[..., GPT]
) -> None:
    """Model, tokenizer, template and the ids that end a reply, as they are here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own dependencies
        from transformers import AutoModelForCausalLM, AutoTokenizer
    names = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|im_end|>"]
    tokenizer = CharTokenizer.train(
        "Wer nicht fragt,\r\n\tbleibt dumm\u0301.", special_tokens=names
    )
    end = tokenizer.special_tokens["<|im_end|>"]
    model = make_model(arch, vocab_size=tokenizer.vocab_size).eval()
    save_checkpoint(
        tmp_path, model, {"step": 7}, tokenizer=tokenizer, data={}, val_loss=None,
        environment={}, end_ids=[end], template=TURNS, dtype=dtype,
    )  # fmt: skip
    opened = open_model(tmp_path)
    assert ({end, tokenizer.eos_id}, TURNS) == ({*opened.end_ids}, opened.template)
    theirs = AutoModelForCausalLM.from_pretrained(opened.path)
    theirs_tokenizer = AutoTokenizer.from_pretrained(opened.path)
    text = "nicht\r\n\tum\u0301"
    ids = tokenizer.encode(text)
    assert ids == theirs_tokenizer.encode(text, add_special_tokens=False)
    assert text == theirs_tokenizer.decode(ids)
    assert model.config.block_size == theirs_tokenizer.model_max_length
    assert TURNS == theirs_tokenizer.chat_template
    assert {end, tokenizer.eos_id} == {*theirs.generation_config.eos_token_id}
    with torch.no_grad():
        logits = theirs.float()(torch.tensor([ids[:8]])).logits
        assert torch.allclose(opened.model.float()(torch.tensor([ids[:8]])), logits, atol=1e-5)
    state = opened.checkpoint and opened.checkpoint.load_state()
    whole = {n: w for n, w in model.state_dict().items() if n != "head.weight"}
    kept = {} if dtype is None else whole
    assert state
    assert all(torch.equal(state["weights"].pop(name), weight) for name, weight in kept.items())


# --- the hub -------------------------------------------------------------------------------------

# In a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported.
PROGRAM = """
import json, sys
from yocto_train import CheckpointError, open_model
from yocto_train.runs import opening
opening._PATIENCE_S = 1.0
for name in sys.argv[1:]:
    try:
        model = open_model(name)
        files = sorted(path.name for path in model.path.iterdir())
        print(json.dumps([model.name, model.end_ids, model.tokenizer.fingerprint(), files]))
    except CheckpointError as error:
        print(json.dumps(str(error)))
"""
REPOS = ("owner/tiny", "owner/bare", "owner/odd")
ERRORS = {
    "hf:owner/none": "does not exist on the hub, or is private; check the spelling",
    "hf:owner/tiny@v9": "the hub has no such revision",
    "hf:owner/odd": "its config.json: model_type is 'mamba'; this package supports",
    "hf:owner/bare": "holds no model.safetensors; download another form",
    "hf:closed/model": "is not open to everyone; accept its terms",
    "hf:tiny": "is not a name on the hub; write hf:owner/name",
    "hf:": "is not a name on the hub",
    "hf:owner/ti\nny": "is not a name on the hub",
    "hf:../..@..": "hf:../..@..",
}


def files_of(folder: Path, repo: str) -> list[Path]:
    return [file for file in folder.iterdir() if "bare" not in repo or "model." not in file.name]


def serve(folder: Path, asked: list[str]) -> ThreadingHTTPServer:
    """A hub on this machine: owner/tiny is the folder, owner/bare has its settings alone.

    And owner/odd has the settings of another kind of model.
    """

    def content(repo: str, file: Path) -> bytes:
        is_odd = (repo, file.name) == ("owner/odd", "config.json")
        return b'{"model_type": "mamba"}' if is_odd else file.read_bytes()

    def sum_of(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            asked.append(path)
            if path == f"/api/models/{repo}/revision/main" and repo in REPOS:
                names = [{"rfilename": file.name} for file in files_of(folder, repo)]
                answer = {"id": repo, "sha": COMMIT, "siblings": names}
                self.answer(200, json.dumps(answer).encode())
            elif path == f"/api/models/{repo}/tree/{COMMIT}":
                files = {file.name: content(repo, file) for file in files_of(folder, repo)}
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": sum_of(data)}
                    for name, data in files.items()
                ]
                self.answer(200, json.dumps(rows).encode())
            elif path.startswith(f"/{repo}/resolve/{COMMIT}/"):
                data = content(repo, folder / path.rpartition("/")[2])
                marks = {"ETag": f'"{sum_of(data)}"', "X-Repo-Commit": COMMIT}
                self.answer(200, data, **marks)
            elif repo == "closed/model":
                self.answer(403, b"{}", **{"X-Error-Code": "GatedRepo"})
            else:
                what = "RevisionNotFound" if repo == "owner/tiny" else "RepoNotFound"
                self.answer(404, b"{}", **{"X-Error-Code": what})

        do_HEAD = do_GET  # noqa: N815 - the method's name

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)


def test_the_hub(
    folder: Path, tmp_path: Path, tokenizer: CharTokenizer, tied: dict[str, Any]
) -> None:
    """Settings and safetensors of a name are fetched once, and opened also without the hub.

    Nothing else is asked for, and what cannot be had is one line that begins with the name.
    """
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    asked: list[str] = []

    def opened(port: int, *names: str) -> list[Any]:
        return ask_hub(port, tmp_path / "hub", *names, **tied)

    with serve(folder, asked) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        first, *errors, again = opened(
            server.server_port, "hf:owner/tiny", *ERRORS, "hf:owner/tiny"
        )
        server.shutdown()
        thread.join()
    files = ["config.json", "generation_config.json", "model.safetensors", "vocab.json"]
    assert ["hf:owner/tiny", [3, 5], tokenizer.fingerprint(), files] == first == again
    fetched = [path.rpartition("/")[2] for path in asked if "owner/tiny/resolve/" in path]
    assert files == sorted({*fetched})
    odd = {path.rpartition("/")[2] for path in asked if "owner/odd/resolve/" in path}
    assert odd == {"config.json"}  # no weights of a model that cannot be opened
    for (name, what), error in zip(ERRORS.items(), errors, strict=True):
        assert what in error
        assert error.startswith((name, "cannot fetch"))
    offline, other = opened(server.server_port, "hf:owner/tiny", "hf:owner/other")
    assert first == offline
    assert "cannot fetch hf:owner/other: " in other
    assert "check the network" in other


def ask_hub(port: int, home: Path, *names: str, **tied: Any) -> list[Any]:
    """What opening each name gives, or its error, with a hub at a port of this machine."""
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, timeout=100,
        env=environment, check=True, **tied,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_that_fails(tmp_path: Path, tied: dict[str, Any]) -> None:
    """Whatever a server answers, or if it never does, it is one line that says what to do."""
    ended = threading.Event()
    answers = {
        "cut": b"",
        "loop": b"HTTP/1.0 302 -\r\nLocation: /api/models/owner/loop/revision/main\r\n\r\n",
        "scheme": b"HTTP/1.0 302 -\r\nLocation: ftp://127.0.0.1/x\r\n\r\n",
        "nameless": b"HTTP/1.0 200 -\r\n\r\n{}",
        "list": b"HTTP/1.0 200 -\r\n\r\n[]",
        "page": b"HTTP/1.0 200 -\r\n\r\n<html>",
        "down": b"HTTP/1.0 500 -\r\n\r\n",
    }

    class Broken(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            what = self.path.split("/")[4]
            if what == "silent":
                ended.wait(100)
            self.wfile.write(answers.get(what, b""))

    names = [f"hf:owner/{what}" for what in (*answers, "silent")]
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        errors = ask_hub(server.server_port, tmp_path, *names, **tied)
        ended.set()
        server.shutdown()
        thread.join()
    for name, error in zip(names, errors, strict=True):
        assert error.startswith(f"cannot fetch {name}: ")
        assert error.endswith("; check the network, or name a folder that you have")
        assert "\n" not in error


def test_a_name_of_the_hub_without_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never fetched unasked, but said how to ask; a run that is not there is only that."""
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main"):
        with pytest.raises(CheckpointError, match=f"not exist; .* on the hub, hf:{name}$"):
            open_model(name)
    (tmp_path / "runs").mkdir()
    for name in ("runs/mine", "mine", "./a/b/c"):
        with pytest.raises(CheckpointError, match="name a run, or train one"):
            open_model(name)


def test_an_empty_name_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the working directory, as an empty path would be."""
    monkeypatch.chdir(folder)
    assert open_model(".").tokenizer
    with pytest.raises(CheckpointError, match="the name of the model is empty; name one"):
        open_model("")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"install yocto-train\[hub\]"):
        open_model("hf:owner/tiny")
