"""Flipped bits and cut files: refused by name, and the checkpoint before is used."""

import random
import shutil
from pathlib import Path

from yocto_train import Run

from .ledger import Ledger
from .victim import STEPS, Stage, snapshot, train

NEWEST = f"step-{STEPS:08d}"


def damage(stage: Stage, root: Path, ledger: Ledger, *, flips: int = 200) -> None:
    """Damage each file of the newest checkpoint of a run, once at a time.

    Args:
        stage: its data is trained on.
        root: where the run goes; a directory of that name is replaced.
        ledger: what it counts in.
        flips: bits to flip in each file.
    """
    path = root / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    train(stage.data, path)
    for file in sorted((path / NEWEST).iterdir()):
        flip(path, file, ledger, flips)
        cut(path, file, ledger)
        go_on(stage, path, file, ledger)


def flip(path: Path, file: Path, ledger: Ledger, count: int) -> None:
    """Bits at random places, one at a time."""
    sound = file.read_bytes()
    places = random.Random(count)  # noqa: S311 - no secret
    for _ in range(count):
        damaged = bytearray(sound)
        place = places.randrange(len(sound))
        damaged[place] ^= 1 << places.randrange(8)
        file.write_bytes(damaged)
        ledger.count(f"one flipped bit: {file.name}", _problem(path, f"byte {place}"))
    file.write_bytes(sound)


def cut(path: Path, file: Path, ledger: Ledger) -> None:
    """The file ends too early: at 0, 1, half and all but one of its bytes."""
    sound = file.read_bytes()
    for length in (0, 1, len(sound) // 2, len(sound) - 1):
        file.write_bytes(sound[:length])
        ledger.count(f"cut short: {file.name}", _problem(path, f"cut to {length}"))
    file.write_bytes(sound)


def go_on(stage: Stage, path: Path, file: Path, ledger: Ledger) -> None:
    """A training goes on from the step before, and comes to the same end."""
    expected, sound = snapshot(path), file.read_bytes()
    file.write_bytes(sound[:-1])
    resumed = path.with_name("resumed")
    shutil.copytree(path, resumed, symlinks=True)
    file.write_bytes(sound)
    train(stage.data, resumed)
    found = {name: value for name, value in snapshot(resumed).items() if ".old-" not in name}
    shutil.rmtree(resumed)
    ledger.count(f"gone on without: {file.name}", None if expected == found else "another end")


def _problem(path: Path, what: str) -> str | None:
    """What is wrong with how a damaged newest checkpoint is taken, or None."""
    newest = Run(path).latest()
    if newest.step != STEPS - 2:
        return f"{what} was not noticed"
    (why,) = newest.skipped
    return None if NEWEST in why and "\n" not in why else f"{what}: said as {why!r}"
