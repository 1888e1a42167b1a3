"""The sampling flags, shared by every command that draws tokens."""

import dataclasses
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yocto_cli.errors import UsageError

if TYPE_CHECKING:
    from yocto_model import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class SamplingArguments:
    """How tokens are drawn, in this order: repetition penalty, temperature, top_k, top_p, min_p."""

    max_new_tokens: int = 200
    """How many tokens to add at most."""
    temperature: float = 0.8
    """Below 1 is more cautious, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0 is off."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; 1 is off."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the likeliest; 0 is off."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that have appeared less likely; 1 is off."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not shown."""
    seed: int | None = None
    """Equal seeds give equal text; without one a seed is drawn and printed."""

    def problems(self) -> list[str]:
        """What is out of range, one line each; imports the model package to ask it."""
        from yocto_model import SamplingError, SamplingOptions  # noqa: PLC0415 - brings torch in

        found = []
        for name in _option_names():
            try:
                SamplingOptions(**{name: getattr(self, name)})
            except SamplingError as error:
                found.append(f"--{error}")
        if self.max_new_tokens < 1:
            found.append(f"--max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            found.append(f"--seed must be from 0 to 2^63 - 1, not {self.seed}")
        if "" in self.stop:
            found.append("--stop must not be empty; leave it out")
        return found

    def options(self) -> "SamplingOptions":
        """The same, as yocto-model takes it.

        Raises:
            UsageError: something is out of range; all of it is named.
        """
        from yocto_model import SamplingOptions  # noqa: PLC0415 - brings torch in

        if problems := self.problems():
            raise UsageError(problems)
        return SamplingOptions(**{name: getattr(self, name) for name in _option_names()})

    def seed_or_drawn(self) -> int:
        """The seed, or a new one, short enough to be typed again."""
        return secrets.randbelow(2**31) if self.seed is None else self.seed


def _option_names() -> list[str]:
    from yocto_model import SamplingOptions  # noqa: PLC0415 - brings torch in

    return [field.name for field in dataclasses.fields(SamplingOptions)]
