"""Run the campaign and print what was injected, survived and lost."""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import controls
from .damage import damage
from .kills import kill
from .ledger import Ledger
from .syscalls import inject, obstacle
from .victim import Stage


def main() -> int:
    """The exit code: 0 if nothing was lost and each control noticed."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="how often to kill -9 (%(default)s)")
    parser.add_argument(
        "--every", type=int, default=1, help="of the system calls take each N-th (%(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Whoever ends it early gets the figures so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begun, ledger = time.monotonic(), Ledger()
    silent: list[str] = []
    why: str | None = None
    complete = False
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="yocto-faults-") as name,
    ):
        root = Path(name)
        stage = Stage.build(root)
        why = obstacle()
        silent = controls.silent(stage, root, with_strace=why is None)
        damage(stage, root, ledger)
        kill(stage, root, ledger, rounds=arguments.rounds)
        if why is None:
            inject(stage, root, ledger, every=arguments.every)
        complete = True
    print(ledger.table())
    for control in silent:
        print(f"CONTROL  {control} was not noticed: the campaign proves nothing")
    if why is not None:
        print(f"SKIPPED  faults in system calls: {why}", file=sys.stderr)
    if not complete:
        print("INTERRUPTED  the campaign did not come to its end")
    print(
        f"{ledger.total} faults injected, {ledger.total - ledger.total_lost} survived, "
        f"{ledger.total_lost} lost, in {time.monotonic() - begun:.0f} seconds"
    )
    return 1 if ledger.total_lost or silent or not complete else 0


if __name__ == "__main__":
    sys.exit(main())
