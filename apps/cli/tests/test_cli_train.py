"""yocto-train from its flags to its end: lines, files, lists, resuming."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
from yocto_cli import eval as evaluate
from yocto_cli import export, prepare, sample, train
from yocto_cli.arguments import flags_of
from yocto_cli.command import UsageError
from yocto_cli.train_data import data_directory, open_data
from yocto_cli.train_settings import DataFlags, TrainArguments, settings
from yocto_data import DataMeta
from yocto_train import RECIPES, Run, TrainConfigError


def rows_of(run: Path, event: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl for one kind of event."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == event]


def test_lines_and_files_agree(training: Any, home: Path) -> None:
    """Off a terminal: no escapes, one line per report, the figures of metrics.jsonl."""
    done = training("--max_iters=8", "--log_interval=2", "--eval_interval=4", "--sample_interval=8")
    assert done.code == 0, done.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.out)
    run = home / "checkpoints" / "poem"
    for event, name in (("stepdone", "loss"), ("evaluated", "val_loss")):
        lines = re.findall(rf"^step=(\d+) {name}=([\d.]+) ", done.out, re.MULTILINE)
        expected = [(str(row["step"]), f"{row['loss']:.4f}") for row in rows_of(run, event)]
        assert expected == lines
    assert done.out.splitlines()[-1].startswith("talk:   uv run yocto-chat --ckpt checkpoints/poem")
    assert "<h1>poem</h1>" in (run / "report.html").read_text()
    assert "finished · step 8 of 8" in (run / "report.html").read_text()


def test_a_short_run_is_not_spent_on_evaluations(training: Any, home: Path) -> None:
    """Up to 25 steps there is one evaluation, one sample, one checkpoint: at the end."""
    assert training("--max_iters=20").code == 0
    run = home / "checkpoints" / "poem"
    for event in ("evaluated", "saved"):
        assert [20] == [row["step"] for row in rows_of(run, event)]
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
    whole = [row["loss"] for row in rows_of(path, "evaluated")]
    done = run(train.main, ["--resume", "checkpoints/poem/step-00000004"])
    assert done.code == 0, done.err
    assert "after step 4" in done.out
    assert whole == [row["loss"] for row in rows_of(path, "evaluated")]
    assert 1 == len(list(path.glob("step-00000006.old-*")))
    again = run(train.main, ["--resume=checkpoints/poem/latest.pt"])
    assert "the run is finished; to train longer, give --max_iters above 6" in again.out


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


@pytest.mark.parametrize(("words", "what"), [
    ("--list", "no run in checkpoints; train one: uv run yocto-train"),
    ("--parallel=ddp", "uv run torchrun --nproc-per-node 2 --no-python yocto-train --parallel ddp"),
    *((f"--resume={name}", "nothing to resume") for name in ("none", "step-00000001", "x/best.pt")),
    *((f"--run_name={name}", f"--run_name {name} must be the name of one directory")
      for name in ("a/b", "a/", "/a", "..", ".")),
])  # fmt: skip
def test_what_cannot_be_is_refused(
    words: str, what: str, refused: Any, char_data: Path, home: Path
) -> None:
    """Before anything is made; a missing run is never a silent fresh start."""
    assert what in refused(train.main, [f"--data_dir={char_data}", "--max_iters=2", words])
    assert [] == list(home.iterdir())


@pytest.mark.parametrize(("words", "what"), [
    ("--minutes=10 --max_iters=60", "use only one of --minutes and --max_iters"),
    ("--minutes=-1", "--minutes must be above 0"),
    ("--batch_size=0", "batch_size"),
    ("--n_head=3 --n_embd=32", "n_embd"),
    ("--run_name=a/b", "must be the name of one directory"),
    ("--run_name=taken", "taken already exists"),
])  # fmt: skip
def test_flags_are_looked_at_before_a_text_is_prepared(
    words: str, what: str, refused: Any, home: Path
) -> None:
    """Nothing is written for a training that could not begin."""
    (home / "lamp.txt").write_text(TEXT)
    (home / "checkpoints" / "taken" / "step").mkdir(parents=True)
    assert what in refused(train.main, ["--text_path=lamp.txt", *words.split()])
    assert {"lamp.txt", "checkpoints"} == {path.name for path in home.iterdir()}


def test_a_time_is_not_resumed(refused: Any, training: Any, home: Path) -> None:
    """A resumed run ends at a step; --minutes with it is refused, not overlooked."""
    assert training("--max_iters=2", "--eval_interval=2").code == 0
    said = refused(train.main, ["--resume", "checkpoints/poem", "--minutes=1"])
    assert "give --max_iters instead" in said


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
    best = min(row["loss"] for row in rows_of(home / "checkpoints" / "good", "evaluated"))
    line = rf"^good +val {best:.3f} +0\.00M +4/4 steps +\d+s ago$"
    assert re.search(line, done.out, re.MULTILINE)
    assert "uv run yocto-chat --ckpt checkpoints/good\n" in done.out
    assert re.search(r"^torn .*\n  broken: .*model.safetensors is damaged", done.out, re.MULTILINE)
    assert "--ckpt checkpoints/torn" not in done.out
    assert re.search(r"^begun +no checkpoint", done.out, re.MULTILINE)
    assert "no run" not in done.out


def test_unused_data_is_told_by_content(training: Any, run: Any, home: Path) -> None:
    """What a run was trained on stays, wherever it is; the rest is listed, and removed if asked."""
    for name, text in (("used", TEXT), ("unused", TEXT * 2)):
        Path("lamp.txt").write_text(text, encoding="utf-8")
        words = ["char", "--text_path=lamp.txt", f"--out_dir=data/{name}"]
        assert run(prepare.main, words).code == 0
    assert training("--data_dir=data/used", "--max_iters=2").code == 0
    Path("data/used").rename("data/moved")
    Path("checkpoints/used/config.toml").unlink()
    listed = run(train.main, ["--list"]).out
    assert ["data/unused"] == re.findall(r"^(\S+): 0\.0 MB of data that no", listed, re.MULTILINE)
    Path("checkpoints/begun").mkdir()  # nobody knows what this one is trained on
    Path("checkpoints/begun/metrics.jsonl").touch()
    what = "checkpoints/begun does not say what it was trained on"
    assert f"which data is unused cannot be told: {what}\n" in run(train.main, ["--list"]).out
    refused = run(train.main, ["--remove_unused_data"])
    assert f"nothing is removed: {what}; move that run elsewhere first\n" in refused.err
    shutil.rmtree("checkpoints/begun")
    Path("data/unused/diary.txt").touch()
    assert "never replaced" in run(train.main, ["--remove_unused_data"]).err
    Path("data/unused/diary.txt").unlink()
    assert run(train.main, ["--remove_unused_data"]).out == "removed data/unused\n"
    assert ["moved"] == [path.name for path in Path("data").iterdir()]
    again = run(train.main, ["--remove_unused_data"])
    assert again.out == "every data directory in data is used by a run in checkpoints\n"


def test_data_that_was_moved_is_found_again(training: Any, run: Any, home: Path) -> None:
    """A run names its data by path; --data_dir says where it is now, and other data is refused."""
    for name, text in (("one", TEXT), ("two", TEXT * 2)):
        Path("lamp.txt").write_text(text, encoding="utf-8")
        words = ["char", "--text_path=lamp.txt", f"--out_dir=data/{name}"]
        assert run(prepare.main, words).code == 0
    assert training("--data_dir=data/one", "--max_iters=2").code == 0
    Path("data/one").rename("elsewhere")
    missing = run(train.main, ["--resume", "--max_iters=4"])
    assert missing.code == 2
    assert "give the place to which the prepared data was moved" in missing.err
    moved = run(train.main, ["--resume", "--max_iters=4", "--data_dir=elsewhere"])
    assert (moved.code, "after step 2" in moved.out) == (0, True), moved.err
    other = run(train.main, ["--resume", "--max_iters=6", "--data_dir=data/two"])
    assert other.code == 2
    assert "say with --data_dir where the data is that it was trained on" in other.err


def test_the_plan_of_a_run_to_resume_is_of_what_is_left(training: Any, run: Any) -> None:
    """Of the steps up to a new end, those that were done take no more time."""
    assert training("--max_iters=4").code == 0
    done = run(train.main, ["--resume", "--plan", "--max_iters=10"])
    assert "left    6 steps after the 4 that are done\n" in done.out
    assert "left" not in training("--max_iters=4", "--plan").out


@pytest.mark.parametrize("main", [sample.main, evaluate.main, export.main])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    main: Any, training: Any, run: Any, poem: Path, home: Path
) -> None:
    """What opens a run takes its newest sound step, and says what is wrong with others."""
    assert training("--max_iters=4", "--eval_interval=2", "--run_name=torn").code == 0
    (home / "checkpoints/torn/step-00000004/model.safetensors").write_bytes(b"torn")
    words = {
        export.main: ["checkpoints/torn", "torn.gguf"],
        evaluate.main: ["--ckpt=checkpoints/torn", f"--text_path={poem}"],
        sample.main: ["--ckpt=checkpoints/torn", "--max_new_tokens=3"],
    }[main]
    done = run(main, words)
    assert done.code == 0
    assert "note: passed over: checkpoints/torn/step-00000004/model.safet" in done.out + done.err


def test_errors_are_of_settings_that_were_given() -> None:
    """A default that follows another setting is not blamed for it."""
    with pytest.raises(TrainConfigError, match=r"^max_iters must be [^;]*$"):
        settings({"max_iters": -1}, vocab_size=65, shortest_split=10_000)


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
    writer = Mock()
    monkeypatch.setattr("yocto_cli.training.tensorboard", lambda: writer)
    assert training("--tensorboard", "--max_iters=4", "--log_interval=2").code == 0
    assert call("checkpoints/poem/tensorboard", purge_step=None) == writer.call_args
    figures = [figure.args for figure in writer.return_value.add_scalar.call_args_list]
    for event, split in (("stepdone", "train"), ("evaluated", "val")):
        for row in rows_of(home / "checkpoints" / "poem", event):
            assert (f"{split}/loss", row["loss"], row["step"]) in figures
    ((name, _, step),) = (text.args for text in writer.return_value.add_text.call_args_list)
    assert ("sample", 4) == (name, step)
    assert call.close() == writer.return_value.method_calls[-1]


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


# --- its data: prepared once, again when it is asked for otherwise -------------------------------

TEXT = "A lamp was asked what it is for.\nFor going round, said the lamp.\n" * 60


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("lamp.txt").write_text(TEXT, encoding="utf-8")
    return "lamp.txt"


def test_what_is_prepared_is_used_again_and_never_replaced(text: str) -> None:
    """Another text of that name, or another part for validation, gets a directory of its own."""
    first = data_directory(DataFlags(text_path=(text,)))
    assert first == Path("data/lamp-char")
    before = {path: path.read_bytes() for path in first.iterdir()}
    more = data_directory(DataFlags(text_path=(text,), val_ratio=0.3))
    assert DataMeta.load(more).val.tokens > 2 * DataMeta.load(first).val.tokens
    Path("other").mkdir()
    Path("other/lamp.txt").write_text(TEXT[::-1], encoding="utf-8")
    other = data_directory(DataFlags(text_path=("other/lamp.txt",)))
    assert [more, other] == [Path("data/lamp-char-002"), Path("data/lamp-char-003")]
    assert first == data_directory(DataFlags(text_path=(text,)))
    assert more == data_directory(DataFlags(text_path=(text,), val_ratio=0.3))
    assert other == data_directory(DataFlags(text_path=("other/lamp.txt",)))
    assert before == {path: path.read_bytes() for path in first.iterdir()}


def test_several_files_are_prepared_once(text: str) -> None:
    """A directory or a glob means the same files each time; no name of ours holds a star."""
    Path("texts").mkdir()
    for name in ("a.txt", "b.txt"):
        Path("texts", name).write_text(TEXT + name)
    for named, expected in (("texts", "data/texts-char"), ("texts/*.txt", "data/texts-char")):
        assert data_directory(DataFlags(text_path=(named,))) == Path(expected)
    assert ["texts-char"] == [path.name for path in Path("data").iterdir()]


@pytest.mark.parametrize(
    ("made", "what"),
    [(None, "does not exist"), ("file", "is a file"), ("directory", "holds no meta.json")],
)
def test_data_that_is_not_prepared_is_said_to_be_so(
    made: str | None, what: str, tmp_path: Path
) -> None:
    """The commonest mistake, a text as --data_dir, is told with the flag for texts."""
    path = tmp_path / "here"
    if made == "file":
        path.write_text(TEXT)
    elif made:
        path.mkdir()
    with pytest.raises(UsageError, match=f"--data_dir .*{what}.* as --text_path"):
        open_data(DataFlags(data_dir=str(path)), path)


def test_data_of_another_text_is_not_replaced(text: str) -> None:
    """In a directory that was named; the error says both ways out."""
    directory = data_directory(DataFlags(text_path=(text,), data_dir="mine"))
    before = (directory / "meta.json").read_bytes()
    Path("other.txt").write_text(TEXT[::-1], encoding="utf-8")
    for flags in (
        DataFlags(text_path=("other.txt",), data_dir="mine"),
        DataFlags(text_path=(text,), data_dir="mine", val_ratio=0.3),
    ):
        with pytest.raises(UsageError, match=r"^mine was not prepared from .*another --data_dir"):
            data_directory(flags)
    assert before == (directory / "meta.json").read_bytes()


RECORDS = "".join(f'{{"body": "lamp {n} burns low"}}\n' for n in range(40))
CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        ("a.txt", TEXT.encode("utf-16"), "utf-16"),
        ("a.txt", TEXT.encode("utf-16-le"), "utf-16-le"),
        ("a.txt", TEXT.replace("lamp", "l\xe4mp").encode("cp1252"), "cp1252"),
        ("a.txt", "\u0441\u043b\u043e\u0432\u043e\n".encode("cp1251") * 99, "cp1251"),
        ("a.txt", TEXT.replace("lamp", "l\xe4mp").encode() + b"\xff", "replace"),
        ("a.jsonl", RECORDS.encode(), "body"),
        ("a.jsonl", (CHAT * 20 + RECORDS).encode(), "1"),
    ],
)
def test_advice_names_flags_of_a_command_that_then_works(
    name: str, content: bytes, value: str, *, run: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What an error says to type is typed: it prepares the text."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(UsageError, match="yocto-prepare") as raised:
        data_directory(DataFlags(text_path=(name,)))
    found = re.search(r"yocto-prepare (.*), then --data_dir data/mine", str(raised.value))
    assert found is not None
    words = [re.sub("^(NAME|KEY|SHARE)$", value, word) for word in shlex.split(found[1])]
    assert value == words[-1]
    assert run(prepare.main, words).code == 0
    assert data_directory(DataFlags(data_dir="data/mine")).is_dir()
