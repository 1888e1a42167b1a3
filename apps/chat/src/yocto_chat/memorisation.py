"""The memorisation meter: how much of a reply the model may simply have learned by heart.

Such meters often use a suffix array, which takes longer to build than to search without one: a
reply has a few hundred characters, and looking for a stretch of it is one pass over the text at the
speed of memory.
"""

import tomllib
from pathlib import Path
from typing import Any

from yocto_cli.command import UsageError
from yocto_cli.screen.terminal import one_line
from yocto_data import DataError, DataMeta, load_bin

from yocto_chat.generation import ChatModel

_MOST_TOKENS = 100_000_000
_METER_CELLS = 30
_MOST_QUOTED = 200


def training_text(model: ChatModel) -> str:
    """The text the model was trained on: the training split that its run's config.toml names.

    Raises:
        UsageError: the run does not say, or the data is gone, or differs.
    """
    data_dir = _data_dir(model.run)
    try:
        meta = DataMeta.load(data_dir)
        if meta.tokenizer.fingerprint != model.tokenizer.fingerprint():
            raise UsageError(f"{data_dir} is not what this model was trained on")
        if meta.train.tokens > _MOST_TOKENS:
            raise UsageError(
                f"the training text is too long to search: {meta.train.tokens:,} tokens"
            )
        ids = load_bin(data_dir / meta.train.file)
    except DataError as error:
        raise UsageError(f"the training text cannot be read: {error}") from error
    return model.tokenizer.decode(ids.numpy())


def _data_dir(run: Path | None) -> Path:
    if run is None:
        raise UsageError("this model does not say what it was trained on")
    path = run / "config.toml"
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    named = _leaf(config, "data_dir")
    if not isinstance(named, str) or not named:
        raise UsageError(f"{path} does not name the training data")
    return Path(named).expanduser()


def _leaf(table: dict[str, Any], key: str) -> object:
    """The value of a key; section headers are decoration."""
    if key in table:
        return table[key]
    inner = (_leaf(value, key) for value in table.values() if isinstance(value, dict))
    return next((value for value in inner if value is not None), None)


def longest_stretch(reply: str, text: str) -> tuple[int, int]:
    """Begin and end, in `reply`, of its longest part that is a part of `text` too.

    Each step either lengthens the stretch that has been found or moves on by one character, so
    there are at most `2 * len(reply)` searches.
    """
    best = (0, 0)
    begin = 0
    while begin + (length := best[1] - best[0]) < len(reply):
        end = begin + length + 1
        if reply[begin:end] in text:
            best = (begin, end)
        else:
            begin += 1
    return best


def report(reply: str, text: str, *, unicode: bool) -> list[str]:
    """What the meter says: a bar, numbers, and the stretch itself."""
    begin, end = longest_stretch(reply, text)
    length = end - begin
    full, empty = ("█", "░") if unicode else ("#", ".")
    cells = round(length / max(1, len(reply)) * _METER_CELLS)
    more = "..." if length > _MOST_QUOTED else ""
    return [
        f"{full * cells}{empty * (_METER_CELLS - cells)} {length} of {len(reply)} characters",
        "are the longest stretch that the training text holds word for word:",
        f'"{one_line(reply[begin:end][:_MOST_QUOTED])}{more}"',
    ]
