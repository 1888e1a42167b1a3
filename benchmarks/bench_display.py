"""Time of training with the live screen over the time without it, both in turns.

uv run nox -s bench -- display

The screen is drawn on a real pseudo-terminal of 80 x 24, which a thread reads. Steps are counted,
not reports, so a screen that slowed steps down would show here.
"""

import contextlib
import fcntl
import os
import statistics
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator

from common import machine, prepared, trainer
from yocto_cli.screen.curve import History
from yocto_cli.screen.display import FRAME_RATE, LiveDisplay
from yocto_cli.screen.ladder import Baseline
from yocto_train import Event, Run, StepDone, Trainer

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
STEPS = 60  # a round: some seconds
ROUNDS = 7
BASELINES = tuple(
    Baseline(name=name, loss=loss) for name, loss in (("uniform", 4.2), ("pairs", 2.4))
)


@contextlib.contextmanager
def on_a_terminal() -> Iterator[None]:
    """Stdout and stdin are a terminal, and what is written to it is read."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.environ["TERM"] = "xterm-256color"

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(ours, 1 << 16):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    before = sys.stdout, sys.stdin
    with os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as out, os.fdopen(
        os.dup(theirs), encoding="utf-8"
    ) as into:  # fmt: skip
        sys.stdout, sys.stdin = out, into
        try:
            yield
        finally:
            sys.stdout, sys.stdin = before
    os.close(ours)


def seconds(events: Iterator[Event], history: History, show: LiveDisplay | None) -> float:
    """Time of a round of steps."""
    begun = time.perf_counter()
    for event in events:
        history.take(event)
        if show is not None:
            show.show(event)
        if isinstance(event, StepDone) and event.step % STEPS == 0:
            break
    return time.perf_counter() - begun


def milliseconds_per_frame(display: LiveDisplay, subject: Trainer, frames: int = 200) -> float:
    """Processor time to draw one frame, in which the trainer's step has changed."""
    live = display._live  # noqa: SLF001 - rich's, to draw without its thread
    assert live is not None
    begun = time.thread_time()
    for _ in range(frames):
        subject.progress.step += 1
        live.refresh()
    subject.progress.step -= frames
    return 1000 * (time.thread_time() - begun) / frames


def main() -> None:
    machine()
    train = {"max_iters": 100_000, "batch_size": 12, "eval_interval": 100_000, "log_interval": 10,
             "warmup_iters": 10}  # fmt: skip
    subject: Trainer = trainer(prepared(), SHAPE, train, "modern")
    history, events = History(), subject.run()
    seconds(events, history, None)  # warms up the caches
    without, shown = [], []
    for _ in range(ROUNDS):
        without.append(seconds(events, history, None))
        with on_a_terminal():
            display = LiveDisplay(
                subject, Run("checkpoints/run"), history=history, baselines=BASELINES
            )
            with display:
                shown.append(seconds(events, history, display))
                frame = milliseconds_per_frame(display, subject)
    ratios = [b / a for a, b in zip(without, shown, strict=True)]
    print(
        f"a step  {1000 * statistics.median(without) / STEPS:.2f} ms without the screen, "
        f"{1000 * statistics.median(shown) / STEPS:.2f} ms with it; ratio of medians "
        f"{statistics.median(shown) / statistics.median(without):.4f}, of rounds "
        f"{min(ratios):.3f} to {max(ratios):.3f}"
    )
    print(
        f"a frame {frame:.2f} ms of one processor, {FRAME_RATE} times a second: "
        f"{frame * FRAME_RATE / 10:.2f} % of it"
    )


main()
