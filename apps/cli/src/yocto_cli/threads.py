"""How many processor threads compute, and how they wait for each other.

OpenMP reads both from the environment, once, as torch is imported: so this comes before.
"""

import os
import sys

from yocto_cli.command import UsageError

# Weights of which one thread computes a token as fast as several: they fit a core's own caches, and
# each product is over before the others have been woken.
_SMALL_BYTES = 16 << 20
# How often a thread looks for work before it sleeps. By default it looks for milliseconds, in which
# a busy neighbour gets no turn and the thread that has the work neither; not looking at all costs a
# quiet machine an eighth of a training's speed.
_LOOKS = "1000"


def use_threads(asked: int, *, n_bytes: int | None = None) -> None:
    """Choose the threads, unless the user's environment does; equal commands get equal numbers.

    Args:
        asked: a number that the user named; 0 for none.
        n_bytes: the size of the weights of a model that writes; None for training.

    Raises:
        UsageError: the number is negative.
    """
    if asked < 0:
        raise UsageError(f"--threads must be at least 0, not {asked}")
    if "torch" in sys.modules:  # too late for the environment
        if asked:
            sys.modules["torch"].set_num_threads(asked)
        return
    if asked:
        os.environ["OMP_NUM_THREADS"] = str(asked)
    elif n_bytes is not None and n_bytes < _SMALL_BYTES:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _LOOKS)
