"""From a text to a talking model, by the command lines, as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

Command = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    "--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--block_size", "128", "--batch_size", "4",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "data" / "philosophy.txt").read_text()[:20_000]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, text: str, command: Command) -> Path:
    """A directory where a model has been trained on data/philosophy.txt."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    (home / "data" / "philosophy.txt").write_text(text)
    done = command("yocto-train", *TINY, "--max_iters", "20", "--log_interval", "5", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def test_the_two_commands(home: Path, command: Command) -> None:
    """Training without a text leaves a run that the chat finds, and prints how to talk to it."""
    run = home / "checkpoints" / "philosophy-bpe"
    assert str((run / "latest").readlink()) == "step-00000020"
    chat = command("yocto-chat", "--max_new_tokens", "20", "--seed", "1", cwd=home, stdin="Hello!")
    assert chat.returncode == 0, chat.stderr
    assert "Traceback" not in chat.stderr
    again = command("yocto-chat", "--max_new_tokens", "20", "--seed", "1", cwd=home, stdin="Hello!")
    assert chat.stdout == again.stdout


def test_lines_agree_with_metrics(home: Path, command: Command) -> None:
    """Off a terminal each report is one line without control characters, equal to metrics.jsonl."""
    done = command("yocto-train", *TINY, "--max_iters", "10", "--log_interval", "5", cwd=home)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    run = home / "checkpoints" / "philosophy-bpe-002"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "stepdone"]
    shown = re.findall(r"^step=(\d+) loss=([\d.]+) ", done.stdout, re.MULTILINE)
    assert [(str(row["step"]), f"{row['loss']:.4f}") for row in steps] == shown
    assert [5, 10] == [row["step"] for row in steps]


