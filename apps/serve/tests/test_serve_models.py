"""Which models are served, while a run goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from yocto_cli.model_arguments import ModelArguments
from yocto_serve.models import Library
from yocto_tokenizers import TURNS, ChatTemplate
from yocto_train import CheckpointError, Run


def library(path: Path, **options: Any) -> Library:
    return Library(ModelArguments(ckpt=str(path), device="cpu"), **options)


@pytest.mark.parametrize(
    ("part", "default", "served"),
    [
        ("", "tiny@latest", "tiny@5"),
        ("latest", "tiny@latest", "tiny@5"),
        ("latest.pt", "tiny@latest", "tiny@5"),
        ("best", "tiny@best", "tiny@3"),
        ("step-00000003", "tiny@3", "tiny@3"),
    ],
)
def test_what_is_served(run_of_two: Path, part: str, default: str, served: str) -> None:
    """What --ckpt names, under that name; the others can be asked for."""
    found = library(run_of_two / part)
    assert (found.default, found.served.id) == (default, served)
    assert next(iter(found.names())) == default
    assert {"tiny@5", "tiny@3", "tiny@best"} <= {*found.names()}
    for name in found.names():
        opened = found.get(name)
        assert opened is not None
        assert opened.id in ("tiny@5", "tiny@3")
    assert found.get(None) is found.get("") is found.get(default) is found.served
    for name in ("tiny@", "@5", "tiny@05", "tiny@-1", "other@5", "tiny@5@5", "tiny/step-00000005"):
        assert found.get(name) is None


def test_a_new_checkpoint_is_taken_up(tmp_path: Path, save: Callable[..., None]) -> None:
    """When the pointer moves; what was opened before stays usable. A step may be trained again."""
    save(tmp_path / "run", 1)
    found = library(tmp_path / "run")
    first = found.served
    assert not found.refresh()
    save(tmp_path / "run", 2)
    assert found.served is first
    assert found.refresh()
    assert (found.served.id, found.default) == ("run@2", "run@latest")
    assert found.get("run@1") is first
    shutil.rmtree(tmp_path / "run" / "step-00000002")
    save(tmp_path / "run", 2, seed=9)
    os.utime(tmp_path / "run" / "step-00000002", (1, 1))
    before = found.served
    assert found.refresh()
    assert found.served is not before
    for step in range(3, 8):  # old ones are not kept in memory
        save(tmp_path / "run", step)
        assert found.refresh()
    assert found.get("run@1") is not first


def test_only_a_pointer_moves(tmp_path: Path, save: Callable[..., None]) -> None:
    """Whoever named a step keeps it."""
    save(tmp_path / "run", 1)
    found = library(tmp_path / "run" / "step-00000001")
    save(tmp_path / "run", 2)
    assert not found.refresh()
    assert found.served.id == "run@1"


def test_a_damaged_checkpoint_does_not_replace_a_sound_one(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    """It is an error each time, and the server goes on with what it has."""
    save(tmp_path / "run", 1)
    found = library(tmp_path / "run")
    save(tmp_path / "run", 2)
    (tmp_path / "run" / "step-00000002" / "model.safetensors").write_bytes(b"no")
    for _ in range(2):
        with pytest.raises(CheckpointError):
            found.refresh()
    assert found.served.id == "run@1"


def test_a_folder_from_elsewhere(run_of_two: Path, tmp_path: Path) -> None:
    """It has one name, its own, and no curve."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    step = run_of_two / "step-00000005"
    for name in ("config.json", "model.safetensors", "vocab.json"):
        (folder / name).write_bytes((step / name).read_bytes())
    found = library(folder)
    assert (found.default, [*found.names()], found.run) == ("my-model", ["my-model"], None)
    assert not found.refresh()
    assert found.get("my-model@1") is None


def test_a_template_of_ones_own(run_of_two: Path) -> None:
    found = library(run_of_two, template=ChatTemplate(TURNS))
    assert found.served.layout.template.source == TURNS
    assert Run(run_of_two).steps()
