"""yocto-train --init_from: what it takes, what comes with the model, what it refuses."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yocto_cli import plan, train
from yocto_cli.export import main as export
from yocto_cli.origin import Origin
from yocto_cli.plan import Data, planned
from yocto_cli.train_data import data_directory, open_data
from yocto_cli.train_settings import DataFlags
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import TURNS, HuggingFaceTokenizer, SentencePieceTokenizer
from yocto_train import Candidate, TrainConfigError, open_model

SAID = "The soul of the world is the thing that we know.\nWhat is it, and who are we?\n"
TALK = "User: What is it?\nAssistant: The thing that we know.\n\n" * 40
TINY = ["--device=cpu", "--sample_tokens=4", "--max_iters=4", "--eval_interval=2"]
fixtures_may_stay = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with texts and a base model's folder, to be in."""
    monkeypatch.chdir(tmp_path)
    Path("novel.txt").write_text(SAID * 40)
    Path("talk.txt").write_text(TALK)
    pieces = SentencePieceTokenizer.train(SAID * 40, vocab_size=290).folder_files()
    tokenizer = HuggingFaceTokenizer.from_bytes(pieces["tokenizer.json"])
    sizes = {"vocab_size": tokenizer.vocab_size, "block_size": 64, "n_layer": 1, "n_head": 2}
    model = GPT(GPTConfig.from_arch("modern", n_embd=8, zero_init=False, **sizes))
    model.save("base", end_ids=[tokenizer.eos_id or 0])
    tokenizer.save("base")
    return tmp_path


@pytest.fixture
def tuned(run: Any, home: Path) -> Callable[..., Any]:
    """Runs `yocto-train --init_from base` with more flags."""

    def tune(*words: str, source: str = "base", text: str = "talk.txt") -> Any:
        return run(train.main, [f"--init_from={source}", f"--text_path={text}", *TINY, *words])

    return tune


