"""Screen: everything that the chat writes to the terminal between two prompts.

Replies are written as they come, in plain writes; tables are drawn by rich. Whatever came from a
model, a file or a user passes `visible` before it is written.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from yocto_cli.screen.terminal import VisibleStream, can_show, is_terminal, no_colour, visible

from yocto_chat.probabilities import shade_of
from yocto_chat.take import Span
from yocto_chat.wrapping import WordWrap

_WIDTH_ELSEWHERE = 80
#: How much of a reply is repeated, dimmed, where it is continued.
_REPEATED_CHARACTERS = 40


class Screen:
    """Writes to one stream.

    Args:
        out: where to.

    Attributes:
        ansi: whether `out` obeys escape sequences.
        colour: whether it should get colours too.
        unicode: whether it can show signs beyond ASCII.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.ansi = is_terminal(out) and os.environ.get("TERM") != "dumb"
        self.colour = self.ansi and not no_colour()
        self.unicode = can_show(out, "·─│█¶")
        self.dot = " · " if self.unicode else " - "

    @property
    def width(self) -> int:
        """Cells per line, now: a window may have been resized."""
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self._out.fileno()).columns or _WIDTH_ELSEWHERE
        return _WIDTH_ELSEWHERE

    def line(self, text: str = "", *, dim: bool = False) -> None:
        """Write text, broken between words where it is wider than the window, and end the line."""
        # Bold and dim are no colours: they stay where NO_COLOR is set.
        style = "\x1b[2m" if dim and text and self.ansi else ""
        wrap = WordWrap(movable=self.ansi)
        self.put(wrap.push(visible(text), width=self.width, style=style) + "\n")

    def notice(self, text: str) -> None:
        """Something that happened and would otherwise go unnoticed."""
        self.line(f"- {text} -", dim=True)

    def problem(self, text: str) -> None:
        """Something that did not work, and what to do."""
        self.line(f"! {text}")

    def facts(self, *facts: str) -> None:
        """Short facts on one dim line."""
        self.line(self.dot.join(facts), dim=True)

    def draw(self, renderable: RenderableType) -> None:
        """Let rich lay something out; texts in it must have passed `visible`."""
        console = Console(
            file=self._out,
            width=self.width,
            force_terminal=self.ansi,
            no_color=not self.colour,
            color_system="standard" if self.ansi else None,
            highlight=False,
            markup=False,
            emoji=False,
            safe_box=not self.unicode,
            legacy_windows=False,
        )
        console.print(renderable)
        self._out.flush()

    def reply(self, *, tinted: bool) -> "ReplyWriter":
        """A writer for one reply.

        Args:
            tinted: show how likely each token was.
        """
        return ReplyWriter(self, tinted=tinted)

    def put(self, text: str) -> None:
        """Write text that is safe already, escape sequences of ours included."""
        self._out.write(text)
        self._out.flush()


class ReplyWriter:
    """Writes a reply piece by piece, breaking lines between words."""

    def __init__(self, screen: Screen, *, tinted: bool) -> None:
        self._screen, self._tinted = screen, tinted and screen.ansi
        self._visible = VisibleStream()
        self._wrap = WordWrap(movable=screen.ansi)
        self._remark = "\x1b[2m" if screen.ansi else ""

    def recall(self, text: str) -> None:
        """Repeat the end of what is to be continued, dimmed."""
        text = text.rpartition("\n")[2]
        if len(text) > _REPEATED_CHARACTERS:
            text = "..." + text[-_REPEATED_CHARACTERS:].partition(" ")[2]
        self._put(text, self._remark)

    def write(self, spans: Sequence[Span]) -> None:
        """Write what was said."""
        for span in spans:
            self._put(span.text, self._style(span))

    def mark(self, text: str) -> None:
        """Add a remark of ours, dimmed."""
        self._put(f" {text}" if self._wrap.column else text, self._remark)

    def end(self) -> None:
        """End the last line, unless nothing stands on it."""
        if self._wrap.column:
            self._screen.put("\n")
            self._wrap.column = 0

    def _put(self, text: str, style: str) -> None:
        text = self._wrap.push(self._visible.push(text), width=self._screen.width, style=style)
        self._screen.put(text)

    def _style(self, span: Span) -> str:
        if not self._tinted or span.logprob is None:
            return ""
        return shade_of(span.logprob).escape(colour=self._screen.colour)
