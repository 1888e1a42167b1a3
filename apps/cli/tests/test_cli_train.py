"""yocto-train from its flags to its end: lines, files, lists, resuming."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from yocto_cli import models, train
from yocto_cli.arguments import flags_of
from yocto_cli.model_arguments import ModelArguments
from yocto_cli.report import tensorboard
from yocto_cli.train_settings import TrainArguments, settings
from yocto_model import GPT
from yocto_train import RECIPES, Checkpoint, Run


def test_lines_and_files_agree(training: Any, home: Path) -> None:
    """Off a terminal: no escapes, one line per report, the figures of metrics.jsonl."""
    done = training("--max_iters=8", "--log_interval=2", "--eval_interval=4", "--sample_interval=8")
    assert done.code == 0, done.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.out)
    run = home / "checkpoints" / "poem"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "stepdone"]
    lines = re.findall(r"^step=(\d+) loss=([\d.]+) ", done.out, re.MULTILINE)
    assert [(str(row["step"]), f"{row['loss']:.4f}") for row in steps] == lines
    evaluated = [row for row in rows if row["event"] == "evaluated"]
    lines = re.findall(r"^step=(\d+) val_loss=([\d.]+) ", done.out, re.MULTILINE)
    assert [(str(row["step"]), f"{row['loss']:.4f}") for row in evaluated] == lines
    assert done.out.splitlines()[-1].startswith("talk:   uv run yocto-chat --ckpt checkpoints/poem")
    assert "<h1>poem</h1>" in (run / "report.html").read_text()
    assert "finished · step 8 of 8" in (run / "report.html").read_text()


def test_a_short_run_is_not_spent_on_evaluations(training: Any, home: Path) -> None:
    """Up to 25 steps there is one evaluation, one sample, one checkpoint: at the end."""
    assert training("--max_iters=20").code == 0
    run = home / "checkpoints" / "poem"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = [(row["event"], row["step"]) for row in rows]
    assert [20] == [step for kind, step in kinds if kind == "evaluated"]
    assert [20] == [step for kind, step in kinds if kind == "saved"]
    assert 1 == len((run / "samples.jsonl").read_text().splitlines())


@pytest.mark.parametrize(("interval", "expected"), [(3, [3, 6, 8]), (4, [4, 8]), (0, [])])
def test_the_last_step_has_a_sample(
    training: Any, home: Path, interval: int, expected: list[int]
) -> None:
    """Once, whether or not it is a multiple; none where none are wanted."""
    assert training("--max_iters=8", f"--sample_interval={interval}").code == 0
    path = home / "checkpoints" / "poem" / "samples.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    assert expected == [json.loads(line)["step"] for line in lines]


def test_resuming_from_a_step(training: Any, run: Any, home: Path) -> None:
    """--resume takes a run, one of its steps, or a pointer; what is later is put aside."""
    assert training("--max_iters=6", "--eval_interval=2", "--dropout=0").code == 0
    path = home / "checkpoints" / "poem"
    whole = evaluations(path)
    done = run(train.main, ["--resume", "checkpoints/poem/step-00000004"])
    assert done.code == 0, done.err
    assert "after step 4" in done.out
    assert whole == evaluations(path)
    assert 1 == len(list(path.glob("step-00000006.old-*")))
    again = run(train.main, ["--resume=checkpoints/poem/latest.pt"])
    assert "it is finished; --max_iters above 6 goes on with it" in again.out


def test_what_a_search_for_a_checkpoint_passed_over_is_said(
    training: Any, run: Any, home: Path
) -> None:
    """A damaged newest step is named, and training goes on from the one before."""
    assert training("--max_iters=4", "--eval_interval=2").code == 0
    (home / "checkpoints" / "poem" / "step-00000004" / "model.safetensors").write_bytes(b"torn")
    done = run(train.main, ["--resume"])
    assert done.code == 0, done.err
    assert re.search(r"note: passed over: .*step-00000004/model.safetensors is damaged", done.out)
    assert "after step 2" in done.out


def evaluations(run: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if row["event"] == "evaluated"]


def test_the_configuration_of_a_run_trains_it_again(training: Any, run: Any, home: Path) -> None:
    """Under a new name, with the same losses to the bit; flags change parts of it."""
    assert training("--max_iters=4", "--eval_interval=2", "--run_name=first").code == 0
    again = run(train.main, ["--config", "checkpoints/first/config.toml"])
    assert again.code == 0, again.err
    runs = home / "checkpoints"
    assert evaluations(runs / "first") == evaluations(runs / "poem")
    changed = ["--config=checkpoints/first/config.toml", "--run_name=other", "--seed=7"]
    assert run(train.main, changed).code == 0
    assert evaluations(runs / "first") != evaluations(runs / "other")


@pytest.mark.parametrize("name", ["nowhere", "step-00000001", "poem/best.pt"])
def test_nothing_to_resume(refused: Any, home: Path, name: str) -> None:
    """A missing run is never a silent fresh start."""
    assert "nothing to resume" in refused(train.main, [f"--resume={name}"])
    assert [] == list(home.iterdir())


def test_a_time_is_not_resumed(refused: Any, training: Any, home: Path) -> None:
    """A resumed run ends at a step; --minutes with it is refused, not overlooked."""
    assert training("--max_iters=2", "--eval_interval=2").code == 0
    said = refused(train.main, ["--resume", "checkpoints/poem", "--minutes=1"])
    assert "give --max_iters instead" in said


@pytest.mark.parametrize("name", ["a/b", "a/", "/a", "..", "."])
def test_a_run_name_is_one_name(refused: Any, char_data: Path, home: Path, name: str) -> None:
    """A path as --run_name is refused as such, before anything is made."""
    said = refused(train.main, [f"--data_dir={char_data}", "--max_iters=2", f"--run_name={name}"])
    assert f"--run_name {name} must be the name of one directory" in said
    assert not (home / "checkpoints").exists()


def test_a_directory_of_that_name(refused: Any, training: Any, char_data: Path, home: Path) -> None:
    """An empty one is used; one that holds a run is not, and both ways out are named."""
    (home / "checkpoints" / "mine").mkdir(parents=True)
    assert training("--max_iters=2", "--run_name=mine").code == 0
    said = refused(train.main, [f"--data_dir={char_data}", "--max_iters=2", "--run_name=mine"])
    assert "mine already exists; continue it with --resume checkpoints/mine, or choose" in said


def test_the_list_of_runs(training: Any, run: Any, home: Path) -> None:
    """Loss, size, steps, and the command to talk to each; broken ones are said to be so."""
    assert training("--max_iters=4", "--eval_interval=4", "--run_name=good").code == 0
    assert training("--max_iters=4", "--eval_interval=4", "--run_name=torn").code == 0
    (home / "checkpoints" / "torn" / "step-00000004" / "model.safetensors").write_bytes(b"torn")
    (home / "checkpoints" / "no run").mkdir()
    (home / "checkpoints" / "begun").mkdir()
    (home / "checkpoints" / "begun" / "config.toml").touch()
    done = run(train.main, ["--list"])
    assert done.code == 0, done.err
    best = min(
        row["loss"]
        for line in (home / "checkpoints" / "good" / "metrics.jsonl").read_text().splitlines()
        if (row := json.loads(line))["event"] == "evaluated"
    )
    assert re.search(
        rf"^good +val loss {best:.4f} +0\.00M +4/4 steps +\d+s ago$", done.out, re.MULTILINE
    )
    assert "uv run yocto-chat --ckpt checkpoints/good\n" in done.out
    assert re.search(r"^torn .*\n  broken: .*model.safetensors is damaged", done.out, re.MULTILINE)
    assert "--ckpt checkpoints/torn" not in done.out
    assert re.search(r"^begun +no checkpoint", done.out, re.MULTILINE)
    assert "no run" not in done.out


def test_a_model_is_opened_while_it_is_pruned(
    training: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that a training removes while it is read is replaced by the one named then."""
    assert training("--max_iters=4", "--eval_interval=2").code == 0
    run = Run(home / "checkpoints" / "poem")
    load_model = Checkpoint.load_model

    def pruned_first(checkpoint: Checkpoint, **options: Any) -> GPT:
        if checkpoint.step == 4:
            run.point("latest", run.path / "step-00000002")
            shutil.rmtree(checkpoint.directory)
        return load_model(checkpoint, **options)

    monkeypatch.setattr(Checkpoint, "load_model", pruned_first)
    checkpoint, _ = models.load_generator(ModelArguments(ckpt=str(run.path)))
    assert 2 == checkpoint.step


