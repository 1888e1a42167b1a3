"""Two processes train as one: DDP and FSDP2 over gloo on loopback.

Run as a script by torchrun, this file is what each of the processes does.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from yocto_data import ChatDataset, Message, TokenDataset, prepare_chats
from yocto_model import GPT, GPTConfig
from yocto_tokenizers import load_tokenizer
from yocto_train import Evaluated, Run, Sampled, SaveError, StepDone, TrainConfig, Trainer
from yocto_train.errors import TrainConfigError
from yocto_train.scale.distributed import World, joined

# Loopback, two processes and a second import of torch: each launch takes about ten seconds.
pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "gpt2", "optimizer": "adamw", "sampling": "random", "grad_clip": 0.5},
    "modern": {"arch": "modern", "optimizer": "muon", "sampling": "epoch", "grad_clip": 0.0},
}


Options = dict[str, Any]


def make_trainer(
    data: Path, run: Path | None, options: Options, world: World | None = None
) -> Trainer:
    options = dict(options)
    arch, dropout = options.pop("arch"), options.pop("dropout", 0.0)
    kind, data = (
        (ChatDataset, Path(options.pop("chats"))) if "chats" in options else (TokenDataset, data)
    )
    tokenizer = load_tokenizer(data)
    config = GPTConfig.from_arch(
        arch, vocab_size=tokenizer.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=12,
        dropout=dropout,
    )  # fmt: skip
    defaults = {
        "max_iters": 9, "batch_size": 8, "accumulate": 2, "warmup_iters": 2, "eval_interval": 3,
        "log_interval": 1, "seed": 7, "sample_interval": 4, "sample_tokens": 4, "lr": 0.01,
    }  # fmt: skip
    return Trainer(
        GPT(config, generator=torch.Generator().manual_seed(3)).double(),
        kind(data / "train.bin", 8), kind(data / "val.bin", 8),
        TrainConfig(**{**defaults, **options}),
        run=None if run is None else Run(run), tokenizer=tokenizer, device="cpu", world=world,
    )  # fmt: skip


def go(trainer: Trainer, *, resume: bool, stop: int | None) -> dict[str, Any]:
    """Train; what was reported, and the weights as nested lists."""
    if resume:
        assert trainer.run_directory is not None
        trainer.restore(trainer.run_directory.latest())
    losses, evaluations, samples = [], [], []
    for event in trainer.run():
        if isinstance(event, StepDone):
            losses.append([event.step, event.loss, event.grad_norm])
            if event.step == stop and trainer.world.rank == trainer.world.size - 1:
                trainer.request_stop()  # one rank alone is asked
        if isinstance(event, Evaluated):
            evaluations.append([event.step, event.loss, event.tokens])
        if isinstance(event, Sampled):
            samples.append([event.step, event.text])
    whole = trainer.world.whole_model(trainer.model)
    weights = whole.state_dict() if trainer.world.is_main else {}
    return {
        "step": trainer.progress.step, "losses": losses, "evaluations": evaluations,
        "samples": samples,
        "weights": {name: weight.tolist() for name, weight in weights.items()},
    }  # fmt: skip


def assert_alike(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    """The same reports and weights, in float64 to 1e-9; the number of summed losses is rounded."""
    assert expected["samples"] == actual["samples"]
    for name in ("losses", "evaluations"):
        assert [row[0] for row in expected[name]] == [row[0] for row in actual[name]]
        for want, have in zip(expected[name], actual[name], strict=True):
            assert want[1:] == pytest.approx(have[1:], rel=1e-6)  # reported in float32
    for name, want in expected["weights"].items():
        torch.testing.assert_close(
            torch.tensor(actual["weights"][name], dtype=torch.float64),
            torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9,
        )  # fmt: skip


def torchrun(*arguments: str, processes: int = 2) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), __file__, *arguments,
    ]  # fmt: skip


def end(process: subprocess.Popen[str]) -> None:
    """End torchrun by a signal that it hands on: killed, it would leave its processes behind."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.communicate(timeout=120)
    process.kill()
    process.communicate()


