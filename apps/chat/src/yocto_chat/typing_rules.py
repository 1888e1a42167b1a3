"""What counts as a finished message while it is typed, the same in every kind of terminal."""

_QUOTES = '"""'


def goes_on(text: str) -> bool:
    r"""Whether Enter at the end of `text` begins a new line instead of sending it.

    It does after a `\\` at the end, and inside three quotes.
    """
    if text.startswith(_QUOTES):
        return not (len(text.rstrip()) >= 2 * len(_QUOTES) and text.rstrip().endswith(_QUOTES))
    return text.endswith("\\")


def next_line(text: str) -> str:
    """`text` with its line ended, for the next one to follow."""
    if text.startswith(_QUOTES):
        return text + "\n"
    return text.removesuffix("\\") + "\n"


def message_of(text: str) -> str:
    """What was meant by what was typed: without its quotes, and with U+FFFD for half characters."""
    if text.startswith(_QUOTES) and not goes_on(text):
        text = text.rstrip()[len(_QUOTES) : -len(_QUOTES)].strip("\n")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
