"""/alts: walk along a reply, see what else the model might have said, and let it say that."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.output import ColorDepth, Output
from yocto_cli.screen.terminal import no_colour, one_line
from yocto_model import Token
from yocto_tokenizers import Tokenizer

from yocto_chat.take import Take

SHOWN = 5
_BAR_CELLS = 24
_CONTEXT_CHARACTERS = 120  # of the reply, on either side of the token


@dataclass(frozen=True, kw_only=True)
class Option:
    """A token that stands, or might have stood, at a place.

    Attributes:
        id: of the token.
        text: its text, on one line, in quotes.
        rank: 1 for the likeliest; None beyond those that are known.
        probability: before any filter.
        drawn: whether it is the one that was drawn.
    """

    id: int
    text: str
    rank: int | None
    probability: float
    drawn: bool


def options_at(token: Token, tokenizer: Tokenizer) -> list[Option]:
    """The likeliest tokens at a place, and the one that was drawn if it is none of them."""
    ranked = [
        _option(tokenizer, token, id_, logprob, rank)
        for rank, (id_, logprob) in enumerate(token.alternatives, start=1)
    ]
    options = [option for option in ranked if option.drawn or (option.rank or 0) <= SHOWN]
    if not any(option.drawn for option in options):
        options.append(_option(tokenizer, token, token.id, token.logprob or -math.inf, None))
    return options


def _option(
    tokenizer: Tokenizer, token: Token, id_: int, logprob: float, rank: int | None
) -> Option:
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    text = names.get(id_) or repr(tokenizer.decode_bytes([id_]).decode("utf-8", "replace"))
    return Option(
        id=id_,
        text=one_line(text),
        rank=rank,
        probability=math.exp(min(logprob, 0.0)),
        drawn=id_ == token.id,
    )


class Walk:
    """The state of the walk: a place, and an option there.

    Args:
        take: the reply; at least one of its tokens is shown.
        tokenizer: the model's.
    """

    def __init__(self, take: Take, tokenizer: Tokenizer) -> None:
        self._take, self._tokenizer = take, tokenizer
        self._places = sorted({span.token for span in take.spans})
        self._index = self._choice = 0
        self._choose_drawn()

    @property
    def length(self) -> int:
        """Number of places."""
        return len(self._places)

    @property
    def place(self) -> int:
        """Index of the token in the take."""
        return self._places[self._index]

    @property
    def options(self) -> list[Option]:
        """What might stand at this place, likeliest first."""
        return options_at(self._take.tokens[self.place], self._tokenizer)

    @property
    def chosen(self) -> Option:
        """The option that Enter takes."""
        return self.options[self._choice]

    def step(self, by: int) -> None:
        """Go along the reply."""
        self._index = min(max(0, self._index + by), len(self._places) - 1)
        self._choose_drawn()

    def to_surprise(self) -> None:
        """Go to the next place where the model did not take its first choice."""
        for index in range(self._index + 1, len(self._places)):
            token = self._take.tokens[self._places[index]]
            if token.alternatives and token.alternatives[0][0] != token.id:
                self._index = index
                self._choose_drawn()
                return

    def choose(self, by: int) -> None:
        """Go along the options."""
        self._choice = min(max(0, self._choice + by), len(self.options) - 1)

    def _choose_drawn(self) -> None:
        self._choice = next(i for i, option in enumerate(self.options) if option.drawn)

    def fragments(self, *, columns: int, unicode: bool) -> StyleAndTextTuples:
        """The walk as it stands, for a window this wide."""
        texts: dict[int, str] = {}
        for span in self._take.spans:
            texts[span.token] = texts.get(span.token, "") + span.text
        before = one_line("".join(texts[p] for p in self._places if p < self.place))
        after = one_line("".join(texts[p] for p in self._places if p > self.place))
        result: StyleAndTextTuples = [
            ("", before[-_CONTEXT_CHARACTERS:]),
            ("reverse", one_line(texts[self.place])),
            ("", after[:_CONTEXT_CHARACTERS]),
            ("", f"\n\ntoken {self._index + 1} of {len(self._places)}\n"),
        ]
        for option in self.options:
            result += self._row(option, columns=columns, unicode=unicode)
        arrows = ("←→", "↑↓") if unicode else ("Left/Right", "Up/Down")
        keys = f"{arrows[0]} along the reply, Tab to a surprise, {arrows[1]} choose"
        return [*result, ("dim", f"{keys}, Enter swaps, q leaves")]

    def _row(self, option: Option, *, columns: int, unicode: bool) -> StyleAndTextTuples:
        mark = ">" if option.id == self.chosen.id else " "
        rank = f"{option.rank}." if option.rank else "-"
        note = "said" if option.drawn else ""
        text = f"{mark} {rank:>2} {option.text:<5} {100 * option.probability:5.1f} % {note:<4} "
        cells = max(0, min(_BAR_CELLS, columns - len(text) - 1))
        bar = ("█" if unicode else "#") * round(option.probability * cells)
        return [("bold" if mark == ">" else "", f"{text}{bar}\n")]


def choose(
    take: Take,
    tokenizer: Tokenizer,
    *,
    unicode: bool,
    terminal_input: Input | None = None,
    terminal_output: Output | None = None,
) -> tuple[int, int] | None:
    """Let the user walk along a take.

    Args:
        take: at least one of its tokens is shown.
        tokenizer: the model's.
        unicode: whether the terminal shows signs beyond ASCII.
        terminal_input: instead of the process's own, in tests.
        terminal_output: the same.

    Returns:
        The place and the id to put there, or None to leave the reply as it is.
    """
    walk = Walk(take, tokenizer)

    def fragments() -> StyleAndTextTuples:
        columns = application.output.get_size().columns
        return walk.fragments(columns=columns, unicode=unicode)

    control = FormattedTextControl(fragments, show_cursor=False)
    application: Application[tuple[int, int] | None] = Application(
        layout=Layout(Window(control, wrap_lines=True, dont_extend_height=True)),
        key_bindings=_keys(walk),
        erase_when_done=True,
        color_depth=ColorDepth.DEPTH_1_BIT if no_colour() else None,
        input=terminal_input,
        output=terminal_output,
    )
    return application.run()


def _keys(walk: Walk) -> KeyBindings:
    """What each key does."""
    keys = KeyBindings()

    def on(*names: str, do: Callable[[], None]) -> None:
        for name in names:
            keys.add(name)(lambda _event: do())

    on("left", "h", do=lambda: walk.step(-1))
    on("right", "l", do=lambda: walk.step(1))
    on("home", do=lambda: walk.step(-walk.length))
    on("end", do=lambda: walk.step(walk.length))
    on("tab", do=walk.to_surprise)
    on("up", "k", do=lambda: walk.choose(-1))
    on("down", "j", do=lambda: walk.choose(1))

    @keys.add(Keys.Enter)
    def _(event: KeyPressEvent) -> None:
        taken = None if walk.chosen.drawn else (walk.place, walk.chosen.id)
        event.app.exit(result=taken)

    @keys.add("q")
    @keys.add(Keys.Escape, eager=True)
    @keys.add(Keys.ControlC)
    @keys.add(Keys.ControlD)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result=None)

    return keys