Start = Callable[[list[dict[str, Any]]], subprocess.Popen[str]]
Launch = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture
def start(data_dir: Path, tmp_path: Path, tied: dict[str, Any]) -> Iterator[Start]:
    """`start(tasks)`: let two processes do tasks, one after the other; ended whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def start(tasks: list[dict[str, Any]]) -> subprocess.Popen[str]:
        (tmp_path / "tasks.json").write_text(json.dumps(tasks))
        started.append(
            subprocess.Popen(
                torchrun(str(data_dir), str(tmp_path / "tasks.json")), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, **tied,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        end(process)


@pytest.fixture
def launch(start: Start, tmp_path: Path) -> Launch:
    """`launch(tasks)`: the same, and rank 0's results."""

    def launch(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        process = start(tasks)
        _, errors = process.communicate(timeout=600)
        assert 0 == process.returncode, errors[-3000:]
        return json.loads((tmp_path / "tasks.json.done").read_text())

    return launch


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(
    parallel: str, data_dir: Path, tmp_path: Path, launch: Launch
) -> None:
    """R3: losses, norms, evaluations, samples and weights equal one process's with the same batch.

    A checkpoint of two processes goes on in one, and that of one in two, with the same end.
    """
    straight: dict[str, dict[str, Any]] = {}
    tasks: list[dict[str, Any]] = []
    for name, options in KINDS.items():
        straight[name] = go(make_trainer(data_dir, None, options), resume=False, stop=None)
        whole = {"options": options, "parallel": parallel, "run": None}
        half = {**whole, "run": str(tmp_path / name), "stop": 4}
        tasks += [whole, half]
    results = launch(tasks)
    for name, (whole, half) in zip(KINDS, [results[:2], results[2:]], strict=True):
        assert_alike(straight[name], whole)
        assert 4 == half["step"]

    tasks = []
    for name, options in KINDS.items():
        one = make_trainer(data_dir, tmp_path / name, options)
        changes = one.restore(Run(tmp_path / name).latest())
        assert {"parallel": (parallel, "none"), "processes": (2, 1)} == changes
        go(one, resume=True, stop=6)
        assert 6 == Run(tmp_path / name).latest().step
        tasks.append({"options": options, "parallel": parallel, "run": str(tmp_path / name),
                      "resume": True})  # fmt: skip
    for name, end in zip(KINDS, launch(tasks), strict=True):
        assert straight[name]["weights"].keys() == end["weights"].keys()  # without any prefix
        tail = {
            key: [row for row in straight[name][key] if row[0] > 6]
            for key in ("losses", "evaluations", "samples")
        }
        late = {key: [row for row in end[key] if row[0] > 6] for key in tail}
        assert_alike({**straight[name], **tail}, {**end, **late})
        model = Run(tmp_path / name).latest().load_model()
        assert_alike(
            straight[name] | tail,
            end | late | {"weights": {k: v.tolist() for k, v in model.state_dict().items()}},
        )


def test_two_processes_are_one_on_chats(data_dir: Path, tmp_path: Path, launch: Launch) -> None:
    """Ranks whose rows hold different numbers of learned tokens still take the mean over all."""
    tokenizer = load_tokenizer(data_dir)
    letters = tokenizer.decode(range(tokenizer.vocab_size)).strip() * 3
    records = [
        {"prompt": letters[n % 4], "completion": letters[n : n + 1 + n % 9]} for n in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))

    def encode(chat: Sequence[Message]) -> tuple[list[int], list[bool]]:
        parts = [tokenizer.encode(message.content) for message in chat]
        return [*parts[0], *parts[1]], [False] * len(parts[0]) + [True] * len(parts[1])

    prepare_chats(tmp_path / "chats.jsonl", tmp_path / "data", tokenizer=tokenizer, encode=encode)
    options = {**KINDS["modern"], "chats": str(tmp_path / "data")}
    task = {"options": options, "parallel": "ddp", "run": str(tmp_path / "run")}
    straight = go(make_trainer(data_dir, None, options), resume=False, stop=None)
    whole, half, end = launch(
        [{**task, "run": None}, {**task, "stop": 4}, {**task, "resume": True}]
    )
    assert_alike(straight, whole)
    assert whole["losses"] == half["losses"] + end["losses"]
    assert whole["weights"] == end["weights"]


def test_dropout_differs_between_ranks(data_dir: Path, tmp_path: Path, launch: Launch) -> None:
    """With dropout the processes draw different masks, and a stopped run goes on to the bit."""
    options = {**KINDS["modern"], "dropout": 0.3}
    task = {"options": options, "parallel": "ddp", "run": str(tmp_path / "run")}
    straight = {**task, "run": None}
    first, stopped, end = launch([straight, {**task, "stop": 5}, {**task, "resume": True}])
    assert first["losses"] == stopped["losses"] + end["losses"]
    assert first["weights"] == end["weights"]
    alone = go(make_trainer(data_dir, None, options), resume=False, stop=None)
    assert alone["losses"][0] != first["losses"][0]