def test_a_list_of_nothing(refused: Any, home: Path) -> None:
    """It says how to get a run."""
    assert "no run in checkpoints; train one: uv run yocto-train" in refused(train.main, ["--list"])


def test_presets_are_recipes() -> None:
    """The flag offers exactly what yocto-train has, and takes each as it stands."""
    assert sorted(RECIPES) == sorted(flags_of(TrainArguments)["preset"].choices)
    for name, recipe in RECIPES.items():
        model, config = settings({"preset": name}, vocab_size=65, shortest_split=10_000)
        assert {**model.to_dict(), **recipe.model} == model.to_dict()
        assert {**config.to_dict(), **recipe.train} == config.to_dict()


def test_two_trainings_at_once_have_two_names(
    training: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that finds its name free and is overtaken takes the next; none is left half made."""
    plain = Run.new
    overtaken: list[Run] = []

    def slow(root: str, name: str) -> Run:
        found = plain(root, name)
        if not overtaken:
            overtaken.append(found)
            found.path.mkdir(parents=True)
        return found

    monkeypatch.setattr(Run, "new", slow)
    done = training("--max_iters=2")
    assert done.code == 0, done.err
    assert "run     checkpoints/poem-002" in done.out
    assert training("--max_iters=2", "--sample_prompt=\u00e9").code == 2
    assert ["poem", "poem-002"] == sorted(path.name for path in (home / "checkpoints").iterdir())


def test_a_text_that_is_too_short_is_named(refused: Any, home: Path) -> None:
    """Nothing is prepared, and the message speaks of the text and not of a file of ours."""
    (home / "short.txt").write_text("Hello there, world.")
    words = refused(train.main, ["--text_path=short.txt"])
    assert "yocto-train: error: short.txt is too short" in words
    assert ["short.txt"] == [path.name for path in home.iterdir()]


def test_parallel_needs_torchrun(refused: Any, home: Path, char_data: Path) -> None:
    """Alone it would silently be no parallel training; the command to type is given."""
    said = refused(train.main, ["--parallel=ddp", f"--data_dir={char_data}"])
    assert "run: uv run torchrun --nproc-per-node 2 --no-python yocto-train --parallel ddp" in said


def test_tensorboard_is_an_extra(
    refused: Any, home: Path, char_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is missing, one line says how to install it, before any work."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = refused(train.main, ["--tensorboard", f"--data_dir={char_data}"])
    assert "install it: uv pip install 'yocto-cli[tensorboard]'" in said
    assert [] == list(home.iterdir())


def test_tensorboard_gets_the_figures(
    training: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values as metrics.jsonl, in the run's directory; closed at the end."""
    written: list[Any] = []

    class Writer:
        def __init__(self, path: str, *, purge_step: int | None) -> None:
            written.append((path, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step, value))

        def add_text(self, name: str, text: str, step: int) -> None:
            written.append((name, step))

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setattr(tensorboard, "require", lambda: Writer)
    assert training("--tensorboard", "--max_iters=4", "--log_interval=2").code == 0
    lines = (home / "checkpoints" / "poem" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert ("checkpoints/poem/tensorboard", None) == written[0]
    for row in rows:
        if row["event"] == "stepdone":
            assert ("train/loss", row["step"], row["loss"]) in written
        if row["event"] == "evaluated":
            assert ("val/loss", row["step"], row["loss"]) in written
    assert ("sample", 4) in written
    assert "closed" == written[-1]


def test_a_full_disk_is_said_once(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the report or the rows training still goes on to its end."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "record", full)
    monkeypatch.setattr("yocto_cli.report.page.write_report", full)
    done = training("--max_iters=8", "--log_interval=2", "--eval_interval=4")
    assert done.code == 0
    for file in ("metrics.jsonl", "samples.jsonl", "report.html"):
        assert 1 == done.out.count(f"warning: cannot write {file}: No space left on device")