def weights(path: str) -> bytes:
    """The weights of a step directory."""
    return (Path("checkpoints") / path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more", [[], ["--lora_rank=2", "--precision=bfloat16"]])
def test_a_resumed_run_needs_no_source_and_ends_equal(
    more: list[str], tuned: Any, run: Any, home: Path
) -> None:
    done = tuned("--run_name=a", *more)
    assert done.code == 0, done.err
    whole = weights("a/latest")
    opened = open_model("checkpoints/a")
    assert 64 == opened.model.config.block_size  # the model's, whatever windows it was trained in
    assert weights("../base") != whole
    shutil.rmtree("base")
    again = run(train.main, ["--resume", "checkpoints/a/step-00000002"])
    assert again.code == 0, again.err
    assert whole == weights("a/latest")


def test_every_form_of_a_model_is_gone_on_from(tuned: Any, run: Any, home: Path) -> None:
    """A folder, a GGUF file, a run, a step of one: with equal weights they end equal."""
    pytest.importorskip("gguf")
    assert run(export, ["base", "base.gguf", "--type=f32"]).code == 0
    assert tuned("--max_iters=0", "--run_name=begun").code == 0
    found = []
    for number, source in enumerate(("base", "base.gguf", "checkpoints/begun/latest")):
        done = tuned(f"--run_name={number}", "--dropout=0.1", source=source, text="novel.txt")
        assert done.code == 0, done.err
        found.append(weights(f"{number}/latest"))
    assert 1 == len(set(found))


def test_tokens_for_turns_are_added_where_they_are_asked_for(tuned: Any, home: Path) -> None:
    """Plain by default; with turns the vocabulary grows, and the checkpoint says how to ask."""
    assert tuned("--run_name=plain").code == 0
    assert tuned("--run_name=turns", "--template=turns").code == 0
    base, plain, turns = map(open_model, ("base", "checkpoints/plain", "checkpoints/turns"))
    assert "User: " in (plain.template or "")
    assert plain.model.config == base.model.config
    assert turns.template == TURNS
    assert turns.tokenizer is not None
    assert {"<|user|>", "<|assistant|>", "<|im_end|>"} <= {*turns.tokenizer.special_tokens}
    assert turns.tokenizer.special_tokens["<|im_end|>"] in turns.end_ids
    assert turns.model.config.vocab_size == max(base.model.config.vocab_size,
                                                turns.tokenizer.vocab_size)  # fmt: skip
    again = tuned("--run_name=more", source="checkpoints/turns")  # as it was asked before
    assert again.code == 0, again.err
    assert open_model("checkpoints/more").template == TURNS


def test_adapters_alone_are_written_at_the_end(tuned: Any, home: Path) -> None:
    done = tuned("--lora_rank=2", "--save_adapter=mine")
    assert done.code == 0, done.err
    assert ["adapter_config.json", "adapter_model.safetensors"] == sorted(
        path.name for path in Path("mine").iterdir()
    )


@pytest.mark.parametrize("memory", [10**12, 10**3])
def test_a_plan_compares_all_weights_with_adapters(
    memory: int, tuned: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And advises what the memory allows; nothing is trained."""
    monkeypatch.setattr(plan, "_memory_of_machine", lambda: memory)
    done = tuned("--plan")
    assert done.code == 0, done.err
    assert "all weights: 4 steps, 512 tokens" in done.out
    assert "adapters of rank 16: 4 steps" in done.out
    advice = "all weights" if memory > 10**6 else "--lora_rank 16, as memory is short"
    assert f"best    {advice}" in done.out
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--n_layer=2"], "--n_layer is the model's own with --init_from"),
    (["--tokenizer=char"], "--tokenizer is the model's own with --init_from"),
    (["--preset=gpt2"], "--preset is the model's own with --init_from"),
    (["--save_adapter=new"], "--save_adapter needs adapters; give --lora_rank"),
    (["--lora_rank=2", "--save_adapter=base"], "base already exists; name a new directory"),
    (["--lora_rank=2", "--optimizer=muon"], "lora_rank needs the optimizer adamw"),
    (["--lora_rank=2", "--template=turns"], "with --lora_rank a model does not learn new"),
    (["--template=lost.jinja"], "cannot read --template lost.jinja"),
    (["--block_size=65"], "--block_size 65, but the model's context is 64"),
    (["--init_from=lost"], "lost does not exist; name a run"),
    (["--init_from=novel.txt"], "novel.txt is not a checkpoint"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: list[str], message: str, refused: Any, home: Path
) -> None:
    before = sorted(home.rglob("*"))
    error = refused(train.main, ["--init_from=base", "--text_path=talk.txt", *TINY, *words])
    assert message in error
    assert before == sorted(home.rglob("*"))


def test_data_of_another_tokenizer_is_refused(run: Any, refused: Any, home: Path) -> None:
    assert run(train.main, ["--text_path=novel.txt", "--n_layer=1", "--n_embd=8", *TINY]).code == 0
    error = refused(train.main, ["--init_from=base", "--data_dir=data/novel-char", *TINY])
    assert "data/novel-char was not prepared with the tokenizer of base" in error
    error = refused(train.main, ["--lora_rank=2", "--data_dir=data/novel-char", *TINY])
    assert "name it with --init_from" in error
    turns = ["--template=turns", "--text_path=talk.txt", *TINY]
    error = refused(train.main, ["--init_from=checkpoints/novel-char", *turns])
    assert "the char tokenizer of checkpoints/novel-char/step-00000004 cannot get new" in error


@fixtures_may_stay
@given(
    minutes=st.floats(0.1, 60), step=st.floats(0.01, 5), evaluation=st.floats(0.001, 1_000),
    whole=st.booleans(),
)  # fmt: skip
def test_the_steps_of_a_large_model_and_its_evaluations_fit_the_time(
    minutes: float, step: float, evaluation: float, whole: bool, home: Path
) -> None:
    """Whatever a step and an evaluation take, and whether or not the whole split is wanted."""
    data = opened_data()
    candidate = Candidate(
        size={}, n_parameters=1, seconds_per_step=step, tokens_per_step=1,
        evaluation_seconds=evaluation,
    )  # fmt: skip
    flags = {"device": "cpu", "init_from": "base", "minutes": minutes, "precision": "float32"}
    flags |= {} if whole else {"eval_whole": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_measure", lambda *_, **__: (candidate, 0.0))
        if 60 * minutes < 11 * step + 6 * evaluation:
            with contextlib.suppress(TrainConfigError):  # maybe too short
                assert step * planned(flags, data)["max_iters"] <= 60 * minutes
            return
        found = planned(flags, data)
    assert step * found["max_iters"] <= 60 * minutes
    assert 10 <= found["max_iters"]
    _, config = data.settings(found)
    assert config.eval_interval * 4 >= config.max_iters


def opened_data() -> Data:
    """The base model, and data for it."""
    flags = DataFlags(text_path=("talk.txt",))
    origin = Origin.of("base", flags, {})
    return open_data(flags, data_directory(flags, origin), origin)[0]