def test_a_signal_to_one_of_two(start: Start, tmp_path: Path) -> None:
    """K8: SIGTERM to rank 1 alone: both stop after the same step, which is saved."""
    options = {**KINDS["gpt2"], "max_iters": 5_000, "eval_interval": 2_500}
    process = start([{"options": options, "parallel": "ddp", "run": str(tmp_path / "run")}])
    assert process.stdout is not None
    pids = {}
    for line in process.stdout:
        rank, what, value = line.split()
        if what == "pid":
            pids[rank] = int(value)
        if what == "running" and rank == "1":
            break
    os.kill(pids["1"], signal.SIGTERM)
    begun = time.monotonic()
    output, errors = process.communicate(timeout=300)
    assert 0 == process.returncode, errors[-2000:]
    assert time.monotonic() - begun < 200
    steps = {line.split()[2] for line in output.splitlines() if " stopped " in line}
    assert {str(Run(tmp_path / "run").latest().step)} == steps


def test_one_failure_is_everybodys(start: Start, tmp_path: Path) -> None:
    """A run that is in use, a save that fails: every rank gets the error, none waits for ever."""
    run = Run(tmp_path / "run")
    run.create()
    task = {"options": KINDS["gpt2"], "parallel": "ddp", "run": str(run.path), "catch": True}

    def failures(task: dict[str, Any]) -> list[str]:
        output, errors = start([task]).communicate(timeout=300)
        lines = sorted(line.split(":")[0] for line in output.splitlines() if "Error" in line)
        assert lines, errors[-2000:]
        return lines

    with run.lock():
        assert ["0 failed RunError", "1 failed RunError"] == failures(task)
    assert ["0 failed SaveError", "1 failed SaveError"] == failures({**task, "vanish": True})


# --- one process -------------------------------------------------------------------------------


def test_alone_without_torchrun() -> None:
    """A process that torchrun did not start is a world of its own, if what it asks for exists."""
    with joined("fsdp") as world:
        assert (0, 1, "none", True) == (world.rank, world.size, world.kind, world.is_main)
        assert (True, False) == world.any(True, False)
        assert (1.5,) == world.sum(1.5)
        assert "cuda:3" == world.device("cuda:3")
    with pytest.raises(TrainConfigError, match="must be ddp or fsdp, not 'x'"), joined("x"):  # type: ignore[arg-type]
        pass


class Pair(World):
    size = 2


def test_rows_that_cannot_be_shared(data_dir: Path) -> None:
    """A batch that does not divide among processes and parts is refused before step 0."""
    with pytest.raises(TrainConfigError, match=r"batch_size 6 .* 2 processes .* multiple of 4"):
        make_trainer(data_dir, None, {**KINDS["gpt2"], "batch_size": 6}, world=Pair())


def say(world: World, what: str, value: object) -> None:
    """One line in one piece: both processes write to one pipe."""
    sys.stdout.write(f"{world.rank} {what} {value}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without torchrun
    data, tasks = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    results = []
    parallel = tasks[0]["parallel"]
    with joined(parallel, device="cpu") as world:
        say(world, "pid", os.getpid())
        for task in tasks:
            run = None if task["run"] is None else Run(task["run"])
            try:
                results.append(one_task(data, task, run, world))
            except (SaveError, ValueError) as error:
                if not task.get("catch"):
                    raise
                say(world, "failed", f"{type(error).__name__}: {error}")
        if world.is_main:
            Path(sys.argv[2] + ".done").write_text(json.dumps(results))


def one_task(data: Path, task: dict[str, Any], run: Run | None, world: World) -> dict[str, Any]:
    if run is None:
        return go(make_trainer(data, None, task["options"], world), resume=False, stop=None)
    with world.lock(run):
        trainer = make_trainer(data, run.path, task["options"], world)
        signal.signal(signal.SIGTERM, lambda *_: trainer.request_stop())
        if task.get("vanish") and world.is_main:
            run.path.rename(run.path.with_name("gone"))
        say(world, "running", 0)
        result = go(trainer, resume=task.get("resume", False), stop=task.get("stop"))
        say(world, "stopped", result["step"])
        return result


if __name__ == "__main__":
    main()
