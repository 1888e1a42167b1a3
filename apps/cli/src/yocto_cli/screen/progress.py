"""How far a long job is: a bar on a terminal, a line now and then elsewhere, both on stderr."""

import sys
import time
from typing import TYPE_CHECKING, Self

from yocto_cli.screen.terminal import has_colour

if TYPE_CHECKING:
    from rich.progress import Progress

_SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """Shows `update`s while its `with` block runs."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if has_colour(sys.stderr):
            self._bar = _new_bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of a job are done; a total of 0 is not known."""
        if self._bar is not None:
            tasks = {task.description: task.id for task in self._bar.tasks}
            task = tasks[what] if what in tasks else self._bar.add_task(what)
            self._bar.update(task, completed=done, total=total or None)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share = f" {done / total:.0%}" if total else ""
            print(f"{what}:{share} {done / 1e6:.1f} MB", file=sys.stderr, flush=True)


def _new_bar() -> "Progress":
    from rich import progress as rich  # noqa: PLC0415 - only where there is a terminal
    from rich.console import Console  # noqa: PLC0415 - the same

    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        refresh_per_second=4,
        transient=True,
    )