def test_config_reproduces_the_run(home: Path, command: Command) -> None:
    """A run's config.toml, given as --config, trains the same model to the bit."""
    run = home / "checkpoints" / "philosophy-bpe"
    config = tomllib.loads((run / "config.toml").read_text())
    # A measured choice is written down: another measurement might choose otherwise.
    assert config["training"]["precision"] in {"float32", "bfloat16"}
    assert "run_name" not in config["run"]  # so that it trains again beside the first one
    done = command(
        "yocto-train", "--config", str(run / "config.toml"), "--ckpt_dir", "again", cwd=home
    )
    assert done.returncode == 0, done.stderr
    losses = [
        [
            json.loads(line)["loss"]
            for line in (path / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for path in (run, home / "again" / "philosophy-bpe")
    ]
    assert losses[0] == losses[1]


def test_outline_commands(tmp_path: Path, text: str, command: Command) -> None:
    """Prepare, train and sample with the flags spelled out, paths given, models in between."""
    (tmp_path / "input.txt").write_text(text)
    prepared = command(
        "yocto-prepare", "char", "--text_path", "input.txt", "--out_dir", "data/char", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    meta = json.loads((tmp_path / "data" / "char" / "meta.json").read_text())
    split = int(len(text) * 0.9)
    assert [split, len(text) - split] == [meta["splits"][s]["tokens"] for s in ("train", "val")]
    trained = command(
        "yocto-train", "--mode", "char", "--data_dir", "data/char", "--arch", "gpt2", *TINY,
        "--max_iters", "20", "--dropout", "0", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    prompt = text[:9]
    sampled = command(
        "yocto-sample", "--mode", "char", "--ckpt", "checkpoints/char/latest.pt",
        "--vocab_path", "data/char/vocab.json", "--prompt", prompt, "--max_new_tokens", "30",
        cwd=tmp_path,
    )  # fmt: skip
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith(prompt)
    assert len(sampled.stdout.rstrip("\n")) <= len(prompt) + 30


def test_interrupted_run_resumes(tmp_path: Path, text: str, command: Command) -> None:
    """Ctrl-C saves and exits with 130; --resume ends with the losses of a run never stopped."""
    (tmp_path / "input.txt").write_text(text)
    arguments = [
        "--text_path", "input.txt", *TINY, "--max_iters", "400", "--log_interval", "20",
        "--eval_interval", "400", "--dropout", "0.1", "--sample_interval", "0",
    ]  # fmt: skip
    whole = command("yocto-train", *arguments, "--run_name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen(
        [Path(sys.executable).parent / "yocto-train", *arguments, "--run_name", "cut"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step=40 "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait() == 130
    assert "yocto-train --resume checkpoints/cut" in rest
    resumed = command("yocto-train", "--resume", "checkpoints/cut", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    rows = [
        [
            (row["step"], row["loss"])
            for line in (tmp_path / "checkpoints" / run / "metrics.jsonl").read_text().splitlines()
            if (row := json.loads(line))["event"] in ("stepdone", "evaluated")
        ]
        for run in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


def _snapshot(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


BAD_TRAIN = {
    "no text": ([], "data/philosophy.txt"),
    "missing text": (["--text_path", "nowhere.txt"], "nowhere.txt"),
    "empty text": (["--text_path", "empty.txt"], "empty"),
    "short text": (["--text_path", "short.txt"], "longer text"),
    "not UTF-8": (["--text_path", "latin1.txt"], "UTF-8"),
    "a directory without data": (["--data_dir", "."], "yocto-prepare"),
    "mode contradicts": (["--mode", "token", "--data_dir", "data/char"], "char"),
    "typo": (["--max_itrs", "5"], "--max_iters"),
    "heads": (["--data_dir", "data/char", "--n_head", "3", "--n_embd", "16"], "n_head 3"),
    "block too long": (["--data_dir", "data/char", "--block_size", "9999"], "9999"),
    "bad rate": (["--data_dir", "data/char", "--lr", "-1"], "lr"),
    "no such device": (["--data_dir", "data/char", "--device", "cuda:99"], "cuda:99"),
    "nothing to resume": (["--resume"], "resume"),
    "resume elsewhere": (["--resume", "data/char"], "data/char"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, text: str, command: Command) -> Path:
    """A directory with prepared data, and texts that cannot be used."""
    bad = tmp_path_factory.mktemp("bad")
    (bad / "empty.txt").write_text("")
    (bad / "short.txt").write_text("abc")
    (bad / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (bad / "input.txt").write_text(text)
    done = command(
        "yocto-prepare", "char", "--text_path", "input.txt", "--out_dir", "data/char", cwd=bad
    )
    assert done.returncode == 0, done.stderr
    return bad


@pytest.mark.parametrize("case", list(BAD_TRAIN))
def test_training_refuses(case: str, bad: Path, command: Command) -> None:
    """Bad input is one line that names it, exit code 2, and nothing is written."""
    before = _snapshot(bad)
    arguments, expected = BAD_TRAIN[case]
    done = command("yocto-train", *arguments, cwd=bad)
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines())), done.stderr
    assert done.stderr.startswith("yocto-train: error: ")
    assert expected in done.stderr
    assert len(done.stderr) <= 310
    assert before == _snapshot(bad)


BAD_SAMPLE = {
    "missing checkpoint": (["--ckpt", "nowhere"], "nowhere"),
    "foreign checkpoint": (["--ckpt", "data/philosophy.txt"], "philosophy.txt"),
    "mode contradicts": (["--mode", "char"], "--mode char"),
    "foreign vocabulary": (["--vocab_path", "other/vocab.json"], "tokenizer"),
    "typo": (["--temprature", "1"], "--temperature"),
    "temperature": (["--temperature", "-1"], "temperature"),
}


@pytest.mark.parametrize("case", list(BAD_SAMPLE))
def test_sampling_refuses(case: str, home: Path, command: Command) -> None:
    """Bad input is one line that names it, exit code 2, nothing on stdout."""
    if not (home / "other").exists():
        (home / "other.txt").write_text("another alphabet 0123456789\n" * 50)
        made = command(
            "yocto-prepare", "char", "--text_path", "other.txt", "--out_dir", "other", cwd=home
        )
        assert made.returncode == 0, made.stderr
    arguments, expected = BAD_SAMPLE[case]
    done = command("yocto-sample", *arguments, cwd=home)
    assert (2, 1, "") == (done.returncode, len(done.stderr.splitlines()), done.stdout), done.stderr
    assert done.stderr.startswith("yocto-sample: error: ")
    assert expected in done.stderr
