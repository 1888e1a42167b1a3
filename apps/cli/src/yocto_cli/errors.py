"""The two ways in which a command of ours gives up on purpose.

Everything else that can go wrong is an error of a package, translated in command.py.
"""

from collections.abc import Sequence

_LINE_CHARACTERS = 220


class UsageError(Exception):
    """The user must change something; found before work starts. The command exits with 2.

    Args:
        problems: one line each: what, where; what to do.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(_together(self.problems))


def _together(problems: Sequence[str]) -> str:
    """All problems in one line; as many as fit a line of an error, and the number of the others."""
    if len(problems) == 1:
        return problems[0]
    shown: list[str] = []
    for number, problem in enumerate(problems, start=1):
        if shown and sum(map(len, shown)) + len(problem) > _LINE_CHARACTERS:
            shown.append(f"and {len(problems) - len(shown)} more")
            break
        shown.append(f"({number}) {problem}")
    return f"{len(problems)} problems: {' '.join(shown)}"


class WorkFailedError(Exception):
    """The work itself failed, through no fault of the arguments. The command exits with 1."""
