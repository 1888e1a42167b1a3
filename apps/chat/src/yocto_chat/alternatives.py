"""/alts: step along a reply, see what else the model might have said, and let it say that."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.output import ColorDepth
from yocto_cli.screen.terminal import no_colour, one_line
from yocto_model import Token
from yocto_tokenizers import Tokenizer

from yocto_chat.generation import Generation
from yocto_chat.reader import without_cpr_warning

SHOWN = 5
_BAR_CELLS = 24
_CONTEXT_CHARACTERS = 120  # of the reply, on either side of the token


@dataclass(frozen=True, kw_only=True)
class Option:
    """A token at a place of the reply: the one drawn, or another that was likely."""

    id: int
    text: str  # in quotes
    rank: int | None  # 1 for the likeliest; None beyond those that are known
    probability: float  # before any filter
    drawn: bool


def options_at(token: Token, tokenizer: Tokenizer) -> list[Option]:
    """The likeliest tokens at a place, and the one that was drawn if it is not among them."""
    names = {number: name for name, number in tokenizer.special_tokens.items()}

    def option(id_: int, logprob: float, rank: int | None) -> Option:
        return Option(
            id=id_,
            text=names.get(id_) or repr(tokenizer.decode_bytes([id_]).decode("utf-8", "replace")),
            rank=rank,
            probability=math.exp(min(logprob, 0.0)),
            drawn=id_ == token.id,
        )

    ranked = [option(*pair, rank) for rank, pair in enumerate(token.alternatives, start=1)]
    if not any(each.drawn for each in ranked):
        drawn = option(token.id, -math.inf if token.logprob is None else token.logprob, None)
        return [*ranked[:SHOWN], drawn]
    return [each for index, each in enumerate(ranked) if index < SHOWN or each.drawn]


class Browser:
    """A place in a reply, and the option chosen there."""

    def __init__(self, reply: Generation, tokenizer: Tokenizer) -> None:
        self._tokens, self._tokenizer = reply.shown, tokenizer
        self._places = [place for place, token in enumerate(reply.shown) if token.text]
        self._index = 0
        self.move(0)

    def move(self, by: int) -> None:
        """Move along the reply."""
        self._index = min(max(0, self._index + by), len(self._places) - 1)
        self.options = options_at(self._tokens[self.place], self._tokenizer)
        self._choice = next(i for i, option in enumerate(self.options) if option.drawn)

    @property
    def place(self) -> int:
        """Index of the token in the reply."""
        return self._places[self._index]

    @property
    def chosen(self) -> Option:
        return self.options[self._choice]

    def to_surprise(self) -> None:
        """Go to the next place where the likeliest token was not drawn."""
        for index in range(self._index + 1, len(self._places)):
            token = self._tokens[self._places[index]]
            if token.alternatives and token.alternatives[0][0] != token.id:
                self.move(index - self._index)
                return

    def choose(self, by: int) -> None:
        self._choice = min(max(0, self._choice + by), len(self.options) - 1)

    def fragments(self, *, columns: int, unicode: bool) -> StyleAndTextTuples:
        """What to draw in a window this wide."""
        before = "".join(token.text for token in self._tokens[: self.place])
        after = "".join(token.text for token in self._tokens[self.place + 1 :])
        arrows = ("←→", "↑↓") if unicode else ("Left/Right", "Up/Down")
        keys = f"{arrows[0]} along the reply, Tab to a surprise, {arrows[1]} choose"
        return [
            ("", one_line(before[-_CONTEXT_CHARACTERS:])),
            ("reverse", one_line(self._tokens[self.place].text)),
            ("", one_line(after[:_CONTEXT_CHARACTERS])),
            ("", f"\n\ntoken {self._index + 1} of {len(self._places)}\n"),
            *(self._row(option, columns, "█" if unicode else "#") for option in self.options),
            ("dim", f"{keys}, Enter swaps, q leaves"),
        ]

    def _row(self, option: Option, columns: int, block: str) -> tuple[str, str]:
        mark = ">" if option is self.chosen else " "
        rank = f"{option.rank}." if option.rank else "-"
        note = "said" if option.drawn else ""
        share = f"{100 * option.probability:5.1f} %"
        text = f"{mark} {rank:>2} {one_line(option.text):<5} {share} {note:<4} "
        cells = max(0, min(_BAR_CELLS, columns - len(text) - 1))
        bar = block * round(option.probability * cells)
        return "bold" if mark == ">" else "", f"{text}{bar}\n"


def choose(reply: Generation, tokenizer: Tokenizer, *, unicode: bool) -> tuple[int, int] | None:
    """Let the user step along a reply, at least one of whose tokens has text.

    Returns:
        The place and the id to put there, or None to leave the reply as it is.
    """
    browser = Browser(reply, tokenizer)

    def fragments() -> StyleAndTextTuples:
        columns = application.output.get_size().columns
        return browser.fragments(columns=columns, unicode=unicode)

    control = FormattedTextControl(fragments, show_cursor=False)
    application: Application[tuple[int, int] | None] = Application(
        layout=Layout(Window(control, wrap_lines=True, dont_extend_height=True)),
        key_bindings=_keys(browser),
        erase_when_done=True,
        color_depth=ColorDepth.DEPTH_1_BIT if no_colour() else None,
    )
    without_cpr_warning(application)
    return application.run()


def _keys(browser: Browser) -> KeyBindings:
    keys = KeyBindings()

    def on(*names: str, do: Callable[[], None]) -> None:
        for name in names:
            keys.add(name)(lambda _event: do())

    on("left", "h", do=lambda: browser.move(-1))
    on("right", "l", do=lambda: browser.move(1))
    on("home", do=lambda: browser.move(-(1 << 30)))
    on("end", do=lambda: browser.move(1 << 30))
    on("tab", do=browser.to_surprise)
    on("up", "k", do=lambda: browser.choose(-1))
    on("down", "j", do=lambda: browser.choose(1))

    @keys.add(Keys.Enter)
    def _(event: KeyPressEvent) -> None:
        chosen = browser.chosen
        event.app.exit(result=None if chosen.drawn else (browser.place, chosen.id))

    @keys.add("q")
    @keys.add(Keys.Escape, eager=True)
    @keys.add(Keys.ControlC)
    @keys.add(Keys.ControlD)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result=None)

    return keys
