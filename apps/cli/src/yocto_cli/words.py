"""Numbers in words."""


def counted(number: int, noun: str) -> str:
    """`1 turn`, `2 turns`, `1,000 turns`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
