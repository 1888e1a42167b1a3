"""/compare: the same message, the same seed, several settings."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from yocto_cli.arguments import UsageError
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_cli.screen.terminal import visible

from yocto_chat.chat import Chat
from yocto_chat.speaking import let_speak
from yocto_chat.take import Take

#: A column narrower than this reads badly: the replies are stacked instead.
_NARROWEST_COLUMN = 22


def takes(chat: Chat, settings: Sequence[SamplingArguments]) -> list[Take]:
    """One take for each of the settings, until the user has had enough.

    Raises:
        UsageError: the model could not go on.
    """
    made: list[Take] = []
    seed = chat.next_seed()
    for each in settings:
        take = chat.take_of_last_message(each, seed)
        problem = let_speak(take, lambda _spans: None)
        if problem:
            raise UsageError(f"the model could not go on: {problem}")
        made.append(take)
        if take.finish == "stopped":
            break
    return made


def side_by_side(takes: Sequence[Take], width: int) -> RenderableType:
    """The replies in columns under their temperatures, or one below the other."""
    titles = [f"temperature {take.settings.temperature:g}" for take in takes]
    texts = [Text(visible(take.text) or "(no reply)") for take in takes]
    if width // len(takes) < _NARROWEST_COLUMN:
        stacked: list[RenderableType] = []
        for title, text in zip(titles, texts, strict=True):
            stacked += [Text(title, style="bold"), text, Text()]
        return Group(*stacked[:-1])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for title in titles:
        table.add_column(title, ratio=1)
    table.add_row(*texts)
    return table
