"""How likely each token was, as a tint: calm where the model was sure, hot where it was not."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shade:
    """A range of probabilities.

    Attributes:
        least: the smallest probability it stands for.
        name: how the legend calls it.
        style: how it looks on a terminal with colours, as rich writes styles.
        plain_style: how it looks where colours are not wanted.
    """

    least: float
    name: str
    style: str
    plain_style: str

    def escape(self, *, colour: bool) -> str:
        """The escape sequence that begins it; "" for text that looks like any other."""
        words = (self.style if colour else self.plain_style).split()
        return f"\x1b[{';'.join(_CODES[word] for word in words)}m" if words else ""


# Colours of the reader's own palette, not ours. The two unlikeliest are underlined as well: nobody
# has to tell colours apart to see them.
SHADES = (
    Shade(least=0.8, name="80 % or more", style="green", plain_style=""),
    Shade(least=0.5, name="50 %", style="cyan", plain_style=""),
    Shade(least=0.2, name="20 %", style="yellow", plain_style=""),
    Shade(least=0.05, name="5 %", style="underline magenta", plain_style="underline"),
    Shade(least=0.0, name="less", style="underline red", plain_style="bold underline"),
)
# Select Graphic Rendition, ECMA-48 section 8.3.117.
_CODES = {
    "bold": "1", "underline": "4",
    "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36",
}  # fmt: skip


def shade_of(logprob: float) -> Shade:
    """The shade of a natural log-probability; one that is not a number has the hottest."""
    probability = math.exp(min(logprob, 0.0))
    return next((shade for shade in SHADES if probability >= shade.least), SHADES[-1])
